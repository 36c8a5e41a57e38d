"""Cores and GPUs that this process may use, and the name of the processor."""

import os
import platform
import subprocess
import sys
from pathlib import Path


def cores() -> list[int]:
    """Returns the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))  # macOS does not bind processes to cores


def gpus() -> list[str]:
    """Returns the NVIDIA GPUs that JAX may use, as names for CUDA_VISIBLE_DEVICES."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu"):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def processor() -> str:
    """Returns the name of the processor and the number of cores, such as "2 cores of AMD EPYC 7763"."""
    name = platform.processor() or platform.machine()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or name
    elif (path := Path("/proc/cpuinfo")).is_file():
        lines = (line.partition(":") for line in path.read_text().splitlines())
        name = next((value.strip() for key, _, value in lines if key.strip() == "model name"), name)
    count = len(cores())
    return f"{count} core{'s' * (count > 1)} of {name}"
