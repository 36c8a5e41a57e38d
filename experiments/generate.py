"""Continues texts with a trained language model.

    python -m experiments.generate --workdir=runs/gpt --prompt='def main('
    python -m experiments.generate --workdir=runs/gpt --input=prompt.txt --num_tokens=50 --samples=3
    python -m experiments.generate --workdir=runs/gpt

The continuation is printed after the prompt while it is generated. Without a prompt, the command continues
each line that is typed on a terminal, or reads a prompt from standard input. --set changes the sampling, as
in translate: --set=decode.temperature=0.8, --set=decode.top_p=0.95, or --set=decode.sampling=false for the
most probable tokens. The same seed (decode.seed) gives the same text.
"""

import itertools
import sys
from pathlib import Path

from absl import flags as absl_flags
from absl.flags import FlagValues

from experiments import cli
from experiments.config_changes import check_read, read_changes
from experiments.process import set_up_jax
from experiments.run_folder import Run
from experiments.text_io import report_unknown
from experiments.trained_model import load_trained
from transformer.config import UserError
from transformer.data.text import decode_document, existing_file, read_document
from transformer.data.tokenizer import Tokenizer
from transformer.decoding.generator import DEFAULT_TOKENS, Generator


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    cli.define_changes(flags)
    absl_flags.DEFINE_string("prompt", None, "Beginning of the text.", flag_values=flags)
    absl_flags.DEFINE_string("input", None, "File with the beginning of the text.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "num_tokens",
        None,
        f"Largest number of tokens to add. Default: {DEFAULT_TOKENS}, or as many as there are positions for.",
        lower_bound=1,
        upper_bound=2**30,
        flag_values=flags,
    )
    absl_flags.DEFINE_integer("samples", 1, "Number of continuations.", lower_bound=1, flag_values=flags)


def main(flags: FlagValues) -> None:
    if flags.prompt is not None and flags.input is not None:
        raise UserError("--prompt and --input cannot be used together; give one of them")
    set_up_jax()
    changes = read_changes(flags.set, "set")
    trained = load_trained(Run(flags.workdir), changes, task="language_modeling")
    check_read(changes, [trained.config], ignored=("decode.batch_tokens",))
    if flags.samples > 1 and not trained.config.decode.sampling:
        raise UserError(
            f"--samples is {flags.samples}, but all samples are equal with decode.sampling=false; remove "
            "--samples"
        )
    generator = Generator(trained.model, trained.params, trained.tokenizer, trained.config.decode)
    if flags.prompt is None and flags.input is None and sys.stdin.isatty():
        _converse(generator, trained.tokenizer, flags)
        return
    prompt = flags.prompt
    if flags.input is not None:
        prompt = read_document(existing_file(Path(flags.input), "--input"))
    elif prompt is None:
        prompt = decode_document(sys.stdin.buffer.read(), "standard input")
    _print_samples(generator, trained.tokenizer, prompt, flags)


def _print_samples(generator: Generator, tokenizer: Tokenizer, prompt: str, flags: FlagValues) -> None:
    report_unknown("prompt", [prompt], tokenizer)
    for sample in range(flags.samples):
        parts = generator.stream(prompt, flags.num_tokens, sample)
        first = next(parts)  # refuses a prompt that is too long before the prompt is printed
        if flags.samples > 1:
            print(f"--- sample {sample + 1}")
        for part in itertools.chain([prompt + first], parts):
            print(part, end="", flush=True)
        print()


def _converse(generator: Generator, tokenizer: Tokenizer, flags: FlagValues) -> None:
    print("Type the beginning of a text; end with an empty line or Ctrl-D.")
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return
        if not prompt:
            return
        try:
            _print_samples(generator, tokenizer, prompt, flags)
        except UserError as error:
            print(f"error: {error}")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
