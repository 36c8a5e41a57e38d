"""The equations in float64 NumPy, one sentence at a time, written from the papers alone."""

import math

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(q, k, v, visible):
    """Equation 1, with -inf where a query may not see a key."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    return softmax(np.where(visible, scores, -np.inf)) @ v


def multi_head(x, memory, weights, heads, visible, order=None):
    """Section 3.2.2: head i reads its own columns of W^Q, W^K and W^V."""
    w_q, w_k, w_v = (np.split(weights[name]["kernel"], heads, axis=1) for name in ("query", "key", "value"))
    concat = []
    for i in range(heads):
        q, k, v = x @ w_q[i], memory @ w_k[i], memory @ w_v[i]
        concat.append(attention(q, k, v, visible) if order is None else order.attend(i, q, k, v, visible))
    return np.concatenate(concat, axis=1) @ weights["output"]["kernel"]


def feed_forward(x, weights):
    """Equation 2."""
    inner, outer = weights["inner"], weights["outer"]
    return np.maximum(0, x @ inner["kernel"] + inner["bias"]) @ outer["kernel"] + outer["bias"]


def layer_norm(x, weights, eps=1e-6):
    """Ba et al. 2016, with the biased variance."""
    centred = x - x.mean(axis=1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps) * weights["scale"] + weights["bias"]
    )


def sinusoid(length, d_model):
    """Section 3.5, entry by entry."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos / 10_000 ** (2 * i / d_model)
            table[pos, 2 * i], table[pos, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return table


class Order:
    """Self-attention that knows positions, an entry of the logits at a time. Scheme by scheme below."""

    def __init__(self, params=None, layer=0, heads=1, causal=False, max_distance=None):
        self.params, self.layer, self.heads, self.causal = params, layer, heads, causal
        self.max_distance = max_distance

    def score(self, head, q, k, i, j):
        return q @ k / np.sqrt(len(q))

    def value(self, head, v, i, j):
        return v

    def attend(self, head, q, k, v, visible):
        keys = range(len(k))
        scores = np.array([[self.score(head, q[i], k[j], i, j) for j in keys] for i in range(len(q))])
        weights = softmax(np.where(visible, scores, -np.inf))
        return np.array(
            [
                sum(weights[i, j] * self.value(head, v[j], i, j) for j in keys if visible[i, j])
                for i in range(len(q))
            ]
        )


class Relative(Order):
    """Shaw et al. 2018, equations 3 and 4."""

    def row(self, table, head, i, j):
        clip = (table.shape[2] - 1) // 2
        return table[self.layer, head, max(-clip, min(clip, j - i)) + clip]

    def score(self, head, q, k, i, j):
        return q @ (k + self.row(self.params["key_table"], head, i, j)) / np.sqrt(len(q))

    def value(self, head, v, i, j):
        return v + self.row(self.params["value_table"], head, i, j)


class T5Bias(Order):
    """Raffel et al. 2020, section 2.1: 32 numbers a head, for offsets that grow logarithmically up to 128."""

    def score(self, head, q, k, i, j):
        ranges, last = 32 if self.causal else 16, self.max_distance or 128
        exact, distance = ranges // 2, abs(j - i)
        number = min(distance, exact)

        def reaches(n):
            """distance >= exact (last / exact)^(n / (ranges - exact)), in whole numbers"""
            return distance ** (ranges - exact) * exact**n >= exact ** (ranges - exact) * last**n

        while distance >= exact and number + 1 < ranges and reaches(number + 1 - exact):
            number += 1
        side = ranges if not self.causal and j > i else 0
        return super().score(head, q, k, i, j) + self.params["table"][side + number, head]


class Alibi(Order):
    """Press et al. 2022, section 3: for 8 heads 1/2, 1/4, ..., 1/256; here for 3: of 2, and the first of 4."""

    def score(self, head, q, k, i, j):
        slopes = {3: [2**-4, 2**-8, 2**-2], 8: [2.0**-n for n in range(1, 9)]}[self.heads]
        return super().score(head, q, k, i, j) - slopes[head] * abs(i - j)


class Rope(Order):
    """Su et al. 2021, equation 15: a block-diagonal matrix of rotations by m theta_i."""

    @staticmethod
    def rotation(m, d):
        matrix = np.zeros((d, d))
        for i in range(d // 2):
            angle = m * 10_000 ** (-2 * i / d)
            block = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = block
        return matrix

    def score(self, head, q, k, i, j):
        return super().score(head, self.rotation(i, len(q)) @ q, self.rotation(j, len(k)) @ k, i, j)


def sinusoid_concat(length, d_model):
    """tensor2tensor's: sines of geometric wavelengths from 2 pi to 10,000 times that, then cosines."""
    table = np.zeros((length, d_model))
    for pos in range(length):
        for i in range(d_model // 2):
            angle = pos * math.exp(-i * math.log(10_000) / (d_model // 2 - 1))
            table[pos, i], table[pos, d_model // 2 + i] = math.sin(angle), math.cos(angle)
    return table


def additive_attention(s, h, w_a, u_a, v_a):
    """Bahdanau et al. 2015, section 3.1 and appendix A.1.2: the context of one state, and the weights."""
    energies = np.array([v_a @ np.tanh(s @ w_a + h_j @ u_a) for h_j in h])
    weights = softmax(energies)
    return sum(a * h_j for a, h_j in zip(weights, h, strict=True)), weights


def post_norm_layer(x, weights, heads, visible, memory=None, order=None):
    """An encoder layer, or with `memory` a decoder layer: LayerNorm(x + Sublayer(x)), section 3.1."""

    def add_and_norm(name, y):
        return layer_norm(x + y, weights[f"{name}_residual"]["norm"])

    x = add_and_norm("self_attention", multi_head(x, x, weights["self_attention"], heads, visible, order))
    if memory is not None:
        everything = np.ones((len(x), len(memory)), bool)
        cross = multi_head(x, memory, weights["cross_attention"], heads, everything)
        x = add_and_norm("cross_attention", cross)
    return add_and_norm("feed_forward", feed_forward(x, weights["feed_forward"]))


def no_table(length, d_model):
    return np.zeros((length, d_model))


# What is added to the embeddings (given the stack's own parameters), and what attention knows.
SCHEMES = {
    "sinusoidal": (lambda own: sinusoid, Order),
    "sinusoidal_concat": (lambda own: sinusoid_concat, Order),
    "learned": (lambda own: lambda length, d_model: own["table"][:length], Order),
    "none": (lambda own: no_table, Order),
    "relative": (lambda own: no_table, Relative),
    "t5_bias": (lambda own: no_table, T5Bias),
    "alibi": (lambda own: no_table, Alibi),
    "rope": (lambda own: no_table, Rope),
}


def depth(params, name):
    """How many modules are called `name`_0, `name`_1, ..."""
    return sum(one.startswith(f"{name}_") for one in params)


def transformer(source, target, params, heads, positions="sinusoidal", max_distance=None):
    """Logits [t, v] of one unpadded sentence pair, figure 1 as a whole."""
    table = params["embedding"]["table"]
    d_model = table.shape[1]
    added, order = SCHEMES[positions]

    def stack(name, pieces, memory=None):
        own = params[name].get("positions")
        x = table[pieces] * np.sqrt(d_model) + added(own)(len(pieces), d_model)
        causal = memory is not None
        visible = np.ones((len(x), len(x)), bool)
        for number in range(depth(params[name], "layers")):
            x = post_norm_layer(
                x,
                params[name][f"layers_{number}"],
                heads,
                np.tril(visible) if causal else visible,
                memory,
                order(own, number, heads, causal, max_distance),
            )
        return x

    return stack("decoder", [1, *target[:-1]], stack("encoder", source)) @ table.T


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x, state, weights):
    """Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000: c and h after a step."""
    c, h = state
    i, f, g, o = (
        x @ weights[f"i{gate}"]["kernel"] + h @ weights[f"h{gate}"]["kernel"] + weights[f"h{gate}"]["bias"]
        for gate in "ifgo"
    )
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return c, sigmoid(o) * np.tanh(c)


def gru(x, state, weights):
    """Cho et al. 2014, the reset gate after the product with U: h after a step."""
    (h,) = state

    def of_input(gate):
        return x @ weights[f"i{gate}"]["kernel"] + weights[f"i{gate}"]["bias"]

    r, z = (sigmoid(of_input(gate) + h @ weights[f"h{gate}"]["kernel"]) for gate in "rz")
    n = np.tanh(of_input("n") + r * (h @ weights["hn"]["kernel"] + weights["hn"]["bias"]))
    return ((1 - z) * n + z * h,)


# A step, and of how many vectors a state is, the hidden state last.
CELLS = {"lstm": (lstm, 2), "gru": (gru, 1)}


def recurrent(source, target, params, cell, attends, drop=lambda x, site: x):
    """Logits [t, v] of one unpadded sentence pair: Sutskever et al. 2014 and Cho et al. 2014, or Bahdanau et al.

    Dropout falls on what goes up, not on what goes from step to step (Zaremba et al. 2014, figure 2).
    """
    step, vectors = CELLS[cell]
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

    h, zeros = drop(embed[source], "encoder"), (np.zeros(d_model),) * vectors
    for n in range(depth(encoder, "backward")):
        backward = read(h[::-1], encoder[f"backward_{n}"], zeros)[::-1]
        both = np.hstack([read(h, encoder[f"forward_{n}"], zeros), backward]) if attends else backward
        h = drop(both, f"encoder/{n}")
    summary = backward[0]  # of the whole source, read from its end

    starts = [decoder[f"initial_{n}"] for n in range(depth(decoder, "initial"))]
    starts = [np.tanh(summary @ one["kernel"] + one["bias"]) for one in starts]
    layers = [decoder[f"layers_{n}"] for n in range(depth(decoder, "layers"))]
    xs = drop(embed[[1, *target[:-1]]], "decoder")
    state, states, contexts = starts[:vectors], [], []
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
        y = read(drop(y, f"decoder/{n}"), weights, starts[n * vectors : (n + 1) * vectors])
    seen = np.hstack([drop(y, "decoder/states"), xs, contexts])
    pairs = seen @ decoder["readout"]["kernel"] + decoder["readout"]["bias"]
    return np.maximum(pairs[:, 0::2], pairs[:, 1::2]) @ table.T  # appendix A.2.2
