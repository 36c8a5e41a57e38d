"""What a config costs, how it differs from base, and in what it departs from the paper.

    python -m experiments.describe --config=configs/table3.py:C-N2
    python -m experiments.describe --config=configs/multi30k.py --config.model.positions=rope --json

No data is read: the vocabulary has data.vocab_size pieces, and a training step is one on full rows.
"""

import itertools
import json
import re
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from experiments import entry

JSON = flags.DEFINE_bool("json", False, "Print JSON.")
CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with its arguments after a colon.")
flags.mark_flag_as_required("config")

# Modules in the order in which they compute, by how their names begin; others after them.
ORDER = ("embedding", "encoder", "decoder", "positions", "layers", "self_", "cross_", "feed_forward")
OWN = ""  # in the place of a module's name: what it has besides its modules


def main() -> None:
    config = entry.config_from_flag(CONFIG.value)
    from experiments.description import describe

    found = describe(config)
    if JSON.value:
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False)
    resolved = (f"{field.split('.')[1]} {value:.6g}" for field, value in found["resolved"].items())
    _list(console, config_flags.get_config_filename(flags.FLAGS["config"]), [", ".join(resolved)])
    step = found["step"]
    _show(console, f"{found['parameters']:,} parameters, {step['vocab_size']:,} pieces", _parameters(found))
    rows = f"{step['rows']:,} rows of {step['row_length']:,} pieces on both sides, no padding"
    parts = f", in {step['parts']} parts" if step["parts"] > 1 else ""
    _show(console, f"A training step: {rows}{parts}", _cost(found, config.train.steps))
    if found["difference"]:
        _show(console, "Difference from base", _difference(found["difference"]))
    _list(console, "Declared departures from the paper", found["departures"] or ["none"])
    _list(console, "Notes", found["notes"])


def _parameters(found: dict) -> Table:
    table = Table("module", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("of all", justify="right")
    for depth, label, count, times in _modules(_nested(found["parameters_by_module"])):
        table.add_row("  " * depth + label, f"{count:,}", f"{count * times / found['parameters']:.1%}")
    return table


def _cost(found: dict, steps: int) -> Table:
    table = Table.grid("", "", "", padding=(0, 2))
    table.columns[1].justify = "right"
    table.add_row("matrix products", f"{found['flops_per_step'] / 1e9:,.1f}", "GFLOPs")
    table.add_row(f"  in all {steps:,} steps", f"{found['flops_per_step'] * steps:.2e}", "FLOPs")
    labels = {
        "total": "memory on one device",
        "parameters": "  parameters",
        "gradients": "  gradients",
        "optimizer": "  Adam's two moments",
        "activations": "  activations kept for the backward pass; XLA may keep less",
    }
    for name, label in labels.items():
        table.add_row(label, f"{found['memory_bytes'][name] / 2**20:,.1f}", "MiB")
    return table


def _difference(fields: dict) -> Table:
    table = Table("field", "base", "here", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for field, values in fields.items():
        table.add_row(field, *(escape(repr(value)) for value in values))
    return table


def _show(console: Console, heading: str, table: Table) -> None:
    console.print(f"[bold]{escape(heading)}[/bold]")
    console.print(Padding(table, (0, 0, 1, 2), expand=False))


def _list(console: Console, heading: str, lines: list[str]) -> None:
    if lines:
        console.print(f"[bold]{escape(heading)}[/bold]")
    for number, line in enumerate(lines, start=1):
        console.print(Padding(escape(line), (0, 0, number == len(lines), 2), expand=False))


def _nested(counts: dict[str, int]) -> dict:
    """Counts by path as nested dicts, siblings in the order of computation."""
    tree: dict = {}
    for path, count in sorted(counts.items(), key=lambda item: [_rank(name) for name in item[0].split("/")]):
        inner = tree
        for name in path.split("/"):
            inner = inner.setdefault(name, {})
        inner[OWN] = count
    return tree


def _rank(name: str) -> tuple:
    order = next((place for place, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))
    return order, [int(one) if one.isdigit() else one for one in re.split(r"(\d+)", name)]


def _modules(tree: dict, depth: int = 0, times: int = 1) -> Iterator[tuple[int, str, int, int]]:
    """Depth, label, parameters and number of each module; neighbours that are alike are one line."""

    def alike(item):
        return re.sub(r"\d+$", "", item[0]), item[1]

    inner = ((name, below) for name, below in tree.items() if name != OWN)
    for (_, below), group in itertools.groupby(inner, alike):
        names = [name for name, _ in group]
        label = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, each"
        yield depth, label, _total(below), times * len(names)
        yield from _modules(below, depth + 1, times * len(names))


def _total(tree: dict) -> int:
    return sum(below if name == OWN else _total(below) for name, below in tree.items())


if __name__ == "__main__":
    entry.run(main)
