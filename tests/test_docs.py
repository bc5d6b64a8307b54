"""The documentation: commands are parsed, Python code runs, links exist, generated pages are complete."""

import contextlib
import importlib.util
import io
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "pages"
GENERATED = ("command-line.md", "configuration.md", "seed-cache.md")  # in docs/pages/reference, by docs/reference.py
FILES = [ROOT / "README.md", *(path for path in sorted(PAGES.rglob("*.md")) if path.name not in GENERATED)]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
FENCE = re.compile(
    r"^(?P<indent> *)(?P<mark><!-- [\w /.]+ -->\n *)?```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A code block: its language, its code, and the comment before it (``needs data``, ``other revision``)."""

    language: str
    code: str
    mark: str


def blocks(path: Path, *languages: str) -> list[Block]:
    """The code blocks of a page in these languages."""
    found = FENCE.finditer(path.read_text(encoding="utf-8"))
    listed = [
        Block(each["language"], textwrap.dedent(each["code"]), (each["mark"] or "").strip(" \n<!->")) for each in found
    ]
    return [each for each in listed if each.language in languages]


def commands(code: str) -> list[list[str]]:
    """The words after ``tag2mask`` of each command in a block; variables have the first value of their loop."""
    code = code.replace("\\\n", " ")
    values = dict(re.findall(r"for (\w+) in (\S+)", code))
    lines = [
        part for line in code.splitlines() if not line.startswith("#") for part in re.split(r";\s*(?:do\b)?", line)
    ]
    found = []
    for line in lines:
        filled = re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], "1"), line)
        words = shlex.split(filled, comments=True)
        program = next((i for i, word in enumerate(words) if word in ("tag2mask", "training.cli")), None)
        if program is not None and words[0] != "pip":
            found.append(words[program + 1 :])
    return found


@pytest.fixture(scope="module")
def reference():
    """The generator of the reference pages."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder that contains ``photos``: images, tags.csv and a text file of tags for each."""
    folder = tmp_path_factory.mktemp("docs") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["file,tags"]
    for number in range(40):
        tags = [("cat",), ("dog", "person"), ()][number % 3]
        cv2.imwrite(str(folder / f"{number}.jpg"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        (folder / f"{number}.txt").write_text("".join(f"{tag}\n" for tag in tags))
        rows.append(f"{number}.jpg,{';'.join(tags)}")
    (folder / "tags.csv").write_text("\n".join(rows) + "\n")
    return folder.parent


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_parsed(name, reference, monkeypatch):
    """Every command of a page is accepted by the parser of that command, and settings of a recipe exist."""
    monkeypatch.chdir(ROOT)
    for block in blocks(ROOT / name, "sh", "bash"):
        if block.mark:
            assert block.mark in ("needs data", "other revision")
            continue
        for words in commands(block.code):
            parsed = reference.parse_command(words)
            if words[0] == "run":
                recipe = yaml.safe_load(Path(words[words.index("--config") + 1]).read_text())
                options = {word.removeprefix("--") for word in words if word.startswith("--")}
                assert options <= {"config", "dry_run", "output", "stages", *recipe["settings"]}, words
            assert parsed.options, words


def test_commands_are_found():
    """The test above sees loops, launchers, variables and continued lines; a wrong option is an error."""
    loop = "for s in 3 4; do A=1 tag2mask run --seed $s \\\n  --root x; done  # twice"
    assert commands(f"{loop}\nsrun tag2mask evaluate --output a/$s") == [
        ["run", "--seed", "3", "--root", "x"],
        ["evaluate", "--output", "a/3"],
    ]
    assert sum(len(commands(block.code)) for path in FILES for block in blocks(path, "sh")) > 60


def test_wrong_commands_are_refused(reference):
    """Parsing a page's commands is no formality."""
    from datamodules.errors import UsageError

    for words in (
        ["seeds", "generate", "--no_such_option", "1"],
        ["fit", "--data.class_path", "NoSuchData"],
        ["paint"],
    ):
        with pytest.raises(UsageError):
            reference.parse_command(words)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "python")])
def test_python_code_runs(name, photos, monkeypatch):
    """The Python blocks of a page run one after the other, those that need data excepted."""
    monkeypatch.chdir(photos)
    namespace: dict = {"__name__": "docs"}
    for block in blocks(ROOT / name, "python"):
        code = compile(block.code, name, "exec")  # also of those that need data
        if not block.mark:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(code, namespace)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(ROOT / name, "yaml")])
def test_yaml_is_valid(name):
    """YAML blocks are YAML."""
    for block in blocks(ROOT / name, "yaml"):
        assert isinstance(yaml.safe_load(block.code), dict)


def test_the_recipe_of_the_how_to_is_valid(tmp_path):
    """The recipe of the page on recipes names commands, configurations and stages that exist."""
    from training.cli import FUNCTIONS, LIGHTNING
    from training.recipes.recipe import read_recipe

    (block,) = blocks(PAGES / "how-to" / "add-recipe-stage.md", "yaml")
    path = tmp_path / "my_recipe.yaml"
    path.write_text(block.code)
    _, stages = read_recipe(path, [*LIGHTNING, *FUNCTIONS], {"root": "elsewhere"})
    assert [stage.name for stage in stages] == ["classifier", "seeds", "explanations"]


@pytest.mark.parametrize("name", NAMES)
def test_benchmarks_and_experiments_exist(name):
    """Programs of ``tests/`` that a page names, those of another revision excepted."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = FENCE.sub(lambda block: "" if "other revision" in (block["mark"] or "") else block[0], text)
    for program in re.findall(r"python -m (tests\.[\w.]+)", text):
        assert ROOT.joinpath(*program.split(".")).with_suffix(".py").is_file(), program


@pytest.mark.parametrize("name", NAMES)
def test_links_exist(name):
    """Links to files name files that exist; the site's strict build checks anchors and names of the Python API."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.partition("#")[0]
        if file and "://" not in target and Path(file).name not in GENERATED:
            assert (ROOT / name).parent.joinpath(file).exists(), target


def test_reference_pages_are_complete(reference):
    """The generated pages have every command, every option of a few, and the arguments of every class."""
    from training import cli

    page = reference.command_line()
    assert " at 0x" not in page
    assert "| `--dry_run`<br>bool |" in page
    for command in (*cli.LIGHTNING, *cli.FUNCTIONS, *cli.RECIPE):
        assert f"\n## {command}\n" in page
    for option in ("--partition", "--method", "--fg_threshold", "--random_seeds", "--trainer.devices", "--consensus"):
        assert f"| `{option}`<br>" in page
    classes = reference.configuration()
    for name in ("ClassifierTask", "AffinityTask", "SegmentationTask", "VOCDataModule", "FolderDataModule", "Augment"):
        section = classes.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert section.count("\n| `") >= 3, name
    folder = classes.partition("\n### FolderDataModule\n")[2].partition("\n### ")[0]
    assert "| `val_fraction`<br>" in folder
    assert "| `eval_size`<br>" in folder  # an option of the base class
    assert all(path.name in classes for path in (ROOT / "configs").glob("*.yaml"))
    cache = reference.seed_cache()
    assert "cues` | uint8" in cache
    assert "| `checksum` | SHA-256" in cache
    assert "==" not in cache


def test_readme_is_short():
    """One page: at most 1,000 words."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def test_files_named_in_the_readme_exist():
    """Names of files and folders of the packages in code spans of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:datamodules|seeds|training|configs|tests)/[\w./*]*)`", text)
    assert len(named) > 8
    for name in named:
        assert any(ROOT.glob(name.rstrip("/"))), name
