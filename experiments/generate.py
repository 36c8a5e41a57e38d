"""Continues texts with a trained language model.

    python -m experiments.generate --workdir=runs/gpt --prompt='def main('
    python -m experiments.generate --workdir=runs/gpt --input=prompt.txt --num_tokens=500 --samples=3
    python -m experiments.generate --workdir=runs/gpt

The continuation is printed after the prompt while it is generated. Without a prompt, the command continues
each line that is typed on a terminal, or reads a prompt from standard input. --set changes the sampling, as
in translate: --set=decode.temperature=0.8, --set=decode.top_p=0.95, or --set=decode.sampling=false for the
most probable tokens. The same seed (decode.seed) gives the same text.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.config_files import read_changes
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.data.text import existing_file, read_document
from transformer.decoding.generator import Generator


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    cli.define_changes(flags)
    absl_flags.DEFINE_string("prompt", None, "Beginning of the text.", flag_values=flags)
    absl_flags.DEFINE_string("input", None, "File with the beginning of the text.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "num_tokens", 200, "Largest number of tokens to add.", lower_bound=1, flag_values=flags
    )
    absl_flags.DEFINE_integer("samples", 1, "Number of continuations.", lower_bound=1, flag_values=flags)


def main(flags: FlagValues) -> None:
    if flags.prompt is not None and flags.input is not None:
        raise UserError("--prompt and --input cannot be used together; give one of them")
    cli.set_up_jax()
    trained = Run(flags.workdir).load(read_changes(flags.set, "set"), task="language_modeling")
    generator = Generator(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    if flags.prompt is None and flags.input is None and sys.stdin.isatty():
        _converse(generator, flags)
        return
    prompt = flags.prompt
    if prompt is None:
        prompt = (
            read_document(existing_file(Path(flags.input), "--input")) if flags.input else sys.stdin.read()
        )
    _print_samples(generator, prompt, flags)


def _print_samples(generator: Generator, prompt: str, flags: FlagValues) -> None:
    for sample in range(flags.samples):
        if flags.samples > 1:
            print(f"--- sample {sample + 1}")
        print(prompt, end="", flush=True)
        for piece in generator.stream(prompt, flags.num_tokens, sample):
            print(piece, end="", flush=True)
        print()


def _converse(generator: Generator, flags: FlagValues) -> None:
    print("Type the beginning of a text; end with an empty line or Ctrl-D.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if not prompt:
            return
        _print_samples(generator, prompt, flags)


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
