"""The check of the data of a study, before the first run starts."""

import pytest

from experiments.study import local_runs
from experiments.study.plan import check_data
from experiments.study.sweep import expand
from experiments.study.sweep_file import load_sweep
from tests.support.commands import refuse
from tests.support.errors import refused
from tests.support.studies import write_run
from tests.support.text_files import write_pairs
from transformer.data import tfds_sets

SWEEP = """
CONFIG = "configs/{}"
VARIANTS = {{"slow": {{"optimizer.learning_rate": 1e-3}}, "fast": {{"optimizer.learning_rate": 1e-2}}}}
SPLITS = ("test",)
METRICS = ("nll",)
"""


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        ("wmt14.py:smoke", {"data.name": "nope"}, "data.name is 'nope'; it must be number_words, multi30k, "),
        ("wmt14.py:smoke", {"data.name": "lm1b"}, "data.name is 'lm1b', a set of documents; choose a set of pairs"),
        ("wmt14.py:smoke", {"data.target": "fr"}, "data.target is 'fr'; it must be a language of wmt14_translate/de-en: de, en"),
        ("number_words.py:smoke", {"data.target": "xx"}, "number_words: num2words has no language 'xx'; choose one of: "),
        ("multi30k.py", {"data.target": "xx"}, "multi30k has no file tok/train.lc.norm.tok.xx; data.source and data.target "),
        ("multi30k.py", {"data.options.manual_dir": "/nowhere"}, "data.options.manual_dir: /nowhere/train.lc.norm.tok.en (or .gz) is not a file; "),
        ("text.py:smoke", {"data.options.train": "/nowhere.tsv", "data.options.held_out": 9}, "data.options.train: /nowhere.tsv (or .gz) is not a file; "),
        ("gpt.py:shakespeare,smoke", {"data.options.folder": "/nowhere"}, "data.options.folder: /nowhere is not a folder; "),
        ("wmt14.py:smoke", {}, "preparing wmt14_translate/de-en needs TensorFlow: pip install -e '.[prepare]'"),
        ("images.py:mnist", {}, "preparing mnist needs TensorFlow: pip install -e '.[prepare]'"),
        ("images.py:folder", {"data.options.folder": "/nowhere"}, "data.options.folder: /nowhere is not a folder; "),
    ],
)  # fmt: skip
def test_missing_data_is_refused_before_the_first_run(tmp_path, monkeypatch, config, changes, message):
    monkeypatch.setattr(local_runs, "run_jobs", lambda *_: pytest.fail("a run starts"))
    monkeypatch.setattr(tfds_sets, "has_tensorflow", lambda: False)
    (tmp_path / "sweep.py").write_text(SWEEP.format(config))
    sets = [f"--set={key}={value}" for key, value in {"data.data_dir": tmp_path / "data", **changes}.items()]
    line = refuse("launch", f"--sweep={tmp_path}/sweep.py", f"--root={tmp_path}/study", *sets)
    assert line.startswith(message)
    assert {path.name for path in tmp_path.iterdir()} <= {"sweep.py", "__pycache__"}


def test_runs_that_have_started_do_not_need_the_raw_text(tmp_path):
    (tmp_path / "sweep.py").write_text(SWEEP.format("text.py:smoke"))
    pairs = tmp_path / "pairs.tsv"
    write_pairs(pairs)
    changes = {"data.data_dir": str(tmp_path), "data.options.train": str(pairs), "data.options.held_out": 9}
    runs = expand(load_sweep(f"{tmp_path}/sweep.py"), changes, seeds=2)
    for run in runs[:2]:
        write_run(tmp_path, run, {}, result={"validation": {"nll": 1.0}})
    (tmp_path / runs[2].path / "checkpoints").mkdir(parents=True)
    pairs.unlink()
    check_data(tmp_path, runs[:3])
    assert refused(check_data, tmp_path, runs).startswith(
        f"data.options.train: {pairs} (or .gz) is not a file"
    )
