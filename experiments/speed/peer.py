"""Runs peers (other toolkits that are timed) in separate processes. A peer waits while another one is timed.

A peer process first reads the request: one line of JSON that says what to prepare, such as the sentences to
translate. When everything is prepared, the peer writes an answer, one line of JSON. Each further line that
the peer reads is a number: how many times to do the work, such as translating all sentences. After the work,
the peer writes the result as one line of JSON, for example the elapsed time in seconds.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Prepared(NamedTuple):
    """A peer that has prepared everything.

    Attributes:
      turn: function that does the work a given number of times and returns the result as JSON data.
      answer: the answer to the request, as JSON data.
    """

    turn: Callable[[int], Any]
    answer: dict[str, Any]


def serve(prepare: Callable[..., Prepared]) -> None:
    """Runs a peer in this process. `prepare` gets the fields of the request as keyword arguments."""
    turn, answer = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)


def time_calls(work: Callable[[], object], times: int = 1) -> float:
    """Returns the seconds that `times` calls of `work` take."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


class PeerProcess:
    """A peer in a separate process. Exiting the context manager ends the process.

    Attributes:
      answer: the peer's answer to the request.
    """

    def __init__(self, module: str, request: dict[str, Any]):
        """Starts `module` as a process and waits for the answer to the request."""
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.answer = self._ask(json.dumps(request))
        except BaseException:
            self.close()
            raise

    def turn(self, times: int) -> Any:
        """Lets the peer do the work `times` times, and returns the result."""
        return self._ask(str(times))

    def __enter__(self) -> "PeerProcess":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _ask(self, line: str) -> Any:
        with contextlib.suppress(BrokenPipeError):  # the peer has ended, which readline below reveals
            print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._module} ended with status {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
