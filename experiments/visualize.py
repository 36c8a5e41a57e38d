"""Draws the learning curve of a run and, with --sentence, the cross-attention of a translation.

    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat"

The command writes learning_curve.png and attention.png into figures/ of the run folder.
"""

import sys

from absl import flags as absl_flags
from absl.flags import FlagValues
from matplotlib.figure import Figure

from experiments import cli, plots
from experiments.attention_file import translation_attention
from experiments.run_folder import Run
from experiments.text_io import report_unknown
from transformer.config import UserError
from transformer.decoding.translator import Translator
from transformer.files import atomic_write
from transformer.training.metric_log import read_metrics


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    absl_flags.DEFINE_string(
        "sentence", None, "Source sentence; the attention of its translation is drawn.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "layer",
        None,
        "Number of the decoder layer to draw, from 1; the last layer by default.",
        flag_values=flags,
    )


def main(flags: FlagValues) -> None:
    run = Run(flags.workdir)
    _ = run.config  # raises an error if the folder is not a run
    records = read_metrics(run.folder)
    if not records:
        raise UserError(f"{run.folder} has no measurements yet; train the run first")
    figures = {"learning_curve.png": plots.learning_curve(records, str(run.folder))}
    if flags.sentence is not None:
        if not flags.sentence.strip():
            raise UserError("--sentence is empty; give a sentence to translate")
        figures["attention.png"] = _attention(run, flags.sentence, flags.layer)
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        atomic_write(folder / name, plots.png(figure))
        print(folder / name)


def _attention(run: Run, sentence: str, layer: int | None) -> Figure:
    cli.set_up_jax()
    trained = run.load(task="translation")
    tokenizer = trained.tokenizer
    translator = Translator(trained.model, trained.params, tokenizer, trained.config.decode)
    source = tokenizer.encode(sentence)
    if len(source) > translator.max_source_length:
        limit = translator.max_source_length
        raise UserError(f"--sentence has {len(source)} tokens; it must have at most {limit}")
    report_unknown("--sentence", [sentence], tokenizer)
    ((hypothesis, *_),) = translator.hypotheses([sentence])
    target, weights = translation_attention(trained, source, hypothesis.text, hypothesis.ended)
    num_layers = len(weights.cross)
    layer = num_layers if layer is None else layer
    if not 1 <= layer <= num_layers:
        raise UserError(f"--layer is {layer}; it must be from 1 to {num_layers}")
    return plots.attention_map(
        weights.cross[layer - 1],
        tokenizer.names(source),
        tokenizer.names(target),
        f"cross-attention, decoder layer {layer} of {num_layers}",
    )


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
