"""Sweeps, the queue and the report, without training anything."""

import csv
import dataclasses
import json
import sys
import time
from pathlib import Path

import pytest

from experiments.launcher.queue import Job, run_jobs
from experiments.launcher.report import markdown, write_report
from experiments.launcher.results import check_root, read_study, write_study
from experiments.launcher.sweep import Sweep, config_hash, expand, load_sweep
from transformer.config import DataConfig, DecodeConfig, ExperimentConfig, TrainConfig, UserError


@pytest.fixture
def sweep(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent.parent)
    return Sweep(
        name="demo",
        config="configs/number_words.py",
        variants={"base": {}, "deep": {"model.num_layers": 3}},
        splits=("test", "test_long"),
        metrics=("exact_match", "bleu"),
    )


def test_expand(sweep):
    runs = expand(sweep, {"train.steps": 7}, seeds=2)
    assert [(run.variant, run.seed) for run in runs] == [("base", 0), ("deep", 0), ("base", 1), ("deep", 1)]
    assert {run.config.train.steps for run in runs} == {7}
    assert [run.config.model.num_layers for run in runs] == [2, 3, 2, 3]
    assert [run.config.train.seed for run in runs] == [0, 0, 1, 1]
    assert runs[1].id == f"deep/0-{config_hash(runs[1].config)}"


def test_a_misspelt_override_is_refused(sweep):
    wrong = dataclasses.replace(sweep, variants={"x": {"model.num_layer": 3}})
    with pytest.raises(UserError, match="unknown config key model.num_layer; .* model.num_layers"):
        expand(wrong, {}, seeds=1)
    with pytest.raises(UserError, match="model.positions is 'lerned'"):
        expand(dataclasses.replace(sweep, variants={"x": {"model.positions": "lerned"}}), {}, seeds=1)
    with pytest.raises(UserError, match="--set=model.num_layers: the study itself varies it"):
        expand(sweep, {"model.num_layers": 2}, seeds=1)
    with pytest.raises(UserError, match="there is no sweep file 'nowhere.py'"):
        load_sweep("nowhere.py")


def test_a_study_keeps_its_folder(sweep, tmp_path):
    check_root(tmp_path, sweep, expand(sweep, {}, seeds=1))
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    more = dataclasses.replace(sweep, variants={**sweep.variants, "wide": {"model.d_ff": 512}})
    check_root(tmp_path, more, expand(more, {}, seeds=2))
    with pytest.raises(UserError, match="holds this study with other settings; name another --root"):
        check_root(tmp_path, sweep, expand(sweep, {"train.steps": 7}, seeds=1))
    other = dataclasses.replace(sweep, name="other")
    with pytest.raises(UserError, match="holds the study 'demo', not 'other'; name another --root"):
        check_root(tmp_path, other, expand(other, {}, seeds=1))


def test_the_hash_names_what_is_computed():
    config = ExperimentConfig()
    same = dataclasses.replace(
        config,
        data=DataConfig(data_dir="/x", workers=2),
        train=TrainConfig(log_every=1, placement="pmap"),
    )
    assert config_hash(same) == config_hash(config)
    other = dataclasses.replace(config, train=TrainConfig(batch_tokens=24_999))
    assert config_hash(other) != config_hash(config)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=3))
    assert config_hash(other) != config_hash(config)


def test_a_field_that_came_later_renames_no_run():
    """The hash of the first release: write another only for a change of what the base config computes."""
    assert config_hash(ExperimentConfig()) == "1c85bbbb"


def test_a_field_added_later_renames_no_run():
    """The hash of the defaults, as it was before the first such field."""
    assert config_hash(ExperimentConfig()) == "1c85bbbb"
    shorter = dataclasses.replace(ExperimentConfig(), decode=DecodeConfig(max_source=64))
    assert config_hash(shorter) != config_hash(ExperimentConfig())


def job(folder, name, *codes):
    return Job(name, [[sys.executable, "-c", code] for code in codes], folder / name / "log.txt")


