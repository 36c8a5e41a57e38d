"""Model FLOPs utilization: the share of the devices' peak rate that the model's matrix products take.

The FLOPs are those of the model's definition (Chowdhery et al. 2022, appendix B): padding counts,
recomputation to save memory does not.
"""

from typing import Any

import jax
from jaxtyping import PyTree

from transformer.model.flops import matmul_flops
from transformer.training.trainable import Hyperparameters, LossFn

# Products per second of dense bfloat16 matrices, from the data sheets, by the start of a device's name.
PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2_250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float | None:
    """Returns the peak FLOPs per second of all devices together; None if it is not known."""
    kind = jax.devices()[0].device_kind
    rate = next((rate for name, rate in PEAK_FLOPS.items() if kind.startswith(name)), None)
    return None if rate is None else rate * jax.device_count()


def step_flops(loss_fn: LossFn, params: PyTree, batch: PyTree, hyperparameters: Hyperparameters) -> int:
    """Returns the FLOPs of an update. The backward pass counts as two forward passes."""
    return 3 * matmul_flops(loss_fn, params, batch, None, hyperparameters)


class StepFlops:
    """The FLOPs of updates, which depend on the shapes of the batches only."""

    def __init__(self, loss_fn: LossFn, params: PyTree, hyperparameters: Hyperparameters):
        """Sets the loss, which is traced once per shape; `params` may be a description of the weights."""
        self._loss_fn, self._hyperparameters = loss_fn, hyperparameters
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self._by_shape: dict[Any, int] = {}

    def __call__(self, batch: PyTree) -> int:
        """Returns the FLOPs of an update of all processes; 0 if the peak of the devices is not known.

        Args:
          batch: this process's rows of the batch.
        """
        if peak_flops() is None:
            return 0
        shapes = tuple((x.shape, x.dtype) for x in jax.tree.leaves(batch))
        if shapes not in self._by_shape:
            flops = step_flops(self._loss_fn, self._params, batch, self._hyperparameters)
            self._by_shape[shapes] = flops * jax.process_count()
        return self._by_shape[shapes]
