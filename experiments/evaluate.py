"""Scores a run on a split, from one search; see `corpus_scores` for what the scores are.

    python -m experiments.evaluate --workdir=runs/m30k --split=test
    python -m experiments.evaluate --workdir=runs/m30k --split=test --compare=runs/other
    python -m experiments.evaluate --workdir=runs/m30k --set=decode.beam_size=1 --compare=runs/m30k

Writes eval/<split>.json, .hyp.txt and .ref.txt, which sacreBLEU's own command line reads. With --set the
files' names say what was changed: eval/<split>,decode.beam_size=1.json stands beside what the run scores as
it was configured. With --compare also eval/<split>.compare-<other>.json: how the two runs differ on this test
set, and whether that is chance. The other run must have been evaluated, for it is not decoded again; what it
scored with --set is named as its files are: --compare=runs/other,decode.beam_size=1.
"""

import re
import time

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import entry
from experiments.evaluations import SCOPE, Evaluation, Outputs
from experiments.progress import counting
from experiments.runs import Run, Trained, converted
from transformer.config import UserError
from transformer.data.corpus import Corpus
from transformer.decoding.translator import Translator
from transformer.evaluation.scores import by_length, corpus_scores, perplexity_per_word, signatures
from transformer.evaluation.significance import Comparison
from transformer.training.losses import make_loss_fn
from transformer.training.metrics import summary
from transformer.training.placement import Jit
from transformer.training.setup import check_lengths, make_hyper, make_validation
from transformer.training.step import make_validation_step

WORKDIR = flags.DEFINE_string("workdir", None, "Run folder.", required=True)
SPLIT = flags.DEFINE_list("split", "test", "Splits to score, separated by commas.")
COMPARE = flags.DEFINE_string(
    "compare",
    None,
    "Run folder of another run, evaluated already, to compare with; RUN,KEY=VALUE: as it was with --set.",
)
SET = entry.define_changes()
SHOWN = {
    "exact_match": ".2f",
    "bleu": ".2f",
    "bleu_lc": ".2f",
    "bleu_tok": ".2f",
    "chrf": ".2f",
    "length_ratio": ".3f",
    "looping": ".2f",
    "at_limit": ".2f",
    "perplexity": ".3f",
    "perplexity_per_word": ".2f",
    "perplexity_per_character": ".4f",
    "sentences": "d",
}
LINE_ENDS = str.maketrans("\n\r", "  ")  # a file of lines cannot hold them; the translator writes none


def main() -> None:
    entry.use_compilation_cache()
    if not SPLIT.value:
        raise UserError("--split names no split")
    run = Run(WORKDIR.value)
    changes = converted(run.config, entry.changes(SET.value))
    trained = run.load(changes)
    corpus = Corpus(trained.config.data, trained.tokenizer)
    for split in SPLIT.value:  # what cannot be scored is known before anything is
        check_lengths(trained.model, split, corpus.split(split).longest)
    evaluations = [Evaluation(run, split, changes) for split in SPLIT.value]
    files = [str(one.path(".json, .hyp.txt, .ref.txt")) for one in evaluations]
    others = [_other(one, corpus) for one in evaluations] if COMPARE.value is not None else []
    outputs = [_evaluate(one, trained, corpus) for one in evaluations]
    print(f"{run.folder}: {_origin(trained)}{evaluations[0].suffix.replace(',', ', ')}")
    _print_scores({one.split: own.scores for one, own in zip(evaluations, outputs, strict=True)})
    for one, own, (other, theirs) in zip(evaluations, outputs, others, strict=False):
        _print_comparisons(f"{one.split}: {one.name} against {other.name}", one.compare(own, other, theirs))
        files.append(str(one.comparison(other)))
    print("\n".join(files))