def test_queue_runs_at_most_so_many_and_survives_failures(tmp_path):
    busy = f"""
import os, pathlib, time
place = pathlib.Path({str(tmp_path)!r}) / "busy"; place.mkdir(exist_ok=True)
mine = place / str(os.getpid()); mine.touch(); print("running", len(list(place.iterdir())), flush=True)
time.sleep(0.4); mine.unlink()
"""
    jobs = [job(tmp_path, name, busy) for name in "abcd"]
    jobs.insert(1, job(tmp_path, "bad", "raise SystemExit(3)", "print('never')"))
    ended = {}
    started = time.monotonic()
    failed = run_jobs(jobs, 2, lambda one, status, seconds: ended.update({one.name: status}))
    assert failed == 1
    assert ended == {"a": 0, "bad": 3, "b": 0, "c": 0, "d": 0}
    assert "never" not in jobs[1].log.read_text()
    counts = [int(jobs[i].log.read_text().split()[1]) for i in (0, 2, 3, 4)]
    assert max(counts) == 2
    assert time.monotonic() - started < 10


def test_a_jobs_commands_run_in_order(tmp_path):
    one = job(tmp_path, "a", "print('first')", "print('second')")
    assert run_jobs([one], 1, lambda *_: None) == 0
    assert one.log.read_text() == "first\nsecond\n"


def test_a_stopped_queue_asks_its_jobs_to_save_and_waits(tmp_path):
    """Asked while a job runs, which takes its time; no other is started."""
    saves = """
import signal, time
def save(*_): time.sleep(0.5); print("saved", flush=True); raise SystemExit(75)
signal.signal(signal.SIGTERM, save); print("ready", flush=True); time.sleep(60)
"""
    jobs = [job(tmp_path, "a", saves, "print('never')"), job(tmp_path, "b", "print('never')")]

    def ready():
        return "ready" in jobs[0].log.read_text()

    with pytest.raises(KeyboardInterrupt):
        run_jobs(jobs, 1, lambda *_: None, ready)
    assert jobs[0].log.read_text() == "ready\nsaved\n"
    assert not jobs[1].log.exists()


@pytest.fixture
def study(tmp_path, sweep):
    """Scores of three runs of four: deep/1 has not been evaluated."""
    runs = expand(sweep, {}, seeds=2)
    write_study(tmp_path, sweep, runs)
    for run, score in zip(runs, (90.0, 80.0, 94.0), strict=False):
        for split in sweep.splits:
            path = tmp_path / run.id / "eval" / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            ranges = [{"most": 8, "sentences": 30, "exact_match": score}]
            if split == "test_long":
                ranges = [{"most": most, "sentences": 10, "exact_match": score - 40} for most in (8, 16)]
            ranges.append({"most": 32, "sentences": 9, "exact_match": 0.0})  # too few to speak of
            scores = {"exact_match": score, "bleu": score / 2, "by_length": ranges}
            path.write_text(json.dumps(scores))
    return tmp_path


def test_report(study):
    folder = write_report(study, read_study(study))
    table = (folder / "table.md").read_text()
    assert table == markdown(read_study(study))
    assert "| base | 2 | 92.00 ± 2.83 | 46.00 ± 1.41 | 92.00 ± 2.83 | 46.00 ± 1.41 |" in table
    assert "| deep | 1 | 80.00 | 40.00 | 80.00 | 40.00 |" in table
    header, base = list(csv.reader((folder / "table.csv").open()))[:2]
    assert base[:4] == ["base", "test", "exact_match", "2"]
    assert header[4:] == ["mean", "standard_deviation", "low_95", "high_95"]
    # Student's t with one degree of freedom: 12.7062 standard errors.
    assert list(map(float, base[4:])) == pytest.approx([92, 8**0.5, 92 - 25.4124, 92 + 25.4124])
    assert "base,1,test,94.0,47.0" in (folder / "runs.csv").read_text()
    by_length = (folder / "by_length.md").read_text()
    assert "| exact_match by source pieces, up to | 8 | 16 |" in by_length
    assert "| base, test | 92.00 ± 2.83 |  |" in by_length
    assert "| base, test_long | 52.00 ± 2.83 | 52.00 ± 2.83 |" in by_length
    for figure in ("table.png", "by_length.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")


def test_a_report_of_nothing_yet(tmp_path, sweep):
    write_study(tmp_path, sweep, expand(sweep, {}, seeds=1))
    assert "| base | 0 | missing |" in (write_report(tmp_path, read_study(tmp_path)) / "table.md").read_text()
