"""Writes the report of a study: tables in Markdown and CSV, and plots."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.study.results import Study
from transformer.evaluation.metrics import METRICS
from transformer.evaluation.significance import interval
from transformer.files import atomic_write


def write_report(root: Path, study: Study) -> Path:
    """Writes the report into the folder report/ of a study folder, and returns the path of report/."""
    folder = root / "report"
    folder.mkdir(exist_ok=True)
    sweep = study.sweep
    atomic_write(folder / "table.md", score_table(study))
    columns = ["variant", "split", "metric", "seeds", "mean", "standard_deviation", "low_95", "high_95"]
    intervals = (
        [variant, split, metric, len(values), *interval(values)]
        for variant, split, metric, values in _cells(study)
    )
    atomic_write(folder / "table.csv", _csv(columns, intervals))
    runs = (
        [variant, seed, split, *(splits[split].get(metric, "missing") for metric in sweep.metrics)]
        for variant, seeds in study.scores.items()
        for seed, splits in sorted(seeds.items())
        for split in splits
    )
    atomic_write(folder / "runs.csv", _csv(["variant", "seed", "split", *sweep.metrics], runs))
    metric, title = sweep.metrics[0], f"{sweep.name}: {sweep.config}"
    values = {
        split: {variant: study.values(variant, split, metric) for variant in sweep.variants}
        for split in sweep.splits
    }
    atomic_write(folder / "table.png", plots.png(plots.comparison(values, metric, title)))
    if METRICS[metric].by_length:
        curves = {
            (variant, split): study.by_length(variant, split, metric)
            for split in sweep.splits
            for variant in sweep.variants
        }
        atomic_write(folder / "by_length.md", length_table(curves, metric))
        figure = plots.scores_by_length(curves, metric, title)
        atomic_write(folder / "by_length.png", plots.png(figure))
    return folder


def report_text(study: Study, folder: Path) -> str:
    """Returns a text with the table of scores and the names of the files in the report."""
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    return f"{score_table(study)}\n{folder}: {names}"


def score_table(study: Study) -> str:
    """Returns a Markdown table of mean ± standard deviation over seeds.

    The table has a row per variant and a column per split and metric.
    """
    sweep = study.sweep
    columns = [(split, metric) for split in sweep.splits for metric in sweep.metrics]
    rows = [
        ["variant", "seeds", *(f"{split} {metric}" for split, metric in columns)],
        ["---", "---:", *("---:" for _ in columns)],
    ]
    for variant in sweep.variants:
        cells = [_cell(study.values(variant, split, metric), metric) for split, metric in columns]
        diverged = len(study.diverged[variant])
        seeds = f"{len(study.scores[variant])}" + (f" ({diverged} more diverged)" if diverged else "")
        rows.append([variant, seeds, *cells])
    return _markdown(rows)


def length_table(curves: dict[tuple[str, str], dict[int, list[float]]], metric: str) -> str:
    """Returns a Markdown table of scores by source length, with a row per variant and split.

    Args:
      curves: scores by (variant, split); each value is a result of `Study.by_length`.
      metric: the metric of the scores, a key of `METRICS`.
    """
    ends = sorted({end for curve in curves.values() for end in curve})
    rows = [[f"{metric} by source tokens, up to", *map(str, ends)], ["---", *("---:" for _ in ends)]]
    for (variant, split), curve in curves.items():
        cells = [_cell(curve[end], metric) if end in curve else "" for end in ends]
        rows.append([f"{variant}, {split}", *cells])
    return _markdown(rows)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cell(values: Sequence[float], metric: str) -> str:
    if not values:
        return "missing"
    form = METRICS[metric].format
    mean, deviation, *_ = interval(values)
    return f"{mean:{form}} ± {deviation:{form}}" if len(values) > 1 else f"{mean:{form}}"


def _cells(study: Study) -> Iterator[tuple[str, str, str, list[float]]]:
    for variant in study.sweep.variants:
        for split in study.sweep.splits:
            for metric in study.sweep.metrics:
                yield variant, split, metric, study.values(variant, split, metric)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()
