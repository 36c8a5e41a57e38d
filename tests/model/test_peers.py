"""Independent parity: our weights in torch.nn.Transformer. Needs the `peers` extra; skipped without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_oracle import moved
from transformer.config import TransformerConfig
from transformer.model import build, init_params
from transformer.model.positions import sinusoid_table

torch = pytest.importorskip("torch")

D_MODEL, HEADS, D_FF, LAYERS, VOCAB = 24, 3, 44, 2, 13


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64), requires_grad=True)


def attention_weights(ours):
    """torch's names of one attention's weights; it stacks the three projections, and has biases: 0 here."""
    projections = torch.cat([ours[name]["kernel"].T for name in ("query", "key", "value")])
    return {
        "in_proj_weight": projections,
        "in_proj_bias": torch.zeros(3 * D_MODEL, dtype=torch.float64),
        "out_proj.weight": ours["output"]["kernel"].T,
        "out_proj.bias": torch.zeros(D_MODEL, dtype=torch.float64),
    }


def layer_weights(ours, attentions):
    weights = {}
    for name, theirs in attentions.items():
        weights |= {f"{theirs}.{leaf}": x for leaf, x in attention_weights(ours[name]).items()}
    for number, name in enumerate([*attentions, "feed_forward"], start=1):
        norm = ours[f"{name}_residual"]["norm"]
        weights |= {f"norm{number}.weight": norm["scale"], f"norm{number}.bias": norm["bias"]}
    for theirs, name in (("linear1", "inner"), ("linear2", "outer")):
        dense = ours["feed_forward"][name]
        weights |= {f"{theirs}.weight": dense["kernel"].T, f"{theirs}.bias": dense["bias"]}
    return weights


def their_logits(ours, source, target):
    peer = torch.nn.Transformer(D_MODEL, HEADS, LAYERS, LAYERS, D_FF, dropout=0.0, batch_first=True).double()
    peer.encoder.norm = peer.decoder.norm = None  # the paper has no norm after the last layer
    weights = {}
    for stack, attentions in (
        ("encoder", {"self_attention": "self_attn"}),
        ("decoder", {"self_attention": "self_attn", "cross_attention": "multihead_attn"}),
    ):
        for number in range(LAYERS):
            for name, x in layer_weights(ours[stack][f"layers_{number}"], attentions).items():
                weights[f"{stack}.layers.{number}.{name}"] = x
    assert set(weights) == set(dict(peer.named_parameters()))
    table = ours["embedding"]["table"]

    def embed(pieces):
        return table[pieces] * D_MODEL**0.5 + torch.tensor(sinusoid_table(pieces.shape[1], D_MODEL))

    inputs = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], dim=1)  # BOS is 1
    hidden = torch.func.functional_call(
        peer,
        weights,
        (embed(source), embed(inputs)),
        {
            "tgt_mask": torch.ones(2 * (target.shape[1],), dtype=torch.bool).triu(1),
            "src_key_padding_mask": source == 0,
            "memory_key_padding_mask": source == 0,
        },
    )
    return hidden @ table.T


def test_logits_and_gradients_equal_those_of_torch():
    config = TransformerConfig(num_layers=LAYERS, d_model=D_MODEL, d_ff=D_FF, num_heads=HEADS)
    model = build(config, VOCAB)
    params = moved(init_params(model, seed=4))
    rng = np.random.default_rng(0)
    source, target = rng.integers(4, VOCAB, (2, 3, 7))
    source[1, 4:] = 0

    def loss(params):
        logits = model.apply({"params": params}, jnp.int32(source), jnp.int32(target))
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).mean(), logits

    (_, ours), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    weights = jax.tree.map(tensor, params)
    theirs = their_logits(weights, torch.tensor(source), torch.tensor(target))
    torch.nn.functional.cross_entropy(theirs.flatten(0, 1), torch.tensor(target).flatten()).backward()
    np.testing.assert_allclose(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    # Ours is single precision, theirs double.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad, rtol=1e-5, atol=1e-5), gradient, weights)
    assert all(np.abs(one).max() > 5e-3 for one in jax.tree.leaves(gradient))
