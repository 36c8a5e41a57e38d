"""The paper's equations in float64 NumPy, one sentence at a time, written from the paper alone."""

import numpy as np


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attention(q, k, v, visible):
    """Equation 1, with -inf where a query may not see a key."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    return softmax(np.where(visible, scores, -np.inf)) @ v


def multi_head(x, memory, weights, heads, visible):
    """Section 3.2.2: head i reads its own columns of W^Q, W^K and W^V."""
    w_q, w_k, w_v = (np.split(weights[name]["kernel"], heads, axis=1) for name in ("query", "key", "value"))
    concat = [attention(x @ w_q[i], memory @ w_k[i], memory @ w_v[i], visible) for i in range(heads)]
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


def post_norm_layer(x, weights, heads, visible, memory=None):
    """An encoder layer, or with `memory` a decoder layer: LayerNorm(x + Sublayer(x)), section 3.1."""

    def add_and_norm(name, y):
        return layer_norm(x + y, weights[f"{name}_residual"]["norm"])

    x = add_and_norm("self_attention", multi_head(x, x, weights["self_attention"], heads, visible))
    if memory is not None:
        everything = np.ones((len(x), len(memory)), bool)
        cross = multi_head(x, memory, weights["cross_attention"], heads, everything)
        x = add_and_norm("cross_attention", cross)
    return add_and_norm("feed_forward", feed_forward(x, weights["feed_forward"]))


def transformer(source, target, params, heads):
    """Logits [t, v] of one unpadded sentence pair, figure 1 as a whole."""
    table = params["embedding"]["table"]
    d_model = table.shape[1]

    def embed(pieces):
        return table[pieces] * np.sqrt(d_model) + sinusoid(len(pieces), d_model)

    x = embed(source)
    for number in range(len(params["encoder"])):
        x = post_norm_layer(x, params["encoder"][f"layers_{number}"], heads, np.ones((len(x), len(x)), bool))
    memory, x = x, embed([1, *target[:-1]])
    for number in range(len(params["decoder"])):
        causal = np.tril(np.ones((len(x), len(x)), bool))
        x = post_norm_layer(x, params["decoder"][f"layers_{number}"], heads, causal, memory)
    return x @ table.T
