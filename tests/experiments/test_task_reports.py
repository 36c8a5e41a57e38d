"""Studies of several tasks: the overview, its statistics and the report of each task."""

import contextlib
import csv
import dataclasses
import shutil
from pathlib import Path

import pytest

from experiments import plots
from experiments.study.overview import cell, overview_markdown
from experiments.study.page import overview_page
from experiments.study.report import report
from experiments.study.results import read_study
from experiments.study.statistics import holm, welch
from experiments.study.study_file import write_study
from experiments.study.sweep import expand
from experiments.study.sweep_file import load_sweeps
from experiments.study.tables import score_table
from experiments.study.tasks import TaskStudies, applicable, read_tasks, write_tasks
from tests.support.commands import ROOT, refuse
from tests.support.task_studies import LEVELS, REASONS, SWEEP, write_scored
from transformer.json_files import read_sealed, write_sealed


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    """The folder of a study in which all runs have scores, with its report. Tests must not write into it."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "ideas.py").write_text(SWEEP)
    root, changes = (
        folder / "study",
        {
            "translation": {},
            "language": {
                "data.options.file": str(ROOT / "LICENSE"),
                "data.options.test": str(ROOT / "README.md"),
            },
        },
    )
    with contextlib.chdir(ROOT):
        sweeps, reasons = applicable(load_sweeps(f"{folder}/ideas.py"), changes)
        for task, sweep in sweeps.items():
            runs = expand(sweep, changes[task], seeds=3, task=task)
            write_study(root / task, sweep, runs)
            for run in runs:
                write_scored(root, run)
    write_tasks(root, sweeps, reasons)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda figure: b"")  # drawing takes seconds
        report(root)
    return root


@pytest.fixture(scope="module")
def tasks(study) -> TaskStudies:
    """The scores of the study."""
    return read_tasks(study)


def test_the_tests_of_all_tasks_are_one_family_in_every_table(study, tasks):
    studies = tasks.studies
    comparisons = {
        (task, variant): comparison
        for task, part in studies.items()
        for variant, comparison in part.comparisons().items()
    }
    assert len(comparisons) == 4
    scores = {key: studies[key[0]].values(key[1], *studies[key[0]].sweep.primary[::-1]) for key in LEVELS}
    p_values = [float(welch(scores[key], scores[key[0], "base"]).pvalue) for key in comparisons]
    assert [comparison.p for comparison in comparisons.values()] == p_values
    assert [comparison.p_adjusted for comparison in comparisons.values()] == holm(p_values)
    assert comparisons["language", "rope"].p_adjusted > comparisons["language", "rope"].p
    expected = f"{comparisons['language', 'rope'].p_adjusted:.4f}"
    for name in ("table.md", "table.tex", "report.html", "language/table.md", "language/report.html"):
        assert expected in (study / "report" / name).read_text(), name
    rows = list(csv.DictReader((study / "report" / "table.csv").read_text().splitlines()))
    by_cell = {(row["task"], row["variant"]): row for row in rows}
    for key, comparison in comparisons.items():
        assert float(by_cell[key]["p_holm"]) == comparison.p_adjusted
        assert float(by_cell[key]["detectable"]) == comparison.detectable


def test_a_cell_of_the_overview_has_the_verdict_in_words(tasks):
    verdicts = {
        (task, variant): cell(part, variant).verdict
        for task, part in tasks.studies.items()
        for variant in tasks.variants
    }
    assert verdicts == {
        ("translation", "base"): "baseline",
        ("translation", "rope"): "within noise",
        ("translation", "encoder"): "better",
        ("translation", "pre_norm"): "worse",
        ("language", "base"): "baseline",
        ("language", "rope"): "worse",  # fewer bits are better
        ("language", "encoder"): "does not apply",
        ("language", "pre_norm"): "does not apply",
    }
    text = overview_markdown(tasks)
    assert "| variant | translation: chrf on test | language: bits_per_byte on test |\n" in text
    assert f"| does not apply; {REASONS['encoder']} |\n" in text
    assert "| rope | 51.20 ± 0.80 (n=3); ≈ within noise; +0.40 [" in text
    assert "for all 4 comparisons of the study." in text
    assert "\n## language\n\n| variant | seeds | test bits_per_byte |\n" in text
    assert f"- pre_norm does not apply: {REASONS['pre_norm']}\n" in text
    html = overview_page(tasks)
    assert '<span class="better">▲ better</span>' in html
    assert 'href="language/report.html"' in html
    assert len(html.encode()) < 500_000


def test_the_report_of_a_single_task_would_contradict_that_of_the_study_and_is_refused(study, tmp_path):
    line = refuse("report", f"--root={study}/language")
    assert line.startswith(
        f"{study}/language is one task of the study {study}, whose statistics are for all tasks; "
    )
    assert line.endswith(f"use --root={study}")
    shutil.copytree(study / "language", tmp_path / "alone")
    assert "| rope | 3 |" in score_table(read_study(tmp_path / "alone"))


def test_names_and_reasons_of_a_stranger_are_text(tasks):
    language = tasks.studies["language"]
    refused_there = language.refused | {"encoder": "<img src=x onerror=alert(1)>|"}
    strange = dataclasses.replace(
        tasks,
        question="<script>alert(1)</script>",
        studies=tasks.studies | {"language": dataclasses.replace(language, refused=refused_there)},
    )
    assert r"does not apply; &lt;img src=x onerror=alert(1)>\| |" in overview_markdown(strange)
    html = overview_page(strange)
    assert "<img" not in html
    assert "<script" not in html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {}}, "names no tasks; launch the study again"),
        ({"tasks": {"../x": {}}}, "it must be a plain file name"),
        ({"tasks": {"language": {"new": ""}}}, "it must be one of: base, encoder, pre_norm, rope"),
        ({"variants": ["a/b"], "tasks": {"language": {}}}, "it must be a plain file name"),
        (
            {"tasks": {"language": {}}},
            "language/study.json is missing; restore it, or launch the study again: ",
        ),
        ({"tasks": ["language"]}, "'tasks' has an unexpected value; restore it or delete it"),
    ],
)
def test_a_wrong_list_of_tasks_is_refused(study, tmp_path, changes, message):
    write_sealed(tmp_path / "study.json", read_sealed(study / "study.json") | changes)
    assert message in refuse("report", f"--root={tmp_path}")
