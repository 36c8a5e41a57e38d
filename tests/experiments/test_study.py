"""Studies: plan, queue, results and report, without training."""

import csv
import dataclasses
import errno
import os
import re
import shutil
import sys
import time

import pytest
import scipy

from experiments import plots
from experiments.costs import describe
from experiments.run_folder import Run
from experiments.study.queue import Job, run_jobs
from experiments.study.results import (
    Trial,
    Tuned,
    check_root,
    has_diverged,
    is_complete,
    read_study,
    write_study,
)
from experiments.study.sweep import Sweep, expand, expand_trials, load_sweep
from experiments.study.tables import latex, notes, report_markdown, score_table, write_report
from tests.support.commands import ROOT
from tests.support.studies import write_run
from transformer.config import UserError
from transformer.evaluation.metrics import METRICS, Metric
from transformer.files import read_sealed, write_sealed


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.chdir(ROOT)
    return Sweep(
        name="demo",
        config="configs/number_words.py",
        variants={"base": {}, "deep": {"model.num_layers": 3}},
        splits=("test", "test_long"),
        metrics=("exact_match", "bleu"),
        question="Does depth help?",
        baseline="base",
        primary=("exact_match", "test"),
        tune={},
        equal=None,
    )


def refused(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    return str(error.value)


def test_a_plan_has_every_variant_with_every_seed(sweep):
    runs = expand(sweep, {"train.steps": 7}, seeds=2)
    assert [(run.variant, run.seed) for run in runs] == [("base", 0), ("deep", 0), ("base", 1), ("deep", 1)]
    assert {run.config.train.steps for run in runs} == {7}
    assert [run.config.model.num_layers for run in runs] == [2, 3, 2, 3]
    assert [run.config.train.seed for run in runs] == [0, 0, 1, 1]


def test_the_id_of_a_run_changes_only_with_fields_that_affect_the_result(sweep):
    (run, deep) = expand(sweep, {}, seeds=1)
    assert run.id.startswith("base/0-")
    assert run.id.partition("/")[2] != deep.id.partition("/")[2]
    unimportant = {
        "train.log_every": 1,
        "train.parallelism": "pmap",
        "data.data_dir": "/x",
        "data.workers": 2,
    }
    assert expand(sweep, unimportant, seeds=1)[0].id == run.id
    for key, value in {"train.batch_tokens": 99, "data.options.lists": "9", "decode.seed": 0}.items():
        changed = expand(sweep, {key: value}, seeds=1)[0]
        assert (changed.id == run.id) == (key == "decode.seed"), key


@pytest.mark.parametrize(
    ("variant", "overrides", "message"),
    [
        ({"model.num_layer": 3}, {}, "unknown config key model.num_layer; did you mean model.num_layers?"),
        ({"model": {"num_layers": 3}}, {}, "variant new changes model, which is a group of fields; name single fields, such as model.num_layers"),
        ({"model.d_ff": 3}, {"model.d_ff": 2}, "--set cannot change model.d_ff, which the study varies; change the sweep file instead"),
    ],
)  # fmt: skip
def test_an_impossible_plan_is_refused(sweep, variant, overrides, message):
    wrong = dataclasses.replace(sweep, variants={"new": variant})
    assert refused(expand, wrong, overrides, seeds=1) == message


def test_a_metric_without_meaning_for_the_language_is_refused(sweep):
    wrong = dataclasses.replace(sweep, metrics=("chrf", "perplexity_per_word"))
    overrides = {"data.target": "ja"}
    assert refused(expand, wrong, overrides, seeds=1) == (
        "METRICS has perplexity_per_word, which has no meaning for ja (variant base); leave it out"
    )


def test_a_wrong_value_is_refused_before_anything_is_trained(sweep):
    wrong = dataclasses.replace(sweep, variants={"new": {"model.positions": "lerned"}})
    assert refused(expand, wrong, {}, seeds=1).startswith("model.positions is 'lerned'; it must be one of: ")


def test_the_error_for_a_sweep_file_says_what_is_wrong(tmp_path):
    path = tmp_path / "study.py"
    assert refused(load_sweep, "nowhere.py") == "there is no sweep file 'nowhere.py'"
    path.write_text("CONFIG = 'configs/base.py'\nVARIANTS = {}\n")
    assert "does not define SPLITS" in refused(load_sweep, str(path))


SWEEP = """
CONFIG = "configs/number_words.py"
VARIANTS = {"base": {}, "deep": {"model.num_layers": 3}}
SPLITS = ("test", "test_long")
METRICS = ("exact_match", "chrf")
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("VARIANTS = {}", "VARIANTS in FILE is {}; it must have at least one variant"),
        ("VARIANTS = ['a']", "VARIANTS in FILE is ['a']; it must map the name of each variant to its changes"),
        ("VARIANTS = {'a': ['b']}", "VARIANTS in FILE is {'a': ['b']}; it must map the name of each variant to its changes"),
        ("VARIANTS = {'a/b': {}}", "the name of a variant in FILE is 'a/b'; "),
        ("VARIANTS = {'..': {}}", "the name of a variant in FILE is '..'; "),
        ("VARIANTS = {3: {}}", "VARIANTS in FILE is {3: {}}; the name of a variant must be text, not 3"),
        ("VARIANTS = {'a': {'train.seed': 3}}", "variant a in FILE sets train.seed; give the number of seeds to launch: --seeds"),
        ("VARIANTS = {'a': {3: 3}}", "variant a in FILE has the key 3; a key must be text, as in train.steps"),
        ("SPLITS = 'test'", "SPLITS in FILE is 'test'; it must be a tuple: ('test',)"),
        ("METRICS = 'bleu'", "METRICS in FILE is 'bleu'; it must be a tuple: ('bleu',)"),
        ("METRICS = ()", "METRICS in FILE is (); it must be a tuple of text with at least one entry"),
        ("SPLITS = (1,)", "SPLITS in FILE is (1,); it must be a tuple of text with at least one entry"),
        ("SPLITS = ('test', 'test')", "SPLITS in FILE is ('test', 'test'); an entry is repeated; name each once"),
        ("SPLITS = ('a/b',)", "an entry of SPLITS in FILE is 'a/b'; "),
        ("METRICS = ('bluu',)", "an entry of METRICS in FILE is 'bluu'; it must be one of: "),
        ("CONFIG = 3", "CONFIG in FILE is 3; it must be text"),
        ("BASELINE = 'bass'", "BASELINE in FILE is 'bass'; it must be one of: base, deep"),
        ("BASLINE = 'base'", "sweep file FILE defines BASLINE; did you mean BASELINE?"),
        ("PRIMARY = 'chrf'", "PRIMARY in FILE is 'chrf'; it must be a tuple: ('chrf',)"),
        ("PRIMARY = ('bleu', 'test')", "PRIMARY in FILE is ('bleu', 'test'); it must be an entry of METRICS and an entry of SPLITS, "),
        ("PRIMARY = ('chrf',)", "PRIMARY in FILE is ('chrf',); it must be an entry of METRICS and an entry of SPLITS, "),
        ("GRID = {'model.d_ff': 3}", "GRID in FILE is {'model.d_ff': 3}; the values of model.d_ff must be a tuple"),
        ("GRID = {'train.seed': (1, 2)}", "GRID in FILE sets train.seed; give "),
        ("GRID = {'model.positions': ('base',)}", "GRID in FILE is {'model.positions': ('base',)}; base is also the name of another variant"),
        ("TUNE = {'model.num_layers': (1, 2)}", "TUNE in FILE tries model.num_layers, which a variant sets; "),
        ("TUNE = ('a',)", "TUNE in FILE is ('a',); it must map config keys to the values to try"),
        ("EQUAL = 'step'", "EQUAL in FILE is 'step'; it must be one of: flops, parameters, steps, target_tokens"),
        ("EQUAL = 'steps'; TUNE = {'train.steps': (1, 2)}", "EQUAL in FILE works out train.steps, which variant base or TUNE sets; leave it out"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_refused(tmp_path, line, message):
    path = tmp_path / "study.py"
    path.write_text(f"{SWEEP}{line}\n")
    assert refused(load_sweep, str(path)).startswith(message.replace("FILE", str(path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}, "b": {"model.d_ff": 512}}}, "variants a and b are the same config; leave one out"),
        ({"variants": {"a": {"model.cell": "gru"}}}, "variant a sets model.cell, which has no effect there; leave it out"),
        ({"splits": ("dev",)}, "number_words has no split 'dev'; choose train, test, validation, test_long"),
        ({"variants": {"a": {"model.kind": "recurrent"}}, "baseline": "a", "equal": "parameters"}, None),
        ({"variants": {"a": {}, "b": {"model.kind": "recurrent"}}, "baseline": "a", "equal": "parameters"},
         "EQUAL = 'parameters' sets model.d_ff, which a variant does not read; leave EQUAL out"),
        ({"variants": {"a": {}, "b": {"model.num_layers": 9}}, "baseline": "a", "equal": "parameters"},
         "EQUAL = 'parameters': a variant has "),
    ],
)  # fmt: skip
def test_a_plan_with_a_wrong_variant_is_refused(sweep, changes, message):
    wrong = dataclasses.replace(sweep, **changes)
    if message is None:
        expand(wrong, {}, seeds=1)
    else:
        assert refused(expand, wrong, {}, seeds=1).startswith(message)


def test_a_grid_is_named_by_its_values(tmp_path):
    path = tmp_path / "norm.py"
    path.write_text(
        SWEEP.replace("VARIANTS", "_")
        + "GRID = {'model.residual': ('post_norm', 'pre_norm'), 'optimizer.warmup_steps': (1, 9)}"
    )
    sweep = load_sweep(str(path))
    assert list(sweep.variants) == [
        "post_norm,warmup_steps=1", "post_norm,warmup_steps=9", "pre_norm,warmup_steps=1", "pre_norm,warmup_steps=9"
    ]  # fmt: skip
    assert sweep.variants["pre_norm,warmup_steps=1"] == {
        "model.residual": "pre_norm", "optimizer.warmup_steps": 1
    }  # fmt: skip
    assert (sweep.baseline, sweep.primary) == ("post_norm,warmup_steps=1", ("exact_match", "test"))


def test_every_shipped_sweep_can_be_planned(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted(ROOT.glob("configs/sweeps/[!_]*.py")):
        sweep = load_sweep(str(path))
        assert len(expand(sweep, {}, seeds=5)) == 5 * len(sweep.variants)
        assert sweep.question


@pytest.mark.parametrize(
    ("equal", "changes", "field", "expected"),
    [
        ("steps", {"train.batch_tokens": 2048}, "steps", 1_200),
        ("target_tokens", {"train.batch_tokens": 2048}, "steps", 600),
        ("flops", {"train.batch_tokens": 2048}, "steps", 600),
        ("parameters", {"model.feed_forward": "swiglu"}, "d_ff", None),
    ],
)
def test_variants_get_as_much_as_the_baseline(sweep, equal, changes, field, expected):
    planned = expand(
        dataclasses.replace(sweep, variants={"base": {}, "other": changes}, equal=equal), {}, seeds=1
    )
    base, other = (run.config for run in planned)
    assert base == expand(sweep, {}, seeds=1)[0].config
    if expected is not None:
        assert getattr(other.train, field) == expected
    else:
        counts = [describe(config)["parameters"] for config in (base, other)]
        assert counts[0] == pytest.approx(counts[1], rel=1e-3)


def test_each_variant_has_equally_many_trials(sweep):
    tuned = dataclasses.replace(sweep, tune={"optimizer.learning_rate": [1e-3, 2e-3], "train.steps": [9, 10]})
    trials = expand_trials(tuned, {})
    assert len(trials) == 8
    assert {run.seed for run, _ in trials} == {0}
    by_variant = [values for run, values in trials if run.variant == "deep"]
    assert by_variant == tuned.trials
    chosen = {"base": tuned.trials[0], "deep": tuned.trials[3]}
    runs = expand(tuned, {}, 2, chosen)
    assert {run.id for run in runs if run.seed == 0} <= {run.id for run, _ in trials}
    assert [run.config.train.steps for run in runs] == [9, 10, 9, 10]


def test_arguments_after_the_name_of_a_sweep_are_added_to_its_config(sweep):
    assert load_sweep("configs/sweeps/positions.py:smoke").config == "configs/number_words.py:smoke"
    assert load_sweep("configs/sweeps/table3.py:smoke").config == "configs/table3.py:number_words,smoke"


def test_a_folder_with_a_different_study_or_other_settings_is_refused(sweep, tmp_path):
    check_root(tmp_path, sweep, expand(sweep, {}, seeds=1))
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    more = dataclasses.replace(sweep, variants={**sweep.variants, "wide": {"model.d_ff": 1024}})
    check_root(tmp_path, more, expand(more, {}, seeds=2))
    shorter = expand(sweep, {"train.steps": 7}, seeds=1)
    message = refused(check_root, tmp_path, sweep, shorter)
    assert message == f"{tmp_path} holds this study with other settings; name another --root"
    Run(tmp_path / expand(sweep, {}, seeds=1)[0].id).begin(expand(sweep, {}, seeds=1)[0].config)
    message = refused(check_root, tmp_path, sweep, shorter)
    assert "with other settings: train.steps is 1200 there, 7 here; name another --root" in message
    renamed = dataclasses.replace(sweep, name="another")
    message = refused(check_root, tmp_path, renamed, expand(renamed, {}, seeds=1))
    assert message == f"{tmp_path} holds the study 'demo', not 'another'; name another --root"


def test_a_run_in_place_of_a_study_is_refused_and_vice_versa(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    run = Run(tmp_path / runs[0].id)
    run.begin(runs[0].config)
    assert refused(check_root, run.folder, sweep, runs) == (
        f"{run.folder} is a run, not a study; name another --root"
    )
    assert refused(read_study, run.folder).startswith(f"{run.folder} is a run, not a study; ")
    assert refused(read_study, tmp_path / "base").startswith(
        f"{tmp_path}/base is not a study: study.json is missing"
    )
    assert refused(lambda: Run(tmp_path).config) == (
        f"{tmp_path} is a study, not a run; name a run: {tmp_path}/VARIANT/SEED-HASH"
    )
    assert refused(Run(tmp_path).begin, runs[0].config).startswith(f"{tmp_path} is a study, not a run; ")


def make_job(folder, name, *codes):
    return Job(name, [[sys.executable, "-c", code] for code in codes], folder / name / "log.txt")


def test_the_queue_limits_the_running_jobs_and_survives_failures(tmp_path):
    busy = f"""
import os, pathlib, time
place = pathlib.Path({str(tmp_path)!r}) / "busy"; place.mkdir(exist_ok=True)
mine = place / str(os.getpid()); mine.touch(); print("running", len(list(place.iterdir())), flush=True)
time.sleep(0.4); mine.unlink()
"""
    jobs = [make_job(tmp_path, name, busy) for name in "abcd"]
    jobs.insert(1, make_job(tmp_path, "bad", "raise SystemExit(3)", "print('never')"))
    ended = {job.name: status for job, status, _ in run_jobs(jobs, slots=2)}
    assert ended == {"a": 0, "bad": 3, "b": 0, "c": 0, "d": 0}
    assert "never" not in jobs[1].log.read_text()
    counts = [int(jobs[i].log.read_text().split()[1]) for i in (0, 2, 3, 4)]
    assert max(counts) == 2


def test_the_commands_of_a_job_run_in_order(tmp_path):
    job = make_job(tmp_path, "a", "print('first')", "print('second')")
    (ended,) = run_jobs([job], slots=1)
    assert ended[:2] == (job, 0)
    assert job.log.read_text() == "first\nsecond\n"


def test_a_stopped_queue_asks_its_jobs_to_save_and_waits(tmp_path):
    saves = """
import signal, time
def save(*_): time.sleep(0.5); print("saved", flush=True); raise SystemExit(75)
signal.signal(signal.SIGTERM, save); print("ready", flush=True); time.sleep(60)
"""
    jobs = [make_job(tmp_path, "a", saves, "print('never')"), make_job(tmp_path, "b", "print('never')")]

    def ready():
        return "ready" in jobs[0].log.read_text()

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(jobs, slots=1, should_stop=ready))
    assert time.monotonic() - started < 30
    assert jobs[0].log.read_text() == "ready\nsaved\n"
    assert not jobs[1].log.exists()


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
        f"{runs[1].id} and {runs[0].id} were trained on different texts; restore "
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
    assert "- deep: of 2 runs, 1 diverged.\n" in notes(study)


def test_an_evaluation_copied_from_another_run_is_refused(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    first, second = (write_run(tmp_path, run, BLEU) for run in runs)
    shutil.copy(first.folder / "eval" / "test.json", second.folder / "eval" / "test.json")
    assert "is not an evaluation of this run; delete it and launch the study again" in refused(
        read_study, tmp_path
    )


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


def test_a_study_folder_from_a_stranger_names_no_run_elsewhere(sweep, tmp_path):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    stored = read_sealed(tmp_path / "study.json")
    for run_id in ("../x", "base/../../x", "/etc/0-x", "base/0-x/y"):
        write_sealed(tmp_path / "study.json", {**stored, "runs": [run_id]})
        assert "it must be a plain file name" in refused(read_study, tmp_path)


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
    assert "- deep: no test, because a test needs at least two seeds of both variants.\n" in table
    assert "- deep: of 2 runs, 1 not finished.\n" in table
    assert "- Some variants have 1 seeds. With fewer than 5, " in table
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


@pytest.fixture
def noisy(tmp_path, sweep):
    """A study of three variants with five seeds: far is far better, near is like the baseline."""
    variants = {"base": {}, "far": {"model.num_layers": 3}, "near": {"model.num_layers": 4}}
    sweep = dataclasses.replace(sweep, variants=variants, splits=("test",))
    runs = expand(sweep, {}, seeds=5)
    write_study(tmp_path, sweep, runs)
    for run in runs:
        score = {"base": 50, "far": 70, "near": 50.5}[run.variant] + run.seed
        write_run(tmp_path, run, {"test": {"exact_match": float(score), "bleu": 1.0, "by_length": []}})
    return read_study(tmp_path)


def test_words_follow_the_adjusted_test(noisy):
    text = report_markdown(noisy)
    assert "- far is better than base in exact_match on test (p < 0.0001 after Holm's adjustment).\n" in text
    assert (
        "- near: the difference is within the noise of the seeds. This study finds a difference of " in text
    )
    scores = [list(map(float, range(low, low + 5))) for low in (50, 70)]
    p = scipy.stats.ttest_ind(*scores, equal_var=False).pvalue
    assert noisy.comparisons()["far"].p == pytest.approx(p)
    assert noisy.comparisons()["far"].p_adjusted == pytest.approx(2 * p)


def test_lower_is_better_for_some_metrics(noisy, monkeypatch):
    metric = dataclasses.replace(METRICS["exact_match"], higher_is_better=False)
    monkeypatch.setitem(METRICS, "exact_match", metric)
    assert "- far is worse than base in exact_match on test" in report_markdown(noisy)


def test_latex_escapes_names(noisy):
    sweep = dataclasses.replace(noisy.sweep, variants={"a_b&c": {}})
    study = dataclasses.replace(noisy, sweep=sweep, scores={"a_b&c": {}})
    assert r"a\_b\&c & 0 & missing & missing \\" in latex(study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"question": None}, "has no 'question'; launch the study again"), ({"baseline": "c"}, "it must be one of: base, deep")],
)  # fmt: skip
def test_a_study_file_of_another_shape_is_refused(tmp_path, sweep, changes, message):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    stored = read_sealed(tmp_path / "study.json") | changes
    write_sealed(
        tmp_path / "study.json",
        {key: value for key, value in stored.items() if value is not None or key == "equal"},
    )
    assert message in refused(read_study, tmp_path)


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
    write_sealed(study / "study.json", read_sealed(study / "study.json") | {"metrics": ["brevity"]})
    folder = write_report(study, read_study(study))
    assert "| deep | 1 | 0.5000 | 0.5000 |" in (folder / "table.md").read_text()
    assert not (folder / "by_length.md").exists()


def test_a_report_of_an_unfinished_study_marks_missing_scores(tmp_path, sweep):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    folder = write_report(tmp_path, read_study(tmp_path))
    assert "| base | 0 | missing |" in (folder / "table.md").read_text()


def test_metric_that_a_run_does_not_have_yet_is_missing_in_the_report(study):
    stored = read_sealed(study / "study.json")
    write_sealed(study / "study.json", stored | {"metrics": ["chrf", "exact_match"]})
    folder = write_report(study, read_study(study))
    assert "| base | 2 | missing | 92.00 ± 2.83 |" in (folder / "table.md").read_text()
    assert "base,1,test,missing,94.0" in (folder / "runs.csv").read_text()


def test_figure_by_length_shows_values_above_100():
    curves = {("base", "test"): {8: [250.0], 16: [400.0]}}
    (axes,) = plots.scores_by_length(curves, "perplexity", "title").axes
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > 400


def test_full_disk_leaves_the_old_report(study, monkeypatch):
    folder = write_report(study, read_study(study))
    files = {path: path.read_bytes() for path in folder.iterdir()}

    def fill_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", fill_disk)
    assert "the disk or quota is full" in refused(write_report, study, read_study(study))
    assert {path: path.read_bytes() for path in files} == files


def test_job_that_runs_again_appends_to_its_log(tmp_path):
    job = make_job(tmp_path, "a", "print('output')")
    for _ in range(2):
        list(run_jobs([job], slots=1))
    assert re.fullmatch(r"output\n\n--- started again at [\d :-]+ ---\noutput\n", job.log.read_text())


def test_a_config_file_given_as_a_sweep_is_told_to_train():
    message = refused(load_sweep, "configs/number_words.py")
    assert message.startswith("configs/number_words.py is a config file; name it as CONFIG in a sweep file")
