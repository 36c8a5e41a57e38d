"""Agreement with torch.nn.Transformer, given the same weights. Skipped without the `peers` extra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tiny import random_params
from transformer.batch import TokenBatch
from transformer.config import ModelConfig
from transformer.model import build_model
from transformer.model.position_tables import sinusoid_table

torch = pytest.importorskip("torch")

D_MODEL, NUM_HEADS, D_FF, NUM_LAYERS, VOCAB = 24, 3, 44, 2, 13


def tensor(x):
    return torch.tensor(np.asarray(x, np.float64), requires_grad=True)


def torch_attention(params):
    """The weights of an attention layer under torch's names.

    torch stacks the projections and has biases, which are set to 0.
    """
    projections = torch.cat([params[name]["kernel"].T for name in ("query", "key", "value")])
    return {
        "in_proj_weight": projections,
        "in_proj_bias": torch.zeros(3 * D_MODEL, dtype=torch.float64),
        "out_proj.weight": params["output"]["kernel"].T,
        "out_proj.bias": torch.zeros(D_MODEL, dtype=torch.float64),
    }


def torch_layer(params, attentions):
    """The weights of a layer under torch's names; `attentions` maps names of attentions to torch's names."""
    weights = {}
    for name, torch_name in attentions.items():
        weights |= {f"{torch_name}.{leaf}": x for leaf, x in torch_attention(params[name]).items()}
    for number, name in enumerate([*attentions, "feed_forward"], start=1):
        norm = params[f"{name}_residual"]["norm"]
        weights |= {f"norm{number}.weight": norm["scale"], f"norm{number}.bias": norm["bias"]}
    for torch_name, name in (("linear1", "inner"), ("linear2", "outer")):
        dense = params["feed_forward"][name]
        weights |= {f"{torch_name}.weight": dense["kernel"].T, f"{torch_name}.bias": dense["bias"]}
    return weights


def torch_logits(params, source, target):
    peer = torch.nn.Transformer(
        D_MODEL, NUM_HEADS, NUM_LAYERS, NUM_LAYERS, D_FF, dropout=0.0, batch_first=True
    ).double()
    peer.encoder.norm = peer.decoder.norm = None  # the paper has no norm after the last layer
    weights = {}
    for stack, attentions in (
        ("encoder", {"self_attention": "self_attn"}),
        ("decoder", {"self_attention": "self_attn", "cross_attention": "multihead_attn"}),
    ):
        for number in range(NUM_LAYERS):
            for name, x in torch_layer(params[stack][f"layers_{number}"], attentions).items():
                weights[f"{stack}.layers.{number}.{name}"] = x
    assert set(weights) == set(dict(peer.named_parameters()))
    table = params["embedding"]["table"]

    def embed(tokens):
        return table[tokens] * D_MODEL**0.5 + torch.tensor(sinusoid_table(tokens.shape[1], D_MODEL))

    inputs = torch.cat([torch.ones_like(target[:, :1]), target[:, :-1]], dim=1)  # BOS is 1
    vectors = torch.func.functional_call(
        peer,
        weights,
        (embed(source), embed(inputs)),
        {
            "tgt_mask": torch.ones(2 * (target.shape[1],), dtype=torch.bool).triu(1),
            "src_key_padding_mask": source == 0,
            "memory_key_padding_mask": source == 0,
        },
    )
    return vectors @ table.T


def test_logits_and_gradients_equal_those_of_torch():
    config = ModelConfig(num_layers=NUM_LAYERS, d_model=D_MODEL, d_ff=D_FF, num_heads=NUM_HEADS)
    model = build_model(config, VOCAB)
    params = random_params(model)
    source, target = np.random.default_rng(0).integers(4, VOCAB, (2, 3, 7))
    source[1, 4:] = 0

    def loss(params):
        batches = (TokenBatch.from_tokens(jnp.int32(tokens)) for tokens in (source, target))
        logits = model.apply({"params": params}, *batches)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).mean(), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    weights = jax.tree.map(tensor, params)
    expected = torch_logits(weights, torch.tensor(source), torch.tensor(target))
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(target).flatten()).backward()
    # The model computes in single precision, torch in double precision.
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.grad, rtol=1e-5, atol=1e-5), gradient, weights)
    assert all(np.abs(leaf).max() > 5e-3 for leaf in jax.tree.leaves(gradient))
