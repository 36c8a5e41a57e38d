"""Tokenizer: text to tokens and back, by SentencePiece (Kudo and Richardson 2018; the paper, section 5.1)."""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Integer

from transformer.config import BOS, EOS, PAD, UNK, UserError

WORD_START = "\u2581"  # stands for the space before a word in the name of a token


class Tokenizer:
    """A trained SentencePiece model.

    Attributes:
      model: contents of the model file.
      sha256: digest of `model`, which ties a checkpoint to the vocabulary that it was trained with.
      vocab_size: number of tokens, special ones included.
    """

    def __init__(self, model: bytes):
        """Opens a model, given as the contents of its file."""
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._processor.vocab_size()

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads a model file.

        Raises:
          UserError: the file is not a SentencePiece model.
        """
        model = path.read_bytes()
        try:
            if model:  # SentencePiece accepts an empty model and fails at the first use
                return cls(model)
        except RuntimeError:
            pass
        raise UserError(f"{path} is not a SentencePiece model; restore it, or train the run again")

    @classmethod
    def train(cls, texts: Iterable[str], kind: str, vocab_size: int) -> "Tokenizer":
        """Learns a vocabulary. The text is not normalized.

        Args:
          texts: sentences of both languages.
          kind: the model type of SentencePiece: bpe, unigram or char.
          vocab_size: number of tokens, special ones included.

        Raises:
          UserError: a vocabulary of this size cannot be learned from the texts.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
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
            raise UserError(_explain(str(error), vocab_size)) from None
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, followed by EOS."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each text, followed by EOS. A lone surrogate is read as "?"."""
        return [tokens.tolist() for tokens in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the same tokens as `encode_all`, as arrays. Uses all cores, for many texts."""
        texts = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        return self._processor.encode(texts, add_eos=True, return_type="numpy")

    def decode(self, tokens: Sequence[int] | Integer[np.ndarray, "_"]) -> str:
        """Returns the text of the tokens before the first EOS."""
        tokens = list(map(int, tokens))
        return self._processor.decode(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)

    @functools.cached_property
    def starts_word(self) -> Bool[np.ndarray, "v"]:
        """Marks the tokens of the vocabulary that begin a word."""
        return np.array([name.startswith(WORD_START) for name in self.names(range(self.vocab_size))])

    def names(self, tokens: Sequence[int] | Integer[np.ndarray, "_"]) -> list[str]:
        """Returns tokens as strings, for figures. The first token of a word begins with U+2581."""
        return [self._processor.id_to_piece(int(token)) for token in tokens]


def _explain(message: str, vocab_size: int) -> str:
    """Rewrites the error message of SentencePiece's trainer as one line that says what to set."""
    field = f"data.vocab_size is {vocab_size}"
    if most := re.search(r"too high.*<= (\d+)", message):
        return f"{field}, but the training text fills at most {most[1]} tokens; set it to {most[1]} or less"
    if least := re.search(r"required_chars. \d+ vs (\d+)", message):
        needed = f"the characters of the training text need {least[1]} tokens"
        return f"{field}, but {needed}; set it to {least[1]} or more"
    if "sentences_.empty" in message or "all_chars_count" in message:
        return f"{field}, but the training text is empty; give text to learn a vocabulary from"
    return f"{field}; SentencePiece says: {message.rsplit('] ', 1)[-1]}"
