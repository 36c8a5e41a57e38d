"""The tour: both languages have the same code, equations, numbers and figures."""

import re

import pytest

import flow
import lesson
from experiments import model_plots
from tests.support.commands import ROOT

TOUR = ROOT / "docs" / "tour"
MODULES = {"flow": flow, "lesson": lesson, "model_plots": model_plots}
CHAPTERS = sorted(path.name for path in (TOUR / "en").glob("[0-9]_*.md"))


def read(language, chapter):
    return (TOUR / language / chapter).read_text()


def cells(text):
    """Returns the code of each cell, and whether its output has an alternative text."""
    parts = []
    for block in re.findall(r"```\{code-cell\} python\n(.*?)```", text, re.DOTALL):
        options = re.match(r"---\n.*?\n---\n|(?::[^\n]*\n)*", block, re.DOTALL).group()
        parts.append((block.removeprefix(options).strip(), bool(re.search(r"\n    alt: \S", options))))
    return parts


def outside_cells(text):
    return re.sub(r"```\{code-cell\} python\n.*?```", "", text, flags=re.DOTALL)


def included(text):
    return re.findall(r"```\{literalinclude\} (\S+)\n:pyobject: (\S+)", text)


def equations(text):
    return [re.sub(r"\\text\{.*?\}", "", math) for math in re.findall(r"\$\$(.*?)\$\$", text, re.DOTALL)]


def numbers(text):
    """Returns the numbers of a text, without those in links and equations, sorted."""
    text = re.sub(r"\]\(.*?\)|\{literalinclude\}.*|:pyobject:.*", "", outside_cells(text))
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", text.replace("{,}", ",")))


def test_there_are_nine_chapters_in_both_languages():
    assert len(CHAPTERS) == 9
    assert sorted(path.name for path in (TOUR / "ko").glob("[0-9]_*.md")) == CHAPTERS


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.parametrize("part", [cells, included, equations, numbers])
def test_both_languages_have_the_same(chapter, part):
    assert part(read("ko", chapter)) == part(read("en", chapter))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_an_equation_our_code_an_example_and_an_exercise_with_an_answer(chapter):
    text = read("en", chapter)
    assert equations(text)
    assert included(text)
    assert any("assert" in code for code, _ in cells(text))
    assert text.index("## Exercise") < text.index("<details><summary>Answer") < text.index("</details>")


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_uses_names_that_exist(chapter):
    for code, _ in cells(read("en", chapter)):
        for module, name in re.findall(r"\b(flow|lesson|model_plots)\.(\w+)", code):
            assert hasattr(MODULES[module], name), f"{module}.{name}"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_figure_has_an_alternative_text(chapter):
    for language in ("en", "ko"):
        text = read(language, chapter)
        assert not re.search(r"!\[\]", text)
        for code, has_alternative in cells(text):
            draws = "plt.subplots(" in code or re.search(
                r"\n(model_plots|lesson)\.\w+_(map|tree|diagram)\(", code
            )
            assert has_alternative == bool(draws), code


def test_every_term_of_the_glossary_is_used():
    rows = [
        line.split("|")[1:5]
        for line in (TOUR / "glossary.md").read_text().split("\n")
        if line.startswith("| ")
    ]
    english, korean = (
        " ".join(read(language, chapter) for chapter in CHAPTERS).lower() for language in ("en", "ko")
    )
    for term, translation, *_ in rows[1:]:
        for name in term.lower().split(","):
            assert name.strip() in english, name
        for name in translation.lower().split(","):
            assert name.strip() in korean, name
