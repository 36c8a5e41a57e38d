"""Studies of several tasks: sweep files, applicability and launches."""

from pathlib import Path

import pytest

from experiments import launch
from experiments.study import local_runs
from experiments.study.queue import Ended
from experiments.study.results import read_study
from experiments.study.sweep import PlannedRun, expand
from experiments.study.sweep_file import load_sweep, load_sweeps
from experiments.study.tasks import applicable, check_tasks_differ, read_task_changes
from tests.support.commands import ROOT, call, refuse
from tests.support.errors import refused
from tests.support.task_studies import REASONS, SWEEP, write_scored
from transformer.json_files import read_sealed


@pytest.fixture
def sweep_file(tmp_path, monkeypatch) -> Path:
    """A sweep file in which two of four variants do not apply to one of two tasks."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "ideas.py"
    path.write_text(SWEEP)
    return path


def planned(sweep_file: Path, changes: dict) -> list[PlannedRun]:
    """The runs of all tasks with one seed."""
    sweeps, _ = applicable(load_sweeps(str(sweep_file)), changes)
    return [run for task, sweep in sweeps.items() for run in expand(sweep, changes[task], 1, task=task)]


def test_each_task_has_its_config_splits_and_metrics_and_all_share_the_variants(sweep_file):
    sweeps = load_sweeps(f"{sweep_file}:smoke")
    assert {task: sweep.config for task, sweep in sweeps.items()} == {
        "translation": "configs/number_words.py:smoke,smoke",
        "language": "configs/gpt.py:shakespeare,smoke,smoke",
    }
    assert sweeps["language"].primary == ("bits_per_byte", "test")
    assert sweeps["translation"].splits == ("test", "test_long")
    assert sweeps["translation"].variants == sweeps["language"].variants
    assert {sweep.question for sweep in sweeps.values()} == {"Does it help everywhere?"}
    assert refused(load_sweep, str(sweep_file)) == (
        f"{sweep_file} defines CONFIGS; this command needs a sweep file that defines CONFIG"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("CONFIG = 'configs/gpt.py'", "sweep file FILE defines CONFIGS and CONFIG; remove one of them"),
        ("PUBLISHED = {}", "sweep file FILE defines CONFIGS and PUBLISHED; remove one of them"),
        ("CONFIGS = ['configs/gpt.py']", "CONFIGS in FILE is ['configs/gpt.py']; it must map the name of each task to a config file"),
        ("CONFIGS = {}", "CONFIGS in FILE is {}; it must map the name of each task to a config file"),
        ("CONFIGS = {'a/b': ''}", "the name of a task in FILE is 'a/b'; "),
        ("CONFIGS = {'report': ''}", "CONFIGS in FILE: a study has a file or folder of the name report; rename it"),
        ("CONFIGS = {'table.md': ''}", "CONFIGS in FILE: a study has a file or folder of the name table.md; rename it"),
        ("CONFIGS = {'en:de': ''}", "CONFIGS in FILE has the task 'en:de'; its name must not have ':' or '='"),
        ("CONFIGS = {'translation': 3, 'language': ''}", "CONFIG in FILE (task translation) is 3; it must be a string"),
        ("SPLITS = ('test',)", "SPLITS in FILE is ('test',); it must map each task in CONFIGS to its value: translation, language"),
        ("METRICS = {'translation': ('chrf',)}", "METRICS in FILE is {'translation': ('chrf',)}; it must map each task in CONFIGS to its value: "),
        ("METRICS['language'] = ('bluu',)", "an entry of METRICS in FILE (task language) is 'bluu'; it must be one of: "),
        ("PRIMARY['language'] = ('chrf', 'test')", "PRIMARY in FILE (task language) is ('chrf', 'test'); it must be a pair of "),
        ("del PRIMARY", "sweep file FILE does not define PRIMARY; define it as in configs/sweeps/everywhere.py"),
    ],
)  # fmt: skip
def test_a_wrong_definition_of_a_task_is_refused(sweep_file, line, message):
    sweep_file.write_text(f"{SWEEP}{line}\n")
    assert refused(load_sweeps, str(sweep_file)).startswith(message.replace("FILE", str(sweep_file)))


def test_a_variant_that_a_task_refuses_or_does_not_read_does_not_apply_to_it(sweep_file):
    """The task of language models has no encoder, and its config has pre-norm already."""
    sweeps, reasons = applicable(load_sweeps(str(sweep_file)), {"translation": {}, "language": {}})
    assert list(sweeps["translation"].variants) == ["base", "rope", "encoder", "pre_norm"]
    assert list(sweeps["language"].variants) == ["base", "rope"]
    assert reasons == {"translation": {}, "language": REASONS}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("VARIANTS['new'] = {'model.position': 'rope'}", "variant new applies to no task, so change it or leave it out: unknown config key model.position; did you mean model.positions?"),
        ("VARIANTS['new'] = {'model.d_ff': 'wide'}", "variant new applies to no task, so change it or leave it out: model.d_ff is 'wide'; it must be a whole number"),
        ("VARIANTS['new'] = {'model.positions': 'rop'}", "variant new applies to no task, so change it or leave it out: model.positions is 'rop'; it must be one of: "),
        ("VARIANTS['new'] = {'model.cell': 'gru'}", "variant new applies to no task, so change it or leave it out: model.cell has no effect"),
        ("VARIANTS['new'] = {'data.options.speaker': 'a'}", "variant new applies to no task, so change it or leave it out: translation: data.options.speaker is not an option of number_words; "),
        ("BASELINE = 'encoder'", "task language: variant encoder sets model.encoder_layers, which has no effect "),
        ("CONFIGS['language'] += ',cpuu'", "task language: the config argument is 'cpuu'; it must be one of: "),
        ("METRICS['language'] = ('chrf',); PRIMARY['language'] = ('chrf', 'test')", "task language: an entry of METRICS for variant base (task language_modeling) is 'chrf'; it must be one of: "),
        ("TUNE = {'model.overflow': ('clamp',), 'model.cell': ('gru',)}", "task translation: variant base sets model.cell, which has no effect "),
    ],
)  # fmt: skip
def test_an_error_of_the_sweep_is_no_refusal_of_a_task(sweep_file, tmp_path, line, message):
    sweep_file.write_text(f"{SWEEP}{line}\n")
    assert refuse("launch", f"--sweep={sweep_file}", f"--root={tmp_path}/study", "--dry_run").startswith(
        message
    )
    assert not (tmp_path / "study").exists()


def test_a_change_may_be_for_one_task():
    changes = read_task_changes(["language:train.steps=7", "train.log_every=2"], ["translation", "language"])
    assert changes == {
        "translation": {"train.log_every": 2}, "language": {"train.steps": 7, "train.log_every": 2}
    }  # fmt: skip
    assert refused(read_task_changes, ["speech:train.steps=7"], ["language"]) == (
        "the task in --set=speech:train.steps=7 is 'speech'; it must be one of: language"
    )
    assert read_task_changes(["data.options.file=a:b"], ["x"]) == {"x": {"data.options.file": "a:b"}}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--set=data.options.lists=9", "task language: data.options.lists is not an option of text_files; "),
        ("--set=language:model.positions=alibi", "task language: --set cannot change model.positions, which the study varies; "),
        ("--set=speech:train.steps=7", "the task in --set=speech:train.steps=7 is 'speech'; it must be one of: "),
        ("--set=language:data.options.file=a.txt", "task language: text_files has no split 'test'; set data.options.test to the files "),
        ("--only=speech", "--only has 'speech', which matches no run; "),
        ("--only=language/no", "--only has 'language/no', which matches no run; give a task, a variant, TASK/VARIANT or a pattern, such as translation/base or '*/0'"),
        ("--only=language/encoder", f"--only has 'language/encoder', which does not apply: {REASONS['encoder']}"),
    ],
)  # fmt: skip
def test_wrong_flags_of_a_study_of_tasks_are_refused(sweep_file, tmp_path, flag, message):
    assert refuse(
        "launch", f"--sweep={sweep_file}", f"--root={tmp_path}/study", flag, "--dry_run"
    ).startswith(message)
    assert not (tmp_path / "study").exists()


def test_tasks_with_the_same_config_are_refused_unless_a_change_is_for_one_of_them(sweep_file, tmp_path):
    """Scores on other splits do not make the runs different, nor does a field that changes no result."""
    config = "CONFIGS['translation']"
    sweep_file.write_text(
        f"{SWEEP}CONFIGS['language'] = './' + {config}\n"
        "METRICS['language'] = ('nll',)\n"
        "PRIMARY['language'] = ('nll', 'test')\n"
    )
    flags = (f"--sweep={sweep_file}", f"--root={tmp_path}/study", "--dry_run")
    for same in ((), ("--set=data.options.lists=9",), ("--set=language:train.log_every=7",)):
        assert refuse("launch", *flags, *same) == (
            "tasks translation and language have the same config; leave out one of them, "
            "or change one, as with --set=language:FIELD=VALUE"
        )
    runs = planned(sweep_file, {"translation": {}, "language": {"data.options.lists": 9}})
    check_tasks_differ(runs)


@pytest.mark.usefixtures("without_costs")
def test_a_dry_run_lists_the_runs_by_seed_task_and_variant_and_the_refusals(sweep_file, tmp_path):
    flags = (f"--sweep={sweep_file}", f"--root={tmp_path}/study", "--seeds=5", "--dry_run")
    lines = call("launch", *flags, "--exclude=encoder", "--exclude=translation/pre_norm").stdout.splitlines()
    assert lines[:2] == [f"{variant} does not apply to language: {REASONS[variant]}" for variant in REASONS]
    assert [line.partition("-")[0] for line in lines[4:-1]] == [
        f"| {task}/{variant}/{seed}"
        for seed in range(5)
        for task in ("translation", "language")
        for variant in ("base", "rope")
    ]
    assert not (tmp_path / "study").exists()


@pytest.fixture
def written_by_hand(monkeypatch, without_costs, tmp_path):
    """Writes the files of each run instead of training it. Returns a list to which each job adds its name."""
    monkeypatch.setattr(launch, "report", lambda root: f"report of {root}")
    names = []

    def run_jobs(jobs, *_):
        for job in jobs:
            names.append(job.name)
            config = job.begin()
            task, variant, _ = job.name.split("/")
            write_scored(tmp_path / "study", PlannedRun(variant, config.train.seed, config, task))
            yield Ended(job, 0, 1.0)

    monkeypatch.setattr(local_runs, "run_jobs", run_jobs)
    return names


@pytest.mark.slow
def test_each_variant_is_tuned_on_each_task(sweep_file, written_by_hand, tmp_path):
    sweep_file.write_text(SWEEP + "TUNE = {'optimizer.learning_rate': (1e-3, 2e-3)}")
    text = [
        f"--set=language:data.options.{name}" for name in (f"file={ROOT}/LICENSE", f"test={ROOT}/README.md")
    ]
    flags = (f"--sweep={sweep_file}", f"--root={tmp_path}/study", "--seeds=2", "--exclude=encoder", *text)
    done = call("launch", *flags)
    assert "ideas: 10 trials for tuning, 0 done, 10 to do\n" in done.stdout
    assert "ideas: 10 runs, 5 done, 5 to do\n" in done.stdout
    tuned = {task: read_study(tmp_path / "study" / task).tuned for task in ("translation", "language")}
    assert {task: list(values) for task, values in tuned.items()} == {
        "translation": ["base", "rope", "pre_norm"], "language": ["base", "rope"]
    }  # fmt: skip
    chosen = {values.chosen["optimizer.learning_rate"] for part in tuned.values() for values in part.values()}
    assert chosen == {2e-3}


def test_a_launch_runs_what_is_missing_on_each_task(sweep_file, written_by_hand, tmp_path):
    root = tmp_path / "study"
    text = [
        f"--set=language:data.options.{name}" for name in (f"file={ROOT}/LICENSE", f"test={ROOT}/README.md")
    ]
    flags = (f"--sweep={sweep_file}", f"--root={root}", "--seeds=1", *text)
    first = call("launch", *flags, "--only=language")
    assert [name.partition("-")[0] for name in written_by_hand] == ["language/base/0", "language/rope/0"]
    assert "ideas: 2 runs, 0 done, 2 to do\n" in first.stdout
    assert f"encoder does not apply to language: {REASONS['encoder']}\n" in first.stdout
    second = call("launch", *flags)
    assert len(written_by_hand) == 6
    assert "ideas: 6 runs, 2 done, 4 to do\n" in second.stdout
    assert second.stdout.endswith(f"\nreport of {root}\n")
    assert read_sealed(root / "study.json")["tasks"] == {"translation": {}, "language": REASONS}
    assert list(read_study(root / "language").launched) == ["base", "rope"]

    line = refuse("launch", *flags, "--set=language:train.steps=11")
    assert line == (
        f"{root}/language contains this study with different settings of base: train.steps is 20 there, 11 here; "
        "name another --root"
    )
    single = ("--sweep=configs/sweeps/multi30k.py", f"--root={root}")
    assert refuse("launch", *single) == f"{root} contains a study of several tasks; name another --root"
    sweep_file.rename(tmp_path / "more.py")
    line = refuse("launch", f"--sweep={tmp_path}/more.py", f"--root={root}")
    assert line == f"{root} contains the study 'ideas', not 'more'; name another --root"
    (tmp_path / "more.py").rename(sweep_file)
    line = refuse("launch", f"--sweep={sweep_file}", f"--root={root}/translation")
    assert line == f"{root}/translation contains a study of a single config; name another --root"
