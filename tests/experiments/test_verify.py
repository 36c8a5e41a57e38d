"""`verify` finds every kind of damage, and no problem in undamaged runs and studies."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import call, refuse
from transformer.json_files import read_json, read_sealed, write_sealed


@pytest.fixture
def text(text_run, tmp_path) -> Path:
    """A copy of a trained and evaluated run with its data, for a test to damage."""
    return shutil.copytree(text_run, tmp_path / "text")


def problems(folder: Path) -> list[str]:
    return call("verify", "--workdir=run", cwd=folder, status=2).stdout.splitlines()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_an_undamaged_run_has_no_problem_and_is_not_changed(text):
    before = {path: path.read_bytes() for path in text.rglob("*") if path.is_file()}
    done = call("verify", "--workdir=run", cwd=text)
    assert done.stdout.startswith("run: no problems; checkpoints: 2, data: parallel_text/")
    assert done.stdout.endswith("(train, validation), evaluations: 1\n")
    assert {path: path.read_bytes() for path in text.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("run/result.json", "run/result.json "),
        ("run/tokenizer.model", "run/tokenizer.model "),
        ("run/metrics.jsonl", "run/metrics.jsonl:"),
        ("run/eval/test.json", "run/eval/test.json "),
        ("run/eval/test.hyp.txt", "run/eval/test.hyp.txt "),
        ("run/checkpoints/2/metadata/metadata", "run/checkpoints/2 is "),
        ("run/checkpoints/2/params/**/*", "run/checkpoints/2 is "),
        ("run/checkpoints/4/opt_state/**/*", "run/checkpoints/4 is "),
        ("data/**/tokens/**/train/source.npy", "train/source.npy "),
    ],
)
def test_a_flipped_bit_is_found(text, pattern, message):
    files = (path for path in text.glob(pattern) if path.is_file())
    flip(max(files, key=lambda path: path.stat().st_size))
    lines = problems(text)
    assert any(message in line for line in lines), lines
    assert all(line.startswith("run: ") for line in lines)


def test_every_damaged_split_is_found(text):
    for split in ("train", "validation"):
        (path,) = text.glob(f"data/**/tokens/**/{split}/source.npy")
        flip(path)
    lines = problems(text)
    assert len(lines) == 2
    assert "train/source.npy " in lines[0]
    assert "validation/source.npy " in lines[1]


def test_missing_and_foreign_files_are_found(text):
    shutil.rmtree(text / "run/checkpoints/4")
    (text / "run/eval/test.json").rename(text / "run/eval/validation.json")
    config = read_json(text / "run/config.json")
    config["train"]["seed"] = 7
    (text / "run/config.json").write_text(json.dumps(config))
    assert problems(text) == [
        "run: checkpoint 4, the last of the training, is missing",
        "run: config.json is not the config that checkpoint 2 was trained with",
        "run: run/eval/validation.json contains the evaluation test.json; rename the file to test.json",
    ]


def test_the_flags_are_checked(tmp_path):
    assert refuse("verify") == "--workdir and --root are both missing; give one of them"
    given = refuse("verify", "--workdir=a", "--root=b")
    assert given == "--workdir and --root are both given; give one of them"
    assert refuse("verify", f"--workdir={tmp_path}").startswith(f"{tmp_path} is not a run: ")
    (tmp_path / "config.json").write_text("{")
    assert refuse("verify", f"--workdir={tmp_path}").startswith(f"{tmp_path}/config.json cannot be read: ")
    (tmp_path / "config.json").unlink()
    assert refuse("verify", f"--root={tmp_path}").startswith(f"{tmp_path} is not a study: ")


def test_a_study_stored_without_weights_and_texts_has_no_problem(tmp_path):
    stored = Path("docs/studies/positions/results")
    done = call("verify", f"--root={stored}")
    assert done.stdout.count(": no problems; checkpoints: none, evaluations: 2") == 40
    root = tmp_path / "study"
    root.mkdir()
    shutil.copy(stored / "study.json", root)
    run = next(stored.glob("rope/0-*"))
    path = shutil.copytree(run, root / "rope" / run.name) / "eval/test.json"
    write_sealed(path, read_sealed(path) | {"ablated": "positions"})
    line = call("verify", f"--root={root}", status=2).stdout
    assert "contains the evaluation test,ablate=positions.json; rename the file to " in line


def test_a_run_in_the_folder_of_another_run_is_found(tmp_path):
    stored, root = Path("docs/studies/positions/results"), tmp_path / "study"
    root.mkdir()
    shutil.copy(stored / "study.json", root)
    first, second = (root / path.relative_to(stored) for path in sorted(stored.glob("rope/*"))[:2])
    shutil.copytree(stored / second.relative_to(root), first)
    assert refuse("verify", f"--root={root}").startswith(f"{first} contains a run with a different config; ")
