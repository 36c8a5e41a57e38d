"""Draws learning curves, attention, positions and masks, or writes a page to explore them.

    python -m experiments.visualize --workdir=runs/m30k --workdir=runs/rope
    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat" --format=png,svg
    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat" --page
    python -m experiments.visualize --workdir=runs/digits --split=test --index=3
    python -m experiments.visualize --workdir=runs/digits --image=seven.png

Figures are written into figures/ of the run folder. With several runs, learning_curves.png of the first run
has the curves of all. With --sentence, the command prints the translation, and draws the attention of every
layer and head and the masks into a folder for the sentence. With --page, it writes one HTML file instead,
explorer.html, in which all of this and the search can be explored without a network. With --split or --image,
it draws the attention of the class token over the image, for each layer and each head.
"""

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from absl.flags import FlagValues
from matplotlib.figure import Figure

from experiments import cli, model_plots, plots
from experiments.attention_views import ViewedSentence, view_sentences
from experiments.explorer import NUM_POSITIONS, explorer_page
from experiments.process import set_up_jax
from experiments.run_folder import Run, distinct_runs
from experiments.trained_model import Trained, load_trained, open_task_of
from transformer.config import UserError
from transformer.data.image_batches import assemble_images
from transformer.data.image_files import read_images
from transformer.evaluation.classification import class_probabilities, class_token_attention
from transformer.evaluation.position_effects import position_effects
from transformer.files import atomic_write, path_component
from transformer.training.metric_log import read_metrics

TEXT_TASKS = ("translation", "language_modeling")
MAX_NAME = 40  # characters of a sentence in the name of a folder


def define_flags(flags: FlagValues) -> None:
    absl_flags.DEFINE_multi_string(
        "workdir",
        None,
        "Run folder. May be given several times; one figure then has the learning curves of all.",
        flag_values=flags,
        required=True,
    )
    absl_flags.DEFINE_multi_string(
        "sentence",
        [],
        "Source sentence, or a text for a language model. May be given several times.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool(
        "page", False, "With --sentence: writes a page to explore instead of figures.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "format", ["png"], "Formats of the figures, separated by commas: png, svg.", flag_values=flags
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
    runs = distinct_runs(flags.workdir)
    folder = runs[0].folder / "figures"
    if flags.page:
        _write(folder / "explorer.html", explorer_page(runs[0], *_viewed(runs[0], flags.sentence)))
        return
    for path, figure in _figures(runs, flags):
        for name in dict.fromkeys(flags.format):
            _write(folder / f"{path}.{name}", plots.FORMATS[name](figure))


def _write(path: Path, content: str | bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{path.parent} cannot be a folder; rename the file in its place") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder; rename it")
    atomic_write(path, content)
    print(path)


def _check_flags(flags: FlagValues) -> None:
    given = [name for name in ("sentence", "image", "split") if flags[name].value]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} cannot be used together; give one of them")
    if given and len(flags.workdir) > 1:
        raise UserError(f"--{given[0]} needs one run, but --workdir has {len(flags.workdir)}; name one")
    if flags["index"].present and flags.split is None:
        raise UserError("--index needs --split; add --split=NAME or remove --index")
    if flags.page and given and given != ["sentence"]:
        raise UserError(f"--page and --{given[0]} cannot be used together; remove one of them")
    if flags.page and not flags.sentence:
        raise UserError("--page needs --sentence; add --sentence=TEXT or remove --page")
    if flags.page and flags["format"].present:
        raise UserError("--page and --format cannot be used together; remove one of them")
    for name in flags.format or [""]:
        if name not in plots.FORMATS:
            raise UserError(f"--format is {name!r}; it must be one or more of: {', '.join(plots.FORMATS)}")


def _figures(runs: Sequence[Run], flags: FlagValues) -> Iterator[tuple[str, Figure]]:
    """Yields the path of each figure below the folder of figures, without its ending, and the figure."""
    records = {}
    for run in runs:
        _ = run.config  # raises an error if the folder is not a run
        records[str(run.folder)] = read_metrics(run.folder)
        if not records[str(run.folder)]:
            raise UserError(f"{run.folder} has no measurements yet; train the run first")
    # Everything is computed before the first figure is written, so that an error leaves no figures.
    trained, sentences = _viewed(runs[0], flags.sentence) if flags.sentence else (None, [])
    image = _image_attention(runs[0], flags) if flags.image is not None or flags.split is not None else None
    if len(runs) == 1:
        ((name, curve),) = records.items()
        yield "learning_curve", plots.learning_curve(curve, name)
    else:
        yield "learning_curves", plots.learning_curves(records, f"{len(runs)} runs")
    if image is not None:
        yield "attention", image
    if trained is not None:
        yield from _position_figures(trained)
    for sentence in sentences:
        yield from _sentence_figures(sentence)


def _viewed(run: Run, texts: Sequence[str]) -> tuple[Trained, list[ViewedSentence]]:
    """Loads a run, and prints the translations of sentences."""
    if run.config.task not in TEXT_TASKS:
        names = " or ".join(TEXT_TASKS)
        raise UserError(f"the task of {run.folder} is {run.config.task}; name a run of {names}")
    set_up_jax()
    trained = load_trained(run)
    # Bytes of the command line that are not UTF-8 are read as U+FFFD, as in lines of `translate`.
    texts = [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts]
    sentences = view_sentences(trained, texts)
    for sentence in sentences:
        if sentence.output is not None:
            print(sentence.output)
    return trained, sentences


def _sentence_figures(sentence: ViewedSentence) -> Iterator[tuple[str, Figure]]:
    folder = folder_name(sentence.text)
    for view in sentence.views:
        num_layers = len(view.weights)
        for number, weights in enumerate(view.weights, start=1):
            yield (
                f"{folder}/attention_{view.kind}_layer{number}",
                model_plots.attention_map(
                    weights,
                    view.keys,
                    view.queries,
                    f"{view.title}, layer {number} of {num_layers}",
                    (view.key_axis, view.query_axis),
                ),
            )
    yield f"{folder}/masks", model_plots.masks(sentence.views)


def folder_name(text: str) -> str:
    """Returns a name for the figures of a sentence: its first words, and digits that tell it from others."""
    words = re.sub(r"\W+", "_", text).strip("_")[:MAX_NAME]
    return f"{words or 'sentence'}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:6]}"


def _position_figures(trained: Trained) -> Iterator[tuple[str, Figure]]:
    scheme = trained.config.model.positions
    for stack, effects in position_effects(trained.model, trained.params, NUM_POSITIONS).items():
        title = f"{scheme} positions, {stack}"
        if effects.table is not None:
            yield f"positions_{stack}_table", model_plots.position_table(effects.table, title)
        if effects.similarity is not None:
            figure = model_plots.position_similarity(effects.similarity, effects.similarity_name, title)
            yield f"positions_{stack}_similarity", figure
        if biases := effects.bias_by_layer:
            yield f"positions_{stack}_bias", model_plots.position_bias(biases, title)


def _image_attention(run: Run, flags: FlagValues) -> Figure:
    set_up_jax()
    trained = load_trained(run, task="image_classification")
    classes, label = trained.model.image_format.classes, ""
    if flags.image is not None:
        shape = trained.model.image_format.shape
        batch, name = read_images([flags.image], shape, 1), Path(flags.image).name
    else:
        split = open_task_of(run, trained).test_set(path_component(flags.split, "--split"))
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
    return model_plots.image_attention_map(batch.images[0], weights, title)


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
