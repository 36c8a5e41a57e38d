"""Studies: results and report, without training."""

import contextlib
import copy
import csv
import dataclasses
import errno
import os
import shutil

import pytest
import scipy

from experiments import plots
from experiments.run_folder import Run
from experiments.study.report import report_text, write_report
from experiments.study.results import Study, has_diverged, is_complete, read_study
from experiments.study.study_file import Trial, Tuned, check_root, write_study
from experiments.study.sweep import expand
from experiments.study.tables import latex, note_lines, report_markdown, score_cell, score_table
from tests.support.commands import ROOT
from tests.support.errors import refused
from tests.support.studies import DEMO, write_run
from transformer.evaluation.metrics import METRICS, Metric
from transformer.json_files import read_sealed, write_sealed


def test_a_folder_with_a_different_study_or_other_settings_is_refused(sweep, tmp_path):
    check_root(tmp_path, sweep, expand(sweep, {}, seeds=1), {})
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    more = dataclasses.replace(sweep, variants={**sweep.variants, "wide": {"model.d_ff": 1024}})
    check_root(tmp_path, more, expand(more, {}, seeds=2), {})
    shorter = expand(sweep, {"train.steps": 7}, seeds=1)
    check_root(tmp_path, sweep, shorter, {})  # no run has begun
    Run(tmp_path / expand(sweep, {}, seeds=1)[0].id).begin(expand(sweep, {}, seeds=1)[0].config)
    message = refused(check_root, tmp_path, sweep, shorter, {})
    assert "different settings of base: train.steps is 1200 there, 7 here; name another --root" in message
    renamed = dataclasses.replace(sweep, name="another")
    message = refused(check_root, tmp_path, renamed, expand(renamed, {}, seeds=1), {})
    assert message == f"{tmp_path} contains the study 'demo', not 'another'; name another --root"


@pytest.mark.parametrize(
    ("changes", "overrides", "message"),
    [
        ({"config": "configs/number_words.py:en-fr"}, {}, "CONFIG is 'configs/number_words.py' there, 'configs/number_words.py:en-fr' here"),
        ({"equal": "flops"}, {}, "EQUAL is None there, 'flops' here"),
        ({"tune": {"optimizer.learning_rate": [0.1]}}, {}, "TUNE is {} there, {'optimizer.learning_rate': [0.1]} here"),
        ({}, {"train.steps": 7}, "--set is {} there, {'train.steps': 7} here"),
        ({"variants": {"base": {"model.d_ff": 8}}}, {}, "variant base is {} there, {'model.d_ff': 8} here"),
    ],
)  # fmt: skip
def test_settings_of_a_study_cannot_change_once_a_run_has_begun(sweep, tmp_path, changes, overrides, message):
    """The plan has no run in common with the earlier one, as with --only or before the tuning."""
    planned = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, planned)
    check_root(tmp_path, dataclasses.replace(sweep, **changes), [], overrides)
    Run(tmp_path / planned[0].id).begin(planned[0].config)
    line = refused(check_root, tmp_path, dataclasses.replace(sweep, **changes), [], overrides)
    assert line == f"{tmp_path} contains this study with different settings: {message}; name another --root"
    check_root(tmp_path, sweep, [], {"train.log_every": 7})  # changes no result


def test_a_data_option_that_changes_no_result_may_change_between_launches(sweep, tmp_path):
    sweep = dataclasses.replace(sweep, config="configs/multi30k.py:cpu", splits=("test",))
    stored, planned = ({"data.options.manual_dir": path} for path in ("/one/machine", "/another"))
    runs = expand(sweep, stored, seeds=1)
    write_study(tmp_path, sweep, runs, changes=stored)
    Run(tmp_path / runs[0].id).begin(runs[0].config)
    check_root(tmp_path, sweep, expand(sweep, planned, seeds=1), planned)
    check_root(tmp_path, sweep, expand(sweep, {}, seeds=1), {})


def test_a_run_that_has_not_begun_is_replaced_by_a_corrected_one(sweep, tmp_path):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    corrected = dataclasses.replace(sweep, variants=sweep.variants | {"deep": {"model.num_layers": 4}})
    runs = expand(corrected, {}, seeds=1)
    check_root(tmp_path, corrected, runs, {})
    write_study(tmp_path, corrected, runs)
    assert read_sealed(tmp_path / "study.json")["runs"] == [run.id for run in runs]


