"""Tokenizer: text to tokens and back, by SentencePiece (Kudo and Richardson 2018; the paper, section 5.1)."""

import functools
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int, Integer

from transformer.config import BOS, EOS, PAD, UNK, UserError

WORD_START = "\u2581"  # stands for the space before a word in the name of a token
# SentencePiece's trainer ignores sentences that contain U+2585 or have more than MAX_BYTES bytes, the largest
# limit that can be set.
RESERVED = "\u2585"
MAX_BYTES = 2**30
SPACES = {"add_dummy_prefix": True, "remove_extra_whitespaces": True}  # of sentences
# Of documents. Several spaces, such as an indentation, may be one token.
EXACT = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
TRAINING = {
    "normalization_rule_name": "identity",
    "character_coverage": 1.0,
    "max_sentence_length": MAX_BYTES,
    "pad_id": PAD,
    "bos_id": BOS,
    "eos_id": EOS,
    "unk_id": UNK,
    "minloglevel": 2,
}

_NORMALIZER = sentencepiece.SentencePieceNormalizer(rule_name="identity", escape_whitespaces=True, **SPACES)


def normalize(text: str) -> str:
    """Returns the text as the tokenizer reads it, with U+2581 for spaces.

    Spaces at both ends and repeated spaces are removed; nothing else changes. If a vocabulary has tokens for
    all characters of two texts, the texts have the same tokens exactly if their normalized forms are equal.
    """
    return _NORMALIZER.normalize(_encodable(text))


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
    def train(
        cls,
        texts: Iterable[str],
        kind: str,
        vocab_size: int,
        byte_fallback: bool = False,
        exact: bool = False,
    ) -> "Tokenizer":
        """Learns a vocabulary. The text is not normalized, except for spaces; see `normalize`.

        Args:
          texts: sentences of both languages, or documents.
          kind: the model type of SentencePiece: bpe, unigram or char.
          vocab_size: number of tokens, special ones included.
          byte_fallback: whether the vocabulary has 256 byte tokens, which encode characters without a token.
          exact: whether all spaces are kept, so that decoding restores a document.

        Raises:
          UserError: a vocabulary of this size cannot be learned from the texts.
        """
        model, errors = io.BytesIO(), []
        needs_all_characters = exact and kind == "char" and not byte_fallback
        settings = TRAINING | (EXACT if exact else SPACES)
        if needs_all_characters:
            settings["use_all_vocab"] = True  # otherwise, a small vocabulary would lack the rarest characters
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sentences(texts, exact, errors),
                model_writer=model,
                model_type=kind,
                vocab_size=vocab_size,
                byte_fallback=byte_fallback,
                **settings,
            )
        except RuntimeError as error:
            raise errors[0] if errors else UserError(_explain(str(error), vocab_size)) from None
        tokenizer = cls(model.getvalue())
        if needs_all_characters and tokenizer.vocab_size > vocab_size:
            raise UserError(_too_small(vocab_size, tokenizer.vocab_size))
        return tokenizer

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, followed by EOS."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of each text, followed by EOS. A lone surrogate is read as "?"."""
        return [tokens.tolist() for tokens in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the same tokens as `encode_all`, as arrays. Uses all cores, for many texts."""
        texts = [_encodable(text) for text in texts]
        return self._processor.encode(texts, add_eos=True, return_type="numpy")

    def decode(self, tokens: Sequence[int] | Integer[np.ndarray, "_"]) -> str:
        """Returns the text of the tokens before the first EOS."""
        tokens = list(map(int, tokens))
        return self._processor.decode(tokens[: tokens.index(EOS)] if EOS in tokens else tokens)

    @functools.cached_property
    def byte_lengths(self) -> Int[np.ndarray, "v"]:
        """UTF-8 bytes that each token stands for. Special tokens stand for none.

        If the vocabulary is exact and decoding restores a text, the sum over the tokens of the text is the
        number of its bytes.
        """
        lengths = [len(name.replace(WORD_START, " ").encode()) for name in self.names(range(self.vocab_size))]
        for token in range(self.vocab_size):
            if self._processor.is_byte(token):
                lengths[token] = 1
            elif self._processor.is_control(token) or self._processor.is_unknown(token):
                lengths[token] = 0
        return np.array(lengths)

    def lost(self, text: str) -> str:
        """Returns the characters of a text that decoding does not restore, without repetitions."""
        return "".join(
            character for character in dict.fromkeys(text) if self.decode(self.encode(character)) != character
        )

    def unknown(self, text: str) -> str:
        """Returns the characters of a text for which the vocabulary has no token, without repetitions."""
        text = _encodable(text)
        if UNK not in self._processor.encode(text):
            return ""
        return "".join(
            character for character in dict.fromkeys(text) if UNK in self._processor.encode(character)
        )

    @functools.cached_property
    def starts_word(self) -> Bool[np.ndarray, "v"]:
        """Marks the tokens of the vocabulary that begin a word."""
        return np.array([name.startswith(WORD_START) for name in self.names(range(self.vocab_size))])

    def names(self, tokens: Sequence[int] | Integer[np.ndarray, "_"]) -> list[str]:
        """Returns tokens as strings, for figures. The first token of a word begins with U+2581."""
        return [self._processor.id_to_piece(int(token)) for token in tokens]


def _encodable(text: str) -> str:
    """Replaces lone surrogates, which UTF-8 cannot encode, by "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _sentences(texts: Iterable[str], exact: bool, errors: list[Exception]) -> Iterator[str]:
    """Yields texts in the form in which the trainer learns from all of their characters.

    Appends an exception of `texts` to `errors`, because SentencePiece replaces it with its own exception.
    """
    try:
        for text in texts:
            text = text.replace(RESERVED, " ")
            yield _move_line_ends(text) if exact else text
    except Exception as error:
        errors.append(error)
        raise


def _move_line_ends(text: str) -> str:
    """Moves line ends from the end of a text, where SentencePiece's trainer drops them, to its start."""
    body = text.rstrip("\r\n")
    return text[len(body) :] + body


def _too_small(vocab_size: int, needed: int) -> str:
    return (
        f"data.vocab_size is {vocab_size}, but the characters of the training text need {needed} tokens; "
        f"set it to {needed} or more"
    )


def _explain(message: str, vocab_size: int) -> str:
    """Rewrites the error message of SentencePiece's trainer as one line that says what to set."""
    field = f"data.vocab_size is {vocab_size}"
    if most := re.search(r"too high.*<= (\d+)", message):
        return f"{field}, but the training text yields at most {most[1]} tokens; set it to {most[1]} or less"
    if least := re.search(r"required_chars. \d+ vs (\d+)", message):
        return _too_small(vocab_size, int(least[1]))
    if "sentences_.empty" in message or "all_chars_count" in message:
        return f"{field}, but the training text is empty; give a text to learn the vocabulary from"
    return f"{field}, but no vocabulary was learned; SentencePiece says: {message.rsplit('] ', 1)[-1]}"
