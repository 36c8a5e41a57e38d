"""Config fields of the search for texts."""

import dataclasses
import functools
from typing import ClassVar

from transformer.config.conditions import (
    CHANGES_ROUNDING,
    READ_BY_DEPARTURES,
    has_beam,
    reads_text,
    samples,
    searches,
)
from transformer.config.fields import Rule, Section, option

# Declares a field of the search for texts, which may be changed after training.
search_option = functools.partial(option, changeable=True, read_if=searches)


@dataclasses.dataclass(frozen=True)
class DecodeConfig(Section):
    """The search for translations (paper, section 6.1). Lengths are in tokens.

    A language model only continues texts. Of these fields, it reads those of sampling, `min_output_length`,
    `average_last` and `batch_tokens`.
    """

    section: ClassVar[str] = "decode"

    # Hypotheses per sentence; 1 is greedy search.
    beam_size: int = search_option(
        4, paper={"section 6.1": [4]}, read_if=(searches, lambda config: not config.decode.sampling)
    )
    # A name in decoding.length_penalty.PENALTIES.
    penalty: str = search_option("wu", paper={"section 6.1": ["wu"]}, departs_if=has_beam)
    # alpha, the exponent of the penalty.
    length_penalty: float = search_option(0.6, paper={"section 6.1": [0.6]}, departs_if=has_beam)
    # An output has at most this many tokens more than the input.
    max_extra_length: int = search_option(50, paper={"section 6.1": [50]})
    # Largest number of output tokens, EOS included; if None, only max_extra_length limits the output.
    max_output_length: int | None = search_option(None, paper={"section 6.1": [Rule("input length + 50")]})
    # Smallest number of output tokens, EOS included.
    min_output_length: int = search_option(
        1, paper={"section 6.1": [Rule("no minimum"), 1]}, read_if=reads_text
    )
    # Whether outputs are sampled; otherwise the most probable outputs are searched for.
    sampling: bool = search_option(False, paper={"section 6.1": [False]}, read_if=reads_text)
    temperature: float = search_option(1.0, not_in_paper=READ_BY_DEPARTURES, read_if=samples)
    # Number of most probable tokens to sample from; if None, all tokens.
    top_k: int | None = search_option(None, not_in_paper=READ_BY_DEPARTURES, read_if=samples)
    # Total probability of the most probable tokens to sample from (nucleus); if None, all tokens.
    top_p: float | None = search_option(None, not_in_paper=READ_BY_DEPARTURES, read_if=samples)
    seed: int = search_option(0, not_in_paper=READ_BY_DEPARTURES, read_if=samples)
    # Number of checkpoints whose weights are averaged; Table 2 uses 5 (base) or 20 (big).
    average_last: int = option(1, paper={"section 6.1": [5, 20], "section 6.2": [1]}, changeable=True)
    # Source tokens per batch of a search (on each device) or of a validation, padding included.
    batch_tokens: int = search_option(1_024, not_in_paper=CHANGES_ROUNDING, read_if=reads_text)
    # Longest source that is translated whole, in tokens, EOS included. A longer source is split.
    max_source_length: int = search_option(
        1_024, not_in_paper="the paper does not say what it does with long sources"
    )

    def __post_init__(self):
        self._at_least(1, "beam_size", "max_extra_length", "average_last", "batch_tokens")
        self._at_least(1, "min_output_length", "max_output_length", "top_k")
        self._at_least(2, "max_source_length")
        self._seed()
        self._at_least(0, "length_penalty")
        self._require("temperature", self.temperature > 0, "above 0")
        self._require("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1")
        for field, default in (("temperature", 1.0), ("top_k", None), ("top_p", None), ("seed", 0)):
            self._require(
                field,
                self.sampling or getattr(self, field) == default,
                f"{default!r} unless decode.sampling is true",
            )
        self._require(
            "max_output_length",
            self.max_output_length is None or self.max_output_length >= self.min_output_length,
            f"at least decode.min_output_length ({self.min_output_length})",
        )
