"""Collective operations of the processes that train together, one per host, joined by `jax.distributed`.

All processes must call these functions in the same order. With one process, no function communicates.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from transformer.config import UserError

MAX_MESSAGE_BYTES = 4_000


def is_first() -> bool:
    """Returns whether this process writes the files of a run, apart from the checkpoints."""
    return jax.process_index() == 0


def all_true(value: bool) -> bool:
    """Returns whether a value is true in every process."""
    return bool(np.all(_gather(np.array(value))))


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Raises a `UserError` that is raised in one process in all of them. All must enter the context."""
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    if jax.process_count() > 1:
        error = _first_error(error)
    if error is not None:
        raise error


def broadcast(value: Any) -> Any:
    """Returns the value of the first process, JSON data, in every process."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.resize(data, length)  # only that of the first process counts
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes())


def rows_of_process(batch: PyTree) -> PyTree:
    """Returns every n-th row of a batch that all n processes have, with rows of zeros as padding."""
    index, count = jax.process_index(), jax.process_count()

    def select(x):
        padding = ((0, -len(x) % count),) + ((0, 0),) * (x.ndim - 1)
        return np.pad(x, padding)[index::count]

    return batch if count == 1 else jax.tree.map(select, batch)


class StopVote:
    """Decides after which step all processes stop, if one of them was asked to stop.

    A call asks the other processes without waiting for them, and returns the result of the previous call. So
    the host stays at most one step ahead of the devices, and the devices need not wait for the host.
    """

    def __init__(self, should_stop: Callable[[], bool]):
        """Sets the function that returns whether this process was asked to stop."""
        self._should_stop = should_stop
        mesh = jax.make_mesh((jax.device_count(),), ("devices",), (AxisType.Auto,))
        self._by_device = NamedSharding(mesh, PartitionSpec("devices"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._previous = None

    def __call__(self) -> bool:
        """Returns whether to stop now: the same in all processes."""
        asked = self._should_stop()
        if jax.process_count() == 1:
            return asked
        votes = np.full(jax.local_device_count(), asked)
        previous = self._previous
        self._previous = self._any(jax.make_array_from_process_local_data(self._by_device, votes))
        return previous is not None and bool(previous)


def _gather(value: np.ndarray) -> np.ndarray:
    """Returns the values of all processes, stacked."""
    if jax.process_count() == 1:
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


def _first_error(error: UserError | None) -> UserError | None:
    """Returns the error of this process, otherwise that of the first process that has one."""
    text = b"" if error is None else str(error).encode()[:MAX_MESSAGE_BYTES]
    message = np.frombuffer(text.ljust(MAX_MESSAGE_BYTES, b"\0"), np.uint8)
    texts = [row.tobytes().rstrip(b"\0") for row in _gather(message)]
    if error is not None or not any(texts):
        return error
    return UserError(next(filter(None, texts)).decode(errors="replace"))
