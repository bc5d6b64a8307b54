"""Rules of the package layout that no tool checks: which way imports go, and what the top level holds."""

import ast
import pkgutil
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("datamodules", "seeds", "training")  # each may import those to its left


def imported(path: Path) -> set[str]:
    """The top-level names of all that a file imports, within functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    """datamodules <- seeds <- training."""
    forbidden = set(PACKAGES[PACKAGES.index(package) + 1 :])
    backwards = {str(path): imported(path) & forbidden for path in (ROOT / package).rglob("*.py")}
    assert len(backwards) > 3
    assert not {path: names for path, names in backwards.items() if names}


def test_docstrings_refer_to_names_that_exist():
    """References such as `seeds.cues.foreground_cues`."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {
        name
        for path in paths
        for name in re.findall(rf"(?<!`)`((?:{'|'.join(PACKAGES)})\.[\w.]+)`(?!`)", path.read_text())
    }
    assert len(found) > 50
    missing = []
    for name in sorted(found):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


def test_no_file_imports_itself_by_way_of_others():
    """Imports between files form no cycle, those inside functions among them; imports of types alone do not count."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text())
        types = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
        skipped = {id(inner) for node in types for inner in ast.walk(node)}
        found: set[str] = set()
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner if inner <= files.keys() else inner | {node.module}
        graph[name] = found & files.keys() - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports form a cycle: {' -> '.join(error.args[1])}")


def test_no_relative_imports():
    """All imports are absolute, which the test above relies on."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            assert not any(levels), path


def test_top_level():
    """The top level holds the three packages, configs, docs, tests and the CI script."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not listed:
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in listed if "/" in name}
    assert folders <= {"seeds", "training", "datamodules", "configs", "docs", "tests", ".ci"}
