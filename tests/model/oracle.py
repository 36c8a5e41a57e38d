"""The equations of the papers in float64 NumPy, for one sentence at a time, independent of the library."""

import math

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def soft_cap(scores, cap):
    """Gemma Team 2024, section 2."""
    return scores if cap is None else cap * np.tanh(scores / cap)


def attention(q, k, v, visible, cap=None):
    """Equation 1, with -inf where a query may not see a key."""
    scores = soft_cap(q @ k.T / np.sqrt(q.shape[1]), cap)
    return softmax(np.where(visible, scores, -np.inf)) @ v


def multi_head(x, memory, weights, num_heads, visible, positions=None, num_kv_heads=None, cap=None):
    """Section 3.2.2. Head i uses its own columns of W^Q, and the columns of its group in W^K and W^V.

    The groups are those of Ainslie et al. 2023. Norms and gates are applied if they have weights.
    """
    num_kv_heads = num_kv_heads or num_heads
    heads = {"query": num_heads, "key": num_kv_heads, "value": num_kv_heads}
    w_q, w_k, w_v = (np.split(weights[name]["kernel"], heads[name], axis=1) for name in heads)
    concat = []
    for i in range(num_heads):
        group = i * num_kv_heads // num_heads
        q, k, v = x @ w_q[i], memory @ w_k[group], memory @ w_v[group]
        if "query_norm" in weights:
            q, k = rms_norm(q, weights["query_norm"]), rms_norm(k, weights["key_norm"])
        if positions is None:
            concat.append(attention(q, k, v, visible, cap))
        else:
            concat.append(positions.attend(i, q, k, v, visible))
    y = np.concatenate(concat, axis=1)
    if "gate" in weights:  # Qiu et al. 2025
        y = y * sigmoid(x @ weights["gate"]["kernel"])
    return y @ weights["output"]["kernel"]


def feed_forward(x, weights):
    """Equation 2."""
    inner, outer = weights["inner"], weights["outer"]
    return np.maximum(0, x @ inner["kernel"] + inner["bias"]) @ outer["kernel"] + outer["bias"]


def layer_norm(x, weights, eps=1e-6):
    """Ba et al. 2016, with the biased variance."""
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)
    return centred / deviation * weights["scale"] + weights["bias"]


def rms_norm(x, weights, eps=1e-6):
    """Zhang and Sennrich 2019."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + eps) * weights["scale"]


def sinusoid(length, d_model):
    """Section 3.5, entry by entry."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


