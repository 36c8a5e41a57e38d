"""Translates the lines of standard input as they arrive. On a terminal, answers each line that you type.

    python -m experiments.translate --workdir=runs/m30k < in.txt > out.txt
    python -m experiments.translate --workdir=runs/m30k --n_best=3 --set=decode.beam_size=8 < in.txt
    python -m experiments.translate --workdir=runs/m30k --input=in.txt --targets=out.txt    # scores out.txt

A line with more than decode.max_source_length tokens is translated in parts, and a message on standard error
says so. With --prefix or --targets, the command reads the whole input first, because the given file must have
one line for each input line.
"""

import contextlib
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from absl import flags as absl_flags
from absl.flags import FlagValues
from jaxtyping import PyTree

from experiments import cli
from experiments.attention_file import AttentionFile
from experiments.config_changes import SEARCH_FIELDS, check_read, read_changes
from experiments.process import discard_output, set_up_jax
from experiments.progress import counting
from experiments.run_folder import distinct_runs
from experiments.text_io import (
    Answer,
    ScoreAnswer,
    TranslationAnswer,
    decode_line,
    read_blocks,
    write_answers,
)
from experiments.trained_model import Trained, load_trained
from transformer.config import UserError
from transformer.decoding.scorer import Scorer
from transformer.decoding.translator import Translator
from transformer.model.encoder_decoder import EncoderDecoder
from transformer.model.ensemble import Ensemble, ensemble

# Pairs of flags that cannot be used together, and the reason.
EXCLUDED = (
    ("targets", "n_best", "--targets scores given translations and does not search"),
    ("targets", "scores", "--targets already writes scores"),
    ("targets", "prefix", "--targets scores given translations and does not search"),
    ("targets", "attention", "--targets writes scores only"),
    ("ensemble", "attention", "each model of an ensemble has different attention weights"),
)


