"""From a study's scores to report/: table in Markdown, as CSV with t-intervals, all seeds as CSV, plots."""

import csv
from pathlib import Path

from experiments import plots
from experiments.launcher.results import Study
from transformer.evaluation.significance import interval


def write_report(root: Path, study: Study) -> Path:
    """Writes report/ and returns it."""
    folder = root / "report"
    folder.mkdir(exist_ok=True)
    sweep = study.sweep
    (folder / "table.md").write_text(markdown(study))
    _write_csv(
        folder / "table.csv",
        ["variant", "split", "metric", "seeds", "mean", "standard_deviation", "low_95", "high_95"],
        (
            [variant, split, metric, len(values), *interval(values)]
            for variant, split, metric, values in _cells(study)
        ),
    )
    _write_csv(
        folder / "runs.csv",
        ["variant", "seed", "split", *sweep.metrics],
        (
            [variant, seed, split, *(splits[split][metric] for metric in sweep.metrics)]
            for variant, seeds in study.scores.items()
            for seed, splits in sorted(seeds.items())
            for split in splits
        ),
    )
    metric = sweep.metrics[0]
    values = {
        split: {variant: study.values(variant, split, metric) for variant in sweep.variants}
        for split in sweep.splits
    }
    figure = plots.comparison(values, metric, f"{sweep.name}: {sweep.config}")
    figure.savefig(folder / "table.png")
    if metric in ("exact_match", "bleu", "chrf"):
        _write_lengths(folder, study, metric)
    return folder


def _write_lengths(folder: Path, study: Study, metric: str) -> None:
    """A metric by source length: a table, and a plot."""
    sweep = study.sweep
    curves = {
        (variant, split): study.by_length(variant, split, metric)
        for split in sweep.splits
        for variant in sweep.variants
    }
    lengths = sorted({most for curve in curves.values() for most in curve})
    lines = [
        [f"{metric} by source pieces, up to", *map(str, lengths)],
        ["---", *("---:" for _ in lengths)],
    ]
    for (variant, split), curve in curves.items():
        cells = [_cell(curve[most]) if most in curve else "" for most in lengths]
        lines.append([f"{variant}, {split}", *cells])
    (folder / "by_length.md").write_text(_table(lines))
    title = f"{sweep.name}: {sweep.config}"
    plots.scores_by_length(curves, metric, title).savefig(folder / "by_length.png")


def markdown(study: Study) -> str:
    """A row a variant, a column a split and metric: mean ± standard deviation over seeds."""
    sweep = study.sweep
    columns = [(split, metric) for split in sweep.splits for metric in sweep.metrics]
    lines = [
        ["variant", "seeds", *(f"{split} {metric}" for split, metric in columns)],
        ["---", "---:", *("---:" for _ in columns)],
    ]
    for variant in sweep.variants:
        cells = [_cell(study.values(variant, split, metric)) for split, metric in columns]
        lines.append([variant, str(len(study.scores[variant])), *cells])
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(values: list[float]) -> str:
    if not values:
        return "missing"
    mean, deviation, *_ = interval(values)
    return f"{mean:.2f} ± {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"


def _cells(study: Study):
    for variant in study.sweep.variants:
        for split in study.sweep.splits:
            for metric in study.sweep.metrics:
                yield variant, split, metric, study.values(variant, split, metric)


def _write_csv(path: Path, header: list[str], rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
