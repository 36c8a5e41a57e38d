"""JSON files: strictness, digests, types of values, and manifests."""

from typing import Any

import pytest

from transformer.config import UserError
from transformer.json_files import (
    read_json,
    read_manifest,
    read_sealed,
    write_json,
    write_manifest,
    write_sealed,
)


def test_json_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "values.json"
    values = {"zwölf": [1, 2.5, None, True], "nested": {"a": "b"}}
    write_json(path, values)
    assert read_json(path) == values
    assert "zwölf" in path.read_text("utf-8")


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_json_that_cannot_be_read_is_refused(tmp_path, content):
    path = tmp_path / "values.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{path} cannot be read: "):
        read_json(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_is_strict(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": [value]})
    assert not list(tmp_path.iterdir())
    (tmp_path / "x.json").write_text('{"a": NaN}')
    with pytest.raises(UserError, match="x.json cannot be read: NaN is not JSON; restore it or delete it"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", ["[]", "1", '"text"', "null"])
def test_json_that_is_not_an_object_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UserError, match="x.json has .* instead of a JSON object; restore it or delete it"):
        read_json(tmp_path / "x.json")


def test_a_sealed_file_is_read_as_it_was_written_and_refused_otherwise(tmp_path):
    path = tmp_path / "x.json"
    write_sealed(path, {"score": 97.3, "name": "zwölf"})
    assert read_sealed(path) == {"score": 97.3, "name": "zwölf"}
    for old, new in (("97.3", "97.4"), ("score", "scope"), ("ö", "o"), ('"sha256"', '"sha255"')):
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(UserError, match="x.json was damaged or edited after it was written"):
            read_sealed(path)
        write_sealed(path, {"score": 97.3, "name": "zwölf"})


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        (str, "a", True),
        (str, None, False),
        (int, True, False),
        (int, 1.0, False),
        (float, 1, True),
        (float | None, None, True),
        (dict[str, int], {"a": 1}, True),
        (dict[str, int], {"a": "1"}, False),
        (dict[str, Any], [], False),
        (list[dict[str, float | None]], [{"a": 1.5, "b": None}], True),
        (list[str], ["a", 1], False),
        (tuple[str, ...], [], True),
        (tuple[str, str], ["a", "b"], True),
        (tuple[str, str], ["a"], False),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path, kind, value, fits):
    write_sealed(tmp_path / "a.json", {"key": value})
    if fits:
        assert read_sealed(tmp_path / "a.json", {"key": kind}) == {"key": value}
    else:
        with pytest.raises(UserError, match="'key' has an unexpected value; restore it or delete it"):
            read_sealed(tmp_path / "a.json", {"key": kind})


def test_a_missing_value_is_refused_unless_it_may_be_none(tmp_path):
    write_sealed(tmp_path / "a.json", {})
    assert read_sealed(tmp_path / "a.json", {"key": int | None}) == {}
    with pytest.raises(UserError, match="a.json is not a file of this program: 'key' is missing; "):
        read_sealed(tmp_path / "a.json", {"key": int})


def test_a_manifest_names_the_file_that_was_damaged_removed_or_added(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"0123")
    write_manifest(tmp_path, content="texts")
    assert read_manifest(tmp_path)["content"] == "texts"
    (tmp_path / "a").write_bytes(b"0133")
    with pytest.raises(UserError, match=f"{tmp_path}/a was damaged or changed after it was written; delete"):
        read_manifest(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(UserError, match=f"{tmp_path}/a is missing; delete {tmp_path} and run"):
        read_manifest(tmp_path)
    (tmp_path / "a").write_bytes(b"0123")
    (tmp_path / "c").touch()
    with pytest.raises(UserError, match=f"{tmp_path}/c was damaged or changed"):
        read_manifest(tmp_path)
