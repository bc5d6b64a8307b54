"""The house's rules that no tool checks: which way imports go, and what the top level holds."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("datamodules", "seeds", "training")  # each may import those before it


def imported(path: Path) -> set[str]:
    """The top-level names of all that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    """datamodules <- seeds <- training."""
    forbidden = set(ROOMS[ROOMS.index(room) + 1 :])
    backwards = {str(path): imported(path) & forbidden for path in (ROOT / room).rglob("*.py")}
    assert len(backwards) > 3
    assert not {path: names for path, names in backwards.items() if names}


def test_no_relative_imports():
    """Names are written whole, so that the test above sees them."""
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not any(levels), path


def test_top_level():
    """No other folder at the top than the owner's and the pages to read."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in listed if "/" in name}
    assert folders <= {"seeds", "training", "datamodules", "configs", "docs", "tests", ".ci"}
