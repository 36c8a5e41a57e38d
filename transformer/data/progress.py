"""Progress of long work, such as preparing a data set."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar, runtime_checkable

log = logging.getLogger(__name__)

Chunk = TypeVar("Chunk", bound=list)


@runtime_checkable
class Progress(Protocol):
    """Receiver of progress reports."""

    def __call__(self, activity: str, kind: str, done: int, total: int | None) -> None:
        """Reports that `activity` has handled `done` of `total` records.

        Args:
          activity: description of the work, such as "tokenizing train".
          kind: word for the records, such as "pairs".
          done: number of handled records; 0 when the activity begins.
          total: number of all records; None if it is unknown.
        """


class LogLines:
    """Logs a line every few seconds. Logs nothing for an activity that ends sooner."""

    def __init__(self, seconds: float = 10.0):
        """Sets the time between two lines, in seconds."""
        self._seconds = seconds
        self._began = self._last = 0.0

    def __call__(self, activity: str, kind: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == 0:
            self._began = self._last = now
        elif now - self._last >= self._seconds or (done == total and self._last > self._began):
            self._last = now
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            rate = done / (now - self._began)
            rate_text = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
            log.info("%s: %s %s, %s per second", activity, count, kind, rate_text)


def watched(
    chunks: Iterable[Chunk], progress: Progress, activity: str, kind: str, total: int | None = None
) -> Iterator[Chunk]:
    """Yields the chunks. Reports a chunk when the next one is requested; reports the total once."""
    done = 0
    progress(activity, kind, done, total)
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        progress(activity, kind, done, total)
    if done != total:
        progress(activity, kind, done, done)
