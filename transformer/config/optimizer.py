"""Config fields of the optimizer and its learning rate."""

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from transformer.config.conditions import READ_BY_DEPARTURES
from transformer.config.fields import Rule, Section, added_option, option

if TYPE_CHECKING:
    from transformer.config.experiment import ExperimentConfig


def paper_peak(config: "ExperimentConfig") -> float:
    """Returns the learning rate at the end of the warm-up (equation 3): (d_model * warmup_steps)^-0.5."""
    return (config.model.d_model * config.optimizer.warmup_steps) ** -0.5


_PEAK = Rule("(d_model * warmup_steps)^-0.5", paper_peak)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """The optimizer and its learning rate (paper, section 5.3)."""

    section: ClassVar[str] = "optimizer"

    # A name in training.optimizers.OPTIMIZERS.
    name: str = option("adam", paper={"section 5.3": ["adam"]})
    # A name in training.optimizers.SCHEDULES.
    schedule: str = option("paper", paper={"equation 3": ["paper"]})
    # Learning rate at the peak; if None, (d_model * warmup_steps)^-0.5.
    learning_rate: float | None = option(None, paper={"equation 3": [_PEAK]})
    warmup_steps: int = option(4_000, paper={"section 5.3": [4_000]})
    # Steps of the final decay of `wsd`; if None, a tenth of train.steps.
    decay_steps: int | None = option(
        None,
        not_in_paper=READ_BY_DEPARTURES,
        read_if=lambda config: config.optimizer.schedule not in ("paper", "constant", "cosine"),
    )
    # Learning rate after the last step of `cosine` and `wsd`, as a fraction of the peak.
    final_fraction: float = added_option(
        0.0,
        not_in_paper=READ_BY_DEPARTURES,
        read_if=lambda config: config.optimizer.schedule not in ("paper", "constant"),
    )
    beta1: float = option(0.9, paper={"section 5.3": [0.9]})  # with sgd, the momentum
    beta2: float = option(
        0.98, paper={"section 5.3": [0.98]}, read_if=lambda config: config.optimizer.name != "sgd"
    )
    epsilon: float = option(
        1e-9, paper={"section 5.3": [1e-9]}, read_if=lambda config: config.optimizer.name != "sgd"
    )
    # Decoupled decay of matrices only (Loshchilov and Hutter 2019), for adamw and muon.
    weight_decay: float = option(
        0.0,
        paper={"section 5.3": [0.0]},
        read_if=lambda config: config.optimizer.name not in ("adam", "sgd"),
    )
    # Largest global norm of the gradient of the mean loss; if None, no clipping.
    clip_norm: float | None = option(None, paper={"section 5.3": [Rule("no clipping")]})
    # Largest number of consecutive updates that may be skipped because their gradient is not finite.
    skip_nonfinite: int = option(0, not_in_paper="has an effect only if training would fail otherwise")

    def __post_init__(self):
        self._at_least(1, "warmup_steps", "decay_steps")
        self._at_least(0, "skip_nonfinite")
        self._fraction("beta1", "beta2", "final_fraction")
        for field in ("epsilon", "learning_rate", "clip_norm"):
            value = getattr(self, field)
            self._require(field, value is None or value > 0, "above 0")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require(
            "weight_decay",
            self.weight_decay == 0 or self.name not in ("adam", "sgd"),
            f"0 with optimizer.name={self.name}; only adamw and muon decay weights",
        )
