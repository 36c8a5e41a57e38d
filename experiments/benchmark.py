"""Times training, beside the matrix-product rate of the same machine in the same process.

    python -m experiments.benchmark train
    python -m experiments.benchmark train --json --peer=torch

Utilisation is the share of that rate at which the products of the model itself are computed, padding not
counted. Nothing else should run meanwhile.
"""

import json
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import entry
from transformer.config import choose

JSON = flags.DEFINE_bool("json", False, "Print JSON.")
PEER = flags.DEFINE_list("peer", "", "Peers timed in the same run, separated by commas: torch.")
SHAPE = flags.DEFINE_list("shape", "tiny,base", "Shapes to time, separated by commas.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; medians are over them.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 10, "What a turn of a round shall take, about.")


def main(what: str) -> None:
    del what  # there is one thing to time so far
    from experiments.speed.train import PEERS, benchmark
    from experiments.speed.workload import SHAPES

    entry.use_compilation_cache()
    shapes = {name: choose(SHAPES, name, "--shape") for name in SHAPE.value}
    for peer in PEER.value:
        choose(PEERS, peer, "--peer")
    results = {}
    for name, shape in shapes.items():
        print(f"timing {name}: {REPEATS.value} rounds", file=sys.stderr)
        results[name] = benchmark(name, shape, PEER.value, REPEATS.value, SECONDS.value)
    peers = {peer: {name: result["peers"][peer] for name, result in results.items()} for peer in PEER.value}
    for result in results.values():
        del result["peers"]
    if JSON.value:
        print(json.dumps({"shapes": results, "peers": peers}, indent=2))
    else:
        _print(results, peers)


def _print(results: dict, peers: dict) -> None:
    table = Table("", *results)
    rows = {
        "useful target tokens a second": lambda one: f"{one['tokens_per_second']:,.0f}",
        "  slowest to fastest round": lambda one: "{:,.0f} to {:,.0f}".format(*one["spread"]),
        "utilisation": lambda one: f"{one['utilisation']:.2f}",
        "step": lambda one: f"{one['step_seconds'] * 1e3:,.0f} ms",
        "model FLOPs a step": lambda one: f"{one['flops_per_step'] / 1e9:,.0f} G",
        "matrix products": lambda one: f"{one['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s",
        "padding": lambda one: f"{one['padding']:.1%}",
        "waiting for data": lambda one: f"{one['waiting_for_data']:.2%}",
    }
    for label, form in rows.items():
        table.add_row(label, *map(form, results.values()))
    for peer, shapes in peers.items():
        table.add_row(
            f"{peer}: tokens a second", *(f"{one['tokens_per_second']:,.0f}" for one in shapes.values())
        )
        table.add_row("  ours to theirs", *(f"{one['ratio']:.2f}" for one in shapes.values()))
    Console().print(table)


if __name__ == "__main__":
    entry.run(main, words=["train"])
