"""Reports of studies: tables, conclusions and notes, without training."""

import contextlib
import copy
import csv
import dataclasses
import errno
import os
import re

import pytest
import scipy

from experiments import plots
from experiments.study.report import report_text, write_report
from experiments.study.results import Study, read_study
from experiments.study.study_file import Tuned, write_study
from experiments.study.sweep import expand
from experiments.study.tables import latex, note_lines, report_markdown, score_cell, score_table
from tests.support.commands import ROOT
from tests.support.errors import refused
from tests.support.studies import DEMO, write_run
from transformer.evaluation.metrics import METRICS, Metric
from transformer.json_files import read_sealed, write_sealed


@pytest.fixture
def study(tmp_path, sweep):
    """A study of four runs, three of which have scores; deep/1 has not been evaluated."""
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run, score in zip(runs, (90.0, 80.0, 94.0), strict=False):
        evaluations = {}
        for split in sweep.splits:
            ranges = [{"most": 8, "sentences": 30, "exact_match": score}]
            if split == "test_long":
                ranges = [{"most": most, "sentences": 10, "exact_match": score - 40} for most in (8, 16)]
            ranges.append({"most": 32, "sentences": 9, "exact_match": 0.0})  # too few sentences
            evaluations[split] = {
                "exact_match": score, "bleu": score / 2, "brevity": 0.5, "by_length": ranges
            }  # fmt: skip
        write_run(tmp_path, run, evaluations)
    return tmp_path


