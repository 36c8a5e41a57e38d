"""Run and study folders from a stranger: commands execute none of their code, and touch no file outside.

An audit hook records the files that Python opens and the modules and processes that it starts.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from experiments.run_folder import Run
from tests.support.commands import ROOT, call
from transformer.data.builders import BUILDERS
from transformer.json_files import sealed, write_sealed

RECORDED: list[str] = []
IS_RECORDING = [False]


def _record(event, arguments):
    if IS_RECORDING[0] and event in ("open", "import", "subprocess.Popen", "os.system"):
        RECORDED.append(f"{event} {arguments[0]!r}")


sys.addaudithook(_record)


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A folder outside, with a Python module and a private file, that no command may read or change.

    Yields a function that checks this.
    """
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "private.txt").write_text("secret\n")
    (tmp_path / "current").mkdir()
    for place in (folder, tmp_path / "current"):
        (place / "stranger_module.py").write_text("raise SystemExit('executed')\n")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.syspath_prepend(tmp_path / "current")  # as `python -m` does
    RECORDED.clear()
    IS_RECORDING[0] = True

    def check():
        IS_RECORDING[0] = False
        assert not [event for event in RECORDED if str(folder) in event or "stranger_module" in event]
        assert {path.name: path.read_text() for path in folder.iterdir()} == {
            "private.txt": "secret\n",
            "stranger_module.py": "raise SystemExit('executed')\n",
        }
        assert "stranger_module" not in sys.modules

    yield check
    IS_RECORDING[0] = False


@pytest.fixture
def folder(trained, canary, tmp_path) -> Path:
    """A copy of a trained run, in the current folder."""
    return shutil.copytree(trained, tmp_path / "current" / "run")


def forge(folder: Path, **data) -> None:
    """Changes the data section of a run's config, and makes the checkpoints match, as an attacker could."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["data"] |= data
    path.write_text(json.dumps(config))
    for metadata_path in folder.glob("checkpoints/*/metadata/metadata"):
        metadata = json.loads(metadata_path.read_text())
        del metadata["sha256"]
        metadata["identity"] |= {"config": Run(folder).config_hash, "data": f"{data['name']}/x/1.0.0"}
        metadata_path.write_text(json.dumps(sealed(metadata)))


def hostile_data_set(folder: Path) -> None:
    """Writes a prepared data set whose features are a class in the stranger's module."""
    place = folder / "data" / "stranger_set" / "1.0.0"
    place.mkdir(parents=True)
    features = {"pythonClassName": "stranger_module.Features", "featuresDict": {"features": {}}}
    (place / "features.json").write_text(json.dumps(features))
    info = {"name": "stranger_set", "version": "1.0.0", "fileFormat": "array_record", "splits": []}
    (place / "dataset_info.json").write_text(json.dumps(info))


USES = {
    "evaluate": (),
    "translate": (),
    "visualize": ("--sentence=twelve",),
    "export": ("--format=marian", "--out=exported"),
}


def use(folder: Path, refused: str | None, command: str = "evaluate", *flags: str) -> None:
    """Runs a command on the run. If `refused` is given, the command must fail with this message."""
    done = call(
        command,
        f"--workdir={folder}",
        *USES.get(command, ()),
        *flags,
        status=None,
        stdin=b"twelve\n",
        cwd=folder.parent,
    )
    if refused is not None:
        assert done.status == 2, done
        assert refused in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *[(command, "stranger_set") for command in USES],
        ("evaluate", "stranger_set/x:1.0.0"),
        ("evaluate", "kaggle:stranger_set"),
        ("evaluate", "../run/data/stranger_set"),
    ],
)
def test_a_data_set_of_a_stranger_runs_no_code(folder, canary, command, name):
    hostile_data_set(folder)
    forge(folder, name=name, data_dir=str(folder / "data"), options={})
    refused = f"data.name is {name!r}; it must be {', '.join(BUILDERS)} or a TFDS set"
    use(folder, refused if command == "evaluate" else None, command)
    canary()


