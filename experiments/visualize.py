"""Draws a run's learning curve and, for a sentence, where its translation attends to.

    python -m experiments.visualize --workdir=runs/m30k --sentence="a man in a hat"

Writes learning_curve.png and attention.png into the run's figures/.
"""

from absl import flags

from experiments import entry, plots
from experiments.runs import Run
from transformer.config import UserError
from transformer.decoding.translator import Translator
from transformer.evaluation.attention import attention_weights
from transformer.training.metrics import read_metrics

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
SENTENCE = flags.DEFINE_string("sentence", None, "Source sentence whose cross-attention is drawn.")
LAYER = flags.DEFINE_integer("layer", None, "Decoder layer that is drawn, from 1; the last by default.")


def main() -> None:
    run = Run(WORKDIR.value)
    _ = run.config  # refuses what is not a run
    records = read_metrics(run.folder)
    if not records:
        raise UserError(f"{run.folder} has no measurements yet; train it first")
    folder = run.folder / "figures"
    folder.mkdir(exist_ok=True)
    plots.learning_curve(records, str(run.folder)).savefig(folder / "learning_curve.png")
    print(folder / "learning_curve.png")
    if SENTENCE.value is not None:
        _attention(run).savefig(folder / "attention.png")
        print(folder / "attention.png")


def _attention(run: Run):
    entry.use_compilation_cache()
    trained = run.load()
    tokenizer = trained.tokenizer
    translator = Translator(trained.model, trained.params, tokenizer, trained.config.decode)
    source = tokenizer.encode(SENTENCE.value)
    if len(source) > translator.max_source:
        raise UserError(f"--sentence has {len(source)} pieces; it must have at most {translator.max_source}")
    target = tokenizer.encode(translator([SENTENCE.value])[0])
    weights = attention_weights(trained.model, trained.params, source, target)
    layers = len(weights.cross)
    layer = layers if LAYER.value is None else LAYER.value
    if not 1 <= layer <= layers:
        raise UserError(f"--layer is {layer}; it must be 1 to {layers}")
    title = f"cross-attention, decoder layer {layer} of {layers}"
    return plots.attention_map(
        weights.cross[layer - 1], tokenizer.names(source), tokenizer.names(target), title
    )


if __name__ == "__main__":
    entry.run(main)
