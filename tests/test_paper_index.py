"""The index of docs/paper.md: every entry names code or a config field that exists."""

import importlib
import re
from functools import reduce

import pytest

from tests.support.commands import ROOT
from transformer.config import ExperimentConfig, declarations

SECTION = (ROOT / "docs" / "paper.md").read_text().split("## Equations, symbols, tables and figures")[1]
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.split("\n## ")[0].split("\n")
    if line.startswith("|")
][2:]
NAMES = sorted({name for row in TABLE for name in re.findall(r"`([\w.]+)`", row[2])})
FIELDS = declarations(ExperimentConfig)
EQUATIONS, TABLES, FIGURES = 3, 4, 5  # in the paper


def resolve(name):
    """Imports the longest prefix of a dotted name that is a module, and reads the rest as attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return reduce(getattr, parts[end:], module)
    raise AssertionError(f"{name} does not exist")


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_index_exists(name):
    if name not in FIELDS:
        outside = name.startswith(("configs.", "experiments."))
        resolve(name if outside else f"transformer.{name}")


def test_an_unknown_name_is_found():
    with pytest.raises((AssertionError, AttributeError)):
        resolve("transformer.model.attention.no_such_function")


def test_every_row_names_code_or_says_that_there_is_none():
    for row in TABLE:
        assert "`" in row[2] or row[2] == "not implemented", row


def test_the_index_has_every_equation_table_and_figure_of_the_paper():
    entries = " ".join(row[0] for row in TABLE)
    numbers = {kind: set() for kind in ("equation", "table", "figure")}
    for kind, listed in re.findall(r"(equation|table|figure)s? ([\d, ]+)", entries, re.IGNORECASE):
        numbers[kind.lower()] |= set(map(int, re.findall(r"\d", listed)))
    assert numbers == {
        "equation": set(range(1, EQUATIONS + 1)),
        "table": set(range(1, TABLES + 1)),
        "figure": set(range(1, FIGURES + 1)),
    }


def test_the_index_has_every_column_of_table_3():
    symbols = {symbol for row in TABLE for symbol in re.split(", ", row[0])}
    assert symbols >= {"N", "d_model", "d_ff", "h", "d_k", "d_v", "P_drop", "ε_ls"}
