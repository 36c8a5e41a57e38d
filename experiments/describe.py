"""Prints the costs of a config, the differences from the base config and the departures from the paper.

    python -m experiments.describe --config=configs/table3.py:C-N2
    python -m experiments.describe --config=configs/multi30k.py --config.model.positions=rope --json

No data is read: the vocabulary is assumed to have data.vocab_size tokens. The figures are for one training
step on rows without padding.
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

# Prefixes of module names, in the order in which the modules run. Modules with other names come last.
ORDER = ("embedding", "encoder", "decoder", "positions", "layers", "self_", "cross_", "feed_forward")
PARAMETERS = ""  # key of the module's own parameters in a nested dict; other keys are inner modules


def define_flags(flags: FlagValues) -> None:
    cli.define_config(flags, required=True)
    absl_flags.DEFINE_bool("json", False, "Print the figures as JSON.", flag_values=flags)


def main(flags: FlagValues) -> None:
    config = cli.config(flags)
    costs = describe(config)
    if flags.json:
        print(json.dumps(costs, indent=2))
        return
    console = Console(highlight=False)
    resolved = (f"{field.split('.')[1]} {value:.6g}" for field, value in costs["resolved"].items())
    _print_list(console, flags.config, [", ".join(resolved)])
    step = costs["step"]
    parameters = f"{costs['parameters']:,} parameters, with a vocabulary of {step['vocab_size']:,} tokens"
    _print_table(console, parameters, _parameter_table(costs))
    length = f"{step['row_length']:,}"
    rows = f"{step['rows']:,} rows of {length} source and {length} target tokens, without padding"
    parts = f", computed in {step['parts']} parts" if step["parts"] > 1 else ""
    _print_table(console, f"One training step: {rows}{parts}", _cost_table(costs, config.train.steps))
    if costs["difference"]:
        _print_table(console, "Difference from base", _difference_table(costs["difference"]))
    _print_list(console, "Departures from the paper", costs["departures"] or ["none"])
    _print_list(console, "Notes", costs["notes"])


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
