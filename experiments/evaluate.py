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

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import entry
from experiments.progress import counting
from experiments.runs import Run, Trained, read_json, write_json
from transformer.config import UserError
from transformer.data.corpus import Corpus
from transformer.decoding.translator import Translator
from transformer.evaluation.scores import by_length, corpus_scores, perplexity_per_word, signatures
from transformer.evaluation.significance import Comparison, compare
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
COMPARED = ("exact_match", "bleu", "bleu_lc", "bleu_tok", "chrf")
SCOPE = "this test set only: says nothing about other seeds"
LINE_ENDS = str.maketrans("\n\r", "  ")  # a file of lines cannot hold them; the translator writes none


class Outputs(NamedTuple):
    """What eval/ holds of a run and a split."""

    name: str  # the run's folder, and after commas what was changed, as for --compare
    scores: dict
    hypotheses: list[str]
    references: list[str]


def main() -> None:
    entry.use_compilation_cache()
    run = Run(WORKDIR.value)
    changes, suffix = entry.changes(SET.value), _suffix("--set=", SET.value)
    trained = run.load(changes)
    corpus = Corpus(trained.config.data, trained.tokenizer)
    for split in SPLIT.value:  # what cannot be scored is known before anything is
        check_lengths(trained.model, split, corpus.split(split).longest)
    others = {}
    if COMPARE.value is not None:
        others = {split: _comparable(COMPARE.value, corpus, split) for split in SPLIT.value}
    names = {split: split + suffix for split in SPLIT.value}
    scores = {split: _evaluate(run, trained, corpus, split, name, changes) for split, name in names.items()}
    files = [f"{run.folder / 'eval' / name}.json, .hyp.txt, .ref.txt" for name in names.values()]
    print(f"{run.folder}: {_origin(trained)}{suffix.replace(',', ', ')}")
    _print_scores(scores)
    for split, other in others.items():
        one = _outputs(run, split, suffix)
        path, comparisons = _compare(run.folder / "eval" / names[split], one, other)
        _print_comparisons(f"{split}: {one.name} against {other.name}", comparisons)
        files.append(str(path))
    print("\n".join(files))


def _suffix(flag: str, changes: Sequence[str]) -> str:
    """What names the files of a changed run: each KEY=VALUE as it was given, in order; the last of a key."""
    last = dict(text.partition("=")[::2] for text in changes)
    suffix = "".join(f",{key}={value}" for key, value in sorted(last.items()))
    if "/" in suffix or len(suffix.encode()) > 150:
        raise UserError(f"{flag}{suffix[1:]}: it cannot be a part of a file's name")
    return suffix


