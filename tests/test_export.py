"""Every config's training and decoding step lowers for CPU, CUDA and TPU: evidence without the hardware."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from experiments.description import full_rows, parameter_shapes
from tests.configs.test_configs import CASES, config
from tests.model.test_invariants import VARIANTS
from tests.tiny import VOCAB, tiny_config
from transformer.config import ExperimentConfig, from_dict, to_dict
from transformer.decoding.shrinking import ModelSearch
from transformer.model import KINDS, build
from transformer.training.losses import Hyper, make_loss_fn
from transformer.training.optimizer import adam
from transformer.training.placement import Jit
from transformer.training.setup import make_hyper
from transformer.training.step import initial_state, make_train_step

PLATFORMS = ("cpu", "cuda", "tpu")
TRACED = {"learning_rate", "label_smoothing", "dropout_rate", "seed", "steps"}  # change no program


def program(config: ExperimentConfig) -> str:
    """What of a config decides the programs."""
    sections = {name: to_dict(config)[name] for name in ("model", "optimizer", "train", "decode")}
    kept = {key: value for one in sections.values() for key, value in one.items() if key not in TRACED}
    return json.dumps(kept | {"vocab": config.data.vocab_size, "row": config.data.row_length})


def cases(smoke: bool):
    """A config for each program; the small ones of every file, or all that are as large as they come."""
    found = {}
    for case in CASES:
        if ("smoke" in case) == smoke:
            found.setdefault(program(config(case)), case)
    return list(found.values())


def exported(function, *shapes):
    return jax.export.export(function, platforms=PLATFORMS)(*shapes)


def check(config: ExperimentConfig):
    model = build(config.model, config.data.vocab_size)
    params = parameter_shapes(model)
    optimizer = adam(config.optimizer)
    step = make_train_step(
        make_loss_fn(model), optimizer, config.optimizer.warmup_steps, Jit(), config.train.accumulation
    )
    state = jax.eval_shape(lambda params: initial_state(params, optimizer), params)
    rows = -(-config.train.batch_tokens // config.data.row_length)
    key = jax.eval_shape(lambda: jax.random.key(0))
    training = exported(step, state, full_rows(rows, config.data.row_length), key, make_hyper(config))
    assert training.platforms == PLATFORMS
    search = functools.partial(ModelSearch(model, config.decode), length=24)
    source, limits = jax.ShapeDtypeStruct((8, 16), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.int32)
    decoding = exported(jax.jit(search), params, source, limits)
    assert decoding.platforms == PLATFORMS
    assert decoding.out_avals[0].shape == (8, 1, 24)  # sentences, hypotheses, pieces


@pytest.mark.parametrize("case", cases(smoke=True))
def test_a_small_config_exports(case):
    check(config(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(smoke=False))
def test_a_config_exports(case):
    check(config(case))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "transformer"])
def test_a_recurrent_kind_exports(kind):
    small = to_dict(config("number_words.py:smoke"))
    small["model"] |= {"kind": kind}
    check(from_dict(small))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_exports(changes):
    """The gradient of its loss, with dropout, and a decoding step."""
    model = build(tiny_config(**{"encoder_layers": 1, "decoder_layers": 1} | changes), VOCAB)
    loss = make_loss_fn(model)

    def both(params, batch, key, tokens, index):
        gradient, _ = jax.grad(loss, has_aux=True)(params, batch, key, Hyper(1.0, 0.1, 0.1))
        variables = {"params": params}
        memory, state = model.apply(variables, batch.source.tokens, 2, 6, method="start")
        return gradient, model.apply(variables, memory, state, tokens, tokens, index, method="step")[0]

    key, index = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    tokens = jax.ShapeDtypeStruct((4, 2), jnp.int32)
    program = exported(jax.jit(both), parameter_shapes(model), full_rows(4, 5), key, tokens, index)
    assert program.platforms == PLATFORMS
    assert program.out_avals[-1].shape == (4, 2, VOCAB)
