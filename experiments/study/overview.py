"""Overview of a study of several tasks, with a row per variant and a column per task.

The overview is written in Markdown, CSV and LaTeX; `page.overview_page` shows it in HTML.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.study.results import Study
from experiments.study.statistics import Comparison, summarize
from experiments.study.tables import (
    SCORES_NOTE,
    bullet_list,
    direction,
    escape_latex,
    interval_text,
    markdown,
    p_text,
    report_markdown,
    score_cell,
)
from experiments.study.tasks import TaskStudies
from transformer.evaluation.metrics import METRICS, score_text

# Signs of the verdicts, so that color is not the only sign.
SIGNS = {"better": "▲", "worse": "▼", "higher": "▲", "lower": "▼", "within noise": "≈"}
COLUMNS = (
    "variant", "task", "metric", "split", "seeds", "mean", "standard_deviation", "difference", "low_95",
    "high_95", "p_welch", "p_holm", "detectable", "verdict", "reason",
)  # fmt: skip


class Cell(NamedTuple):
    """A variant on a task.

    Attributes:
      verdict: "baseline", "better", "worse", "higher", "lower", "within noise", "no test", "not launched" or
        "does not apply".
      score: mean ± standard deviation of the primary metric; may be empty.
      details: difference with its interval, adjusted p-value, and detectable difference; or the reason why
        there are none.
    """

    verdict: str
    score: str
    details: str

    @property
    def sign(self) -> str:
        """The verdict after its sign, if it has one."""
        return " ".join(filter(None, (SIGNS.get(self.verdict, ""), self.verdict)))


def verdict_of(study: Study, variant: str) -> tuple[str, str]:
    """Returns the verdict on a variant, as in `Cell`, and the reason why it is not compared."""
    if variant not in study.launched:
        if variant in study.refused:
            return "does not apply", study.refused[variant]
        return "not launched", ""
    if variant == study.sweep.baseline:
        return "baseline", ""
    comparison = study.comparisons().get(variant)
    if comparison is None:
        return "no test", study.no_test(study.sweep.baseline) or study.no_test(variant)
    if comparison.reason:
        return "no test", comparison.reason
    if not comparison.is_significant:
        return "within noise", ""
    return direction(study.sweep.primary[0], comparison.difference), ""


def cell(study: Study, variant: str) -> Cell:
    """Returns the cell of a variant on a task."""
    metric, split = study.sweep.primary
    verdict, reason = verdict_of(study, variant)
    score = ""
    if variant in study.launched:
        score = score_cell(study.values(variant, split, metric), metric)
        if num_seeds := study.num_seeds(variant):
            score += f" (n={num_seeds})"
    if reason or verdict not in SIGNS:
        return Cell(verdict, score, reason)
    return Cell(verdict, score, _details(study.comparisons()[variant], METRICS[metric].format))


def _details(comparison: Comparison, form: str) -> str:
    interval = interval_text(comparison.interval, f"+{form}")
    text = f"{score_text(comparison.difference, f'+{form}')} {interval}, p = {p_text(comparison.p_adjusted)}"
    text = text.replace("= <", "< ")
    if comparison.is_significant or comparison.detectable is None:
        return text
    return f"{text}, detectable: {score_text(comparison.detectable, form)}"


def column_headers(tasks: TaskStudies) -> list[str]:
    """Returns the header of each task: its name, primary metric and split."""
    return [f"{task}: {' on '.join(study.sweep.primary)}" for task, study in tasks.studies.items()]


def notes(tasks: TaskStudies) -> list[str]:
    """Returns the notes on the statistics of the overview."""
    tested = [
        comparison
        for study in tasks.studies.values()
        for comparison in study.comparisons().values()
        if comparison.p is not None
    ]
    return [
        "Each variant is compared with the baseline of the same task, in the primary metric of the task, by "
        f"Welch's test. p is adjusted by Holm's method for all {len(tested)} comparisons of the study.",
        "The interval of a difference is its 95% interval, not adjusted. Detectable: the difference that "
        "the study would find with a probability of 80%.",
    ]


def overview_markdown(tasks: TaskStudies) -> str:
    """Returns the overview, and the tables and conclusions of each task."""
    table = [["variant", *column_headers(tasks)], ["---", *("---" for _ in tasks.studies)]]
    for variant in tasks.variants:
        cells = [cell(study, variant) for study in tasks.studies.values()]
        table.append([variant, *("; ".join(filter(None, (c.score, c.sign, c.details))) for c in cells)])
    texts = [markdown(table), f"{SCORES_NOTE}\n\n{bullet_list(notes(tasks))}"]
    for task, study in tasks.studies.items():
        texts.append(f"## {task}\n\n{report_markdown(study)}")
    return "\n".join(texts)


def overview_latex(tasks: TaskStudies) -> str:
    """Returns the overview in LaTeX, which needs the package booktabs: score and verdict for each task."""
    lines = [
        rf"\begin{{tabular}}{{l{'rl' * len(tasks.studies)}}}",
        r"\toprule",
        " & ".join(
            [
                "variant",
                *(rf"\multicolumn{{2}}{{l}}{{{escape_latex(text)}}}" for text in column_headers(tasks)),
            ]
        )
        + r" \\",
        r"\midrule",
    ]
    for variant in tasks.variants:
        row = [escape_latex(variant)]
        for study in tasks.studies.values():
            score, verdict = cell(study, variant).score, verdict_of(study, variant)[0]
            comparison = study.comparisons().get(variant)
            if comparison is not None and comparison.p_adjusted is not None:
                verdict += f" (p {p_text(comparison.p_adjusted)})"
            row += [escape_latex(score).replace("±", r"$\pm$"), escape_latex(verdict)]
        lines.append(rf"{' & '.join(row)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def rows(tasks: TaskStudies) -> Iterator[list[Any]]:
    """Yields the rows of the overview as data; see `COLUMNS`."""
    for variant in tasks.variants:
        for task, study in tasks.studies.items():
            metric, split = study.sweep.primary
            values = study.values(variant, split, metric) if variant in study.launched else []
            comparison = study.comparisons().get(variant)
            tested: list[float | None] = [None] * 6
            if comparison is not None:
                tested = [
                    comparison.difference,
                    *comparison.interval,
                    comparison.p,
                    comparison.p_adjusted,
                    comparison.detectable,
                ]
            figures = [*summarize(values)[:2], *tested]
            numbers = ["" if number is None or math.isnan(number) else number for number in figures]
            yield [variant, task, metric, split, len(values), *numbers, *verdict_of(study, variant)]