def _other(one: Evaluation, corpus: Corpus) -> tuple[Evaluation, Outputs]:
    """What an evaluation is to be compared with.

    Raises:
      UserError: nothing that it can be.
    """
    folder, *texts = re.split(r",(?=(?:decode|model)\.)", COMPARE.value)
    run = Run(folder)
    other = Evaluation(run, one.split, converted(run.config, entry.changes(texts, "compare")))
    one.comparison(other)  # has a name
    return other, other.comparable(_texts(corpus, one.split)[1])


def _evaluate(one: Evaluation, trained: Trained, corpus: Corpus) -> Outputs:
    """Scores a split and writes it down."""
    split, config = one.split, trained.config
    pieces = corpus.split(split)
    placement = Jit()
    validate = make_validation(
        make_validation_step(make_loss_fn(trained.model), placement),
        make_hyper(config),
        pieces,
        config.decode.batch_tokens,
        placement,
    )
    sources, references = _texts(corpus, split)
    translator = Translator(trained.model, trained.params, trained.tokenizer, config.decode)
    in_parts, at_limit = [], set()
    started = time.perf_counter()
    with counting(len(sources), split) as progress:
        hypotheses = translator(sources, progress, lambda *text: in_parts.append(text), at_limit.add)
    seconds = time.perf_counter() - started
    print(f"{split}: {len(sources)} sentences in {seconds:.1f} s, compilation included")
    if in_parts:
        print(f"{split}: {len(in_parts)} of more than {translator.max_source} pieces, translated in parts")
    sums = validate(trained.params)
    scores = {
        **corpus_scores(hypotheses, references),
        **summary(sums),
        "at_limit": 100 * len(at_limit) / len(references),
        "perplexity_per_word": perplexity_per_word(float(sums.nll), references),
        "sentences": len(references),
        "by_length": by_length(pieces.source.lengths, hypotheses, references),
        "changes": one.changes,
        "checkpoints": trained.steps,
        "params_sha256": trained.params_sha256,
    }
    outputs = Outputs(scores, hypotheses, references)
    one.write(outputs)
    return outputs


def _texts(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """The raw sentences of a split, each reference in one line: as it is written it is scored."""
    sources, references = corpus.texts(split)
    return sources, [reference.translate(LINE_ENDS) for reference in references]


def _print_scores(scores: dict[str, dict]) -> None:
    console = Console()
    table = Table("", *scores)
    for name, form in SHOWN.items():
        table.add_row(name, *(f"{scores[split][name]:{form}}" for split in scores))
    console.print(table)
    columns = ("sentences", "exact_match", "bleu", "chrf")
    lengths = Table("split", "pieces", *columns, title="by pieces of the source", title_justify="left")
    for split, own in scores.items():
        for bucket in own["by_length"]:
            cells = (f"{bucket[name]:{SHOWN[name]}}" for name in columns)
            lengths.add_row(split, f"{bucket['least']} to {bucket['most']}", *cells)
    console.print(lengths)
    for name, signature in signatures().items():
        if name in SHOWN:
            print(f"{name:<8} {signature}")


def _print_comparisons(title: str, comparisons: dict[str, Comparison]) -> None:
    table = Table("", "this", "other", "difference", "p bootstrap", "p randomisation")
    for name, found in comparisons.items():
        figures = (f"{found.score:.2f}", f"{found.other:.2f}", f"{found.difference:+.2f}")
        table.add_row(name, *figures, _p_value(found.p_bootstrap), _p_value(found.p_randomisation))
    print(title)
    Console().print(table)
    print(SCOPE)


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _origin(trained: Trained) -> str:
    steps, asked = trained.steps, trained.config.decode.average_last
    mean = f"mean of {len(steps)} checkpoints, {steps[0]} to {steps[-1]}"
    fewer = f" (decode.average_last is {asked}; there are no more)" if len(steps) < asked else ""
    return (f"checkpoint {steps[0]}" if len(steps) == 1 else mean) + fewer


if __name__ == "__main__":
    entry.run(main)