def test_a_report_has_means_intervals_seeds_and_lengths(study):
    folder = write_report(study, read_study(study))
    table = (folder / "table.md").read_text()
    assert table.startswith(score_table(read_study(study)))
    # One seed of `deep` has no score, so there is no test.
    assert "| deep | -12.00 | - | - | - | 0.00 | - | - |" in table
    assert "called better or worse if p (Holm) is at most 0.05." in table
    assert "- deep: no test, because a test needs at least two seeds of both variants.\n" in table
    assert "- deep: of 2 runs, 1 not finished.\n" in table
    assert "- Some variants have 1 seed. Fewer than 5 seeds find " in table
    tex = (folder / "table.tex").read_text()
    assert r"base & 2 & 92.00 $\pm$ 2.83 & 46.00" in tex
    assert r"test\_long exact\_match" in tex
    assert "| base | 2 | 92.00 ± 2.83 | 46.00 ± 1.41 | 92.00 ± 2.83 | 46.00 ± 1.41 |" in table
    assert "| deep | 1 | 80.00 | 40.00 | 80.00 | 40.00 |" in table
    header, base = list(csv.reader((folder / "table.csv").read_text().splitlines()))[:2]
    assert base[:4] == ["base", "test", "exact_match", "2"]
    assert header[4:] == ["mean", "standard_deviation", "low_95", "high_95"]
    # Student's t with one degree of freedom: 12.7062 standard errors.
    assert list(map(float, base[4:])) == pytest.approx([92, 8**0.5, 92 - 25.4124, 92 + 25.4124])
    assert "base,1,test,94.0,47.0" in (folder / "runs.csv").read_text()
    by_length = (folder / "by_length.md").read_text()
    assert "| exact_match by source tokens, up to | 8 | 16 |" in by_length
    assert "| base, test | 92.00 ± 2.83 |  |" in by_length
    assert "| base, test_long | 52.00 ± 2.83 | 52.00 ± 2.83 |" in by_length
    for figure in ("table.png", "by_length.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A study of three variants with five seeds: `far` is far better than `base`, and `near` is similar.

    Tests must not change it.
    """
    root = tmp_path_factory.mktemp("noisy")
    variants = {"base": {}, "far": {"model.num_layers": 3}, "near": {"model.num_layers": 4}}
    sweep = dataclasses.replace(DEMO, variants=variants, splits=("test",))
    with contextlib.chdir(ROOT):
        runs = expand(sweep, {}, seeds=5)
    write_study(root, sweep, runs)
    for run in runs:
        score = {"base": 50, "far": 70, "near": 50.5}[run.variant] + run.seed
        write_run(root, run, {"test": {"exact_match": float(score), "bleu": 1.0, "by_length": []}})
    return read_study(root)


def test_conclusions_follow_the_adjusted_p_values(noisy):
    text = report_markdown(noisy)
    assert "- far is better than base in exact_match on test (p < 0.0001 after Holm's adjustment).\n" in text
    assert (
        "- near: the difference is within the noise of the seeds. This study would find a difference of "
        in text
    )
    scores = [list(map(float, range(low, low + 5))) for low in (50, 70)]
    p = scipy.stats.ttest_ind(*scores, equal_var=False).pvalue
    assert noisy.comparisons()["far"].p == pytest.approx(p)
    assert noisy.comparisons()["far"].p_adjusted == pytest.approx(2 * p)


def test_lower_is_better_for_some_metrics(noisy, monkeypatch):
    metric = dataclasses.replace(METRICS["exact_match"], higher_is_better=False)
    monkeypatch.setitem(METRICS, "exact_match", metric)
    assert "- far is worse than base in exact_match on test" in report_markdown(noisy)


def rescored(study: Study, variant: str, scores: list[float | None]) -> Study:
    """Returns a study with new scores of a variant."""
    by_seed = {seed: {"test": {"exact_match": score, "bleu": 1.0}} for seed, score in enumerate(scores)}
    return dataclasses.replace(study, scores=study.scores | {variant: by_seed})


def test_an_interval_without_0_is_explained_if_the_adjusted_p_value_is_large(noisy):
    explanation = (
        "- near: .* Its interval excludes 0, because it is not adjusted for the number of comparisons."
    )
    scores = [52.5, 53.5, 54.5, 55.5, 56.5]  # Welch's test with 50 to 54: p = 0.037
    assert not re.search(explanation, report_markdown(noisy))
    assert re.search(explanation, report_markdown(rescored(rescored(noisy, "near", scores), "far", scores)))


def test_a_metric_without_a_better_direction_is_called_higher_or_lower(noisy, monkeypatch):
    metric = dataclasses.replace(METRICS["exact_match"], higher_is_better=None)
    monkeypatch.setitem(METRICS, "exact_match", metric)
    assert "- far has a higher exact_match than base on test (p " in report_markdown(noisy)
    assert "- far has a lower exact_match than base on test (p " in report_markdown(
        rescored(noisy, "far", [1.0, 2.0, 3.0, 4.0, 5.0])
    )


def test_variants_that_were_scored_on_different_texts_are_not_compared(noisy):
    study = copy.deepcopy(noisy)
    for scores in study.scores["far"].values():
        scores["test"]["content"] = "another text"
    for scores in study.scores["near"].values():
        scores["test"]["signatures"] = {"exact_match": "other settings"}
    text = report_markdown(study)
    for variant in ("far", "near"):
        assert (
            f"- {variant}: no test, because {variant} and base were scored on different data of test, or with different settings of exact_match.\n"
            in text
        )


def test_diverged_runs_are_named_beside_a_difference_within_noise(noisy):
    study = dataclasses.replace(
        rescored(noisy, "near", [50.0, 55.0, 52.0]), diverged=noisy.diverged | {"near": [3, 4]}
    )
    line = next(
        line for line in report_markdown(study).splitlines() if line.startswith("- near: the difference")
    )
    assert line.endswith(" 2 of 5 runs of near diverged and have no score.")


def test_runs_that_patience_ended_early_are_noted(tmp_path, sweep):
    runs = expand(sweep, {"train.patience": 1, "train.steps": 60}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run in runs:
        steps = 60 if run.variant == "base" else 4 + run.seed
        write_run(tmp_path, run, {}, result={"step": steps})
    early = [line for line in note_lines(read_study(tmp_path)) if "early" in line]
    assert early == [
        "deep: 2 of 2 runs ended early (train.patience), after 4 to 5 steps. The FLOPs of the training are those "
        "of all steps."
    ]


def test_a_variant_with_an_infinite_score_is_not_compared(noisy):
    """The finite scores alone would make a failing variant look good."""
    text = report_markdown(rescored(noisy, "far", [70.0, None, 71.0, None, 72.0]))
    assert "| far | 3 | 71.00 ± 1.00 | 1.00 ± 0.00 (n=5) |\n" in text
    assert "- far: no test, because exact_match on test has no value for 2 of 5 runs of far.\n" in text
    assert "- far: test exact_match has no value for 2 of 5 runs; the mean leaves these runs out.\n" in text
    assert "| far | +" not in text
    # Holm's adjustment counts only the tests that are made.
    comparison = rescored(noisy, "far", [70.0, None]).comparisons()["near"]
    assert comparison.p_adjusted == comparison.p


def test_a_large_mean_and_its_deviation_are_written_in_short_form():
    assert score_cell([1.2e31, 1.6e31], "perplexity_per_word") == "1.4e+31 ± 2.8e+30"


def test_runs_without_a_score_on_the_primary_split_are_not_counted_as_seeds(noisy):
    sweep = dataclasses.replace(
        noisy.sweep, splits=("test", "test_long"), primary=("exact_match", "test_long")
    )
    scores = {
        variant: {seed: dict(splits) for seed, splits in seeds.items()}
        for variant, seeds in noisy.scores.items()
    }
    for variant, num_seeds in (("base", 5), ("far", 2)):
        for seed in range(num_seeds):
            scores[variant][seed]["test_long"] = {"exact_match": 50.0 + seed, "bleu": 1.0}
    text = report_markdown(dataclasses.replace(noisy, sweep=sweep, scores=scores))
    assert "| far | 2 | 72.00 ± 1.58 (n=5) | 1.00 ± 0.00 (n=5) | 50.50 ± 0.71 | 1.00 ± 0.00 |\n" in text
    assert "| near | 0 | 52.50 ± 1.58 (n=5) | 1.00 ± 0.00 (n=5) | missing | missing |\n" in text
    assert "- far: of 5 runs, 3 not finished.\n" in text
    assert "- near: of 5 runs, 5 not finished.\n" in text
    assert "- near: no test, because near has no score of exact_match on test_long.\n" in text
    assert "- Some variants have 0 seeds. Fewer than 5 seeds find " in text


def test_nothing_is_compared_with_a_baseline_without_scores(noisy):
    text = report_markdown(dataclasses.replace(noisy, scores=noisy.scores | {"base": {}}))
    assert (
        "- No variant is compared with the baseline, because base has no score of exact_match on test.\n"
        in text
    )
    assert "| far | 5 | 72.00 ± 1.58 |" in text


def test_diverged_runs_are_named_beside_the_conclusion(noisy):
    study = dataclasses.replace(noisy, diverged=noisy.diverged | {"far": [3, 4]})
    assert (
        "- far is better than base in exact_match on test (p < 0.0001 after Holm's adjustment). "
        "2 of 5 runs of far diverged and have no score.\n"
    ) in report_markdown(rescored(study, "far", [70.0, 71.0, 72.0]))


@pytest.mark.parametrize(
    ("name", "csv_cell", "latex_cell", "markdown_cell"),
    [
        ("=1+1", "'=1+1", "=1+1", "=1+1"),
        ("@x|y", "'@x|y", "@x|y", r"@x\|y"),
        ("[2em]", "[2em]", "{[}2em]", "[2em]"),
        ("*star", "*star", "{*}star", "*star"),
        ("<b>", "<b>", r"\textless{}b\textgreater{}", "&lt;b>"),
    ],
)
def test_a_name_is_text_in_every_format(
    tmp_path, sweep, monkeypatch, name, csv_cell, latex_cell, markdown_cell
):
    sweep = dataclasses.replace(sweep, variants={name: {}}, baseline=name, splits=("test",))
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    write_run(tmp_path, runs[0], {"test": {"exact_match": 1.0, "bleu": 1.0}})
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    folder = write_report(tmp_path, read_study(tmp_path))
    assert f"\n{csv_cell},test," in (folder / "table.csv").read_text()
    assert f"\n{csv_cell},0,test," in (folder / "runs.csv").read_text()
    assert f"\n{latex_cell} & 1 &" in (folder / "table.tex").read_text()
    assert f"\n| {markdown_cell} | 1 |" in (folder / "table.md").read_text()
    assert f"\n- {markdown_cell}: of 2 runs, 1 not finished.\n" in (folder / "table.md").read_text()


def test_latex_escapes_names(noisy):
    sweep = dataclasses.replace(noisy.sweep, variants={"a_b&c": {}})
    study = dataclasses.replace(noisy, sweep=sweep, scores={"a_b&c": {}}, runs={"a_b&c": noisy.runs["base"]})
    assert r"a\_b\&c & 0 & missing & missing \\" in latex(study)


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(study):
    stored = dataclasses.replace(read_study(study), tuned={"base": Tuned({"\x1b]0;x\x07": "\r"}, [])})
    text = report_text(stored, study)
    assert "<U+001B>]0;x<U+0007>=<U+000D>" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_new_metric_needs_only_an_entry_in_the_registry(study, monkeypatch):
    monkeypatch.setitem(METRICS, "brevity", Metric("brevity", lambda outputs: 0.5, format=".4f"))
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    write_sealed(study / "study.json", read_sealed(study / "study.json") | {"metrics": ["brevity"]})
    folder = write_report(study, read_study(study))
    assert "| deep | 1 | 0.5000 | 0.5000 |" in (folder / "table.md").read_text()
    assert not (folder / "by_length.md").exists()


def test_a_report_of_an_unfinished_study_marks_missing_scores(tmp_path, sweep):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    write_run(tmp_path, runs[0], {}, status="running")
    table = (write_report(tmp_path, read_study(tmp_path)) / "table.md").read_text()
    assert "| base | 0 | missing |" in table
    assert "- base: of 1 runs, 1 not finished.\n" in table
    assert "| deep |" not in table
    assert "- Not launched: deep.\n" in table


def test_the_report_of_a_smoke_test_says_that_its_scores_mean_nothing(noisy):
    assert "smoke" not in report_markdown(noisy)
    smoke = dataclasses.replace(noisy.sweep, config="configs/number_words.py:en-fr,smoke")
    assert "- The argument smoke shrinks training to a test of the commands: " in report_markdown(
        dataclasses.replace(noisy, sweep=smoke)
    )


def test_a_study_without_any_run_has_a_report(tmp_path, sweep):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    table = (write_report(tmp_path, read_study(tmp_path)) / "table.md").read_text()
    assert "- Not launched: base, deep.\n" in table


def test_a_metric_that_a_run_does_not_have_yet_is_missing_in_the_report(study, monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    stored = read_sealed(study / "study.json")
    write_sealed(study / "study.json", stored | {"metrics": ["chrf", "exact_match"]})
    folder = write_report(study, read_study(study))
    assert "| base | 2 | missing | 92.00 ± 2.83 |" in (folder / "table.md").read_text()
    assert "base,1,test,missing,94.0" in (folder / "runs.csv").read_text()


def test_a_full_disk_leaves_the_old_report(study, monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"")
    folder = write_report(study, read_study(study))
    files = {path: path.read_bytes() for path in folder.iterdir()}

    def fill_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fill_disk)
    assert "the disk or quota is full" in refused(write_report, study, read_study(study))
    assert {path: path.read_bytes() for path in files} == files
