"""Runs a script in a page in headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")


def run_script(
    page: str, script: str, folder: Path, *options: str, is_deferred: bool = False
) -> dict[str, Any]:
    """Returns the object `result` that a script fills. The page must write nothing to the console.

    Args:
      page: the HTML.
      script: JavaScript that runs after the scripts of the page.
      folder: an empty folder for the page and the browser's files.
      *options: further options of Chromium.
      is_deferred: whether the script calls `show()` itself when the result is complete.
    """
    path = folder / "page.html"
    start = """const result = {}; function show() {
        const text = document.createElement("p"); text.id = "result"; text.textContent = JSON.stringify(result);
        document.body.append(text);
    };"""
    added = f"<script>{start}{script};{'' if is_deferred else 'show();'}</script></body>"
    path.write_text(page.replace("</body>", added), encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *OPTIONS, *options, f"--user-data-dir={folder}/profile", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    messages = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not messages, messages
    return json.loads(html.unescape(re.search('<p id="result">(.*?)</p>', done.stdout, re.DOTALL)[1]))
