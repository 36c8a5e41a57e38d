"""Every command that reads a run checks the config, the text, the vocabulary and the checkpoints."""

import json
import shutil
import zlib
from pathlib import Path

import pytest

from experiments.run_folder import Run
from experiments.trained_model import load_trained
from tests.support.commands import TEXT, call, refuse
from tests.support.text_files import PAIRS, write_pairs
from transformer.json_files import read_json, read_sealed, sealed, write_sealed
from transformer.training.checkpoints import Checkpoints

COMMANDS = (("evaluate",), ("translate", "--input=/dev/null"), ("visualize", "--sentence=one"), ("train",))


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A copy of the trained run, for a test to edit. It has no result.json, as if the run had been killed at its end."""
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "result.json").unlink()
    return folder


def refusals(folder: Path, commands=COMMANDS) -> list[str]:
    """The errors of the commands that use a trained run."""
    return [refuse(name, *arguments, f"--workdir={folder}") for name, *arguments in commands]


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("model", "positions", "none"), ("train", "seed", 1), ("data", "target", "fr")],
)
def test_an_edited_config_is_refused(copy, section, field, value):
    path = copy / "config.json"
    config = read_json(path)
    config[section][field] = value
    path.write_text(json.dumps(config))
    for line in refusals(copy):
        assert "config" in line
        assert "; restore " in line


def test_a_trained_run_with_an_edited_config_is_not_trained(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    config = read_json(folder / "config.json")
    config["model"]["positions"] = "none"
    (folder / "config.json").write_text(json.dumps(config))
    line = refuse("train", f"--workdir={folder}")
    assert line == f"{folder}/config.json is not the config that the run was trained with; restore the file"


def test_a_second_train_with_another_config_changes_nothing(copy, smoke):
    before = (copy / "config.json").read_bytes()
    line = refuse("train", *smoke, "--config.model.positions=none", f"--workdir={copy}")
    assert line.startswith(f"{copy} has a run with another config: ")
    assert (copy / "config.json").read_bytes() == before


def exchange(copy: Path, item: str) -> None:
    """Replaces a folder of checkpoint 300 with that of checkpoint 150. If `item` is empty, replaces all."""
    shutil.rmtree(copy / "checkpoints/300" / item)
    shutil.copytree(copy / "checkpoints/150" / item, copy / "checkpoints/300" / item)


def edit_metadata(copy: Path, change: dict) -> None:
    path = copy / "checkpoints/300/metadata/metadata"
    path.write_text(json.dumps(read_json(path) | change))


@pytest.mark.parametrize(
    ("damage", "argument"),
    [
        (exchange, ""),
        (exchange, "params"),
        (edit_metadata, {"step": 150}),
        (edit_metadata, {"criterion": 0.0}),
        (edit_metadata, {"task": {"trained_lengths": [99, 99]}}),
        (edit_metadata, {"identity": {}}),
    ],
)
def test_an_exchanged_or_edited_checkpoint_counts_as_damaged(copy, damage, argument):
    damage(copy, argument)
    done = call("translate", f"--workdir={copy}", "--input=/dev/null")
    damaged, unfinished = done.stderr.splitlines()
    assert damaged.startswith(f"warning: checkpoint {copy}/checkpoints/300 is ")
    assert damaged.endswith("; using checkpoint 150")
    assert unfinished == f"warning: the training of {copy} is not complete: step 150 of 300"


def test_checkpoints_of_two_runs_are_not_averaged(copy):
    path = copy / "checkpoints/150/metadata/metadata"
    metadata = read_json(path)
    metadata["identity"]["content"] = "0" * 64
    path.write_text(json.dumps(sealed(metadata)))
    line = refuse("evaluate", f"--workdir={copy}", "--set=decode.average_last=2")
    assert line.startswith(f"checkpoint 150 of {copy} is from another run; ")
    call("translate", f"--workdir={copy}", "--input=/dev/null")


@pytest.mark.parametrize("change", [{"identity": {}}, {"identity": 3}, {"step": "300"}, {"status": None}])
def test_a_result_that_this_program_did_not_write_is_refused(trained, tmp_path, change):
    folder = shutil.copytree(trained, tmp_path / "copy")
    write_sealed(folder / "result.json", read_sealed(folder / "result.json") | change)
    for line in refusals(folder):
        assert line.startswith(f"{folder}/result.json is not a file of this program: ")


def test_a_checkpoint_after_the_end_of_the_training_is_ignored(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    (folder / "checkpoints/400").mkdir()
    assert load_trained(Run(folder)).steps == [300]
    assert "is already trained" in call("train", f"--workdir={folder}").stdout


def test_a_record_without_a_step_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    record = {"kind": "train", "loss": 1.0}
    checksum = f"{zlib.crc32(json.dumps(record).encode()):08x}"
    (folder / "metrics.jsonl").write_text(json.dumps({**record, "crc32": checksum}) + "\n")
    assert refuse("visualize", f"--workdir={folder}").startswith(f"{folder}/metrics.jsonl:1: the record was ")


def test_checkpoint_metadata_of_another_program_counts_as_damaged(copy):
    path = copy / "checkpoints/300/metadata/metadata"
    metadata = read_json(path)
    del metadata["identity"]
    path.write_text(json.dumps(sealed(metadata)))
    assert "checkpoint " in call("verify", f"--workdir={copy}", status=2).stdout
    assert load_trained(Run(copy)).steps == [150]


@pytest.fixture
def text(text_run, tmp_path) -> Path:
    """A copy of `text_run`, for a test to change."""
    return shutil.copytree(text_run, tmp_path / "text")


def scores(folder: Path) -> dict:
    return read_sealed(folder / "run/eval/test.json")


def weights(folder: Path) -> str:
    """The digest of the final weights."""
    return read_sealed(folder / "run/result.json")["params_sha256"]


def test_a_run_can_be_used_after_its_text_file_was_deleted(text, text_run):
    (text / "pairs.tsv").unlink()
    shutil.rmtree(text / "run/eval")
    call("evaluate", "--workdir=run", cwd=text)
    assert scores(text) == scores(text_run)

    shutil.rmtree(text / "run/checkpoints/4")
    line = refuse("evaluate", "--workdir=run", cwd=text)
    assert line.startswith("checkpoint 4 of run is missing; train the run again with ")
    call("train", "--workdir=run", cwd=text)
    assert weights(text) == weights(text_run)
    assert "is prepared in data/parallel_text/" in call("prepare", "--workdir=run", cwd=text).stdout


def damage_last(folder: Path) -> None:
    for path in (folder / "run/checkpoints/4").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")


def test_a_trained_run_with_a_damaged_checkpoint_is_trained_again(text, text_run):
    """Scores of an earlier checkpoint would be another result under the same name."""
    damage_last(text)
    line = refuse("evaluate", "--workdir=run", cwd=text)
    assert line.startswith(f"checkpoint {text}/run/checkpoints/4 is unreadable: ")
    assert line.endswith("; train the run again with python -m experiments.train --workdir=run")
    done = call("train", "--workdir=run", cwd=text)
    assert f"warning: checkpoint {text}/run/checkpoints/4 is unreadable: " in done.stderr
    assert "; resuming from step 2\n" in done.stderr
    assert weights(text) == weights(text_run)
    assert "is already trained: 4 steps" in call("train", "--workdir=run", cwd=text).stdout


def test_an_unfinished_run_is_used_without_its_damaged_checkpoint(text):
    result = read_sealed(text / "run/result.json")
    write_sealed(text / "run/result.json", result | {"status": "running"})
    damage_last(text)
    done = call("evaluate", "--workdir=run", cwd=text)
    assert "; using checkpoint 2\n" in done.stderr
    assert scores(text)["checkpoints"] == [2]


def test_a_checkpoint_that_training_deletes_while_it_is_read_is_left_out(text, monkeypatch):
    read, result = Checkpoints.params, read_sealed(text / "run/result.json")
    write_sealed(text / "run/result.json", result | {"status": "running"})

    def params(checkpoints, step, template):
        if step == 2:
            shutil.rmtree(text / "run/checkpoints/2", ignore_errors=True)
        return read(checkpoints, step, template)

    monkeypatch.setattr(Checkpoints, "params", params)
    done = call("evaluate", "--workdir=run", "--set=decode.average_last=2", cwd=text)
    assert done.stderr.splitlines() == ["warning: the training of run is not complete: step 4 of 4"]
    scores = read_sealed(text / "run/eval/test,decode.average_last=2.json")
    assert scores["checkpoints"] == [4]


def test_edited_text_is_not_trained_on_and_not_scored(text):
    """Evaluation uses the prepared data, which still contains the original text."""
    content = scores(text)["content"]
    write_pairs(text / "pairs.tsv", [*PAIRS[1:], ("another man", "ein anderer Mann")])
    shutil.rmtree(text / "run/checkpoints/4")
    for name in ("train", "prepare"):
        line = refuse(name, "--workdir=run", cwd=text)
        assert line.startswith("run was trained on parallel_text/en-de.")
        assert line.endswith("; restore the data, or train in another folder")
    (text / "run/result.json").unlink()
    call("evaluate", "--workdir=run", cwd=text)
    assert scores(text)["content"] == content


def test_evaluation_prepares_nothing(text):
    before = scores(text)
    shutil.rmtree(text / "data")
    line = refuse("evaluate", "--workdir=run", cwd=text)
    assert line.endswith("; prepare it with python -m experiments.prepare --workdir=RUN")
    assert not (text / "data").exists()
    call("translate", "--workdir=run", "--input=/dev/null", cwd=text)
    call("prepare", "--workdir=run", cwd=text)
    call("evaluate", "--workdir=run", cwd=text)
    assert scores(text) == before


def test_prepare_names_a_missing_text_file(text):
    shutil.rmtree(text / "data")
    (text / "pairs.tsv").unlink()
    line = refuse("prepare", "--workdir=run", cwd=text)
    assert line == "data.options.train: pairs.tsv (or .gz) is not a file; give the path of a file"


def test_the_vocabulary_of_the_data_folder_may_change_after_training(text):
    """A run uses its own copy of the vocabulary, so changes in the data folder do not affect its results."""
    before = scores(text)
    (path,) = text.glob("data/parallel_text/*/*/tokens/*/tokenizer.model")
    path.write_bytes((text / "run/tokenizer.model").read_bytes()[:-1])
    call("evaluate", "--workdir=run", cwd=text)
    assert scores(text) == before
    line = refuse("train", *TEXT, "--workdir=other", cwd=text)
    assert str(path.parent.relative_to(text)) in line


@pytest.mark.parametrize("name", ["source.npy", "target_offsets.npy", "characters.npy"])
def test_a_flipped_bit_in_the_tokens_is_refused(text, name):
    (path,) = text.glob(f"data/parallel_text/*/*/tokens/*/*/train/{name}")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shutil.rmtree(text / "run/checkpoints/4")
    line = refuse("train", "--workdir=run", cwd=text)
    assert path.name in line


def test_a_flipped_bit_in_the_records_is_refused(text):
    (path,) = text.glob("data/parallel_text/*/*/*-test.array_record*")
    content = bytearray(path.read_bytes())
    place = content.find(b"man")
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    line = refuse("evaluate", "--workdir=run", cwd=text)
    assert "data/parallel_text" in line


@pytest.mark.parametrize(
    ("flags", "problem"), [((), "missing"), (("--config=configs/text.py", "--workdir=run"), "given")]
)
def test_prepare_needs_either_a_config_or_a_run(flags, problem):
    assert refuse("prepare", *flags) == f"--config and --workdir are both {problem}; give one of them"


def test_a_run_without_checkpoints_is_prepared(text):
    shutil.rmtree(text / "run/checkpoints")
    call("prepare", "--workdir=run", cwd=text)
    assert Run(text / "run").identity is None
