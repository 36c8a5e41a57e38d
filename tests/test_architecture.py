"""Imports point down the list of DESIGN; the library knows no flags."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each may import what stands after it; `model` and `data` not each other.
ORDER = ["evaluation", "decoding", "training", "model", "data", "disk", "fidelity", "config"]
ALLOWED = {stop: set(ORDER[number:]) for number, stop in enumerate(ORDER)}
ALLOWED["model"] -= {"data"}


def imports(path):
    """Dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", files("transformer"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_downwards(path):
    stop = path.relative_to(ROOT / "transformer").parts[0].removesuffix(".py")
    for name in imports(path):
        package, _, rest = name.partition(".")
        assert package not in ("experiments", "configs", "absl", "ml_collections"), name
        if package == "transformer":
            assert rest.split(".")[0] in ALLOWED[stop], f"{path} imports {name}"


@pytest.mark.parametrize("path", files("configs"), ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_know_the_config_alone(path):
    for name in imports(path):
        if name.startswith(("transformer", "experiments")):
            assert name.startswith("transformer.config."), name


def test_the_library_prints_nothing_and_postpones_no_annotation():
    for path in files("transformer"):
        source = path.read_text()
        assert "from __future__ import annotations" not in source
        calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path
