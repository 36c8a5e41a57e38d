"""Tables of a study in Markdown and LaTeX, and its conclusions in words."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from experiments.study.results import Study
from experiments.study.statistics import ALPHA, FEW_SEEDS, MIN_SEEDS, POWER, Comparison, Interval, summarize
from transformer.evaluation.metrics import METRICS, score_text

SCORES_NOTE = "Scores are mean ± standard deviation over seeds. A seed is one trained model."
COMPARISONS_NOTE = (
    "Welch's t-test compares each variant with the baseline, and Holm's method adjusts p for the number of "
    f"comparisons. A variant is called better or worse if p (Holm) is at most {ALPHA}. P(higher): the "
    "probability that a run of the variant scores higher than a run of the baseline. Detectable: the "
    f"difference that this number of seeds detects with a probability of {POWER:.0%}. Paired: the mean "
    "difference between runs with the same seed. Such runs share the order of the data but, in general, not "
    "their initial weights, so no test uses this difference."
)


def report_markdown(study: Study) -> str:
    """Returns the tables of scores and of differences, and conclusions in words."""
    texts = [score_table(study), f"{SCORES_NOTE}\n{bullet_list(note_lines(study))}"]
    if len(study.launched) > 1:
        comparisons = study.comparisons()
        verdicts = bullet_list(verdict_lines(study, comparisons))
        if comparisons:
            metric, split = study.sweep.primary
            title = f"Differences from {study.sweep.baseline} in {metric} on {split}, the primary metric:\n"
            texts[1:1] = [title, comparison_table(study, comparisons), f"{COMPARISONS_NOTE}\n"]
        texts.insert(-1, verdicts)
    if study.tuned:
        texts.append(tuning_table(study))
    return "\n".join(texts)


def bullet_list(lines: Iterable[str]) -> str:
    """Returns lines as a list in Markdown."""
    return "".join(f"- {escape_markdown(line)}\n" for line in lines)


def comparison_table(study: Study, comparisons: Mapping[str, Comparison]) -> str:
    """Returns a Markdown table of the differences from the baseline on the primary metric."""
    header, *rows = comparison_cells(study, comparisons)
    return markdown([header, ["---", *["---:"] * (len(header) - 1)], *rows])


def comparison_cells(study: Study, comparisons: Mapping[str, Comparison]) -> list[list[str]]:
    """Returns the header and the rows of the table of differences from the baseline."""
    form = METRICS[study.sweep.primary[0]].format
    rows = [
        [
            "variant",
            "difference",
            "95% interval",
            "p (Welch)",
            "p (Holm)",
            "P(higher)",
            "detectable",
            "paired",
        ]
    ]
    for variant, comparison in comparisons.items():
        paired = comparison.paired
        rows.append(
            [
                variant,
                score_text(comparison.difference, f"+{form}"),
                interval_text(comparison.interval, f"+{form}"),
                p_text(comparison.p),
                p_text(comparison.p_adjusted),
                f"{comparison.probability_higher:.2f}",
                "-" if comparison.detectable is None else score_text(comparison.detectable, form),
                "-" if paired is None else _with_interval(paired.mean, paired.interval, f"+{form}"),
            ]
        )
    return rows


def _with_interval(mean: float, interval: Interval, form: str) -> str:
    text = score_text(mean, form)
    return text if math.isnan(interval.low) else f"{text} {interval_text(interval, form)}"


def verdict_lines(study: Study, comparisons: Mapping[str, Comparison]) -> list[str]:
    """Returns a sentence per variant with the conclusion on its difference from the baseline."""
    baseline = study.sweep.baseline
    if reason := study.no_test(baseline):
        return [f"No variant is compared with the baseline, because {reason}."]
    lines = []
    for variant in study.launched:
        if variant in comparisons:
            lines.append(_verdict(study, variant, comparisons[variant]))
        elif variant != baseline:
            lines.append(f"{variant}: no test, because {study.no_test(variant)}.")
    return lines


def _verdict(study: Study, variant: str, comparison: Comparison) -> str:
    line = _conclusion(study, variant, comparison)
    for name in (variant, study.sweep.baseline):
        if count := len(study.diverged[name]):
            line += f" {count} of {len(study.planned[name])} runs of {name} diverged and have no score."
    return line


def _conclusion(study: Study, variant: str, comparison: Comparison) -> str:
    metric, split = study.sweep.primary
    if comparison.reason:
        return f"{variant}: no test, because {comparison.reason}."
    if not comparison.is_significant:
        line = (
            f"{variant}: the difference is within the noise of the seeds. This study would find a difference "
            f"of {score_text(comparison.detectable, METRICS[metric].format)} with a probability of 80%."
        )
        if comparison.p <= ALPHA:
            line += " Its interval excludes 0, because it is not adjusted for the number of comparisons."
        return line
    word = direction(metric, comparison.difference)
    if METRICS[metric].higher_is_better is None:
        relation = f"has a {word} {metric} than {study.sweep.baseline}"
    else:
        relation = f"is {word} than {study.sweep.baseline} in {metric}"
    return (
        f"{variant} {relation} on {split} (p {_p_relation(comparison.p_adjusted)} after Holm's adjustment)."
    )


def direction(metric: str, difference: float) -> str:
    """Returns the word for a difference: better or worse, or higher or lower if neither is better."""
    higher_is_better = METRICS[metric].higher_is_better
    if higher_is_better is None:
        return "higher" if difference > 0 else "lower"
    return "better" if (difference > 0) == higher_is_better else "worse"


def note_lines(study: Study) -> list[str]:
    """Returns the notes on the tables: changed fields, missing and failed runs, and too few seeds."""
    lines = []
    if "smoke" in study.sweep.config.partition(":")[2].split(","):
        lines.append(
            "The argument smoke shrinks training to a test of the commands: the scores mean nothing."
        )
    if study.changes:
        changes = ", ".join(f"{key}={value}" for key, value in study.changes.items())
        lines.append(f"All variants were changed by --set: {changes}.")
    if study.family is not None:
        lines.append(
            "This is one task of a study. Holm's adjustment is for the comparisons of all its tasks."
        )
    lines += [f"{variant} does not apply: {reason}" for variant, reason in study.refused.items()]
    if missing := [variant for variant in study.sweep.variants if variant not in study.launched]:
        lines.append(f"Not launched: {', '.join(missing)}.")
    for variant in study.launched:
        counts = {"diverged": len(study.diverged[variant]), "failed": len(study.failed[variant])}
        counts["not finished"] = len(study.unfinished(variant)) - sum(counts.values())
        if listed := ", ".join(f"{count} {name}" for name, count in counts.items() if count > 0):
            lines.append(f"{variant}: of {len(study.planned[variant])} runs, {listed}.")
        if early := study.ended_early(variant):
            lines.append(
                f"{variant}: {len(early)} of {len(study.planned[variant])} runs ended early "
                f"(train.patience), after {min(early):,} to {max(early):,} steps. The FLOPs "
                "of the training are those of all steps."
            )
        for split, metric in itertools.product(study.sweep.splits, study.sweep.metrics):
            if seeds := study.without_value(variant, split, metric):
                lines.append(
                    f"{variant}: {split} {metric} has no value for {len(seeds)} of "
                    f"{len(study.scores[variant])} runs; the mean leaves these runs out."
                )
    fewest = min(map(study.num_seeds, study.launched), default=0)
    if fewest < MIN_SEEDS:
        seeds = f"{fewest} seed{'s' * (fewest != 1)}"
        lines.append(f"Some variants have {seeds}. {FEW_SEEDS}")
    return lines


def tuning_table(study: Study) -> str:
    """Returns a Markdown table of the chosen values and the number of trials of each variant."""
    rows = [["variant", "trials", "diverged", "chosen"], ["---", "---:", "---:", "---"]]
    for variant, (chosen, trials) in study.tuned.items():
        diverged = sum(trial.criterion is None for trial in trials)
        values = ", ".join(f"{key}={value}" for key, value in chosen.items())
        rows.append([variant, f"{len(trials)}", f"{diverged}", values])
    return f"Tuning on validation, with the first seed:\n\n{markdown(rows)}"


def latex(study: Study) -> str:
    """Returns the table of scores in LaTeX, which needs the package booktabs."""
    sweep = study.sweep
    columns = [(split, metric) for split in sweep.splits for metric in sweep.metrics]
    heads = " & ".join(escape_latex(f"{split} {metric}") for split, metric in columns)
    lines = [
        rf"\begin{{tabular}}{{lr{'r' * len(columns)}}}",
        r"\toprule",
        rf"variant & seeds & {heads} \\",
        r"\midrule",
    ]
    for variant in study.launched:
        cells = score_cells(study, variant)
        row = [escape_latex(variant), f"{study.num_seeds(variant)}", *cells]
        lines.append(rf"{' & '.join(row)} \\".replace("±", r"$\pm$"))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escape_latex(text: str) -> str:
    """Returns a text in which LaTeX finds no command."""
    escapes = {character: rf"\{character}" for character in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",  # after a line break, [ and * would belong to the break
        "*": "{*}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
    return text.translate(str.maketrans(escapes))


def p_text(p: float | None) -> str:
    """Returns a p-value with four digits, or "-" if there is none."""
    if p is None:
        return "-"
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _p_relation(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def interval_text(bounds: Interval, form: str) -> str:
    """Returns an interval with bounds in the given format, or "-" if it is not known."""
    if math.isnan(bounds.low):
        return "-"
    return f"[{score_text(bounds.low, form)}, {score_text(bounds.high, form)}]"


def score_table(study: Study) -> str:
    """Returns a Markdown table of mean ± standard deviation over seeds.

    The table has a row per launched variant and a column per split and metric. The column "seeds" counts the
    seeds with a score of the primary metric. A cell with a different number of scores shows it as n.
    """
    sweep = study.sweep
    columns = [(split, metric) for split in sweep.splits for metric in sweep.metrics]
    rows = [
        ["variant", "seeds", *(f"{split} {metric}" for split, metric in columns)],
        ["---", "---:", *("---:" for _ in columns)],
    ]
    for variant in study.launched:
        rows.append([variant, f"{study.num_seeds(variant)}", *score_cells(study, variant)])
    return markdown(rows)


def length_table(curves: dict[tuple[str, str], dict[int, list[float]]], metric: str) -> str:
    """Returns a Markdown table of scores by source length, with a row per variant and split.

    Args:
      curves: scores by (variant, split); each value is a result of `Study.by_length`.
      metric: the metric of the scores, a key of `METRICS`.
    """
    ends = sorted({end for curve in curves.values() for end in curve})
    rows = [[f"{metric} by source tokens, up to", *map(str, ends)], ["---", *("---:" for _ in ends)]]
    for (variant, split), curve in curves.items():
        cells = [score_cell(curve[end], metric) if end in curve else "" for end in ends]
        rows.append([f"{variant}, {split}", *cells])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows as a table in Markdown; the second row has the alignment of the columns."""
    return "".join(f"| {' | '.join(map(escape_markdown, row))} |\n" for row in rows)


def escape_markdown(text: str) -> str:
    """Returns a text in which Markdown finds no column of a table and no HTML."""
    return re.sub(r"<(?=[a-zA-Z/!])", "&lt;", text.replace("|", r"\|"))


def score_cells(study: Study, variant: str) -> list[str]:
    """Returns the cells of a variant in the table of scores: one per split and metric."""
    num_seeds, cells = study.num_seeds(variant), []
    for split, metric in itertools.product(study.sweep.splits, study.sweep.metrics):
        values = study.values(variant, split, metric)
        count = f" (n={len(values)})" if values and len(values) != num_seeds else ""
        cells.append(score_cell(values, metric) + count)
    return cells


def score_cell(values: Sequence[float], metric: str) -> str:
    """Returns mean ± standard deviation of scores, one per seed."""
    if not values:
        return "missing"
    form = METRICS[metric].format
    mean, deviation, _ = summarize(values)
    text = score_text(mean, form)
    return f"{text} ± {score_text(deviation, form)}" if len(values) > 1 else text