class Loaded(NamedTuple):
    """The trained model of `--workdir`, and the model to use: this model alone or an ensemble."""

    trained: Trained
    model: EncoderDecoder | Ensemble
    params: PyTree


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    cli.define_changes(flags)
    texts = {
        "input": "File with the lines to translate; standard input by default.",
        "output": "File to write; standard output by default.",
        "prefix": "File with the beginning of each translation, one per input line.",
        "targets": "File with a translation of each input line. Scores these translations instead of "
        "searching, and writes one JSON object per line, with log_prob, tokens and log_probs.",
        "attention": ".npz file to which the attention weights of each line are written.",
    }
    for name, text in texts.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    absl_flags.DEFINE_integer(
        "n_best",
        1,
        "Largest number of translations per input line, at most decode.beam_size. If above 1, an output "
        "line has the number of the input line, the score and a translation, separated by tabs; the best "
        "translation comes first. With decode.sampling, the number of samples.",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "scores", False, "Writes the score and a tab before each translation.", flag_values=flags
    )
    absl_flags.DEFINE_multi_string(
        "ensemble",
        [],
        "Run folder with the same vocabulary as --workdir. May be given several times. Predicts each token "
        "with the mean of the probabilities of all models. Search settings come from --workdir.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> None:
    _check_flags(flags)
    set_up_jax()
    sides = {
        name: _read_lines(flags, name) for name in ("prefix", "targets") if flags[name].value is not None
    }
    with contextlib.ExitStack() as files:
        source = sys.stdin if flags.input is None else files.enter_context(_open(flags, "input", "rb"))
        interactive = _is_interactive(flags)
        if interactive:
            print(f"loading {flags.workdir} ...", flush=True)
        blocks: Iterator[list[bytes]] = read_blocks(source.fileno())
        if sides:
            blocks = iter(_read_all(blocks, sides))
        loaded = _load(flags)
        progress = files.enter_context(_counting_lines(flags, source))
        answer = _make_answer(flags, loaded, sides, files, progress)
        if interactive:
            _converse(answer, loaded.trained.config.data.source)
            return
        out = sys.stdout.buffer if flags.output is None else files.enter_context(_open(flags, "output", "wb"))
        try:
            write_answers(answer, blocks, out)
        except BrokenPipeError:  # the process that reads the output, such as `head`, has ended
            discard_output()


def _check_flags(flags: FlagValues) -> None:
    """Raises an error if flags cannot be used together, or if an output file is also an input file."""
    given = {name for pair in EXCLUDED for name in pair[:2] if flags[name].value != flags[name].default}
    for name, excluded, reason in EXCLUDED:
        if {name, excluded} <= given:
            raise UserError(
                f"--{name} and --{excluded} cannot be used together: {reason}; remove one of them"
            )
    for written, name in itertools.product(("output", "attention"), ("input", "prefix", "targets", "output")):
        paths = flags[written].value, flags[name].value
        if written != name and None not in paths and Path(paths[0]).resolve() == Path(paths[1]).resolve():
            raise UserError(
                f"--{written} and --{name} are the same file, {paths[0]}; name two different files"
            )


def _is_interactive(flags: FlagValues) -> bool:
    files = (flags.input, flags.output, flags.prefix, flags.targets, flags.attention)
    return not any(files) and sys.stdin.isatty()


def _counting_lines(
    flags: FlagValues, source: IO
) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """Shows the number of finished lines, if the input is a file and the output is not a terminal."""
    is_file = stat.S_ISREG(os.fstat(source.fileno()).st_mode)
    if not is_file or (flags.output is None and sys.stdout.isatty()):
        return contextlib.nullcontext(lambda num_done: None)
    return counting(None, "translating" if flags.targets is None else "scoring", "lines")


def _load(flags: FlagValues) -> Loaded:
    changes = read_changes(flags.set, "set")
    runs = distinct_runs([flags.workdir, *flags.ensemble])
    members = [load_trained(run, changes, task="translation") for run in runs]
    configs = [member.config for member in members]
    check_read(changes, configs, ignored=() if flags.targets is None else SEARCH_FIELDS)
    trained = members[0]
    for run, member in zip(runs, members, strict=True):
        if member.tokenizer.sha256 != trained.tokenizer.sha256:
            raise UserError(
                f"{run.folder} and {runs[0].folder} have different vocabularies; "
                "name runs with the same vocabulary in --ensemble"
            )
    model, params = trained.model, trained.params
    if len(members) > 1:
        model, params = ensemble([member.model for member in members], [member.params for member in members])
    return Loaded(trained, model, params)


def _make_answer(
    flags: FlagValues,
    loaded: Loaded,
    sides: dict[str, list[str]],
    files: contextlib.ExitStack,
    progress: Callable[[int], None],
) -> Answer:
    trained = loaded.trained
    arguments = loaded.model, loaded.params, trained.tokenizer, trained.config.decode
    if "targets" in sides:
        return ScoreAnswer(Scorer(*arguments), trained.tokenizer, sides["targets"], progress)
    translator, attention = Translator(*arguments, flags.n_best), None
    if flags.attention is not None:
        with _naming_flag(flags, "attention"):
            attention = files.enter_context(AttentionFile(flags.attention, trained))
    return TranslationAnswer(
        translator,
        trained.tokenizer,
        flags.n_best,
        flags.scores,
        sides.get("prefix"),
        attention,
        progress,
    )


def _converse(answer: TranslationAnswer, language: str) -> None:
    answer.translator(["a"])  # compiles now, so that the first line is answered at once
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")
    print("Type one sentence per line; end with an empty line or Ctrl-D.")
    for number in itertools.count():
        try:
            line = input(f"{language}> ")
        except EOFError:
            print()
            return
        if not line:
            return
        print(*answer([line], number), sep="\n", flush=True)


def _read_all(blocks: Iterator[list[bytes]], sides: dict[str, list[str]]) -> list[list[bytes]]:
    """Reads the whole input, and checks that each file in `sides` has as many lines as the input."""
    whole = list(blocks)
    count = sum(map(len, whole))
    for name, lines in sides.items():
        if len(lines) != count:
            raise UserError(
                f"--{name} has {len(lines):,} lines, but the input has {count:,}; "
                "give one line for each input line"
            )
    return whole


def _read_lines(flags: FlagValues, name: str) -> list[str]:
    with _open(flags, name, "rb") as file:
        return [decode_line(line) for block in read_blocks(file.fileno()) for line in block]


def _open(flags: FlagValues, name: str, mode: str) -> IO[bytes]:
    with _naming_flag(flags, name):
        return open(flags[name].value, mode)


@contextlib.contextmanager
def _naming_flag(flags: FlagValues, name: str) -> Iterator[None]:
    """Adds the name of the flag to the error message for a file that cannot be opened."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{name}={flags[name].value}: {error.strerror}; name another file") from None


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
