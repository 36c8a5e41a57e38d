"""Times training and translating. Nothing else should run meanwhile.

    python -m experiments.benchmark train --json --peer=torch
    python -m experiments.benchmark decode --json --peer=ctranslate2,transformers
    python -m experiments.benchmark lengths --sweep=configs/sweeps/recurrence.py

`train`: text of mixed lengths, beside the matrix-product rate of the same machine in the same process.
Utilisation is the share of that rate at which the products of the model itself are computed, padding not
counted. `decode`: beam search for 24 pieces of each of 128 sentences, the encoder included; peers have the
same weights, and how far their outputs are ours is said beside. `lengths`: the variants of a study on
sentences of one length after another, the pieces of a batch held constant.
"""

import json
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import entry
from transformer.config import UserError, choose

JSON = flags.DEFINE_bool("json", False, "Print JSON.")
PEER = flags.DEFINE_list(
    "peer", "", "Peers timed in the same run, separated by commas: torch; decode: ctranslate2, transformers."
)
SWEEP = flags.DEFINE_string(
    "sweep", "configs/sweeps/recurrence.py", "lengths: study whose variants are timed."
)
LENGTHS = flags.DEFINE_list(
    "lengths", "16,64,256,1024", "lengths: pieces of a sentence, separated by commas."
)
TOKENS = flags.DEFINE_integer("batch_tokens", 4_096, "lengths: target pieces a step.", lower_bound=1)
FIGURE = flags.DEFINE_string("figure", None, "lengths: file to draw into.")
SHAPE = flags.DEFINE_list("shape", "tiny,base", "Shapes to time, separated by commas.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds; medians are over them.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 10, "What a turn of a round shall take, about.")


def main(what: str) -> None:
    {"train": _train, "decode": _decode, "lengths": _lengths}[what]()


def _lengths() -> None:
    from experiments import plots
    from experiments.launcher.sweep import expand, load_sweep
    from experiments.speed.lengths import benchmark_lengths

    entry.use_compilation_cache()
    lengths = sorted(_length(text) for text in LENGTHS.value)
    configs = {run.variant: run.config for run in expand(load_sweep(SWEEP.value), {}, seeds=1)}
    print(f"timing {', '.join(configs)}: {REPEATS.value} rounds a length", file=sys.stderr)
    results = benchmark_lengths(configs, lengths, TOKENS.value, REPEATS.value, SECONDS.value)
    if FIGURE.value is not None:
        plots.speed_by_length(results, f"training, {TOKENS.value:,} pieces a batch").savefig(FIGURE.value)
    if JSON.value:
        print(json.dumps(results, indent=2))
        return
    table = Table("target tokens a second", *(f"length {length}" for length in lengths))
    for name, row in results.items():
        table.add_row(name, *(f"{row[length]['tokens_per_second']:,.0f}" for length in lengths))
    Console().print(table)


def _length(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= TOKENS.value:
        raise UserError(
            f"--lengths has {text!r}; each must be a number from 2 to --batch_tokens ({TOKENS.value})"
        )
    return int(text)


def _train() -> None:
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


def _decode() -> None:
    import jax

    from experiments.speed.decode import PEERS, benchmark
    from experiments.speed.workload import SHAPES

    shapes = {name: choose(SHAPES, name, "--shape") for name in SHAPE.value}
    for peer in PEER.value:
        choose(PEERS, peer, "--peer").require(f"--peer={peer}")
    if PEER.value and (backend := jax.default_backend()) != "cpu":
        raise UserError(f"--peer compares on a CPU, and JAX is on {backend}; set JAX_PLATFORMS=cpu")
    results = {}
    for name, shape in shapes.items():
        print(f"timing {name}: {REPEATS.value} rounds", file=sys.stderr)
        results[name] = benchmark(shape.model, PEER.value, REPEATS.value, SECONDS.value)
    if JSON.value:
        print(json.dumps({"shapes": results}, indent=2))
    else:
        _print_decode(results)


def _print_decode(results: dict) -> None:
    table = Table("", *results)
    rows = {
        "tokens a second": lambda one: f"{one['tokens_per_second']:,.0f}",
        "  slowest to fastest round": lambda one: "{:,.0f} to {:,.0f}".format(*one["spread"]),
        "compiling, apart": lambda one: f"{one['compile_seconds']:.1f} s",
    }
    for label, form in rows.items():
        table.add_row(label, *map(form, results.values()))
    forms = {
        "  slowest to fastest round": lambda one: "{:,.0f} to {:,.0f}".format(*one["spread"]),
        "  ours to theirs": lambda one: f"{one['ratio']:.2f}",
        "  with": lambda one: one["settings"],
        "  outputs identical, tied": lambda one: f"{one['identical']:.1%}, {one['tied']:.1%}",
        "  theirs more probable by": lambda one: f"{one['score_difference']:+.1e} nats",
        "  of given pieces differ by": lambda one: f"{one['log_prob_difference']:.1e} nats",
    }
    for peer in PEER.value:
        speeds = (f"{one['peers'][peer]:,.0f}" for one in results.values())
        table.add_row(f"{peer}: tokens a second", *speeds)
        for label, form in forms.items():
            table.add_row(label, *(form(one["against"][peer]) for one in results.values()))
    Console().print(table)


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
    entry.run(main, words=["train", "decode", "lengths"])
