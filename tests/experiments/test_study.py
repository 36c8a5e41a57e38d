"""Studies: settings, runs that count, and the study file, without training."""

import dataclasses
import shutil

import pytest

from experiments.config_files import load_config
from experiments.run_folder import Run
from experiments.study.results import has_diverged, is_complete, read_study
from experiments.study.study_file import Trial, Tuned, check_root, write_study
from experiments.study.sweep import PlannedRun, expand
from experiments.study.tables import note_lines, report_markdown, score_table
from tests.support.commands import ROOT
from tests.support.errors import refused
from tests.support.images import write_folder
from tests.support.studies import write_run
from transformer.json_files import read_sealed, write_sealed
from transformer.tasks import resolve


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


def test_scores_of_other_images_do_not_count(tmp_path):
    folder = write_folder(tmp_path / "classes", num_images=3)
    config = resolve(
        load_config(str(ROOT / "configs/images.py:folder,smoke"), {"data.options.folder": str(folder)})
    )
    planned = PlannedRun("base", 0, config)
    run = write_run(tmp_path, planned, {"test": {"nll": 1.0}})
    assert is_complete(run, planned, ["test"], ["nll"])
    shutil.copy(folder / "dark" / "0.png", folder / "light" / "0.png")
    assert not is_complete(run, planned, ["test"], ["nll"])


def test_runs_of_a_study_must_have_been_trained_on_the_same_data(sweep, tmp_path):
    runs = expand(sweep, {}, seeds=1)
    write_study(tmp_path, sweep, runs)
    for run, content in zip(runs, ("texts", "edited texts"), strict=True):
        write_run(tmp_path, run, BLEU, content=content)
    assert refused(read_study, tmp_path).startswith(
        f"{tmp_path / runs[1].id} and {tmp_path / runs[0].id} were trained on different data; restore "
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


def test_a_tuned_study_stores_its_trials(tmp_path, sweep):
    tuned = {
        "base": Tuned({"train.steps": 9}, [Trial({"train.steps": 9}, 1.5), Trial({"train.steps": 10}, None)])
    }
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1), tuned, {"train.log_every": 3})
    study = read_study(tmp_path)
    assert study.tuned == tuned
    assert "| base | 2 | 1 | train.steps=9 |" in report_markdown(study)
    assert read_sealed(tmp_path / "study.json")["changes"] == {"train.log_every": 3}
