"""Config fields of training."""

import dataclasses
from typing import ClassVar

from transformer.config.conditions import (
    CHANGES_NOTHING,
    CHANGES_ROUNDING,
    READ_BY_DEPARTURES,
    classifies_images,
    is_decoder_only,
    may_use_mesh,
    reads_text,
    translates,
)
from transformer.config.fields import Rule, Section, added_option, option


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Training length, batches, logging and checkpoints (paper, sections 5.1, 5.2 and 5.4)."""

    section: ClassVar[str] = "train"

    seed: int = option(0, not_in_paper="the paper reports no seed")
    steps: int = option(100_000, paper={"section 5.2": [100_000, 300_000]})
    # Target tokens per step, on average, padding not counted.
    batch_tokens: int = option(25_000, paper={"section 5.1": [25_000]}, read_if=reads_text)
    # Images per step, for image classification, and images per batch of a validation.
    batch_size: int = added_option(64, not_in_paper=READ_BY_DEPARTURES, read_if=classifies_images)
    # Number of parts into which a batch is split to save memory (gradient accumulation).
    accumulation: int = option(1, not_in_paper=CHANGES_ROUNDING)
    # eps_ls, the weight of the uniform distribution in the target distribution.
    label_smoothing: float = option(0.1, paper={"section 5.4": [0.1], "Table 3, row D": [0.0, 0.2]})
    # Whether a decoder-only model is also trained to predict the source tokens of a translation.
    loss_on_source: bool = added_option(
        False, not_in_paper=READ_BY_DEPARTURES, read_if=(is_decoder_only, translates)
    )
    # Coefficient of log(Z)^2 in the loss, where Z is the normalizer of the softmax over the vocabulary.
    z_loss: float = added_option(0.0, paper={"section 5.4": [0.0]})
    # A name in training.parallelism.PARALLELISMS.
    parallelism: str = option("auto", not_in_paper=CHANGES_ROUNDING, affects_result=False)
    # Sizes of two mesh axes: fsdp splits rows, weights and optimizer state; tensor splits heads, hidden units
    # and the vocabulary. The rest of the devices form the axis data, which splits rows.
    fsdp: int = option(1, not_in_paper=CHANGES_ROUNDING, affects_result=False, read_if=may_use_mesh)
    tensor: int = option(1, not_in_paper=CHANGES_ROUNDING, affects_result=False, read_if=may_use_mesh)
    log_every: int = option(100, not_in_paper=CHANGES_NOTHING, affects_result=False)  # in steps
    # Whether to log the gradient norm of each layer and the entropy of its attention weights.
    diagnostics: bool = option(False, not_in_paper=CHANGES_NOTHING, affects_result=False)
    # Steps between validations; each writes a checkpoint.
    validate_every: int = option(
        1_000,
        paper={"sections 5.2 and 6.1: every 10 minutes": [1_500, 600]},
        departs_if=lambda config: config.decode.average_last > 1,
    )
    # Training ends once the validation loss, without label smoothing, has not fallen in this many consecutive
    # validations; if None, training never ends early.
    patience: int | None = option(None, paper={"section 5.2": [Rule("no early end")]})
    # Reaction if training has diverged although its losses are finite: stop or warn.
    on_divergence: str = option("stop", not_in_paper=CHANGES_NOTHING, affects_result=False)
    # Number of latest checkpoints to keep. The best checkpoint is kept, too.
    keep_last: int = option(
        10, not_in_paper="decode.average_last selects the checkpoints that are used", affects_result=False
    )

    def __post_init__(self):
        self._seed()
        self._at_least(1, "steps", "batch_tokens", "accumulation", "log_every", "validate_every", "keep_last")
        self._at_least(1, "patience", "fsdp", "tensor", "batch_size")
        self._fraction("label_smoothing")
        self._require("z_loss", self.z_loss >= 0, "at least 0")
        self._require("on_divergence", self.on_divergence in ("stop", "warn"), "stop or warn")
