"""Draws the learning curve of a run and, for a sentence, the attention of its translation.

    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat"

Writes learning_curve.png and attention.png into figures/ of the run.
"""

import sys

from absl import flags as absl_flags
from absl.flags import FlagValues
from matplotlib.figure import Figure

from experiments import cli, plots
from experiments.run_folder import Run
from transformer.config import UserError
from transformer.decoding.translator import Translator
from transformer.evaluation.attention import attention_weights
from transformer.training.metric_log import read_metrics


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    absl_flags.DEFINE_string(
        "sentence", None, "Source sentence whose cross-attention is drawn.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "layer", None, "Decoder layer to draw, from 1; the last by default.", flag_values=flags
    )


def main(flags: FlagValues) -> None:
    run = Run(flags.workdir)
    _ = run.config  # checks that it is a run
    records = read_metrics(run.folder)
    if not records:
        raise UserError(f"{run.folder} has no measurements yet; train it first")
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    plots.learning_curve(records, str(run.folder)).savefig(folder / "learning_curve.png")
    print(folder / "learning_curve.png")
    if flags.sentence is not None:
        _attention(run, flags.sentence, flags.layer).savefig(folder / "attention.png")
        print(folder / "attention.png")


def _attention(run: Run, sentence: str, layer: int | None) -> Figure:
    cli.use_compilation_cache()
    trained = run.load()
    tokenizer = trained.tokenizer
    translator = Translator(trained.model, trained.params, tokenizer, trained.config.decode)
    source = tokenizer.encode(sentence)
    if len(source) > translator.max_source_length:
        limit = translator.max_source_length
        raise UserError(f"--sentence has {len(source)} tokens; it must have at most {limit}")
    target = tokenizer.encode(translator([sentence])[0])
    weights = attention_weights(trained.model, trained.params, source, target)
    num_layers = len(weights.cross)
    layer = num_layers if layer is None else layer
    if not 1 <= layer <= num_layers:
        raise UserError(f"--layer is {layer}; it must be 1 to {num_layers}")
    return plots.attention_map(
        weights.cross[layer - 1],
        tokenizer.names(source),
        tokenizer.names(target),
        f"cross-attention, decoder layer {layer} of {num_layers}",
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
