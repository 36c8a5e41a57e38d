"""Renders the report of a study as one HTML page, which needs no other file and no network."""

import contextlib
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from experiments.pages import PALETTE, render
from experiments.run_folder import Run
from experiments.score_files import Evaluation, ScoreFiles
from experiments.study import charts, overview
from experiments.study.results import MIN_SENTENCES, Study
from experiments.study.statistics import summarize
from experiments.study.tables import (
    COMPARISONS_NOTE,
    SCORES_NOTE,
    comparison_cells,
    interval_text,
    note_lines,
    score_cells,
    verdict_lines,
)
from experiments.study.tasks import TaskStudies
from transformer.config import UserError, flatten, to_dict
from transformer.evaluation.metrics import METRICS, score_text
from transformer.training.metric_log import Record, read_metrics

MAX_CHARACTERS = 150_000  # total length of the translations on the page
SAME_FOR_ALL = ("train.seed", "data.data_dir")  # fields that the table of differing settings leaves out


def page(study: Study) -> str:
    """Returns the page. The same study gives the same page, byte for byte."""
    sweep = study.sweep
    metric, split = sweep.primary
    comparisons = study.comparisons()
    records = {
        variant: [_records(run) for _, run in sorted(runs.items())] for variant, runs in study.runs.items()
    }
    return render(
        "study/page.html",
        sweep=sweep,
        variants=study.launched,
        palette=PALETTE,
        min_sentences=MIN_SENTENCES,
        scores_note=SCORES_NOTE,
        primary=f"{metric} on {split}",
        verdicts=verdict_lines(study, comparisons),
        notes=note_lines(study),
        columns=_columns(study),
        rows=_rows(study),
        comparisons=comparison_cells(study, comparisons),
        comparisons_note=COMPARISONS_NOTE,
        forest=charts.forest(study, comparisons),
        seeds=dict(charts.seed_charts(study)),
        curves=dict(charts.curves(study, records)),
        lengths=dict(charts.length_charts(study)),
        layers=dict(charts.layer_charts(study, records)),
        costs=dict(charts.cost_charts(study)),
        differences=_differences(study),
        tuning=list(_tuning(study)),
        provenance=_provenance(study),
        incomplete=list(_incomplete(study)),
        translations=_translations(study),
    )


def overview_page(tasks: TaskStudies) -> str:
    """Returns the page of a study of several tasks, which links to the page of each task."""
    studies = tasks.studies
    return render(
        "study/overview.html",
        tasks=tasks,
        column_headers=overview.column_headers(tasks),
        rows=[
            (variant, [overview.cell(study, variant) for study in studies.values()])
            for variant in tasks.variants
        ],
        baselines={study.sweep.baseline for study in studies.values()},
        notes=overview.notes(tasks),
        task_notes={task: note_lines(study) for task, study in studies.items()},
        scores_note=SCORES_NOTE,
        forests={task: charts.forest(study, study.comparisons()) for task, study in studies.items()},
    )


def _columns(study: Study) -> list[str]:
    """Returns the column headers of the table of scores, except the first."""
    sweep = study.sweep
    scores = [f"{split} {metric}" for split in sweep.splits for metric in sweep.metrics]
    return [
        "seeds",
        *scores,
        *_published_labels(study),
        *(["parameters", "training FLOPs"] if study.costs else []),
    ]


def _published_labels(study: Study) -> list[str]:
    return list(dict.fromkeys(itertools.chain(*study.sweep.published.values())))


def _rows(study: Study) -> list[tuple[str, list[tuple[str, float | None, str]]]]:
    """Returns the cells of each variant: text, value for sorting, and tooltip."""
    sweep, rows = study.sweep, []
    labels = _published_labels(study)
    columns = list(itertools.product(sweep.splits, sweep.metrics))
    for variant in study.launched:
        cells = [(f"{study.num_seeds(variant)}", float(study.num_seeds(variant)), "")]
        for (split, metric), text in zip(columns, score_cells(study, variant), strict=True):
            by_seed = study.by_seed(variant, split, metric)
            cells.append((text, *_mean_and_tooltip(by_seed, METRICS[metric].format)))
        for label in labels:
            figure = sweep.published.get(variant, {}).get(label)
            cells.append(("-", None, "") if figure is None else (f"{figure:g}", figure, ""))
        if study.costs:
            cost = study.costs.get(variant, {})
            for name, form in (("parameters", ",.0f"), ("flops", ".3g")):
                value = cost.get(name)
                cells.append(("-", None, "") if value is None else (f"{value:{form}}", value, ""))
        rows.append((variant, cells))
    return rows


def _mean_and_tooltip(by_seed: Mapping[int, float], form: str) -> tuple[float | None, str]:
    if not by_seed:
        return None, ""
    mean, _, interval = summarize(list(by_seed.values()))
    seeds = ", ".join(f"seed {seed}: {score_text(score, form)}" for seed, score in by_seed.items())
    if math.isnan(interval.low):
        return mean, seeds
    return mean, f"95% interval {interval_text(interval, form)}; {seeds}"


