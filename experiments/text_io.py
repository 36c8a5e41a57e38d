"""Reads lines of text as they arrive, and writes the output lines of `translate`."""

import codecs
import dataclasses
import functools
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Protocol

from experiments.attention_file import AttentionFile
from transformer.config import UserError
from transformer.data.text import MAX_LINE_BYTES
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.scorer import Scorer
from transformer.decoding.translator import Hypothesis, Translator

BLOCK_LINES, BLOCK_BYTES = 1_024, 1 << 20  # limits of a block; its last line may go beyond BLOCK_BYTES
# A block ends after PAUSE seconds without new data, or MAX_WAIT seconds after its first line arrived.
PAUSE, MAX_WAIT = 0.05, 0.5
IDLE = 1.0  # longest wait in seconds; a Ctrl-C just before a wait is handled only after it
READ_BYTES = 1 << 16
MAX_UNKNOWN_LINES, MAX_CHARACTERS = 5, 8  # reported: lines per call, and characters per line


def read_blocks(file: int) -> Iterator[list[bytes]]:
    """Yields the lines of an open file, pipe or terminal in blocks, without their line ends.

    A block ends after `BLOCK_LINES` lines or `BLOCK_BYTES` bytes, or earlier if no more data arrives for a
    moment (`PAUSE`), so that a user who types one line gets its answer before typing the next. Only a line
    feed ends a line. A byte order mark at the start is dropped.

    Args:
      file: a file descriptor.

    Raises:
      UserError: a line is too long.
    """
    first = True
    block: list[bytes] = []
    partial_line: list[bytes] = []  # the parts read so far of a line whose end has not arrived yet
    size, started = 0, 0.0
    while True:
        wait = max(0.0, min(PAUSE, started + MAX_WAIT - time.monotonic())) if block else IDLE
        if not select.select([file], [], [], wait)[0]:
            if block:
                yield block
                block, size = [], 0
            continue
        data = os.read(file, READ_BYTES)
        if not data:
            break
        if first:
            data, first = data.removeprefix(codecs.BOM_UTF8), False
        *ended, rest = data.split(b"\n")
        for end in ended:
            if not block:
                started = time.monotonic()
            block.append(b"".join([*partial_line, end]))
            partial_line.clear()
            size += len(block[-1]) + 1
            if len(block) == BLOCK_LINES or size >= BLOCK_BYTES:
                yield block
                block, size = [], 0
        if rest:
            partial_line.append(rest)
            if (
                len(partial_line) > MAX_LINE_BYTES // READ_BYTES
                and sum(map(len, partial_line)) > MAX_LINE_BYTES
            ):
                raise UserError(f"a line of the input has over {MAX_LINE_BYTES:,} bytes; shorten it")
    if partial_line:
        block.append(b"".join(partial_line))
    if block:
        yield block


def decode_line(line: bytes) -> str:
    """Returns a line as text. Removes a carriage return at the end; invalid UTF-8 becomes U+FFFD."""
    return line.removesuffix(b"\r").decode("utf-8", errors="replace")


def report_unknown(
    label: str, texts: Iterable[str], tokenizer: Tokenizer, first: int = 0, max_lines: int = MAX_UNKNOWN_LINES
) -> None:
    """Prints, on standard error, the lines with characters that the vocabulary has no token for.

    Args:
      label: the origin of the texts, such as "source".
      texts: the texts.
      tokenizer: the vocabulary.
      first: index of the first text in the whole input.
      max_lines: largest number of lines to print; of any further lines, only the number is printed.
    """
    num_unknown = 0
    for number, text in enumerate(texts, start=first + 1):
        if not (characters := tokenizer.unknown(text)):
            continue
        num_unknown += 1
        if num_unknown <= max_lines:
            shown = ", ".join(map(shown_character, characters[:MAX_CHARACTERS]))
            more = ", ..." if len(characters) > MAX_CHARACTERS else ""
            print(f"{label}, line {number}: no token for {shown}{more}; read as unknown", file=sys.stderr)
    if num_unknown > max_lines:
        print(f"{label}: {num_unknown - max_lines:,} more lines with unknown characters", file=sys.stderr)


def shown_character(character: str) -> str:
    """Returns a character in quotes, or its code if it cannot be printed."""
    return f"'{character}'" if character.isprintable() else f"U+{ord(character):04X}"


