"""Translates standard input: one line in, one line out. On a terminal it answers each line.

python -m experiments.translate --workdir=runs/m30k < in.txt > out.txt
"""

import itertools
import sys

from absl import flags

from experiments import entry
from experiments.runs import Run
from transformer.config import UserError
from transformer.decoding.translator import Translator

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
LINES = 1_024  # translated at once from a pipe


def main() -> None:
    entry.use_compilation_cache()
    trained = Run(WORKDIR.value).load()
    translator = Translator(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    if sys.stdin.isatty():
        _converse(translator, trained.config.data.source)
        return
    for lines in iter(lambda: list(itertools.islice(sys.stdin.buffer, LINES)), []):
        texts = [
            line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", errors="replace") for line in lines
        ]
        for translation in translator(texts):
            sys.stdout.buffer.write(translation.encode() + b"\n")
        sys.stdout.flush()


def _converse(translator: Translator, language: str) -> None:
    print("One sentence a line; an empty line or Ctrl-D ends.")
    while True:
        try:
            line = input(f"{language}> ")
        except EOFError:
            print()
            return
        if not line:
            return
        try:
            print(translator([line])[0])
        except UserError as error:
            print(error)


if __name__ == "__main__":
    entry.run(main)
