"""Gives all variants of a study as much of something as the baseline: steps, tokens, FLOPs or parameters."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jaxtyping import PyTree

from transformer.config import ExperimentConfig, UserError, choose
from transformer.fidelity import is_read
from transformer.model import build_model, parameter_shapes

# (config of a variant, config of the baseline) -> the config of the variant, adjusted.
Rule = Callable[[ExperimentConfig, ExperimentConfig], ExperimentConfig]


def same_steps(config: ExperimentConfig, baseline: ExperimentConfig) -> ExperimentConfig:
    """Gives a variant the number of steps of the baseline."""
    return _with_steps(config, baseline.train.steps)


def same_target_tokens(config: ExperimentConfig, baseline: ExperimentConfig) -> ExperimentConfig:
    """Gives a variant the steps that read as many target tokens as those of the baseline."""
    tokens = baseline.train.steps * baseline.train.batch_tokens
    return _with_steps(config, round(tokens / config.train.batch_tokens))


def same_flops(config: ExperimentConfig, baseline: ExperimentConfig) -> ExperimentConfig:
    """Gives a variant the steps that cost as many FLOPs of matrix products as those of the baseline."""
    from experiments.costs import describe

    flops = baseline.train.steps * describe(baseline)["flops_per_step"]
    return _with_steps(config, round(flops / describe(config)["flops_per_step"]))


def same_parameters(config: ExperimentConfig, baseline: ExperimentConfig) -> ExperimentConfig:
    """Gives a variant the width `model.d_ff` with which its number of parameters is closest.

    The number of parameters is linear in the width.

    Raises:
      UserError: the variant does not read `model.d_ff`, or no width is small enough.
    """
    if not is_read("model.d_ff", config):
        raise UserError(
            "EQUAL = 'parameters' sets model.d_ff, which a variant does not read; leave EQUAL out"
        )

    def with_width(width: int) -> ExperimentConfig:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, d_ff=width))

    # Gated networks round the width, so the slope is measured over a large range.
    low, high = (_num_parameters(with_width(width)) for width in (1_000, 4_000))
    slope = (high - low) / 3_000
    width = round(1_000 + (_num_parameters(baseline) - low) / slope)
    if width < 1:
        raise UserError(
            f"EQUAL = 'parameters': a variant has {low - 1_000 * slope:,.0f} parameters without feed-forward "
            f"networks, but the baseline has {_num_parameters(baseline):,}; change its other sizes"
        )
    return with_width(width)


EQUAL: dict[str, Rule] = {
    "steps": same_steps,
    "target_tokens": same_target_tokens,
    "flops": same_flops,
    "parameters": same_parameters,
}
# The field that each rule sets.
ADJUSTED = {
    "steps": "train.steps",
    "target_tokens": "train.steps",
    "flops": "train.steps",
    "parameters": "model.d_ff",
}


def equalize(
    what: str, configs: Mapping[str, ExperimentConfig], baseline: str
) -> dict[str, ExperimentConfig]:
    """Returns the configs of all variants, adjusted to the baseline, which stays as it is.

    Args:
      what: a key of `EQUAL`.
      configs: the config of each variant.
      baseline: the name of the baseline.

    Raises:
      UserError: a variant cannot be adjusted.
    """
    rule = choose(EQUAL, what, "EQUAL")
    return {
        name: config if name == baseline else rule(config, configs[baseline])
        for name, config in configs.items()
    }


def _with_steps(config: ExperimentConfig, steps: int) -> ExperimentConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=max(1, steps)))


def _num_parameters(config: ExperimentConfig) -> int:
    shapes: PyTree = parameter_shapes(build_model(config.model, config.data.vocab_size))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
