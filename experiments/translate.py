"""Translates standard input: one line in, one line out, as it comes. On a terminal it answers each line.

    python -m experiments.translate --workdir=runs/m30k < in.txt > out.txt
    python -m experiments.translate --workdir=runs/m30k --n_best=3 --set=decode.beam_size=8 < in.txt
    python -m experiments.translate --workdir=runs/m30k --input=in.txt --targets=out.txt    # scores out.txt

A line of more pieces than decode.max_source is translated in parts, and standard error says so. --prefix and
--targets are read to their ends first, and so is the input with them, since each needs a line for a line.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from absl import flags

from experiments import entry
from experiments.lines import as_text, blocks
from experiments.maps import AttentionFile
from experiments.runs import Run, Trained
from experiments.translating import Answer, Form, answer_lines, scored, translations
from transformer.config import UserError
from transformer.decoding.translator import Translator
from transformer.model.ensemble import ensemble

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
SET = entry.define_changes()
INPUT = flags.DEFINE_string("input", None, "File of lines to translate; standard input by default.")
OUTPUT = flags.DEFINE_string("output", None, "File to write; standard output by default.")
N_BEST = flags.DEFINE_integer(
    "n_best",
    1,
    "Most translations of a line. With more than one, each is written as line number, score and "
    "translation, with tabs between them, the best one first: at most decode.beam_size of them. With "
    "decode.sampling so many are drawn.",
    lower_bound=1,
)
SCORES = flags.DEFINE_bool("scores", False, "Writes a translation's score and a tab before it.")
PREFIX = flags.DEFINE_string("prefix", None, "File with what the translation of each line begins with.")
TARGETS = flags.DEFINE_string(
    "targets",
    None,
    "File with a translation of each line: scores these instead of searching, and writes a JSON object a "
    "line: log_prob, pieces, log_probs.",
)
ATTENTION = flags.DEFINE_string("attention", None, "Writes the attention of each line to this .npz file.")
ENSEMBLE = flags.DEFINE_list(
    "ensemble",
    [],
    "Run folders of the same vocabulary, separated by commas: their models predict together with the run's, "
    "by the mean of the probabilities.",
)
# What makes no sense together, and why.
EXCLUDED = (
    ("targets", "n_best", "given translations are scored, none is searched for"),
    ("targets", "scores", "the scores of given translations are written anyway"),
    ("targets", "prefix", "given translations are scored, none is searched for"),
    ("targets", "attention", "given translations are scored alone"),
    ("ensemble", "attention", "each model has its own"),
)


class Loaded(NamedTuple):
    """A run and the translator made of it, or of an ensemble with it."""

    trained: Trained
    translator: Translator


def main() -> None:
    _check_flags()
    entry.use_compilation_cache()
    sides = {flag.name: _lines(flag) for flag in (PREFIX, TARGETS) if flag.value is not None}
    with contextlib.ExitStack() as files:
        source = sys.stdin if INPUT.value is None else files.enter_context(_open(INPUT, "rb"))
        talks = INPUT.value is None and not (sides or OUTPUT.value or ATTENTION.value) and sys.stdin.isatty()
        if talks:
            print(f"loading {WORKDIR.value} ...", flush=True)
        stream: Iterator[list[bytes]] = blocks(source.fileno())
        if sides:
            stream = iter(_matched(list(stream), sides))
        loaded = _load()
        answer = _answer(loaded, sides, files)
        if talks:
            loaded.translator(["a"])  # compiles, so that the first line is answered at once
            _converse(answer, loaded.trained.config.data.source)
            return
        out = sys.stdout.buffer if OUTPUT.value is None else files.enter_context(_open(OUTPUT, "wb"))
        answer_lines(answer, stream, out)


def _check_flags() -> None:
    """Refuses flags that exclude each other, and a file that would be written over one that is read."""
    excluding = (N_BEST, SCORES, PREFIX, TARGETS, ATTENTION, ENSEMBLE)
    given = {flag.name for flag in excluding if flag.value != flag.default}
    for one, other, reason in EXCLUDED:
        if {one, other} <= given:
            raise UserError(f"--{one} and --{other} exclude each other: {reason}")
    for written, other in itertools.product((OUTPUT, ATTENTION), (INPUT, PREFIX, TARGETS, OUTPUT)):
        if written is not other and _same_file(written.value, other.value):
            raise UserError(f"--{written.name} and --{other.name} are the same file, {written.value}")


def _same_file(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and Path(one).resolve() == Path(other).resolve()


def _load() -> Loaded:
    changes = entry.changes(SET.value)
    runs = [Run(folder) for folder in (WORKDIR.value, *ENSEMBLE.value)]
    first, *others = [run.load(changes) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if other.tokenizer.sha256 != first.tokenizer.sha256:
            raise UserError(f"{run.folder} has another vocabulary than {runs[0].folder}: no ensemble of both")
    model, params = first.model, first.params
    if others:
        members = (first, *others)
        model, params = ensemble([one.model for one in members], [one.params for one in members])
    return Loaded(first, Translator(model, params, first.tokenizer, first.config.decode, N_BEST.value))


def _answer(loaded: Loaded, sides: dict[str, list[str]], files: contextlib.ExitStack) -> Answer:
    translator, seen = loaded.translator, None
    if "targets" in sides:
        return scored(translator, loaded.trained.tokenizer, sides["targets"])
    if ATTENTION.value is not None:
        with _refusing(ATTENTION):
            seen = files.enter_context(AttentionFile(ATTENTION.value, loaded.trained)).add
    return translations(translator, Form(N_BEST.value, SCORES.value), sides.get("prefix"), seen)


def _converse(answer: Answer, language: str) -> None:
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    print("One sentence a line; an empty line or Ctrl-D ends.")
    for before in itertools.count():
        try:
            line = input(f"{language}> ")
        except EOFError:
            print()
            return
        if not line:
            return
        print(*answer([line], before), sep="\n", flush=True)


def _matched(stream: list[list[bytes]], sides: dict[str, list[str]]) -> list[list[bytes]]:
    """The whole input, which must have as many lines as the files that go with it."""
    lines = sum(map(len, stream))
    for name, side in sides.items():
        if len(side) != lines:
            raise UserError(f"--{name} has {len(side):,} lines, the input {lines:,}; each needs one for one")
    return stream


def _lines(flag: flags.FlagHolder) -> list[str]:
    with _open(flag, "rb") as file:
        return [as_text(line) for block in blocks(file.fileno()) for line in block]


def _open(flag: flags.FlagHolder, mode: str) -> IO[bytes]:
    with _refusing(flag):
        return open(flag.value, mode)


@contextlib.contextmanager
def _refusing(flag: flags.FlagHolder):
    """Says which flag names a file that cannot be opened."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{flag.name}={flag.value}: {error.strerror}") from None


if __name__ == "__main__":
    entry.run(main)
