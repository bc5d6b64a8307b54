"""Read HTML pages in tests: elements, self-containedness, and a headless browser."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

import training.reports

VOID = ("area", "base", "br", "col", "hr", "img", "input", "link", "meta")
HOSTILE = '\'"><img src=x onerror="window.injected=1"><script>window.injected=1</script>{{ 7 * 7 }}'
"""A name that sets a variable of the page if it becomes markup; without "/" it is a valid name of a file."""


class PageReader(HTMLParser):
    """Elements with their attributes, and the text outside style and script; fails if tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found, self.open, self.text, self.scripts = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def check_page(page: str) -> PageReader:
    """Check that a page is well-formed, needs no other file, and runs no script but the page's."""
    read = PageReader(page)
    for tag, attrs in read.found:
        assert tag not in ("link", "iframe", "base", "object")
        assert not {"href", "srcset", "action"} & attrs.keys()
        assert not any(name.startswith("on") for name in attrs)
        assert attrs.get("src", "data:image/").startswith("data:image/")
    rest = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", rest)
    script = Path(training.reports.__file__).with_name("templates") / "page.js"
    assert "".join(read.scripts).strip() == script.read_text().strip()
    return read


def run_chromium(*arguments: str, folder: Path) -> str:
    """Return the document of a page after Chromium has loaded it; skip the test where there is no Chromium."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
    command += ["--dump-dom", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True).stdout
