"""Translates standard input: one line in, one line out. On a terminal it answers each line.

python -m experiments.translate --workdir=runs/m30k < in.txt > out.txt

A line of more pieces than decode.max_source is translated in parts, and standard error says so.
"""

import functools
import itertools
import sys

from absl import flags

from experiments import entry
from experiments.lines import report, translate_lines
from experiments.runs import Run
from transformer.decoding.translator import Translator

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)


def main() -> None:
    entry.use_compilation_cache()
    trained = Run(WORKDIR.value).load()
    translator = Translator(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    if sys.stdin.isatty():
        _converse(translator, trained.config.data.source)
        return
    translate_lines(translator, sys.stdin.buffer, sys.stdout.buffer)


def _converse(translator: Translator, language: str) -> None:
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
        print(translator([line], in_parts=functools.partial(report, translator, before))[0])


if __name__ == "__main__":
    entry.run(main)
