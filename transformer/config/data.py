"""Config fields of the data."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from transformer.config.conditions import CHANGES_NOTHING, reads_text, translates
from transformer.config.fields import Section, option

# Special tokens of every vocabulary, shared by the tokenizer, the model and the search.
PAD, BOS, EOS, UNK = 0, 1, 2, 3


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """The text and its tokens (paper, section 5.1), or the images."""

    section: ClassVar[str] = "data"

    # A name in data.builders.BUILDERS or data.image_sets.IMAGE_SETS, or a TFDS set.
    name: str = option(
        "wmt14_translate/de-en",
        paper={"section 5.1": ["wmt14_translate/de-en", "wmt14_translate/fr-en"]},
    )
    # Language translated from.
    source: str = option("en", paper={"section 5.1": ["en"]}, read_if=translates)
    # Language translated to, or language of the documents.
    target: str = option("de", paper={"section 5.1": ["de", "fr"]}, read_if=reads_text)
    # Folder for prepared data; if None, the default folder of TFDS.
    data_dir: str | None = option(None, not_in_paper="a path", affects_result=False)
    # Options of the data set, checked against the dataclass that declares them.
    options: Mapping[str, Any] = option(
        default_factory=dict, not_in_paper="declared by each builder for itself"
    )
    # SentencePiece model type: bpe, unigram or char.
    tokenizer: str = option("bpe", paper={"section 5.1": ["bpe"]}, read_if=reads_text)
    # Size of the vocabulary, which both languages of translation share; special tokens included.
    vocab_size: int = option(37_000, paper={"section 5.1": [37_000, 32_000]}, read_if=reads_text)
    # Whether the vocabulary has 256 byte tokens, which encode characters without a token of their own.
    byte_fallback: bool = option(False, paper={"section 5.1": [False]}, read_if=reads_text)
    # Tokens per row. Training pairs with a longer side are dropped, and the log says how many; documents are
    # cut into rows.
    row_length: int = option(
        256, not_in_paper="the paper does not say which pairs are too long to train on", read_if=reads_text
    )
    # Processes that assemble batches; if 0, a thread of the training process assembles them.
    workers: int = option(0, not_in_paper=CHANGES_NOTHING, affects_result=False)

    def __post_init__(self):
        self._at_least(8, "vocab_size")
        self._at_least(2, "row_length")
        self._at_least(0, "workers")
        self._require("tokenizer", self.tokenizer in ("bpe", "unigram", "char"), "bpe, unigram or char")
        for field in ("source", "target"):  # names become parts of paths
            is_code = re.fullmatch(r"\w[\w.-]{0,31}", getattr(self, field))
            self._require(field, is_code is not None, "a language code, such as de or zh_TW")
        self._require("data_dir", "://" not in (self.data_dir or ""), "a path on this machine")
