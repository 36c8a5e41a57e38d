"""Draws the learning curve of a run and, on request, attention for a sentence or an image.

    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat"
    python -m experiments.visualize --workdir=runs/digits --split=test --index=3
    python -m experiments.visualize --workdir=runs/digits --image=seven.png

With --sentence, the command translates the sentence and draws the cross-attention. With --split or --image,
it draws the attention of the class token over the image, for each layer and each head.

The command writes learning_curve.png and attention.png into figures/ of the run folder.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from absl.flags import FlagValues
from matplotlib.figure import Figure

from experiments import cli, plots
from experiments.attention_file import translation_attention
from experiments.classify import open_split, read_files
from experiments.run_folder import Run
from experiments.text_io import report_unknown
from transformer.config import UserError
from transformer.data.image_batches import assemble_images
from transformer.decoding.translator import Translator
from transformer.evaluation.classification import class_probabilities, class_token_attention
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
    absl_flags.DEFINE_string(
        "image", None, "Image file, for a run of image classification.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "split", None, "Split with the image to draw, for a run of image classification.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "index", 0, "With --split: number of the image, from 0.", lower_bound=0, flag_values=flags
    )


def main(flags: FlagValues) -> None:
    _check_flags(flags)
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
    if flags.image is not None or flags.split is not None:
        figures["attention.png"] = _image_attention(run, flags)
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        atomic_write(folder / name, plots.png(figure))
        print(folder / name)


def _check_flags(flags: FlagValues) -> None:
    given = [name for name in ("sentence", "image", "split") if flags[name].value is not None]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} cannot be used together; give one of them")
    if flags["index"].present and flags.split is None:
        raise UserError("--index needs --split; add --split=NAME or remove --index")
    if flags.layer is not None and flags.sentence is None:
        raise UserError("--layer needs --sentence; add --sentence=TEXT or remove --layer")


def _image_attention(run: Run, flags: FlagValues) -> Figure:
    cli.set_up_jax()
    trained = run.load(task="image_classification")
    classes, label = trained.model.image_format.classes, ""
    if flags.image is not None:
        batch, name = read_files(trained, [flags.image], 1), Path(flags.image).name
    else:
        split = open_split(run, trained, flags.split)
        if flags.index >= len(split):
            raise UserError(
                f"--index is {flags.index}; it must be below {len(split)}, the size of {split.name}"
            )
        batch, name = assemble_images(split, np.array([flags.index]), 1), f"{split.name}/{flags.index}"
        label = f", true class {classes[batch.labels[0]]}"
    weights = class_token_attention(trained.model, trained.params, batch)[:, 0]
    probabilities = class_probabilities(trained.model, trained.params, batch)[0]
    best = int(probabilities.argmax())
    title = f"{name}: {classes[best]} with probability {probabilities[best]:.2f}{label}"
    return plots.image_attention_map(batch.images[0], weights, title)


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
