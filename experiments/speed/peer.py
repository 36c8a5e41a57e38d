"""Peers that are timed in separate processes, which wait while others are timed.

A peer reads a request, one line of JSON, and answers with another line when it is ready. Then it reads
numbers, one per line: the number of times to do its work. It answers each with the result, as JSON.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Prepared(NamedTuple):
    """A peer that is ready.

    Attributes:
      turn: does the work as many times as asked, and returns JSON data, such as the seconds it took.
      answer: the first answer, JSON data.
    """

    turn: Callable[[int], Any]
    answer: dict[str, Any]


def serve(prepare: Callable[..., Prepared]) -> None:
    """Runs a peer in this process; `prepare` takes the fields of the request."""
    turn, answer = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)


def time_calls(work: Callable[[], object], times: int = 1) -> float:
    """Returns the seconds of calling `work` some times."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


class PeerProcess:
    """A peer in a separate process; a context manager that ends the process.

    Attributes:
      answer: the peer's first answer.
    """

    def __init__(self, module: str, request: dict[str, Any]):
        """Starts `module` and waits until it is ready."""
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.answer = self._ask(json.dumps(request))
        except BaseException:
            self._end()
            raise

    def turn(self, times: int) -> Any:
        """Lets the peer do its work some times, and returns the result."""
        return self._ask(str(times))

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def _ask(self, line: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # it has ended, and does not answer
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._module} ended with status {self._process.wait()}")
        return json.loads(answer)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
