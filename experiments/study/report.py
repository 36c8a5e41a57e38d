"""Writes the report of a study: a page, tables in Markdown, CSV and LaTeX, and plots."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments import plots
from experiments.study import overview, score_plots
from experiments.study.page import overview_page, page
from experiments.study.results import Study, read_study
from experiments.study.statistics import Summary, summarize
from experiments.study.tables import latex, length_table, report_markdown
from experiments.study.tasks import TaskStudies, parent_study, read_tasks, task_folders
from transformer.config import UserError
from transformer.evaluation.metrics import METRICS
from transformer.files import atomic_write


def write_report(root: Path, study: Study) -> Path:
    """Writes the report into the folder report/ of a study folder, and returns the path of report/."""
    return _write_files(root / "report", study)


def _write_files(folder: Path, study: Study) -> Path:
    folder.mkdir(exist_ok=True)
    sweep = study.sweep
    atomic_write(folder / "table.md", report_markdown(study))
    atomic_write(folder / "table.tex", latex(study))
    atomic_write(folder / "report.html", page(study))
    columns = ["variant", "split", "metric", "seeds", "mean", "standard_deviation", "low_95", "high_95"]
    intervals = (
        [variant, split, metric, len(values), *_flat(summarize(values))]
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
    if study.launched:
        _write_plots(folder, study)
    return folder


def write_tasks_report(root: Path, tasks: TaskStudies) -> Path:
    """Writes the report of several tasks: an overview in report/, and the report of each task in a subfolder.

    Returns:
      The path of report/.
    """
    folder = root / "report"
    folder.mkdir(exist_ok=True)
    for task, study in tasks.studies.items():
        _write_files(folder / task, study)
    atomic_write(folder / "table.md", overview.overview_markdown(tasks))
    atomic_write(folder / "table.tex", overview.overview_latex(tasks))
    atomic_write(folder / "table.csv", _csv(overview.COLUMNS, overview.rows(tasks)))
    atomic_write(folder / "report.html", overview_page(tasks))
    return folder


def report(root: Path) -> str:
    """Writes the report of a study of one or of several tasks, and returns its tables as text.

    Raises:
      UserError: the folder is not a study, or is one task of a study.
    """
    if (parent := parent_study(root)) is not None:
        raise UserError(
            f"{root} is one task of the study {parent}, whose statistics are for all tasks; "
            f"use --root={parent}"
        )
    if "" in task_folders(root):
        study = read_study(root)
        return report_text(study, write_report(root, study))
    tasks = read_tasks(root)
    return _visible(overview.overview_markdown(tasks), write_tasks_report(root, tasks))


def _write_plots(folder: Path, study: Study) -> None:
    sweep = study.sweep
    metric, title = sweep.metrics[0], f"{sweep.name} ({sweep.config}): mean and range over seeds"
    values = {
        split: {variant: study.values(variant, split, metric) for variant in study.launched}
        for split in sweep.splits
    }
    atomic_write(folder / "table.png", plots.png(score_plots.comparison(values, metric, title)))
    if METRICS[metric].by_length:
        curves = {
            (variant, split): study.by_length(variant, split, metric)
            for split in sweep.splits
            for variant in study.launched
        }
        atomic_write(folder / "by_length.md", length_table(curves, metric))
        figure = score_plots.scores_by_length(curves, metric, title)
        atomic_write(folder / "by_length.png", plots.png(figure))


def report_text(study: Study, folder: Path) -> str:
    """Returns a text with the table of scores and the names of the files in the report."""
    return _visible(report_markdown(study), folder)


def _visible(text: str, folder: Path) -> str:
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    # The study may come from a stranger, and the terminal would execute control characters in it.
    return plots.visible(f"{text}\n{folder}: {names}", allowed="\n")


def _flat(summary: Summary) -> list[float | str]:
    values = [summary.mean, summary.deviation, *summary.interval]
    return ["" if math.isnan(value) else value for value in values]


def _cells(study: Study) -> Iterator[tuple[str, str, str, list[float]]]:
    for variant in study.launched:
        for split in study.sweep.splits:
            for metric in study.sweep.metrics:
                yield variant, split, metric, study.values(variant, split, metric)


def _harmless(cell: Any) -> Any:
    """Returns a cell that a spreadsheet does not take for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t") else cell


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(header)
    writer.writerows([_harmless(cell) for cell in row] for row in rows)
    return file.getvalue()