def sinusoid_concat(length, d_model):
    """The table of tensor2tensor: sines, then cosines. Wavelengths grow geometrically up to 20,000 pi."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos * math.exp(-i * math.log(10_000) / (d_model // 2 - 1))
            table[pos, i], table[pos, d_model // 2 + i] = math.sin(angle), math.cos(angle)
    return table


class PlainAttention:
    """Self-attention, computed one logit at a time. Subclasses are position schemes that act in attention."""

    def __init__(
        self,
        params=None,
        layer=0,
        num_heads=1,
        causal=False,
        max_distance=None,
        cap=None,
        rope=(10_000, None),
    ):
        self.params, self.layer, self.num_heads, self.causal = params, layer, num_heads, causal
        self.max_distance, self.cap = max_distance, cap
        self.rope_base, self.num_rotated = rope

    def score(self, head, q, k, i, j):
        return q @ k / np.sqrt(len(q))

    def value(self, head, v, i, j):
        return v

    def attend(self, head, q, k, v, visible):
        keys = range(len(k))
        scores = np.array([[self.score(head, q[i], k[j], i, j) for j in keys] for i in range(len(q))])
        weights = softmax(np.where(visible, soft_cap(scores, self.cap), -np.inf))
        return np.array(
            [
                sum(weights[i, j] * self.value(head, v[j], i, j) for j in keys if visible[i, j])
                for i in range(len(q))
            ]
        )


class Relative(PlainAttention):
    """Shaw et al. 2018, equations 3 and 4."""

    def row(self, table, head, i, j):
        clip = (table.shape[2] - 1) // 2
        return table[self.layer, head, max(-clip, min(clip, j - i)) + clip]

    def score(self, head, q, k, i, j):
        return q @ (k + self.row(self.params["key_table"], head, i, j)) / np.sqrt(len(q))

    def value(self, head, v, i, j):
        return v + self.row(self.params["value_table"], head, i, j)


class T5Bias(PlainAttention):
    """Raffel et al. 2020, section 2.1: 32 biases per head, for ranges of distances up to 128."""

    def score(self, head, q, k, i, j):
        ranges, last = 32 if self.causal else 16, self.max_distance or 128
        exact, distance = ranges // 2, abs(j - i)
        number = min(distance, exact)

        def reaches(n):
            """Tests distance >= exact (last / exact)^(n / (ranges - exact)) with integers only."""
            return distance ** (ranges - exact) * exact**n >= exact ** (ranges - exact) * last**n

        while distance >= exact and number + 1 < ranges and reaches(number + 1 - exact):
            number += 1
        side = ranges if not self.causal and j > i else 0
        return super().score(head, q, k, i, j) + self.params["table"][side + number, head]


class Alibi(PlainAttention):
    """Press et al. 2022, section 3: 8 heads have slopes 1/2, 1/4, ..., 1/256.

    3 heads have the slopes of 2 heads, and the first slope of 4 heads.
    """

    def score(self, head, q, k, i, j):
        slopes = {3: [2**-4, 2**-8, 2**-2], 8: [2.0**-n for n in range(1, 9)]}[self.num_heads]
        return super().score(head, q, k, i, j) - slopes[head] * abs(i - j)


class Rope(PlainAttention):
    """Su et al. 2021, equation 15: a block-diagonal matrix of rotations by m theta_i.

    The first `num_rotated` channels are rotated, the others are not (Black et al. 2022, section 2.1.1).
    """

    def rotation(self, m, d):
        matrix, num_rotated = np.eye(d), self.num_rotated or d
        for i in range(num_rotated // 2):
            angle = m * self.rope_base ** (-2 * i / num_rotated)
            block = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
        return matrix

    def score(self, head, q, k, i, j):
        return super().score(head, self.rotation(i, len(q)) @ q, self.rotation(j, len(k)) @ k, i, j)


class GridRope(PlainAttention):
    """Axial RoPE (Heo et al. 2024, section 3.2): one half of the channels has the row, the other the column.

    `places` has the row and the column of each token; the class token has None.
    """

    def __init__(self, places, base):
        super().__init__(rope=(base, None))
        self.places = places

    def turned(self, x, place):
        if place is None:
            return x
        halves = np.split(x, 2)
        turned = [Rope.rotation(self, m, len(half)) @ half for m, half in zip(place, halves, strict=True)]
        return np.concatenate(turned)

    def score(self, head, q, k, i, j):
        return super().score(head, self.turned(q, self.places[i]), self.turned(k, self.places[j]), i, j)


def zeros(length, d_model):
    return np.zeros((length, d_model))


# For each scheme, the table added to the embeddings (None if the table is trained) and the self-attention.
SCHEMES = {
    "sinusoidal": (sinusoid, PlainAttention),
    "sinusoidal_concat": (sinusoid_concat, PlainAttention),
    "learned": (None, PlainAttention),
    "none": (zeros, PlainAttention),
    "relative": (zeros, Relative),
    "t5_bias": (zeros, T5Bias),
    "alibi": (zeros, Alibi),
    "rope": (zeros, Rope),
}


def post_norm_layer(x, weights, num_heads, visible, memory=None, positions=None, num_kv_heads=None):
    """An encoder layer or, with `memory`, a decoder layer: LayerNorm(x + Sublayer(x)), section 3.1."""

    def add_and_norm(name, y):
        return layer_norm(x + y, weights[f"{name}_residual"]["norm"])

    self_attended = multi_head(x, x, weights["self_attention"], num_heads, visible, positions, num_kv_heads)
    x = add_and_norm("self_attention", self_attended)
    if memory is not None:
        everything = np.ones((len(x), len(memory)), bool)
        cap = None if positions is None else positions.cap
        cross = multi_head(
            x, memory, weights["cross_attention"], num_heads, everything, None, num_kv_heads, cap
        )
        x = add_and_norm("cross_attention", cross)
    return add_and_norm("feed_forward", feed_forward(x, weights["feed_forward"]))


def count_modules(params, name):
    """The number of modules called `name`_0, `name`_1, ..."""
    return sum(key.startswith(f"{name}_") for key in params)


def transformer(
    source, target, params, num_heads, positions="sinusoidal", num_kv_heads=None, window=None, **options
):
    """Logits [t, v] of one unpadded sentence pair: the whole of figure 1. `options` are those of the scheme."""
    table = params["embedding"]["table"]
    d_model = table.shape[1]
    added, scheme = SCHEMES[positions]

    def stack(name, tokens, memory=None):
        trained = params[name].get("positions")
        x = table[tokens] * np.sqrt(d_model)
        x += trained["table"][: len(x)] if added is None else added(len(x), d_model)
        causal = memory is not None
        visible = np.ones((len(x), len(x)), bool)
        visible = np.tril(visible) if causal else visible
        if window is not None:  # the diagonal, and window - 1 diagonals on each side
            visible = np.triu(np.tril(visible, window - 1), 1 - window)
        for number in range(count_modules(params[name], "layers")):
            attention_positions = scheme(trained, number, num_heads, causal, **options)
            weights = params[name][f"layers_{number}"]
            x = post_norm_layer(x, weights, num_heads, visible, memory, attention_positions, num_kv_heads)
        return x

    return stack("decoder", [1, *target[:-1]], stack("encoder", source)) @ table.T


def decoder_only(source, target, params, num_heads, bidirectional):
    """Logits [s + t, v] of the source tokens, then of the target tokens, of one unpadded pair.

    The only sequence is BOS, the source without its EOS, BOS, the target without its EOS.
    """
    table = params["embedding"]["table"]
    tokens = np.concatenate([[1], source[:-1], [1], target[:-1]])
    x = table[tokens] * np.sqrt(table.shape[1]) + sinusoid(len(tokens), table.shape[1])
    visible = np.tril(np.ones((len(tokens), len(tokens)), bool))
    if bidirectional:
        visible[: len(source), : len(source)] = True
    for number in range(count_modules(params["decoder"], "layers")):
        x = post_norm_layer(x, params["decoder"][f"layers_{number}"], num_heads, visible)
    return x @ table.T


def image_classifier(image, mean, std, params, num_heads, size, positions, pooling, base=10_000):
    """Logits [v] of one image [y, x, c] with pixels from 0 to 255 (Dosovitskiy et al. 2021, section 3.1)."""
    image = (image / 255 - mean) / std
    rows, columns = image.shape[0] // size, image.shape[1] // size
    places = [(y, x) for y in range(rows) for x in range(columns)]
    patches = [image[y * size : (y + 1) * size, x * size : (x + 1) * size].ravel() for y, x in places]
    x = np.array(patches) @ params["patches"]["kernel"] + params["patches"]["bias"]
    if pooling == "class_token":
        x, places = np.vstack([params["class_token"], x]), [None, *places]
    d_model = x.shape[1]
    attention = PlainAttention()
    if positions == "sinusoidal_2d":
        table = sinusoid(max(rows, columns), d_model // 2)
        none = np.zeros(d_model)
        x = x + [none if place is None else np.concatenate(table[list(place)]) for place in places]
    elif positions == "rope_2d":
        attention = GridRope(places, base)
    else:  # raster order
        added, scheme = SCHEMES[positions]
        trained = params["encoder"].get("positions")
        x = x + (trained["table"] if added is None else added(len(x), d_model))
        attention = scheme(rope=(base, None))
    visible = np.ones((len(x), len(x)), bool)
    for number in range(count_modules(params["encoder"], "layers")):
        weights = params["encoder"][f"layers_{number}"]
        x = post_norm_layer(x, weights, num_heads, visible, positions=attention)
    pooled = x[0] if pooling == "class_token" else x.mean(axis=0)
    return pooled @ params["head"]["kernel"] + params["head"]["bias"]


def additive_attention(s, h, w_a, u_a, v_a):
    """Returns the context of a state, and the weights (Bahdanau et al. 2015, section 3.1, appendix A.1.2)."""
    energies = np.array([v_a @ np.tanh(s @ w_a + h_j @ u_a) for h_j in h])
    weights = softmax(energies)
    return sum(a * h_j for a, h_j in zip(weights, h, strict=True)), weights


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, state, weights):
    """Returns c and h after a step (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000)."""
    c, h = state
    i, f, g, o = (
        x @ weights[f"i{gate}"]["kernel"] + h @ weights[f"h{gate}"]["kernel"] + weights[f"h{gate}"]["bias"]
        for gate in "ifgo"
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def gru(x, state, weights):
    """Returns h after a step (Cho et al. 2014, with the reset gate applied after the product with U)."""
    (h,) = state

    def from_input(gate):
        return x @ weights[f"i{gate}"]["kernel"] + weights[f"i{gate}"]["bias"]

    r, z = (sigmoid(from_input(gate) + h @ weights[f"h{gate}"]["kernel"]) for gate in "rz")
    n = np.tanh(from_input("n") + r * (h @ weights["hn"]["kernel"] + weights["hn"]["bias"]))
    return ((1 - z) * n + z * h,)


# For each cell, its step and the number of vectors in its state. The last vector is the hidden state.
CELLS = {"lstm": (lstm, 2), "gru": (gru, 1)}


def no_dropout(x, site):
    return x


def recurrent(source, target, params, cell, attends, dropout=no_dropout):
    """Logits [t, v] of one unpadded sentence pair.

    Without attention, the model is that of Sutskever et al. 2014 and Cho et al. 2014; with attention, that of
    Bahdanau et al. 2015. Dropout acts between layers, not between steps (Zaremba et al. 2014, figure 2).
    """
    step, num_vectors = CELLS[cell]
    encoder, decoder = params["encoder"], params["decoder"]
    table = params["embedding"]["table"]
    d_model = table.shape[1]
    embed = table * np.sqrt(d_model)

    def read(xs, weights, state):
        states = []
        for x in xs:
            state = step(x, state, weights["cell"])
            states.append(state[-1])
        return np.array(states)

    h, initial = dropout(embed[source], "encoder"), (np.zeros(d_model),) * num_vectors
    for n in range(count_modules(encoder, "backward")):
        backward = read(h[::-1], encoder[f"backward_{n}"], initial)[::-1]
        states = np.hstack([read(h, encoder[f"forward_{n}"], initial), backward]) if attends else backward
        h = dropout(states, f"encoder/{n}")
    summary = backward[0]  # the state after reading the source backwards

    starts = [decoder[f"initial_{n}"] for n in range(count_modules(decoder, "initial"))]
    starts = [np.tanh(summary @ dense["kernel"] + dense["bias"]) for dense in starts]
    layers = [decoder[f"layers_{n}"] for n in range(count_modules(decoder, "layers"))]
    xs = dropout(embed[[1, *target[:-1]]], "decoder")
    state, states, contexts = starts[:num_vectors], [], []
    for x in xs:
        context = summary
        if attends:
            w_a, u_a, v_a = layers[0]["query"]["kernel"], decoder["keys"]["kernel"], layers[0]["align"]
            context, _ = additive_attention(state[-1], h, w_a, u_a, v_a)
        state = step(np.hstack([x, context]), state, layers[0]["cell"])
        states.append(state[-1])
        contexts.append(context)
    y = np.array(states)
    for n, weights in enumerate(layers[1:], start=1):
        y = read(dropout(y, f"decoder/{n}"), weights, starts[n * num_vectors : (n + 1) * num_vectors])
    features = np.hstack([dropout(y, "decoder/states"), xs, contexts])
    pairs = features @ decoder["readout"]["kernel"] + decoder["readout"]["bias"]
    return np.maximum(pairs[:, 0::2], pairs[:, 1::2]) @ table.T  # appendix A.2.2
