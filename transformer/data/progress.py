"""Who is told how far long work has come."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

log = logging.getLogger(__name__)

Chunk = TypeVar("Chunk", bound=list)


@runtime_checkable
class Progress(Protocol):
    """Shows preparation to whoever waits for it."""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` pairs (None: nobody knows) are through `what`; 0 when it begins."""


class LogLines:
    """Logs a line every few seconds; work that is done sooner is not worth one."""

    def __init__(self, seconds: float = 10.0):
        self._seconds = seconds
        self._began = self._last = 0.0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == 0:
            self._began = self._last = now
        elif now - self._last >= self._seconds or (done == total and self._last > self._began):
            self._last = now
            rate = done / (now - self._began)
            of = "" if total is None else f" of {total:,}"
            log.info("%s: %s%s pairs, %s a second", what, f"{done:,}", of, f"{rate:,.0f}")


def watched(
    chunks: Iterable[Chunk], progress: Progress, what: str, total: int | None = None
) -> Iterator[Chunk]:
    """The chunks, each reported when the next one is asked for; at the end the total is known."""
    done = 0
    progress(what, done, total)
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress(what, done, total)
    progress(what, done, done)