def _records(run: Run) -> list[Record]:
    try:
        return read_metrics(run.folder)
    except UserError:  # a damaged log only removes its curves from the page
        return []


def _differences(study: Study) -> list[tuple[str, list[str]]]:
    """Returns the fields in which the variants differ, with the value of each variant."""
    configs = {
        variant: flatten(to_dict(next(iter(study.runs[variant].values())).config))
        for variant in study.launched
    }
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    fields = []
    for key in keys:
        values = [config.get(key, "-") for config in configs.values()]
        if key not in SAME_FOR_ALL and any(value != values[0] for value in values):
            fields.append((key, [str(value) for value in values]))
    return fields


def _tuning(study: Study) -> Iterator[tuple[str, str, str, str]]:
    """Yields variant, values and validation loss of each trial, and "chosen" or an empty string."""
    for variant, (chosen, trials) in study.tuned.items():
        for values, criterion in trials:
            text = ", ".join(f"{key}={value}" for key, value in values.items())
            loss = "diverged" if criterion is None else f"{criterion:.4f}"
            yield variant, text, loss, "chosen" if values == chosen else ""


def _provenance(study: Study) -> list[tuple[str, list[str]]]:
    """Returns data, versions and devices of the runs: each distinct value with its number of runs."""
    numbers_of_runs: dict[str, Counter[str]] = defaultdict(Counter)
    for runs in study.runs.values():
        for run in runs.values():
            result = run.result
            identity = result.get("identity") or {}
            versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
            for name, value in (
                ("data", identity.get("data")),
                ("data (SHA-256)", identity.get("content")),
                ("vocabulary (SHA-256)", identity.get("vocabulary")),
                ("versions", versions),
                ("device", result.get("device")),
                ("git revision", result.get("git_revision")),
            ):
                if value:
                    numbers_of_runs[name][value] += 1
    texts = {
        name: [f"{value} ({count} runs)" for value, count in sorted(counts.items())]
        for name, counts in numbers_of_runs.items()
    }
    return list(texts.items())


def _incomplete(study: Study) -> Iterator[tuple[str, str, str]]:
    """Yields variant, seeds and reason of the runs that lack scores."""
    for variant in study.launched:
        by_reason: dict[str, list[int]] = defaultdict(list)
        for seed in study.unfinished(variant):
            result = study.runs[variant][seed].result if seed in study.runs[variant] else {}
            status = result.get("status", "not started")
            evaluated = "not evaluated on all splits" if seed in study.scores[variant] else "not evaluated"
            state = {"done": evaluated, "running": "at work, or killed"}.get(status, status)
            by_reason[result.get("message") or state].append(seed)
        for reason, stopped in by_reason.items():
            yield variant, ", ".join(map(str, stopped)), reason


def _translations(study: Study) -> dict[str, Any]:
    """Returns the sentences of the primary split that the variants translate most differently.

    The translations come from one seed: the one that has scores for the most variants.
    """
    split = study.sweep.primary[1]
    counts = Counter(seed for seeds in study.scores.values() for seed in sorted(seeds))
    evaluations: dict[str, Evaluation] = {}
    seed = min(counts, key=lambda seed: (-counts[seed], seed), default=None)
    for variant, scores in study.scores.items():
        if seed in scores:
            with contextlib.suppress(UserError):  # a study may be stored without its translations
                evaluations[variant] = ScoreFiles(study.runs[variant][seed], split, {}).read()
    first = next(iter(evaluations.values()), None)
    evaluations = {
        variant: evaluation
        for variant, evaluation in evaluations.items()
        if (evaluation.sources, evaluation.references) == (first.sources, first.references)
    }
    if len(evaluations) < 2:
        return {}
    texts = [evaluation.hypotheses for evaluation in evaluations.values()]
    order = sorted(range(len(first.sources)), key=lambda index: -_spread([side[index] for side in texts]))
    sides = [first.sources, first.references, *texts]
    sizes = itertools.accumulate(sum(len(side[index]) for side in sides) for index in order)
    chosen = sorted(order[: sum(size <= MAX_CHARACTERS for size in sizes)])
    return {
        "seed": seed,
        "split": split,
        "variants": list(evaluations),
        "sources": [first.sources[index] for index in chosen],
        "references": [first.references[index] for index in chosen],
        "hypotheses": [[side[index] for index in chosen] for side in texts],
    }


def _spread(hypotheses: Iterable[str]) -> int:
    """Returns the number of words in which the other translations of a sentence differ from the first."""
    first, *rest = (set(hypothesis.split()) for hypothesis in hypotheses)
    return sum(len(first ^ words) for words in rest)
