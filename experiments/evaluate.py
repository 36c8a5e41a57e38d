"""Scores a trained model on splits of the run's data set, or on any other test set.

    python -m experiments.evaluate --workdir=runs/m30k --split=test
    python -m experiments.evaluate --workdir=runs/m30k --source=news.en --target=news.de --name=news
    python -m experiments.evaluate --workdir=runs/m30k --split=test --compare=runs/other
    python -m experiments.evaluate --workdir=runs/m30k --set=decode.beam_size=1 --compare=runs/m30k
    python -m experiments.evaluate --workdir=runs/m30k --ablate=decoder.3.cross.head.5 --compare=runs/m30k

The command writes four files into eval/ of the run folder: <split>.json contains the scores, <split>.src.txt
the sources, <split>.hyp.txt the translations and <split>.ref.txt the references. sacreBLEU's command line can
read the text files. With --set, the changes are part of the file names: <split>,decode.beam_size=1.json.

--ablate removes a part of the model. --ablate=all removes each part in turn, and writes the loss that each
removal adds into <split>,ablate=all.json and .png.

With --compare, the command also writes <split>.compare-<other run>.json, which contains the difference
between the two runs in each score, with p-values. Evaluate the other run first: --compare reads the files of
its evaluation. To compare with an evaluation that used --set, add the changes:
--compare=runs/other,decode.beam_size=1.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl.flags import FlagValues
from rich.markup import escape
from rich.table import Table

from experiments import cli
from experiments.ablation_report import report_ablation
from experiments.config_changes import SEARCH_FIELDS, check_read, converted, read_changes
from experiments.process import set_up_jax
from experiments.progress import console, counting
from experiments.run_folder import Run
from experiments.score_files import SCOPE, TEXT_FILES, Evaluation, ScoreFiles
from experiments.text_io import report_unknown
from experiments.trained_model import Trained, load_trained, open_task_of
from transformer.config import UserError
from transformer.data.builders import split_names
from transformer.data.splits import encode_pairs
from transformer.data.text import existing_file, read_pairs
from transformer.evaluation.ablation import ablate
from transformer.evaluation.metrics import METRICS, Metric, metrics_for, score_text
from transformer.evaluation.significance import Comparison
from transformer.files import path_component
from transformer.tasks import LoadedModel, task_type
from transformer.tasks.checks import check_lengths
from transformer.tasks.task import TestSet
from transformer.tasks.translation import LINE_ENDS, SentencePairs

SPLITS = ("train", "validation", "test")  # --name must be none of these, whatever the data set


def define_flags(flags: FlagValues) -> None:
    cli.define_workdir(flags)
    cli.define_changes(flags)
    absl_flags.DEFINE_list("split", "test", "Splits to score, separated by commas.", flag_values=flags)
    texts = {
        "source": "File of source sentences, one per line, to score instead of a split; plain or compressed.",
        "target": "File with the reference translation of each line of --source.",
        "name": "Name of the test set in --source and --target; names of written files begin with it.",
        "ablate": "Part of the model to remove: a head, such as decoder.3.cross.head.5, a sub-layer, such as "
        "encoder.1.feed_forward, or positions. With all, removes each in turn and reports the added loss.",
        "compare": "Run folder to compare with; evaluate that run first. "
        "RUN,KEY=VALUE names the evaluation of RUN that used --set=KEY=VALUE.",
    }
    for name, text in texts.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)


def main(flags: FlagValues) -> None:
    set_up_jax()
    _check_flags(flags)
    run = Run(flags.workdir)
    trained, changes = _load(flags, run)
    has_pairs = task_type(run.config).records == "pairs"
    if not has_pairs:
        _check_flags_without_pairs(flags, run)
    test_sets = _test_sets(flags, run, trained)
    for test_set in test_sets:  # checks every test set before scoring the first
        if isinstance(test_set, SentencePairs):
            _check_pairs(test_set, trained)
    ablated = flags.ablate or ""
    is_split = flags.source is None
    files = [ScoreFiles(run, test_set.name, changes, ablated, is_split) for test_set in test_sets]
    if ablated == "all":
        pairs = zip(files, test_sets, strict=True)
        print("\n".join(str(path) for pair in pairs for path in report_ablation(*pair, trained)))
        return
    if ablated:
        model, params = ablate(trained.model, trained.params, ablated)
        trained = dataclasses.replace(trained, model=model, params=params)
    endings = (".json", *TEXT_FILES) if has_pairs else (".json",)
    written = [str(set_files.path(", ".join(endings))) for set_files in files]
    compared = [None] * len(files)
    if flags.compare:
        compared = [_compared(*pair, flags.compare) for pair in zip(files, test_sets, strict=True)]

    evaluations = [_evaluate(*pair, trained) for pair in zip(files, test_sets, strict=True)]
    print(f"{run.folder}: {_checkpoints_text(trained)}{files[0].suffix.replace(',', ', ')}")
    scores = {
        set_files.split: evaluation.scores for set_files, evaluation in zip(files, evaluations, strict=True)
    }
    if has_pairs:
        _print_scores(scores, trained.config.data.target)
    else:
        _print_table(scores, [METRICS[name] for name in task_type(trained.config).metrics(trained.config)])
    for set_files, evaluation, baseline in zip(files, evaluations, compared, strict=True):
        if baseline is None:
            continue
        comparisons = set_files.compare(evaluation, *baseline)
        _print_comparisons(f"{set_files.split}: {set_files.name} against {baseline[0].name}", comparisons)
        written.append(str(set_files.comparison_path(baseline[0])))
    print("\n".join(written))


def _load(flags: FlagValues, run: Run) -> tuple[Trained, dict[str, Any]]:
    """Returns the trained model of a run with the changes in --set, and these changes.

    Raises:
      UserError: the model cannot be loaded, or a change is wrong or has no effect.
    """
    changes = converted(run.config, read_changes(flags.set, "set"))
    trained = load_trained(run, changes)
    searches = task_type(run.config).searches and flags.ablate != "all"
    check_read(changes, [trained.config], ignored=() if searches else SEARCH_FIELDS)
    return trained, changes


def _check_flags(flags: FlagValues) -> None:
    names = ("source", "target", "name")
    given = [name for name in names if flags[name].value is not None]
    if given and len(given) < len(names):
        missing = next(name for name in names if name not in given)
        raise UserError(f"--{missing} is missing; give --source, --target and --name together")
    if flags.ablate == "all" and flags.compare:
        raise UserError("--ablate=all and --compare cannot be used together; name one part in --ablate")
    if given and flags["split"].present:
        raise UserError("--split and --source cannot be used together; give one of them")
    if not flags.split:
        raise UserError("--split is empty; give at least one split, such as test")


def _check_flags_without_pairs(flags: FlagValues, run: Run) -> None:
    for name in ("source", "target", "name", "ablate", "compare"):
        if flags[name].value is not None:
            raise UserError(
                f"--{name} needs a run of translation, but the task of {run.folder} is {run.config.task}"
            )


def _check_pairs(pairs: SentencePairs, trained: Trained) -> None:
    """Checks that the model can read the sentences, and reports their unknown characters."""
    tokens = encode_pairs(pairs.sources, pairs.references, trained.tokenizer)
    check_lengths(trained.model, pairs.name, tokens.side_lengths)
    for side, texts in (("source", pairs.sources), ("reference", pairs.references)):
        report_unknown(f"{pairs.name}: {side}", texts, trained.tokenizer)


def _test_sets(flags: FlagValues, run: Run, trained: Trained) -> list[TestSet]:
    """Returns the texts of the files in --source and --target, or of the splits in --split.

    Raises:
      UserError: a file or a split cannot be read, or the value of --name or --split is not a valid name.
    """
    if flags.source is None:
        task = open_task_of(run, trained)
        return [task.test_set(path_component(split, "--split")) for split in dict.fromkeys(flags.split)]
    name = path_component(flags.name, "--name")
    splits = split_names(trained.config.data, trained.identity["data"])
    if name in (*SPLITS, *splits) or re.search(r"[,=]", name):
        raise UserError(f"--name is {name!r}; it must not be the name of a split, nor contain ',' or '='")
    paths = [existing_file(Path(flags[side].value), f"--{side}") for side in ("source", "target")]
    pairs = list(read_pairs(*paths))
    if not pairs:
        raise UserError(f"{paths[0]} has no lines; give a file that has sentences")
    sources, references = zip(*pairs, strict=True)
    return [SentencePairs(name, sources, [reference.translate(LINE_ENDS) for reference in references])]


def _compared(files: ScoreFiles, test_set: SentencePairs, compare: str) -> tuple[ScoreFiles, Evaluation]:
    """Returns the evaluation that `--compare` names.

    Raises:
      UserError: the evaluation is missing or damaged, or is of another test set.
    """
    folder, *texts = re.split(r",(?=(?:decode|model|ablate)[.=])", compare)
    run, ablated = Run(folder), ""
    if task_type(run.config).records != "pairs":
        raise UserError(f"the task of {folder} in --compare is {run.config.task}; name a run of translation")
    for text in [text for text in texts if text.startswith("ablate=")]:
        ablated = text.removeprefix("ablate=")
        texts.remove(text)
    changes = converted(run.config, read_changes(texts, "compare"))
    compared_files = ScoreFiles(run, files.split, changes, ablated, files.is_split)
    files.comparison_path(compared_files)  # raises an error if the file name is not valid
    return compared_files, compared_files.read_comparable(test_set.sources, test_set.references)


def _evaluate(files: ScoreFiles, test_set: TestSet, trained: Trained) -> Evaluation:
    """Scores a test set, and writes the files of the evaluation."""
    config, loaded = trained.config, LoadedModel(trained.model, trained.tokenizer)
    with counting(test_set.num_items, test_set.name, test_set.items) as progress:
        evaluated = task_type(config).evaluate(config, loaded, trained.params, test_set, progress)
    for note in evaluated.notes:
        print(f"{test_set.name}: {note}")
    made_from = {
        "identity": dict(trained.identity),
        "content": test_set.digest,
        "checkpoints": trained.steps,
        "params_sha256": trained.params_sha256,
    }
    return files.write(Evaluation(evaluated.scores | made_from, *evaluated.texts))


def _print_scores(scores: dict[str, dict[str, Any]], language: str) -> None:
    metrics = metrics_for(language).values()
    shown = [metric for metric in metrics if metric.shown]
    _print_table(scores, shown, "sentences")
    ranged = [metric for metric in metrics if metric.by_length]
    names = [metric.name for metric in ranged]
    lengths = Table(
        "split", "tokens", "sentences", *names, title="by number of source tokens", title_justify="left"
    )
    for split in scores:
        for bucket in scores[split]["by_length"]:
            cells = (_score(bucket[metric.name], metric) for metric in ranged)
            lengths.add_row(
                escape(split), f"{bucket['least']} to {bucket['most']}", str(bucket["sentences"]), *cells
            )
    console().print(lengths)
    for metric in shown:
        if signature := metric.signature(language):
            print(f"{metric.name:<8} {signature}")


def _print_table(scores: dict[str, dict[str, Any]], metrics: Sequence[Metric], *counts: str) -> None:
    """Prints one column per test set, and one row per score and per count of examples."""
    table = Table("", *map(escape, scores))
    for metric in metrics:
        table.add_row(metric.name, *(_score(scores[split].get(metric.name), metric) for split in scores))
    for count in counts:
        table.add_row(count, *(f"{scores[split][count]:,}" for split in scores))
    console().print(table)


def _score(value: float | None, metric: Metric) -> str:
    return "-" if value is None else score_text(value, metric.format)


def _print_comparisons(title: str, comparisons: dict[str, Comparison]) -> None:
    table = Table("", "this run", "other run", "difference", "p bootstrap", "p randomization")
    for name, comparison in comparisons.items():
        form = METRICS[name].format
        scores = (score_text(comparison.score, form), score_text(comparison.other_score, form))
        p_values = (_p_value(comparison.p_bootstrap), _p_value(comparison.p_randomization))
        table.add_row(name, *scores, score_text(comparison.difference, f"+{form}"), *p_values)
    print(title)
    console().print(table)
    print(SCOPE)


def _p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "<0.0001"


def _checkpoints_text(trained: Trained) -> str:
    steps, wanted = trained.steps, trained.config.decode.average_last
    if len(steps) == 1:
        text = f"checkpoint {steps[0]}"
    else:
        text = f"mean of {len(steps)} checkpoints, {steps[0]} to {steps[-1]}"
    missing = f" (decode.average_last is {wanted}, but the run has no other checkpoints)"
    return text + (missing if len(steps) < wanted else "")


if __name__ == "__main__":
    cli.run(sys.modules[__name__])