class Answer(Protocol):
    """A function from input lines to output lines. `first` is the index of `texts[0]` in the whole input."""

    def __call__(self, texts: Sequence[str], first: int) -> Iterable[str]: ...


def write_answers(answer: Answer, blocks: Iterable[Sequence[bytes]], out: BinaryIO) -> None:
    """Writes the output lines for each block of input lines before reading the next block."""
    first = 0
    for block in blocks:
        for line in answer([decode_line(line) for line in block], first):
            out.write(line.encode() + b"\n")
        out.flush()
        first += len(block)


@dataclasses.dataclass(frozen=True)
class TranslationAnswer:
    """Writes translations. Tabs separate the columns of an output line.

    Attributes:
      translator: finds up to `n_best` translations of a text.
      tokenizer: the vocabulary, for messages about characters that it does not have.
      n_best: if above 1, an output line has the number of the input line, the score and a translation.
      scores: whether to write the score before the translation.
      prefixes: the beginning of each translation; if None, translations are unconstrained.
      attention: file for the attention weights of each line, or None. If it is given, a line that must be
        translated in parts is an error.
      progress: called with the number of finished lines of the whole input.
    """

    translator: Translator
    tokenizer: Tokenizer
    n_best: int = 1
    scores: bool = False
    prefixes: Sequence[str] | None = None
    attention: AttentionFile | None = None
    progress: Callable[[int], None] = lambda num_done: None

    def __call__(self, texts: Sequence[str], first: int) -> Iterator[str]:
        """Yields the translations of all texts."""
        prefixes = None if self.prefixes is None else self.prefixes[first : first + len(texts)]
        report_unknown("input", texts, self.tokenizer, first)
        report_unknown("--prefix", prefixes or (), self.tokenizer, first)
        on_split = functools.partial(self._report_parts, first)
        results = self.translator.hypotheses(
            texts, prefixes, first, lambda num_done: self.progress(first + num_done), on_split
        )
        for number, (text, hypotheses) in enumerate(zip(texts, results, strict=True), start=first + 1):
            if self.attention is not None:
                self.attention.add(number, text, hypotheses[0].text, hypotheses[0].ended)
            for hypothesis in hypotheses:
                yield self._line(number, hypothesis)

    def _line(self, number: int, hypothesis: Hypothesis) -> str:
        columns = [f"{number}"] if self.n_best > 1 else []
        columns += [f"{hypothesis.score:.4f}"] if self.n_best > 1 or self.scores else []
        # Beside other columns, a tab in the text would add a column.
        text = hypothesis.text.replace("\t", " ") if columns else hypothesis.text
        return "\t".join([*columns, text])

    def _report_parts(self, first: int, index: int, num_tokens: int, num_parts: int) -> None:
        line = f"line {first + index + 1} has {num_tokens:,} tokens"
        limit = f"{self.translator.max_source_length:,}"
        if self.attention is not None:
            raise UserError(
                f"{line}, but --attention accepts at most {limit}; shorten the line or leave out --attention"
            )
        print(f"{line}; translating it in {num_parts:,} parts of at most {limit} tokens", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class ScoreAnswer:
    """Writes the log-probabilities of given translations, in nats, as one JSON object per line.

    Attributes:
      scorer: computes the log-probabilities.
      tokenizer: the vocabulary.
      targets: the translation of each line.
      progress: called with the number of finished lines of the whole input.
    """

    scorer: Scorer
    tokenizer: Tokenizer
    targets: Sequence[str]
    progress: Callable[[int], None] = lambda num_done: None

    def __call__(self, texts: Sequence[str], first: int) -> Iterator[str]:
        """Yields the scores of the targets of all texts."""
        targets = self.targets[first : first + len(texts)]
        report_unknown("input", texts, self.tokenizer, first)
        report_unknown("--targets", targets, self.tokenizer, first)
        encoded = self.tokenizer.encode_all(targets)
        for tokens, log_probs in zip(encoded, self.scorer.log_probs(texts, targets, first), strict=True):
            values = {
                "log_prob": round(float(log_probs.sum()), 6),
                "tokens": self.tokenizer.names(tokens),
                "log_probs": [round(float(log_prob), 6) for log_prob in log_probs],
            }
            yield json.dumps(values, ensure_ascii=False)
        self.progress(first + len(texts))
