"""Prints the costs of a config, the differences from the base config and the departures from the paper.

    python -m experiments.describe --config=configs/table3.py:C-N2
    python -m experiments.describe --config=configs/multi30k.py --config.model.positions=rope --json
    python -m experiments.describe --config=configs/base.py --topology=v5e:2x4

No data is read: the vocabulary is assumed to have data.vocab_size tokens. The figures are for one training
step on rows without padding. With --topology, the TPU compiler compiles the training step and a search for a
slice of TPUs, on a machine without TPUs.
"""

import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from experiments import cli
from experiments.costs import describe
from experiments.topology import compile_for
from transformer.config import UserError
from transformer.tasks import task_type

# Prefixes of module names, in the order in which the modules run. Modules with other names come last.
ORDER = (
    "embedding",
    "patches",
    "class_token",
    "encoder",
    "decoder",
    "positions",
    "layers",
    "self_",
    "cross_",
    "feed_forward",
)
PARAMETERS = ""  # key of the module's own parameters in a nested dict; other keys are inner modules


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags, required=True)
    absl_flags.DEFINE_bool("json", False, "Print the figures as JSON.", flag_values=flags)
    absl_flags.DEFINE_string(
        "topology",
        None,
        "A slice of TPUs, such as v5e:2x4, for which to compile the config; needs the extra tpu.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "largest_batch",
        False,
        "With --topology: search for the largest batch that fits into the memory.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> None:
    if flags.largest_batch and flags.topology is None:
        raise UserError("--largest_batch needs --topology; add --topology=SLICE or remove --largest_batch")
    config = cli.config(flags)
    compiled = {}  # compiled first, before JAX looks for a TPU of this machine
    if flags.topology is not None:
        compiled["topology"] = compile_for(config, flags.topology, flags.largest_batch, _progress)
    costs = {**describe(config), **compiled}
    if flags.json:
        print(json.dumps(costs, indent=2))
        return
    console = Console(highlight=False)
    resolved = (f"{field.split('.')[1]} {value:.6g}" for field, value in costs["resolved"].items())
    _print_list(console, flags.config, [", ".join(resolved)])
    step = costs["step"]
    parameters = f"{costs['parameters']:,} parameters"
    if "vocab_size" in step:
        parameters += f", with a vocabulary of {step['vocab_size']:,} tokens"
    _print_table(console, parameters, _parameter_table(costs))
    rows = f"{step['rows']:,} {task_type(config).row_format.format(step['row_length'])}"
    parts = f", computed in {step['parts']} parts" if step["parts"] > 1 else ""
    _print_table(console, f"One training step: {rows}{parts}", _cost_table(costs, config.train.steps))
    if costs["difference"]:
        _print_table(console, "Difference from base", _difference_table(costs["difference"]))
    _print_list(console, "Departures from the paper", costs["departures"] or ["none"])
    _print_list(console, "Notes", costs["notes"])
    if flags.topology is not None:
        _print_topology(console, flags.topology, costs["topology"])


def _progress(line: str) -> None:
    print(f"{line} ...", file=sys.stderr, flush=True)


def _parameter_table(costs: dict[str, Any]) -> Table:
    table = Table("module", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    for depth, label, count, repeats in _modules(_nested(costs["parameters_by_module"])):
        table.add_row("  " * depth + label, f"{count:,}", f"{count * repeats / costs['parameters']:.1%}")
    return table


def _cost_table(costs: dict[str, Any], num_steps: int) -> Table:
    table = Table.grid("", "", "", padding=(0, 2))
    table.columns[1].justify = "right"
    table.add_row("matrix products", f"{costs['flops_per_step'] / 1e9:,.1f}", "GFLOPs")
    table.add_row(f"  in all {num_steps:,} steps", f"{costs['flops_per_step'] * num_steps:.2e}", "FLOPs")
    labels = {
        "total": "memory on one device",
        "parameters": "  parameters",
        "gradients": "  gradients",
        "optimizer": "  optimizer state",
        "activations": "  activations kept for the backward pass; XLA may keep less",
    }
    for name, label in labels.items():
        table.add_row(label, f"{costs['memory_bytes'][name] / 2**20:,.1f}", "MiB")
    return table


def _print_topology(console: Console, name: str, compiled: dict[str, Any]) -> None:
    axes = " x ".join(f"{axis} {size}" for axis, size in compiled["mesh"].items())
    available = f"{compiled['available_bytes'] / 2**30:.2f} GiB available on each"
    training = compiled["training"]
    rows = f"{training['rows']:,} rows of {training['row_length']:,} tokens"
    _print_table(
        console, f"One training step on {name}: {axes}, {available}, {rows}", _program_table(training)
    )
    if (search := compiled["search"]) is not None:
        sentences = f"{search['sentences']:,} sentences of {search['source_length']:,} tokens"
        _print_table(console, f"One search on one chip: {sentences}", _program_table(search))
    if compiled["padding"]:
        table = Table(
            "width", "value", "padded to", "unused", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
        )
        for entry in compiled["padding"]:
            unused = 1 - entry["width"] / entry["padded"]
            table.add_row(entry["name"], f"{entry['width']:,}", f"{entry['padded']:,}", f"{unused:.0%}")
        _print_table(console, "Widths on a chip that are no multiple of 128", table)
    if "largest_batch" in compiled:
        largest = compiled["largest_batch"]
        text = "none: not even one row fits on a chip"
        if largest is not None:
            needed = f"{largest['needed_bytes'] / 2**30:.2f} GiB"
            field = next(field for field in ("batch_tokens", "batch_size") if field in largest)
            text = f"train.{field}={largest[field]} ({largest['rows']:,} rows, {needed})"
        _print_list(console, "Largest batch that fits", [text])


def _program_table(figures: dict[str, Any]) -> Table:
    table = Table.grid("", "", "", padding=(0, 2))
    table.columns[1].justify = "right"
    mebibytes = {
        "needed_bytes": "memory on a chip"
        if figures["fits"]
        else "memory that would be needed: does not fit",
        "parameter_bytes": "  parameters",
        "optimizer_bytes": "  optimizer state",
        "temporary_bytes": "  activations, gradients and other temporary arrays",
    }
    for key, label in mebibytes.items():
        if figures.get(key) is not None:
            table.add_row(label, f"{figures[key] / 2**20:,.1f}", "MiB")
    for kind, entry in figures.get("collectives", {}).items():
        dtypes = ", ".join(entry["dtypes"])
        table.add_row(f"{kind}: {entry['count']} ({dtypes})", f"{entry['bytes'] / 2**20:,.1f}", "MiB")
    table.add_row("compilation", f"{figures['compile_seconds']:,.1f}", "s")
    return table


def _difference_table(difference: dict[str, list[Any]]) -> Table:
    table = Table("field", "base", "here", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for field, values in difference.items():
        table.add_row(field, *(escape(repr(value)) for value in values))
    return table


def _print_table(console: Console, heading: str, table: Table) -> None:
    console.print(f"[bold]{escape(heading)}[/bold]")
    console.print(Padding(table, (0, 0, 1, 2), expand=False))


def _print_list(console: Console, heading: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(f"[bold]{escape(heading)}[/bold]")
    for number, line in enumerate(lines, start=1):
        console.print(Padding(escape(line), (0, 0, number == len(lines), 2), expand=False))


def _nested(counts: dict[str, int]) -> dict[str, Any]:
    """Converts parameter counts keyed by module path to nested dicts.

    Inner modules are in the order in which they run.
    """
    tree: dict[str, Any] = {}
    for path, count in sorted(counts.items(), key=lambda item: [_rank(name) for name in item[0].split("/")]):
        modules = tree
        for name in path.split("/"):
            modules = modules.setdefault(name, {})
        modules[PARAMETERS] = count
    return tree


def _rank(name: str) -> tuple:
    order = next((place for place, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
    return order, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _modules(tree: dict[str, Any], depth: int = 0, repeats: int = 1) -> Iterator[tuple[int, str, int, int]]:
    """Yields depth, label, parameters of one module, and number of modules for each line of the table.

    Consecutive modules with the same contents share a line.
    """

    def alike(item):
        return re.sub(r"\d+$", "", item[0]), item[1]

    modules = ((name, inner) for name, inner in tree.items() if name != PARAMETERS)
    for (_, inner), group in itertools.groupby(modules, alike):
        names = [name for name, _ in group]
        label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, each"
        yield depth, label, _total(inner), repeats * len(names)
        yield from _modules(inner, depth + 1, repeats * len(names))


def _total(tree: dict[str, Any]) -> int:
    return sum(inner if name == PARAMETERS else _total(inner) for name, inner in tree.items())


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
