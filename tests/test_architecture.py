"""Rules of the code base: allowed imports, no output from the library, and the names of commands."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each package may import itself and the packages after it in this list.
LIBRARY = [
    "tasks",
    "decoding",
    "evaluation",
    "training",
    "model",
    "data",
    "fidelity",
    "json_files",
    "files",
    "batch",
    "config",
]
# Packages that a package must not import although they come after it.
FORBIDDEN = {
    "model": {"data", "json_files", "files", "fidelity"},
    "training": {"data"},  # the training loop must work for tasks without text
    "decoding": {"evaluation"},
    "evaluation": {"training"},
}


def imports(path):
    """The dotted names of all imports in a file, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def command_files():
    return [path for path in (ROOT / "experiments").glob("*.py") if "cli.run(sys" in path.read_text()]


@pytest.mark.parametrize("path", files("transformer"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_of_the_library_imports_only_allowed_packages(path):
    package = path.relative_to(ROOT / "transformer").parts[0].removesuffix(".py")
    if package == "__init__":
        allowed = set()
    else:
        allowed = set(LIBRARY[LIBRARY.index(package) :]) - FORBIDDEN.get(package, set())
    for name in imports(path):
        top, _, rest = name.partition(".")
        assert top not in ("experiments", "configs", "absl", "ml_collections"), name
        if top == "transformer":
            assert rest.split(".")[0] in allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", files("configs"), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_file_imports_only_configs_and_transformer_config(path):
    for name in imports(path):
        if name.startswith(("transformer", "experiments")):
            assert name.startswith("transformer.config."), name


def test_the_library_prints_nothing_and_does_not_postpone_annotations():
    for path in files("transformer"):
        source = path.read_text()
        assert "from __future__ import annotations" not in source
        calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
        assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path


@pytest.mark.parametrize("path", files("experiments"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_a_command(path):
    commands = {f"experiments.{path.stem}" for path in command_files()}
    for name in imports(path):
        assert not {name, name.rpartition(".")[0]} & commands, f"{path} imports {name}"


def test_no_two_command_names_differ_only_in_the_ending():
    stems = sorted(path.stem for path in command_files())
    for shorter in stems:
        similar = [stem for stem in stems if stem != shorter and stem.startswith(shorter[:-1])]
        assert not similar, f"{shorter} and {similar}"


def test_every_package_has_a_docstring_and_lists_its_exports():
    for path in files("transformer"):
        if path.name == "__init__.py" and path.parent.name != "transformer":
            tree = ast.parse(path.read_text())
            assert ast.get_docstring(tree), path
            names = [node.targets[0].id for node in tree.body if isinstance(node, ast.Assign)]
            assert "__all__" in names, path
