"""Writes the report of a study as one HTML page, which needs no other file and no network."""

import contextlib
import itertools
import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2

from experiments.run_folder import Run
from experiments.score_files import Evaluation, ScoreFiles
from experiments.study import svg
from experiments.study.results import Study
from experiments.study.statistics import summarize
from experiments.study.tables import comparison_cells, note_lines, verdict_lines
from transformer.config import UserError, flatten, to_dict
from transformer.evaluation.metrics import METRICS
from transformer.training.metric_log import Record, read_metrics

MAX_CHARACTERS = 150_000  # of all translations on the page
MAX_POINTS = 60  # points of a learning curve
SAME_FOR_ALL = ("train.seed", "data.data_dir")  # fields that are not among the differences of variants


def page(study: Study) -> str:
    """Returns the page. The same study gives the same page, byte for byte."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("experiments.study", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    sweep = study.sweep
    metric, split = sweep.primary
    comparisons = study.comparisons()
    records = {
        variant: [_records(run) for _, run in sorted(runs.items())] for variant, runs in study.runs.items()
    }
    return environment.get_template("page.html").render(
        sweep=sweep,
        variants=list(sweep.variants),
        palette_size=svg.PALETTE_SIZE,
        primary=f"{metric} on {split}",
        verdicts=verdict_lines(study, comparisons),
        notes=note_lines(study),
        columns=_columns(study),
        rows=_rows(study),
        comparisons=comparison_cells(study, comparisons),
        forest=_forest(study, comparisons),
        seeds=dict(_seed_charts(study)),
        curves=dict(_curves(study, records)),
        lengths=dict(_length_charts(study)),
        layers=dict(_layer_charts(study, records)),
        costs=dict(_cost_charts(study)),
        differences=_differences(study),
        tuning=list(_tuning(study)),
        provenance=_provenance(study),
        incomplete=list(_incomplete(study)),
        translations=_translations(study),
    )


def _numbers(study: Study) -> dict[str, int]:
    return {variant: number for number, variant in enumerate(study.sweep.variants)}


def _columns(study: Study) -> list[str]:
    """Returns the heads of the table of scores, without the name of the variant."""
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
    """Returns, for each variant, the text, the value for sorting and the hint of each cell."""
    sweep, rows = study.sweep, []
    labels = _published_labels(study)
    for variant in sweep.variants:
        cells = [(f"{len(study.scores[variant])}", float(len(study.scores[variant])), "")]
        for split in sweep.splits:
            for metric in sweep.metrics:
                cells.append(_score_cell(study.by_seed(variant, split, metric), METRICS[metric].format))
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


def _score_cell(by_seed: Mapping[int, float], form: str) -> tuple[str, float | None, str]:
    if not by_seed:
        return "missing", None, ""
    mean, deviation, interval = summarize(list(by_seed.values()))
    seeds = ", ".join(f"seed {seed}: {score:{form}}" for seed, score in by_seed.items())
    if math.isnan(deviation):
        return f"{mean:{form}}", mean, seeds
    hint = f"95% interval [{interval.low:{form}}, {interval.high:{form}}]; {seeds}"
    return f"{mean:{form}} ± {deviation:{form}}", mean, hint


def _forest(study: Study, comparisons: Mapping[str, Any]) -> str:
    numbers, (metric, split) = _numbers(study), study.sweep.primary
    bars = [
        svg.Bar(variant, numbers[variant], comparison.difference, *comparison.interval)
        for variant, comparison in comparisons.items()
    ]
    label = f"difference from {study.sweep.baseline} in {metric} on {split}, 95% interval"
    return svg.bar_chart(bars, label, line_at=0.0) if bars else ""


def _seed_charts(study: Study) -> Iterator[tuple[str, str]]:
    """Yields a chart for each metric on each split, with a dot per seed; the primary one first."""
    sweep = study.sweep
    places = [(metric, split) for split in sweep.splits for metric in sweep.metrics]
    for metric, split in sorted(places, key=lambda place: place != tuple(sweep.primary)):
        bars = []
        for variant, number in _numbers(study).items():
            by_seed = study.by_seed(variant, split, metric)
            if by_seed:
                mean, _, interval = summarize(list(by_seed.values()))
                dots = [(f"seed {seed}", score) for seed, score in by_seed.items()]
                bars.append(svg.Bar(variant, number, mean, *interval, dots))
        if bars:
            yield f"{metric} on {split}", svg.bar_chart(bars, f"{metric} on {split}")


Records = Mapping[str, Sequence[Sequence[Record]]]  # the metric log of each run, by variant


def _curves(study: Study, records: Records) -> Iterator[tuple[str, str]]:
    """Yields a chart for each figure that the runs log: mean and standard deviation over seeds, by step."""
    figures = {
        ("validation", "perplexity"): True,
        ("validation", "loss"): False,
        ("train", "loss"): False,
        ("train", "gradient_norm"): True,
    }
    for (kind, name), log_y in figures.items():
        series = []
        for variant, number in _numbers(study).items():
            by_step: dict[int, list[float]] = defaultdict(list)
            for run_records in records[variant]:
                for record in run_records:
                    if record["kind"] == kind and isinstance(record.get(name), float):
                        by_step[record["step"]].append(record[name])
            if points := _thinned([_mean_point(step, by_step[step], log_y) for step in sorted(by_step)]):
                series.append(svg.Series(variant, number, points))
        if series:
            label = name.replace("_", " ")
            yield f"{kind} {label}", svg.xy_chart(series, "step", f"{kind} {label}", log_y=log_y)


def _records(run: Run) -> list[Record]:
    try:
        return read_metrics(run.folder)
    except UserError:  # the damaged file of a run that is done does not spoil the report of the study
        return []


def _mean_point(x: float, values: Sequence[float], log: bool) -> svg.Point:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return svg.Point(x, mean)
    deviation = statistics.stdev(values)
    return svg.Point(x, mean, max(mean - deviation, mean / 10) if log else mean - deviation, mean + deviation)


def _thinned(points: list[svg.Point]) -> list[svg.Point]:
    step = -(-len(points) // MAX_POINTS) if points else 1
    return points[::-1][::step][::-1]  # with the last point


def _length_charts(study: Study) -> Iterator[tuple[str, str]]:
    metrics = [name for name in study.sweep.metrics if METRICS[name].by_length]
    for split in study.sweep.splits:
        for metric in metrics:
            series = []
            for variant, number in _numbers(study).items():
                curve = study.by_length(variant, split, metric)
                points = [_mean_point(end, scores, log=False) for end, scores in curve.items()]
                if points:
                    series.append(svg.Series(variant, number, points))
            if series:
                ends = sorted({point.x for line in series for point in line.points})
                label = f"{metric} on {split}"
                yield label, svg.xy_chart(series, "source tokens, up to", label, log_x=True, x_ticks=ends)


LAYER_FIGURE = re.compile(r"(gradient_norm|attention_entropy)\.(encoder|decoder)\.layers_(\d+)(?:\.(\w+))?")


def _layer_charts(study: Study, records: Records) -> Iterator[tuple[str, str]]:
    """Yields charts of the figures of `train.diagnostics` by layer, in the first and in the last record."""
    # values[figure, place][variant][layer] has a value per seed.
    values: dict[tuple[str, str], dict[str, dict[int, list[float]]]] = {}
    for variant, logs in records.items():
        for log in logs:
            training = [record for record in log if record["kind"] == "train"]
            for place, record in (("first", training[0]), ("last", training[-1])) if training else ():
                for key, value in record.items():
                    if match := LAYER_FIGURE.fullmatch(key):
                        figure, stack, layer, sublayer = match.groups(default="")
                        name = f"{figure}, {stack} {sublayer}".replace("_", " ").strip()
                        by_variant = values.setdefault((name, place), {})
                        by_variant.setdefault(variant, {}).setdefault(int(layer) + 1, []).append(value)
    for (name, place), by_variant in sorted(values.items()):
        is_norm = name.startswith("gradient")
        series = [
            svg.Series(
                variant,
                number,
                [_mean_point(layer, seeds, is_norm) for layer, seeds in sorted(by_variant[variant].items())],
            )
            for variant, number in _numbers(study).items()
            if variant in by_variant
        ]
        layers = sorted({point.x for line in series for point in line.points})
        label = f"{name}, {place} record"
        yield label, svg.xy_chart(series, "layer", name, log_y=is_norm, x_ticks=layers)


def _cost_charts(study: Study) -> Iterator[tuple[str, str]]:
    metric, split = study.sweep.primary
    for name, label in (("flops", "FLOPs of the training"), ("parameters", "parameters")):
        series = []
        for variant, number in _numbers(study).items():
            values, cost = study.values(variant, split, metric), study.costs.get(variant, {}).get(name)
            if values and cost:
                mean, _, interval = summarize(values)
                series.append(svg.Series(variant, number, [svg.Point(cost, mean, *interval)]))
        if series:
            yield label, svg.xy_chart(series, label, f"{metric} on {split}", log_x=True)


def _differences(study: Study) -> list[tuple[str, list[str]]]:
    """Returns the fields in which the variants differ, with the value of each variant."""
    configs = {
        variant: flatten(to_dict(next(iter(runs.values())).config))
        for variant, runs in study.runs.items()
        if runs
    }
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    fields = []
    for key in keys:
        values = [
            configs[variant].get(key, "-") if variant in configs else "?" for variant in study.sweep.variants
        ]
        known = [value for value in values if value != "?"]
        if key not in SAME_FOR_ALL and any(value != known[0] for value in known):
            fields.append((key, [str(value) for value in values]))
    return fields


def _tuning(study: Study) -> Iterator[tuple[str, str, str, str]]:
    """Yields variant, values, validation loss and "chosen" for each trial."""
    for variant, (chosen, trials) in study.tuned.items():
        for values, criterion in trials:
            text = ", ".join(f"{key}={value}" for key, value in values.items())
            loss = "diverged" if criterion is None else f"{criterion:.4f}"
            yield variant, text, loss, "chosen" if values == chosen else ""


def _provenance(study: Study) -> list[tuple[str, list[str]]]:
    """Returns data, versions and devices of the runs. Different values have their numbers of runs."""
    numbers_of_runs: dict[str, Counter[str]] = defaultdict(Counter)
    for runs in study.runs.values():
        for run in runs.values():
            result = run.result
            identity = result.get("identity") or {}
            versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
            for name, value in (
                ("data", identity.get("data")),
                ("text (SHA-256)", identity.get("content")),
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
    """Yields variant, seeds and reason of the runs without scores."""
    for variant, seeds in study.planned.items():
        by_reason: dict[str, list[int]] = defaultdict(list)
        for seed in sorted(set(seeds) - study.scores[variant].keys()):
            result = study.runs[variant][seed].result if seed in study.runs[variant] else {}
            status = result.get("status", "not started")
            state = {"done": "not evaluated", "running": "at work, or killed"}.get(status, status)
            by_reason[result.get("message") or state].append(seed)
        for reason, stopped in by_reason.items():
            yield variant, ", ".join(map(str, stopped)), reason


def _translations(study: Study) -> dict[str, Any]:
    """Returns sources, references and translations of those sentences in which the variants differ most.

    The translations are those of the seed that most variants have, on the primary split.
    """
    split = study.sweep.primary[1]
    counts = Counter(seed for seeds in study.scores.values() for seed in sorted(seeds))
    evaluations: dict[str, Evaluation] = {}
    seed = min(counts, key=lambda seed: (-counts[seed], seed), default=None)
    for variant, scores in study.scores.items():
        if seed in scores:
            with contextlib.suppress(UserError):  # results may be kept without the translations
                evaluations[variant] = ScoreFiles(study.runs[variant][seed], split, {}).read()
    if len(evaluations) < 2:
        return {}
    first = next(iter(evaluations.values()))
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
    """Returns the number of words in which translations of a sentence differ from the first one."""
    first, *others = (set(hypothesis.split()) for hypothesis in hypotheses)
    return sum(len(first ^ other) for other in others)
