"""Scores a run on a split: BLEU, chrF, exact match and perplexity, from one search.

    python -m experiments.evaluate --workdir=runs/m30k --split=test

Writes eval/<split>.json, .hyp.txt and .ref.txt, which sacreBLEU's own command line reads.
"""

import time

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import entry
from experiments.progress import counting
from experiments.runs import Run, Trained, write_json
from transformer.data.corpus import Corpus
from transformer.decoding.translator import Translator
from transformer.evaluation.scores import corpus_scores
from transformer.training.losses import make_loss_fn
from transformer.training.metrics import summary
from transformer.training.placement import Jit
from transformer.training.setup import check_lengths, make_hyper, make_validation
from transformer.training.step import make_validation_step

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
SPLIT = flags.DEFINE_list("split", "test", "Splits to score, separated by commas.")
SHOWN = {
    "exact_match": ".2f",
    "bleu": ".2f",
    "bleu_lc": ".2f",
    "bleu_tok": ".2f",
    "chrf": ".2f",
    "perplexity": ".3f",
    "perplexity_per_character": ".4f",
    "sentences": "d",
}


def main() -> None:
    entry.use_compilation_cache()
    run = Run(WORKDIR.value)
    trained = run.load()
    corpus = Corpus(trained.config.data, trained.tokenizer)
    scores = {split: _evaluate(run, trained, corpus, split) for split in SPLIT.value}
    print(f"{run.folder}: {_origin(trained)}")
    table = Table("", *SPLIT.value)
    for name, form in SHOWN.items():
        table.add_row(name, *(f"{scores[split][name]:{form}}" for split in SPLIT.value))
    Console().print(table)
    for split in SPLIT.value:
        print(f"{run.folder / 'eval' / split}.json, .hyp.txt, .ref.txt")


def _evaluate(run: Run, trained: Trained, corpus: Corpus, split: str) -> dict:
    config = trained.config
    pieces = corpus.split(split)
    check_lengths(trained.model, split, pieces.longest)
    placement = Jit()
    validate = make_validation(
        make_validation_step(make_loss_fn(trained.model), placement),
        make_hyper(config),
        pieces,
        config.decode.batch_tokens,
        placement,
    )
    sources, references = corpus.texts(split)
    translator = Translator(trained.model, trained.params, trained.tokenizer, config.decode)
    in_parts = []
    started = time.perf_counter()
    with counting(len(sources), split) as progress:
        hypotheses = translator(sources, progress, lambda *one: in_parts.append(one))
    seconds = time.perf_counter() - started
    print(f"{split}: {len(sources)} sentences in {seconds:.1f} s, compilation included")
    if in_parts:
        print(f"{split}: {len(in_parts)} of more than {translator.max_source} pieces, translated in parts")
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    for name, lines in (("hyp", hypotheses), ("ref", references)):
        (folder / f"{split}.{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    scores = {
        **corpus_scores(hypotheses, references),
        **summary(validate(trained.params)),
        "sentences": len(references),
        "checkpoints": trained.steps,
        "params_sha256": trained.params_sha256,
    }
    write_json(folder / f"{split}.json", scores)
    return scores


def _origin(trained: Trained) -> str:
    if len(trained.steps) == 1:
        return f"checkpoint {trained.steps[0]}"
    return f"mean of {len(trained.steps)} checkpoints, {trained.steps[0]} to {trained.steps[-1]}"


if __name__ == "__main__":
    entry.run(main)
