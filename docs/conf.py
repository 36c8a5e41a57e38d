"""Configuration of the documentation site, which `make docs` builds with Sphinx."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Cells import the library and the modules in docs/tour.
os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'docs' / 'tour'}"

project = "transformer-reference"
author = "the developers of transformer-reference"
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "studies/*/results"]

# The cells of a page run once for both languages if all of them are equal, alternative texts included.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4

default_role = "code"  # docstrings write code as in Markdown: `name`
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_attr_annotations = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = project
html_use_index = False
html_context = {"default_mode": "auto"}  # without it, the theme logs an error on the first visit
html_static_path = ["_build/static", "static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_navbar_depth": 1,
    "use_download_button": False,
    "navbar_persistent": [],  # the sidebar has the search
    # The tour and the studies, which are in folders, have no list of sections; see static/site.css.
    "secondary_sidebar_items": {"*": ["page-toc"]},
}
# `make docs` installs MathJax from npm, so that the site needs no network.
mathjax_path = "tex-svg.js"


def setup(app):
    app.connect("autodoc-skip-member", _is_plain_field)
    app.connect("html-page-context", _set_language)


def _set_language(app, page, template, context, doctree) -> None:
    """Marks the Korean pages as Korean, for screen readers and fonts."""
    if page.startswith("tour/ko/"):
        context["language"] = "ko"


def _is_plain_field(app, kind, name, member, skip, options) -> bool | None:
    """Skips the fields of a NamedTuple, which its docstring describes."""
    return True if type(member).__name__ == "_tuplegetter" else None
