"""The training step and the search of every config can be lowered for CPU, CUDA and TPU.

Lowering needs no such hardware.
"""

import functools
import json

import jax
import jax.numpy as jnp
import pytest

from tests.configs.test_configs import ARGUMENTS, FILES, load
from tests.model.test_invariants import VARIANTS
from tests.support.tiny import VOCAB, tiny_config, token_shapes
from transformer.batch import Batch
from transformer.config import ExperimentConfig, from_dict, to_dict
from transformer.decoding.model_search import ModelSearch
from transformer.model import TEXT_KINDS, build_model, parameter_shapes
from transformer.tasks import task_type
from transformer.tasks.translation import translation_loss
from transformer.training.parallelism import Single
from transformer.training.train_step import init_state, make_train_step
from transformer.training.trainable import Hyperparameters

PLATFORMS = ("cpu", "cuda", "tpu")
SIZES = {"d_k", "d_v", "encoder_layers", "decoder_layers"}  # sizes that may be None, for a default
# Fields that do not change compiled programs: the programs take them as arguments or do not use them.
NOT_COMPILED = {"learning_rate", "label_smoothing", "dropout_rate", "seed", "steps", "patience"}


def batch_shapes(num_rows, length) -> Batch:
    side = token_shapes(num_rows, length)
    return Batch(side, side, jax.ShapeDtypeStruct((num_rows,), jnp.int32))


def compiled_fields(config: ExperimentConfig, sizes: bool) -> str:
    """The fields that determine the compiled programs of a config, as JSON.

    If not `sizes`, sizes and other numbers are omitted, so that programs with the same structure have the
    same fields.
    """
    sections = [to_dict(config)[name] for name in ("model", "optimizer", "train", "decode")]
    fields = {key: value for section in sections for key, value in section.items() if key not in NOT_COMPILED}
    fields |= {"vocab": config.data.vocab_size, "row": config.data.row_length}
    if not sizes:
        fields = {
            key: value
            for key, value in fields.items()
            if key not in SIZES and type(value) not in (int, float)
        }
    return json.dumps(fields)


def cases(smoke: bool) -> list[str]:
    """Configs with distinct programs.

    If `smoke`, the small configs, one per program structure; otherwise, the full-size configs, one per
    program.
    """
    distinct = {}
    for path in FILES:
        for argument in ["", "smoke", *ARGUMENTS.get(path.stem, [])]:
            if ("smoke" in argument) == smoke:
                case = f"{path.name}:{argument}"
                distinct.setdefault(compiled_fields(load(case), sizes=not smoke), case)
    return list(distinct.values())


def export(function, *shapes):
    exported = jax.export.export(function, platforms=PLATFORMS)(*shapes)
    assert exported.platforms == PLATFORMS
    return exported


def check_export(config: ExperimentConfig):
    task = task_type(config)
    model = task.planned_model(config)
    params = parameter_shapes(model)
    state = jax.eval_shape(lambda params: init_state(params, config), params)
    batch = task.full_rows(config, task.step_shape(config)["rows"])
    key = jax.eval_shape(lambda: jax.random.key(0))

    train_step = make_train_step(task.loss_fn(config, model), config, Single())
    export(train_step, state, batch, key, Hyperparameters.from_config(config))

    if not task.searches:
        return
    search = functools.partial(ModelSearch(model, config.decode), length=24)
    source, limits = jax.ShapeDtypeStruct((8, 16), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.int32)
    exported = export(jax.jit(search), params, source, limits)
    assert exported.out_avals[0].shape == (8, 1, 24)  # sentences, hypotheses, tokens


# The fast tests lower these; the others have similar operations.
TYPICAL = ("base.py:smoke", "gpt.py:smoke", "images.py:smoke", "recurrent_attention")


def slow_unless_typical(names):
    return [pytest.param(name, marks=() if name in TYPICAL else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("case", slow_unless_typical(cases(smoke=True)))
def test_a_small_config_can_be_lowered(case):
    check_export(load(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(smoke=False))
def test_a_full_size_config_can_be_lowered(case):
    check_export(load(case))


@pytest.mark.parametrize("kind", slow_unless_typical(kind for kind in TEXT_KINDS if kind != "transformer"))
def test_another_kind_of_model_can_be_lowered(kind):
    values = to_dict(load("number_words.py:smoke"))
    values["model"] |= {"kind": kind}
    check_export(from_dict(values))


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_a_variant_of_the_model_can_be_lowered(changes):
    """Lowers one program with the gradient of the loss, with dropout, and a decoding step."""
    model = build_model(tiny_config(**{"num_layers": 1} | changes), VOCAB)
    loss_fn = functools.partial(translation_loss, model)

    def gradient_and_step(params, batch, key, tokens, index):
        gradient, _ = jax.grad(loss_fn, has_aux=True)(params, batch, key, Hyperparameters(1.0, 0.1, 0.1))
        apply = functools.partial(model.apply, {"params": params})
        encoder_cache, state = apply(batch.source.tokens, 2, 6, method="start_decoding")
        return gradient, apply(encoder_cache, state, tokens, tokens, index, method="decode_step")[0]

    key, index = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
    tokens = jax.ShapeDtypeStruct((4, 2), jnp.int32)
    exported = export(
        jax.jit(gradient_and_step), parameter_shapes(model), batch_shapes(4, 5), key, tokens, index
    )
    assert exported.out_avals[-1].shape == (4, 2, VOCAB)
