"""Measures the speed of training and translation. Nothing else should run at the same time.

    python -m experiments.benchmark train --json --peer=torch
    python -m experiments.benchmark train --json --shape=gpt --peer=transformers
    python -m experiments.benchmark decode --json --peer=ctranslate2,transformers
    python -m experiments.benchmark lengths --sweep=configs/sweeps/recurrence.py
    python -m experiments.benchmark accelerator --peer=torch,transformers

`train` measures training on sentences of mixed lengths or, with `--shape=gpt`, on documents. Utilization is
the FLOPs per second of the model's matrix products, without padding, divided by the FLOPs per second that the
machine reaches on large matrices.
`decode` measures beam search for 128 sentences, including the encoder; each output has 24 tokens. `lengths`
measures training of the variants of a study at several sentence lengths, with equally many tokens per batch.
`accelerator` measures a GPU or TPU in one call: products, training of base and big with bfloat16 activations,
several runs in one program, the variants of a study by length, and translation; `--small` tries it on a CPU.

Every measurement is repeated in several rounds. A peer is another toolkit that does the same work in every
round. For `decode`, a peer uses the same weights, and the benchmark compares the peer's outputs with ours.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues
from rich.table import Table

from experiments import cli
from experiments.process import set_up_jax
from experiments.progress import console
from transformer.config import ExperimentConfig, UserError, choose, flatten
from transformer.files import atomic_write

SUBCOMMANDS = ("train", "decode", "lengths", "accelerator")


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_bool("json", False, "Print the results as JSON.", flag_values=flags)
    absl_flags.DEFINE_list(
        "peer",
        "",
        "Other toolkits to measure too, separated by commas: torch for train, transformers for train with "
        "--shape=gpt; ctranslate2 and transformers for decode.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "sweep",
        "configs/sweeps/recurrence.py",
        "For lengths and accelerator: sweep file whose variants are measured by length.",
        flag_values=flags,
    )
    absl_flags.DEFINE_list(
        "lengths",
        "16,64,256,1024",
        "For lengths: numbers of tokens per sentence, separated by commas.",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "batch_tokens", 4_096, "For lengths: target tokens per step.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_string(
        "figure", None, "For lengths: image file to which the plot is written.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "shape",
        "tiny,base",
        "For train and decode: models to measure, separated by commas. tiny, base and big translate; gpt, "
        "for train only, is a language model.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("small", False, "For accelerator: small sizes, for a trial.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "repeats", 5, "Number of rounds; results are medians over rounds.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_float(
        "seconds", 10, "Approximate seconds per round for each toolkit or variant.", flag_values=flags
    )


def main(flags: FlagValues, subcommand: str) -> None:
    functions = {"train": _train, "decode": _decode, "lengths": _lengths, "accelerator": _accelerator}
    functions[subcommand](flags)


def _train(flags: FlagValues) -> None:
    from experiments.speed.train import PEERS, benchmark
    from experiments.speed.workload import SHAPES

    set_up_jax()
    shapes = {name: choose(SHAPES, name, "--shape") for name in flags.shape}
    for name, shape in shapes.items():
        for peer in flags.peer:
            choose(PEERS[shape.config.task], peer, f"with --shape={name}, --peer")
    results = {}
    for name, shape in shapes.items():
        print(f"timing {name}: {flags.repeats} rounds", file=sys.stderr)
        results[name] = benchmark(name, shape, flags.peer, flags.repeats, flags.seconds)
    peers = {peer: {name: result["peers"][peer] for name, result in results.items()} for peer in flags.peer}
    for result in results.values():
        del result["peers"]
    if flags.json:
        print(json.dumps({"shapes": results, "peers": peers}, indent=2))
        return
    table = Table("", *results)
    _add_rows(table, TRAIN_ROWS, results)
    for peer, by_shape in peers.items():
        _add_rows(
            table, {f"{peer}: tokens per second": _rate, "  step": _step, RATIO_LABEL: _ratio}, by_shape
        )
    console().print(table)


def _decode(flags: FlagValues) -> None:
    import jax

    from experiments.speed.decode import PEERS, benchmark
    from experiments.speed.workload import SHAPES

    translated = {name: shape for name, shape in SHAPES.items() if shape.config.task == "translation"}
    shapes = {name: choose(translated, name, "--shape") for name in flags.shape}
    for peer in flags.peer:
        choose(PEERS, peer, "--peer").require(f"--peer={peer}")
    if flags.peer and (backend := jax.default_backend()) != "cpu":
        raise UserError(f"--peer compares toolkits on the CPU, but JAX uses {backend}; set JAX_PLATFORMS=cpu")
    results = {}
    for name, shape in shapes.items():
        print(f"timing {name}: {flags.repeats} rounds", file=sys.stderr)
        results[name] = benchmark(shape.config.model, flags.peer, flags.repeats, flags.seconds)
    if flags.json:
        print(json.dumps({"shapes": results}, indent=2))
        return
    table = Table("", *results)
    _add_rows(table, DECODE_ROWS, results)
    for peer in flags.peer:
        speeds = (f"{result['peers'][peer]:,.0f}" for result in results.values())
        table.add_row(f"{peer}: tokens per second", *speeds)
        _add_rows(table, PEER_ROWS, {name: result["against"][peer] for name, result in results.items()})
    console().print(table)


def _lengths(flags: FlagValues) -> None:
    from experiments import plots
    from experiments.speed.lengths import benchmark_lengths
    from experiments.study.sweep import expand
    from experiments.study.sweep_file import load_sweep

    if flags.figure is not None and not (folder := Path(flags.figure).parent).is_dir():
        raise UserError(f"--figure={flags.figure}: there is no folder {folder}; create it first")
    set_up_jax()
    lengths = sorted(_length(text, flags.batch_tokens) for text in flags.lengths)
    configs = {run.variant: run.config for run in expand(load_sweep(flags.sweep), {}, seeds=1)}
    print(f"timing {', '.join(configs)}: {flags.repeats} rounds per length", file=sys.stderr)
    results = benchmark_lengths(configs, lengths, flags.batch_tokens, flags.repeats, flags.seconds)
    if flags.figure is not None:
        title = f"training, {flags.batch_tokens:,} tokens per batch"
        atomic_write(Path(flags.figure), plots.png(plots.speed_by_length(results, title)))
    if flags.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("target tokens per second", *(f"length {length}" for length in lengths))
    for name, by_length in results.items():
        table.add_row(name, *(_rate(by_length[length]) for length in lengths))
    console().print(table)


def _accelerator(flags: FlagValues) -> None:
    from experiments.speed import accelerator
    from experiments.speed.workload import SHAPES
    from experiments.study.sweep import expand
    from experiments.study.sweep_file import load_sweep

    set_up_jax()
    for peer in flags.peer:
        choose({"torch": None, "transformers": None}, peer, "--peer")
    shapes = {name: shape.config for name, shape in SHAPES.items()}
    names = ("tiny",) if flags.small else ("base", "big")
    workload = accelerator.Workload(
        trained={name: with_bfloat16(shapes[name]) for name in names},
        replicated=shapes["tiny"],
        compared={run.variant: run.config for run in expand(load_sweep(flags.sweep), {}, seeds=1)},
        decoded=shapes["tiny" if flags.small else "base"],
    )
    scale = accelerator.SMALL if flags.small else accelerator.FULL
    results = {}
    for name, result in accelerator.measure(workload, scale, flags.peer):
        results[name] = result
        print(json.dumps({name: result}), file=sys.stderr, flush=True)
    if flags.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("", "", "")
    for name, result in results.items():
        for label, value in flatten(result).items():
            table.add_row(name, label, f"{value:,.4g}" if isinstance(value, int | float) else str(value))
            name = ""
    console().print(table)


def with_bfloat16(config: ExperimentConfig) -> ExperimentConfig:
    """Returns a config whose activations are bfloat16."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))


