"""Reads the programs and the errors of the TPU compiler, which are text."""

import math
import re
from typing import Any

# The memory of a chip and that of a program, in the message of an error. Both have a number and a unit.
AVAILABLE = re.compile(r"exceeds available HBM \(([\d.]+)([KMGT])\)")
NEEDED = re.compile(r"(?:\(|Used )([\d.]+)([KMGT])(?:\) exceeds available| of)")
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# An exchange between chips in a program: its result, its kind, and whether it is asynchronous.
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
ITEM_BYTES = {"pred": 1, "bf16": 2}  # other dtypes have the number of bits in their name


def collectives(program: str) -> dict[str, dict[str, Any]]:
    """Returns the exchanges between chips in the text of a program, by kind.

    Returns:
      For each kind, such as all-reduce: its count, the bytes of all results and of the largest array, and the
      dtypes. An exchange in a loop counts once.
    """
    exchanges: dict[str, dict[str, Any]] = {}
    for line in program.splitlines():
        if not (match := COLLECTIVE.search(line)):
            continue
        result, kind, is_asynchronous = match.groups()
        arrays = ARRAY.findall(result)
        if is_asynchronous and kind == "all-gather":
            arrays = arrays[len(arrays) // 2 :]  # the first half are the operands
        if is_asynchronous and kind == "collective-permute":
            arrays = arrays[1:2]  # after the operand, and before counters
        entry = exchanges.setdefault(kind, {"count": 0, "bytes": 0, "largest_bytes": 0, "dtypes": []})
        entry["count"] += 1
        for dtype, shape in arrays:
            item = ITEM_BYTES.get(dtype) or max(int(dtype[1:]) // 8, 1)
            size = item * math.prod(int(size) for size in shape.split(",") if size)
            entry["bytes"] += size
            entry["largest_bytes"] = max(entry["largest_bytes"], size)
            entry["dtypes"] = sorted({*entry["dtypes"], dtype})
    return exchanges


def bytes_in(pattern: re.Pattern[str], error: Exception) -> int | None:
    """Returns the bytes of memory in the message of an error; None if the pattern does not match.

    Args:
      pattern: `AVAILABLE` or `NEEDED`.
      error: an error of the compiler.
    """
    match = pattern.search(str(error))
    return int(float(match[1]) * UNITS[match[2]]) if match else None


def first_line(error: Exception) -> str:
    """Returns the first line of the message of an error, without the status code before it."""
    return str(error).partition(": ")[2].splitlines()[0].rstrip(".")