@pytest.mark.parametrize("place", ["trap", None])
def test_raw_files_that_a_config_names_are_not_read(folder, canary, tmp_path, place):
    private = str(tmp_path / "outside" / "private.txt")
    forge(
        folder,
        name="parallel_text",
        data_dir=place and str(tmp_path / "current" / place),
        options={"train": f"{private},{private}", "held_out": 1},
    )
    use(folder, "parallel_text/x/1.0.0 is not prepared in ")
    assert not (tmp_path / "current" / "trap").exists()
    canary()


@pytest.mark.parametrize("language", ["../../outside", "/etc", "", "a\0b", "a" * 99])
def test_a_language_that_is_a_path_is_refused(folder, canary, language):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["data"]["source"] = language
    path.write_text(json.dumps(config))
    use(folder, "data.source is ")
    canary()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "evaluate"), ("tokenizer.model", "translate"), ("eval", "evaluate"), ("eval/test.json", "evaluate"),
        ("figures", "visualize"), ("checkpoints", "evaluate"), ("checkpoints/300/params", "translate"),
        ("metrics.jsonl", "visualize"), ("result.json", "train"), (".lock", "train"), ("tensorboard", "train"), ("error.txt", "train"),
    ],
)  # fmt: skip
def test_no_link_in_a_run_folder_is_followed(folder, canary, tmp_path, name, command):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    is_folder = "." not in name
    path.symlink_to(tmp_path / "outside" / ("" if is_folder else "private.txt"))
    use(folder, f"{path} is a symbolic link; replace it with a copy of its target, or delete it", command)
    canary()


def test_a_run_folder_that_is_reached_by_a_link_works(folder, canary):
    link = folder.with_name("best")
    link.symlink_to(folder)
    assert call("translate", f"--workdir={link}", stdin=b"twelve\n").stdout
    canary()


@pytest.mark.parametrize("name", ["../outside/x", "a/b", ".", "..", "", "-x", "x\ny", "test", "a,b=c"])
def test_an_invalid_name_of_a_test_set_is_refused(folder, canary, name):
    (folder.parent / "lines").write_text("twelve\n")
    use(folder, "--name is ", "evaluate", "--source=lines", "--target=lines", f"--name={name}")
    canary()


SWEEP = {
    "name": "s", "config": "configs/number_words.py", "variants": {"a": {}}, "splits": ["test"], "metrics": ["bleu"],
    "question": "", "baseline": "a", "primary": ["bleu", "test"], "tune": {}, "equal": None, "tuned": {}, "published": {}, "changes": {}, "costs": {},
}  # fmt: skip
SWEEP_FILE = f"""
CONFIG = "{ROOT}/configs/number_words.py"
VARIANTS = {{"a": {{}}}}
SPLITS = ("test",)
METRICS = ("bleu",)
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": ["../outside/0-1"]}, {"runs": ["a/../../outside"]}, {"runs": ["/etc/0-1"]}, {"runs": ["a"]}, {"runs": ["a/0-1/2"]},
        {"splits": ["../../../outside/private"], "runs": ["a/0-1"]}, {"splits": ["/etc/x"], "runs": ["a/0-1"]},
    ],
)  # fmt: skip
def test_a_study_that_names_a_path_outside_is_refused(canary, tmp_path, changes):
    root = tmp_path / "current" / "study"
    (root / "a" / "0-1").mkdir(parents=True)
    write_sealed(root / "study.json", SWEEP | changes)
    done = call("report", f"--root={root}", status=2)
    reason = "it must be a plain file name" if "splits" in changes else "is not a run of this study"
    assert reason in done.stderr
    canary()


@pytest.mark.parametrize(
    "name", ["study.json", "report", "a", "a/0-1", "a/0-1/eval", "a/0-1/result.json", "a/0-1/log.txt"]
)
def test_no_link_in_a_study_folder_is_followed(canary, tmp_path, name):
    root = tmp_path / "current" / "study"
    (root / "a" / "0-1").mkdir(parents=True)
    write_sealed(root / "study.json", SWEEP | {"runs": ["a/0-1"]})
    path = root / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "outside" / ("private.txt" if "." in name else ""))
    (tmp_path / "current" / "sweep.py").write_text(SWEEP_FILE)
    for command in (("report",), ("launch", f"--sweep={tmp_path}/current/sweep.py")):
        done = call(*command, f"--root={root}", status=2)
        assert f"{path} is a symbolic link" in done.stderr
    canary()