def _length(text: str, batch_tokens: int) -> int:
    if not text.isdigit() or not 2 <= int(text) <= batch_tokens:
        raise UserError(
            f"--lengths has {text!r}; a length must be a whole number "
            f"from 2 to --batch_tokens ({batch_tokens})"
        )
    return int(text)


def _rate(result: Mapping[str, Any]) -> str:
    return f"{result['tokens_per_second']:,.0f}"


def _ratio(result: Mapping[str, Any]) -> str:
    return f"{result['ratio']:.2f}"


def _step(result: Mapping[str, Any]) -> str:
    return f"{result['step_seconds'] * 1e3:,.1f} ms"


def _spread(result: Mapping[str, Any]) -> str:
    return "{:,.0f} to {:,.0f}".format(*result["spread"])


Rows = dict[str, Callable[[Mapping[str, Any]], str]]  # row label -> function from a result to a cell

RATIO_LABEL = "  our speed divided by the peer's"
TRAIN_ROWS: Rows = {
    "useful target tokens per second": _rate,
    "  slowest to fastest round": _spread,
    "utilization": lambda result: f"{result['utilization']:.2f}",
    "step": _step,
    "model FLOPs per step": lambda result: f"{result['flops_per_step'] / 1e9:,.0f} G",
    "matrix products": lambda result: f"{result['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s",
    "padding": lambda result: f"{result['padding']:.1%}",
    "waiting for data": lambda result: f"{result['waiting_for_data']:.2%}",
}
DECODE_ROWS: Rows = {
    "tokens per second": _rate,
    "  slowest to fastest round": _spread,
    "compilation, not included": lambda result: f"{result['compile_seconds']:.1f} s",
}
PEER_ROWS: Rows = {
    "  slowest to fastest round": _spread,
    RATIO_LABEL: _ratio,
    "  settings": lambda result: result["settings"],
    "  outputs identical, tied": lambda result: f"{result['identical']:.1%}, {result['tied']:.1%}",
    "  log-probability, peer's minus ours": lambda result: f"{result['score_difference']:+.1e} nats",
    "  largest difference on given tokens": lambda result: f"{result['log_prob_difference']:.1e} nats",
}


def _add_rows(table: Table, rows: Rows, results: Mapping[str, Mapping[str, Any]]) -> None:
    for label, cell in rows.items():
        table.add_row(label, *(cell(result) for result in results.values()))


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
