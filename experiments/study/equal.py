"""Gives all variants of a study as many training steps, tokens, FLOPs or parameters as the baseline."""

import dataclasses
from collections.abc import Callable, Mapping

from experiments.costs import count_parameters, describe
from transformer.config import ExperimentConfig, UserError
from transformer.fidelity import is_read

# Cost of one training step. `equalize` chooses the number of steps that makes the total costs equal.
STEP_COSTS: dict[str, Callable[[ExperimentConfig], float]] = {
    "steps": lambda config: 1,
    "target_tokens": lambda config: config.train.batch_tokens,
    "flops": lambda config: describe(config)["flops_per_step"],
}
# The field that `equalize` sets, by resource.
ADJUSTED_FIELD = dict.fromkeys(STEP_COSTS, "train.steps") | {"parameters": "model.d_ff"}


def equalize(
    resource: str, configs: Mapping[str, ExperimentConfig], baseline: str
) -> dict[str, ExperimentConfig]:
    """Returns the configs of all variants, adjusted to the baseline. The baseline does not change.

    Args:
      resource: a key of `ADJUSTED_FIELD`. FLOPs are those of the matrix products in training.
      configs: the config of each variant.
      baseline: the name of the baseline.

    Raises:
      UserError: a variant cannot be adjusted.
    """
    base = configs[baseline]
    others = {name: config for name, config in configs.items() if name != baseline}
    if resource == "target_tokens" and not is_read("train.batch_tokens", base):
        raise UserError(
            f"EQUAL = 'target_tokens' is undefined for task={base.task}; set it to steps or flops"
        )
    if resource == "parameters":
        num_parameters = count_parameters(base)
        others = {name: _with_parameters(name, config, num_parameters) for name, config in others.items()}
    else:
        cost = STEP_COSTS[resource]
        budget = base.train.steps * cost(base)
        others = {
            name: _with("train", config, steps=max(1, round(budget / cost(config))))
            for name, config in others.items()
        }
    return {name: others.get(name, base) for name in configs}


def _with_parameters(name: str, config: ExperimentConfig, num_parameters: int) -> ExperimentConfig:
    """Returns the config with the `model.d_ff` that gives it about `num_parameters` parameters."""
    if not is_read("model.d_ff", config):
        raise UserError(
            f"EQUAL = 'parameters' adjusts model.d_ff, which variant {name} does not use; leave EQUAL out"
        )
    # The number of parameters is linear in the width. Gated networks round the width, so the slope is
    # measured over a large range.
    narrow, wide = 1_000, 4_000
    counts = [count_parameters(_with("model", config, d_ff=width)) for width in (narrow, wide)]
    slope = (counts[1] - counts[0]) / (wide - narrow)
    width = round(narrow + (num_parameters - counts[0]) / slope)
    if width < 1:
        raise UserError(
            f"EQUAL = 'parameters' is impossible: without feed-forward networks, variant {name} already has "
            f"{counts[0] - narrow * slope:,.0f} parameters, but the baseline has {num_parameters:,}; "
            f"make {name} smaller"
        )
    return _with("model", config, d_ff=width)


def _with(section: str, config: ExperimentConfig, **values: int) -> ExperimentConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})
