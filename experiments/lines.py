"""Bytes in, bytes out: a line for each line, whatever is in it."""

import functools
import sys
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from transformer.decoding.translator import Translator

LINES, BYTES = 1_024, 1 << 20  # translated at once; what is reached first


def translate_lines(translator: Translator, lines: Iterable[bytes], out: BinaryIO) -> None:
    """Writes each line's translation, a block at a time.

    Only a line feed ends a line; a carriage return before it belongs to the end, too. What is no UTF-8
    becomes U+FFFD.
    """
    before = 0
    for block in _blocks(lines):
        texts = [
            line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", errors="replace") for line in block
        ]
        for translation in translator(texts, in_parts=functools.partial(report, translator, before)):
            out.write(translation.encode() + b"\n")
        out.flush()
        before += len(block)


def report(translator: Translator, before: int, text: int, pieces: int, parts: int) -> None:
    """Says on standard error that a line was too long; `before`: lines before the block that `text` is in."""
    print(
        f"line {before + text + 1} has {pieces:,} pieces: "
        f"translated in {parts:,} parts of at most {translator.max_source:,}",
        file=sys.stderr,
    )


def _blocks(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Cuts a stream of lines after `LINES` lines or `BYTES` bytes."""
    block, size = [], 0
    for line in lines:
        block.append(line)
        size += len(line)
        if len(block) == LINES or size >= BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
