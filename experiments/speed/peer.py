"""A peer that is timed in a process of its own, which waits while others are timed.

It is told what to do in a line of JSON, answers with another when it is ready, and then reads how many times
to do it, one number a line; to each it answers the seconds that took.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator


def serve(prepare: Callable[..., tuple[Callable[[], object], dict]]) -> None:
    """The peer's side.

    Args:
      prepare: makes what is timed, and the first answer, of what it is told.
    """
    work, answer = prepare(**json.loads(sys.stdin.readline()))
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        print(seconds(work, int(line)), flush=True)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """How long it takes to do something some times."""
    started = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - started


@contextlib.contextmanager
def child(module: str, told: dict) -> Iterator[tuple[Callable[[int], float], dict]]:
    """Our side: what times the peer, and its first answer."""
    command = [sys.executable, "-m", module]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(line: str):
        with contextlib.suppress(BrokenPipeError):  # it has ended: then it does not answer
            print(line, file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{module} ended with status {process.wait()}")
        return json.loads(answer)

    try:
        answer = ask(json.dumps(told))
        yield lambda times: ask(str(times)), answer
    finally:
        process.kill()
        process.wait()
