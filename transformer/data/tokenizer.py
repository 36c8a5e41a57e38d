"""SentencePiece: text to pieces and back (Kudo and Richardson 2018; the paper, section 5.1, uses BPE)."""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from transformer.config import BOS, EOS, PAD, UNK, UserError

WORD_START = "\u2581"  # how SentencePiece writes the space before a word


class Tokenizer:
    """A trained SentencePiece model.

    Attributes:
      model: the model file's bytes.
      sha256: their digest, which ties checkpoints to the vocabulary they were trained with.
      vocab_size: pieces, the special ones included.
    """

    def __init__(self, model: bytes):
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a model file."""
        return cls(path.read_bytes())

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, vocab_size: int) -> "Tokenizer":
        """Learns a vocabulary. The text is taken as it is: no Unicode normalisation.

        Args:
          texts: sentences of both languages.
          kind: SentencePiece's model type: bpe, unigram or char.
          vocab_size: pieces, the special ones included.

        Raises:
          UserError: the text cannot fill the vocabulary, or is empty.
        """
        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=written,
                model_type=kind,
                vocab_size=vocab_size,
                normalization_rule_name="identity",
                character_coverage=1.0,
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise UserError(_reason(str(error), vocab_size)) from None
        return cls(written.getvalue())

    def encode(self, text: str) -> list[int]:
        """The pieces of a text, closed by EOS."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text, closed by EOS. A lone surrogate, which is no text, becomes "?"."""
        return [one.tolist() for one in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_all`, for text in bulk. SentencePiece uses all the cores there are."""
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return self._processor.encode(texts, add_eos=True, return_type="numpy")

    def decode(self, pieces: Sequence[int] | np.ndarray) -> str:
        """The text of pieces up to the first EOS."""
        pieces = list(map(int, pieces))
        return self._processor.decode(pieces[: pieces.index(EOS)] if EOS in pieces else pieces)

    @functools.cached_property
    def starts_word(self) -> np.ndarray:
        """Whether each piece of the vocabulary begins a word."""
        return np.array([name.startswith(WORD_START) for name in self.names(range(self.vocab_size))])

    def names(self, pieces: Sequence[int] | np.ndarray) -> list[str]:
        """How each piece is written, for figures; a word's first piece begins with U+2581."""
        return [self._processor.id_to_piece(int(piece)) for piece in pieces]


def _reason(said: str, vocab_size: int) -> str:
    """What SentencePiece says when it cannot learn a vocabulary, in one line that says what to set."""
    if most := re.search(r"too high.*<= (\d+)", said):
        return f"data.vocab_size is {vocab_size}; the training text fills at most {most[1]}: set that or less"
    if least := re.search(r"required_chars. \d+ vs (\d+)", said):
        return f"data.vocab_size is {vocab_size}; the training text's characters need at least {least[1]}"
    if "sentences_.empty" in said or "all_chars_count" in said:
        return f"data.vocab_size is {vocab_size}; the training text is empty: it fills none"
    return f"data.vocab_size is {vocab_size}; SentencePiece says: {said.rsplit('] ', 1)[-1]}"