def test_a_run_in_place_of_a_study_is_refused_and_vice_versa(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    run = Run(tmp_path / runs[0].id)
    run.begin(runs[0].config)
    assert refused(check_root, run.folder, sweep, runs, {}) == (
        f"{run.folder} is a run, not a study; name another --root"
    )
    assert refused(read_study, run.folder).startswith(f"{run.folder} is a run, not a study; ")
    assert refused(read_study, tmp_path / "base").startswith(
        f"{tmp_path}/base is not a study: study.json is missing"
    )
    assert refused(lambda: Run(tmp_path).config) == (
        f"{tmp_path} is a study, not a run; name one of its runs: {tmp_path}/VARIANT/SEED-HASH"
    )
    assert refused(Run(tmp_path).begin, runs[0].config).startswith(f"{tmp_path} is a study, not a run; ")


BLEU = {"test": {"bleu": 1.0}}


@pytest.fixture
def planned(sweep):
    return expand(sweep, {}, seeds=1)[0]


def test_a_run_is_complete_when_its_last_checkpoint_is_evaluated(planned, tmp_path):
    assert not is_complete(Run(tmp_path / "missing"), planned, ["test"], ["bleu"])
    run = write_run(tmp_path, planned, {})
    assert not is_complete(run, planned, ["test"], ["bleu"])
    write_run(tmp_path, planned, {"test": {"bleu": 1.0, "checkpoints": [10]}})
    assert not is_complete(run, planned, ["test"], ["bleu"])
    write_run(tmp_path, planned, BLEU)
    assert is_complete(run, planned, ["test"], ["bleu"])
    assert not is_complete(run, planned, ["test", "test_long"], ["bleu"])
    assert not is_complete(run, planned, ["test"], ["bleu", "chrf"])
    write_run(tmp_path, planned, BLEU, status="preempted")
    assert not is_complete(run, planned, ["test"], ["bleu"])


@pytest.mark.parametrize("name", ["result.json", "eval/test.json"])
@pytest.mark.parametrize("damage", ["edit", "cut", "list"])
def test_damaged_scores_do_not_count(planned, tmp_path, name, damage):
    run = write_run(tmp_path, planned, BLEU)
    path = run.folder / name
    text = path.read_text()
    path.write_text(
        {"edit": text.replace("10", "11").replace("done", "Done"), "cut": text[:-9], "list": "[]"}[damage]
    )
    assert not is_complete(run, planned, ["test"], ["bleu"])


def test_scores_by_length_without_a_length_are_refused(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    write_run(tmp_path, runs[0], {"test": {"bleu": 1.0, "by_length": [{"sentences": 9}]}})
    assert "eval/test.json is not a file of this program: 'most' is missing" in refused(read_study, tmp_path)


def test_a_root_that_is_a_file_is_refused_before_the_runs_are_listed(sweep, tmp_path):
    root = tmp_path / "root"
    root.write_text("")
    assert refused(check_root, root, sweep, [], {}) == f"{root} is not a folder; name another --root"


@pytest.mark.parametrize("changed", ["config", "data"])
def test_scores_of_another_config_or_another_text_do_not_count(planned, tmp_path, changed):
    run = write_run(tmp_path, planned, BLEU, **{changed: "another"})
    assert not is_complete(run, planned, ["test"], ["bleu"])


def test_runs_of_a_study_must_have_been_trained_on_the_same_texts(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    for run, content in zip(runs, ("texts", "edited texts"), strict=True):
        write_run(tmp_path, run, BLEU, content=content)
    assert refused(read_study, tmp_path).startswith(
        f"{tmp_path / runs[1].id} and {tmp_path / runs[0].id} were trained on different texts; restore "
    )


def test_a_run_that_began_with_the_weights_of_another_is_refused(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    write_run(tmp_path, runs[0], BLEU)
    write_run(tmp_path, runs[1], BLEU, **{"initial weights": "0" * 64})
    assert refused(read_study, tmp_path).startswith(
        f"{tmp_path / runs[1].id} began with the weights of another run (--init_from), "
    )


def test_a_run_that_diverged_is_counted_and_not_started_again(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run in runs[:3]:
        write_run(tmp_path, run, {split: {"exact_match": 1.0, "bleu": 2.0} for split in sweep.splits})
    diverged = write_run(tmp_path, runs[3], {})
    diverged.write_result(status="failed", reason="diverged")
    assert [has_diverged(Run(tmp_path / run.id), run) for run in runs] == [False, False, False, True]
    assert not has_diverged(diverged, runs[2])
    study = read_study(tmp_path)
    assert "| deep | 1 |" in score_table(study)
    assert "deep: of 2 runs, 1 diverged." in note_lines(study)


def test_an_evaluation_copied_from_another_run_is_refused(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    first, second = (write_run(tmp_path, run, BLEU) for run in runs)
    shutil.copy(first.folder / "eval" / "test.json", second.folder / "eval" / "test.json")
    assert "/test.json contains another evaluation; run python -m " in refused(read_study, tmp_path)


def test_a_run_in_the_folder_of_another_run_is_refused(sweep, tmp_path):
    """Swapped folders would swap the scores of two variants, and a copy would count a seed twice."""
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run in runs:
        write_run(tmp_path, run, BLEU)
    for first, second in ((runs[0], runs[1]), (runs[0], runs[2])):
        shutil.rmtree(tmp_path / second.id)
        shutil.copytree(tmp_path / first.id, tmp_path / second.id)
        assert refused(read_study, tmp_path) == (
            f"{tmp_path / second.id} contains a run with a different config; delete the folder and launch the study again"
        )
        shutil.rmtree(tmp_path / second.id)
        write_run(tmp_path, second, BLEU)


@pytest.mark.parametrize(
    "changes", [{"test_set": "validation"}, {"changes": {"decode.beam_size": 1}}, {"ablated": "positions"}]
)
def test_a_renamed_evaluation_is_refused(sweep, tmp_path, changes):
    (run, _) = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, [run])
    path = write_run(tmp_path, run, BLEU).folder / "eval" / "test.json"
    write_sealed(path, read_sealed(path) | changes)
    assert refused(read_study, tmp_path).startswith(f"{path} contains another evaluation; ")
    assert not is_complete(Run(tmp_path / run.id), run, ["test"], ["bleu"])


def test_scores_from_before_the_end_of_the_training_do_not_count(sweep, tmp_path):
    (run, second) = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, [run, second])
    write_run(tmp_path, run, BLEU, status="preempted")
    path = write_run(tmp_path, second, BLEU).folder / "eval" / "test.json"
    write_sealed(path, read_sealed(path) | {"checkpoints": [10]})
    study = read_study(tmp_path)
    assert study.scores == {"base": {}, "deep": {}}
    assert note_lines(study)[:2] == [f"{name}: of 1 runs, 1 not finished." for name in ("base", "deep")]


def test_fewer_seeds_or_variants_do_not_remove_results(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run in runs:
        write_run(tmp_path, run, BLEU)
    fewer = dataclasses.replace(sweep, variants={"base": {}})
    write_study(tmp_path, fewer, expand(fewer, {}, seeds=1))
    study = read_study(tmp_path)
    assert {variant: sorted(seeds) for variant, seeds in study.scores.items()} == {
        "base": [0, 1],
        "deep": [0, 1],
    }


def test_a_study_that_names_a_run_outside_its_folder_is_refused(sweep, tmp_path):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    stored = read_sealed(tmp_path / "study.json")
    for run_id in ("../x", "base/../../x", "/etc/0-x", "base/0-x/y"):
        write_sealed(tmp_path / "study.json", {**stored, "runs": [run_id]})
        assert f"names {run_id!r}, which is not a run of this study" in refused(read_study, tmp_path)


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
            f"- {variant}: no test, because {variant} and base were scored on different texts of test, or with different settings of exact_match.\n"
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
    assert "- far: no test, because exact_match on test is not finite for 2 of 5 runs of far.\n" in text
    assert "- far: test exact_match is not finite for 2 of 5 runs; the mean leaves these runs out.\n" in text
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"question": None}, "'question' is missing; restore it or delete it"), ({"baseline": "c"}, "it must be one of: base, deep"),
     ({"variants": {"base": {}, "\x1b]0;x\x07": {}}}, "it must be a plain file name"), ({"metrics": ["\x1b"]}, "it must be one of: acc"),
     ({"splits": ["../test"]}, "it must be a plain file name")],
)  # fmt: skip
def test_a_study_file_with_a_missing_or_invalid_field_is_refused(tmp_path, sweep, changes, message):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    stored = read_sealed(tmp_path / "study.json") | changes
    write_sealed(
        tmp_path / "study.json",
        {key: value for key, value in stored.items() if value is not None or key == "equal"},
    )
    assert message in refused(read_study, tmp_path)


def test_control_characters_of_a_stranger_do_not_reach_the_terminal(study):
    stored = dataclasses.replace(read_study(study), tuned={"base": Tuned({"\x1b]0;x\x07": "\r"}, [])})
    text = report_text(stored, study)
    assert "<U+001B>]0;x<U+0007>=<U+000D>" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_a_tuned_study_stores_its_trials(tmp_path, sweep):
    tuned = {
        "base": Tuned({"train.steps": 9}, [Trial({"train.steps": 9}, 1.5), Trial({"train.steps": 10}, None)])
    }
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1), tuned, {"train.log_every": 3})
    study = read_study(tmp_path)
    assert study.tuned == tuned
    assert "| base | 2 | 1 | train.steps=9 |" in report_markdown(study)
    assert read_sealed(tmp_path / "study.json")["changes"] == {"train.log_every": 3}


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
