"""The training loop of the peers that use PyTorch.

On a GPU, the model is compiled and computes in bfloat16.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import nn

from experiments.machine import cores
from experiments.process import keep_freed_memory
from experiments.speed.peer import Prepared
from transformer.config import PAD

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# (model, *batch) -> mean loss per target token
LossFn = Callable[..., torch.Tensor]


def set_up() -> None:
    """Uses the memory and the cores as our process does, so that only the frameworks differ."""
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(len(cores()))


def prepare_training(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Iterable[np.ndarray]],
    clip_norm: float | None = None,
) -> Prepared:
    """Moves the batches to the device. A turn trains on them for a number of steps; see `train`.

    Args:
      model: the model, on `DEVICE`.
      loss_fn: the loss.
      optimizer: the optimizer of the model's parameters.
      batches: the arguments of `loss_fn` besides the model. The last array of a batch has the target tokens.
      clip_norm: largest norm of the gradient; None for no clipping.
    """
    tensors = [tuple(torch.from_numpy(side).long().to(DEVICE) for side in batch) for batch in batches]
    module = torch.compile(model) if DEVICE == "cuda" else model
    turn = functools.partial(train, module, loss_fn, optimizer, itertools.cycle(tensors), clip_norm)
    return Prepared(turn, {})


def train(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[torch.Tensor, ...]],
    clip_norm: float | None,
    steps: int,
) -> dict[str, float]:
    """Trains for `steps` steps. Returns the seconds and the number of target tokens."""
    counts, started = [], time.perf_counter()
    for batch in itertools.islice(batches, steps):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss = loss_fn(model, *batch)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        counts.append((batch[-1] != PAD).sum())
    tokens = sum(map(int, counts))  # waits for the device
    return {"seconds": time.perf_counter() - started, "tokens": tokens}
