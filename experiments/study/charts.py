"""SVG charts for the page of a study. A reader of the page selects a chart by its label."""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from experiments.study import svg
from experiments.study.results import Study
from experiments.study.statistics import Comparison, summarize
from transformer.evaluation.metrics import METRICS
from transformer.training.metric_log import Record

MAX_POINTS = 60  # per learning curve
LAYER_QUANTITY = re.compile(r"(gradient_norm|attention_entropy)\.(encoder|decoder)\.layers_(\d+)(?:\.(\w+))?")
Records = Mapping[str, Sequence[Sequence[Record]]]  # the metric log of each run, by variant


def forest(study: Study, comparisons: Mapping[str, Comparison]) -> str:
    """Returns a chart of the differences from the baseline, or an empty string if nothing is compared."""
    numbers, (metric, split) = _variant_numbers(study), study.sweep.primary
    bars = [
        svg.Bar(variant, numbers[variant], comparison.difference, *comparison.interval)
        for variant, comparison in comparisons.items()
    ]
    label = f"difference from {study.sweep.baseline} in {metric} on {split}, 95% interval"
    return svg.bar_chart(bars, label, line_at=0.0) if bars else ""


def seed_charts(study: Study) -> Iterator[tuple[str, str]]:
    """Yields a label and a chart for each metric and split, the primary ones first. Each seed is a dot."""
    for metric, split in _places(study):
        bars = []
        for variant, number in _variant_numbers(study).items():
            by_seed = study.by_seed(variant, split, metric)
            if by_seed:
                mean, _, interval = summarize(list(by_seed.values()))
                dots = [(f"seed {seed}", score) for seed, score in by_seed.items()]
                bars.append(svg.Bar(variant, number, mean, *interval, dots))
        if bars:
            yield f"{metric} on {split}", svg.bar_chart(bars, f"{metric} on {split}")


def curves(study: Study, records: Records) -> Iterator[tuple[str, str]]:
    """Yields a label and a chart by step for each logged quantity: mean and deviation over seeds."""
    quantities = {
        ("validation", "perplexity"): True,
        ("validation", "loss"): False,
        ("train", "loss"): False,
        ("train", "gradient_norm"): True,
    }
    for (kind, name), log_y in quantities.items():
        series = []
        for variant, number in _variant_numbers(study).items():
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


def length_charts(study: Study) -> Iterator[tuple[str, str]]:
    """Yields a label and a chart by source length for each metric and split, the primary ones first."""
    for metric, split in _places(study):
        if not METRICS[metric].by_length:
            continue
        series = []
        for variant, number in _variant_numbers(study).items():
            curve = study.by_length(variant, split, metric)
            points = [_mean_point(end, scores, log=False) for end, scores in curve.items()]
            if points:
                series.append(svg.Series(variant, number, points))
        if series:
            ends = sorted({point.x for line in series for point in line.points})
            label = f"{metric} on {split}"
            yield label, svg.xy_chart(series, "source tokens, up to", label, log_x=True, x_ticks=ends)


def layer_charts(study: Study, records: Records) -> Iterator[tuple[str, str]]:
    """Yields a label and a chart by layer for each quantity of `train.diagnostics`.

    The values are those of the first and of the last training record.
    """
    for (name, place), by_layer in sorted(_layer_values(records).items()):
        is_norm = name.startswith("gradient")
        series = []
        for variant, number in _variant_numbers(study).items():
            layers = sorted(layer for owner, layer in by_layer if owner == variant)
            points = [_mean_point(layer, by_layer[variant, layer], is_norm) for layer in layers]
            if points:
                series.append(svg.Series(variant, number, points))
        ticks = sorted({layer for _, layer in by_layer})
        label = f"{name}, {place} record"
        yield label, svg.xy_chart(series, "layer", name, log_y=is_norm, x_ticks=ticks)


def _layer_values(records: Records) -> dict[tuple[str, str], dict[tuple[str, int], list[float]]]:
    """Returns a value per seed as values[quantity, record][variant, layer]; the record is first or last."""
    values: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for variant, logs in records.items():
        for log in logs:
            training = [record for record in log if record["kind"] == "train"]
            for place, record in (("first", training[0]), ("last", training[-1])) if training else ():
                for key, value in record.items():
                    if match := LAYER_QUANTITY.fullmatch(key):
                        quantity, stack, layer, sublayer = match.groups(default="")
                        name = f"{quantity}, {stack} {sublayer}".replace("_", " ").strip()
                        values[name, place][variant, int(layer) + 1].append(value)
    return values


def cost_charts(study: Study) -> Iterator[tuple[str, str]]:
    """Yields a label and a chart of the primary metric against FLOPs, and against parameters."""
    metric, split = study.sweep.primary
    for name, label in (("flops", "FLOPs of the training"), ("parameters", "parameters")):
        series = []
        for variant, number in _variant_numbers(study).items():
            values, cost = study.values(variant, split, metric), study.costs.get(variant, {}).get(name)
            if values and cost:
                mean, _, interval = summarize(values)
                series.append(svg.Series(variant, number, [svg.Point(cost, mean, *interval)]))
        if series:
            yield label, svg.xy_chart(series, label, f"{metric} on {split}", log_x=True)


def _mean_point(x: float, values: Sequence[float], log: bool) -> svg.Point:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return svg.Point(x, mean)
    deviation = statistics.stdev(values)
    return svg.Point(x, mean, max(mean - deviation, mean / 10) if log else mean - deviation, mean + deviation)


def _thinned(points: list[svg.Point]) -> list[svg.Point]:
    step = -(-len(points) // MAX_POINTS) if points else 1
    return points[::-1][::step][::-1]  # counted from the end, so the last point stays


def _places(study: Study) -> list[tuple[str, str]]:
    """Returns all pairs of a metric and a split, the primary pair first."""
    places = [(metric, split) for split in study.sweep.splits for metric in study.sweep.metrics]
    return sorted(places, key=lambda place: place != tuple(study.sweep.primary))


def _variant_numbers(study: Study) -> dict[str, int]:
    """Returns the index of each variant, which selects its color and its line style."""
    return {variant: number for number, variant in enumerate(study.launched)}
