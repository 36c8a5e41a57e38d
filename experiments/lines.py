"""Lines of bytes, whatever is in them: read as they come, in blocks that are worth a batch."""

import os
import select
import time
from collections.abc import Iterator

LINES, BYTES = 1_024, 1 << 20  # a block holds no more, but for its last line
PAUSE, PATIENCE = 0.05, 0.5  # seconds without anything new, or since the first line, that end a block
READ = 1 << 16  # bytes asked for at once


def blocks(file: int) -> Iterator[list[bytes]]:
    """The lines of an open file, pipe or terminal, in blocks, without their ends.

    A block ends after `LINES` lines or `BYTES` bytes, or earlier where nothing more is there yet, so that
    whoever writes a line and waits is answered. Only a line feed ends a line.

    Args:
      file: its descriptor.
    """
    block: list[bytes] = []
    unended: list[bytes] = []  # what there is of a line whose end has not come; joined once
    size, since = 0, 0.0
    while True:
        left = max(0.0, min(PAUSE, since + PATIENCE - time.monotonic())) if block else None
        if not select.select([file], [], [], left)[0]:
            yield block
            block, size = [], 0
            continue
        read = os.read(file, READ)
        if not read:
            break
        *ended, rest = read.split(b"\n")
        for end in ended:
            if not block:
                since = time.monotonic()
            block.append(b"".join([*unended, end]))
            unended.clear()
            size += len(block[-1]) + 1
            if len(block) == LINES or size >= BYTES:
                yield block
                block, size = [], 0
        if rest:
            unended.append(rest)
    if unended:
        block.append(b"".join(unended))
    if block:
        yield block


def as_text(line: bytes) -> str:
    """A line's text: a carriage return before its end belongs to the end; what is no UTF-8 becomes U+FFFD."""
    return line.removesuffix(b"\r").decode("utf-8", errors="replace")