def _evaluate(
    run: Run, trained: Trained, corpus: Corpus, split: str, outputs: str, changes: dict[str, Any]
) -> dict:
    """Scores a split and writes eval/<outputs>.json, .hyp.txt, .ref.txt."""
    config = trained.config
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
        hypotheses = translator(sources, progress, lambda *one: in_parts.append(one), at_limit.add)
    seconds = time.perf_counter() - started
    print(f"{split}: {len(sources)} sentences in {seconds:.1f} s, compilation included")
    if in_parts:
        print(f"{split}: {len(in_parts)} of more than {translator.max_source} pieces, translated in parts")
    folder = run.folder / "eval"
    folder.mkdir(exist_ok=True)
    for name, lines in (("hyp", hypotheses), ("ref", references)):
        (folder / f"{outputs}.{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    sums = validate(trained.params)
    scores = {
        **corpus_scores(hypotheses, references),
        **summary(sums),
        "at_limit": 100 * len(at_limit) / len(references),
        "perplexity_per_word": perplexity_per_word(float(sums.nll), references),
        "sentences": len(references),
        "by_length": by_length(pieces.source.lengths, hypotheses, references),
        "changes": changes,
        "checkpoints": trained.steps,
        "params_sha256": trained.params_sha256,
    }
    write_json(folder / f"{outputs}.json", scores)
    return scores


def _texts(corpus: Corpus, split: str) -> tuple[list[str], list[str]]:
    """The raw sentences of a split, each reference in one line: as it is written it is scored."""
    sources, references = corpus.texts(split)
    return sources, [reference.translate(LINE_ENDS) for reference in references]


def _outputs(run: Run, split: str, suffix: str) -> Outputs:
    """Reads what evaluating a run has written; `suffix` names what was changed.

    Raises:
      UserError: it is no run, it has not been evaluated, or a file is not whole.
    """
    scores, hypotheses, references = (
        run.folder / "eval" / f"{split}{suffix}.{kind}" for kind in ("json", "hyp.txt", "ref.txt")
    )
    again = _again(run, split, suffix)
    for path in (scores, hypotheses, references):
        if not path.is_file():
            run.begin(None)  # no run at all is refused as such
            there = sorted(one.stem.removeprefix(split) for one in path.parent.glob(f"{split},*=*.json"))
            others = "".join(
                f"; there is --compare={run.folder}{one}" for one in there if ".compare-" not in one
            )
            raise UserError(f"{path} is missing; {again} writes it{others}")
    outputs = Outputs(f"{run.folder}{suffix}", read_json(scores), _lines(hypotheses), _lines(references))
    if len(outputs.hypotheses) != len(outputs.references):
        counts = f"{hypotheses} has {len(outputs.hypotheses)} lines, {references} {len(outputs.references)}"
        raise UserError(f"{counts}; {again} writes both anew")
    return outputs


def _lines(path: Path) -> list[str]:
    """Only a line feed ends a line; `read_text` would know of other ends."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    return text.removesuffix("\n").split("\n") if text else []


def _again(run: Run, split: str, suffix: str) -> str:
    command = f"python -m experiments.evaluate --workdir={run.folder} --split={split}"
    return command + suffix.replace(",", " --set=")


def _comparable(name: str, corpus: Corpus, split: str) -> Outputs:
    """The outputs of a run that was scored on the same references in the same way as we score.

    Args:
      name: its folder, and after commas what was changed.

    Raises:
      UserError: it was not.
    """
    folder, *changes = name.split(",")
    run, suffix = Run(folder), _suffix("--compare=", changes)
    other, (_, references) = _outputs(run, split, suffix), _texts(corpus, split)
    path = run.folder / "eval" / f"{split}{suffix}.ref.txt"
    if len(other.references) != len(references):
        counts = f"it has {len(other.references)} lines, split {split!r} here {len(references)}"
        raise UserError(f"{path} is another test set: {counts}")
    for number, (theirs, ours) in enumerate(zip(other.references, references, strict=True), start=1):
        if theirs != ours:
            raise UserError(f"{path} is another test set: line {number} is {theirs!r} there, {ours!r} here")
    stored, own = other.scores["signatures"], signatures()
    for name in COMPARED:
        if name in own and stored[name] != own[name]:
            differ = f"the signature of {name} is {stored[name]} in {run.folder}, {own[name]} here"
            raise UserError(f"{differ}; {_again(run, split, suffix)} scores it anew")
    return other


def _compare(scored: Path, one: Outputs, other: Outputs) -> tuple[Path, dict[str, Comparison]]:
    """Compares two runs and writes <scored>.compare-<other>.json."""
    texts = (one.hypotheses, other.hypotheses, one.references)
    comparisons = {}
    with counting(len(COMPARED), f"{scored.name}: comparing") as progress:
        for metric in COMPARED:
            comparisons[metric] = compare(metric, *texts)
            progress(len(comparisons))
    path = scored.with_name(f"{scored.name}.compare-{Path(other.name).resolve().name}.json")
    identity = ("checkpoints", "params_sha256", "changes")
    content = {
        "scope": SCOPE,
        "sentences": len(one.references),
        "differing": sum(map(str.__ne__, one.hypotheses, other.hypotheses)),
        "metrics": {metric: comparison._asdict() for metric, comparison in comparisons.items()},
        "run": {fact: one.scores[fact] for fact in identity},
        "other": {"folder": other.name, **{fact: other.scores.get(fact) for fact in identity}},
    }
    write_json(path, content)
    return path, comparisons


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
