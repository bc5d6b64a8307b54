"""Write the pages `reference/command-line.md` and `reference/configuration.md` from the parsers of the commands.

python docs/reference.py
"""

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, get_type_hints
from unittest.mock import patch

import jsonargparse
import yaml
from docstring_parser import parse

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from datamodules.seed_cache import index as seed_cache_index  # noqa: E402
from datamodules.seed_cache import shard as seed_shard  # noqa: E402  after the path is set
from datamodules.transforms import Augment  # noqa: E402
from seeds.job_options import JobOptions  # noqa: E402
from training import cli  # noqa: E402
from training.lightning_cli import DATA_MODULES, TASKS  # noqa: E402

PAGES = ROOT / "docs" / "pages" / "reference"
JOBS = ("seeds generate", "seeds refine", "pseudo-label")
JOB_OPTIONS = {field.name for field in dataclasses.fields(JobOptions)}
COMMAND_LINE = """<!-- Written by docs/reference.py from the code: do not edit. -->
# Command line

A command is `tag2mask COMMAND --option value …`. Every option can also be written in a YAML file, which `--config FILE`
reads; an option on the command line overrides the file. `--help` lists the options of a command and `--print_config`
writes them as YAML. A file that does not exist is looked up by its name among the
[configurations of the package](configuration.md#configurations-of-the-package).

The exit status is 0 for success, 1 for input that cannot be used, 2 for a wrong option or YAML file, 130 after Ctrl-C
and 143 after SIGTERM. A wrong input is reported in one sentence on standard error. `predict` and `explain` end with 1
if they skipped images. A recipe ends with the status of the stage that failed.
"""
CONFIGURATION = """<!-- Written by docs/reference.py from the code: do not edit. -->
# Configuration

The YAML of `fit`, `validate` and `test` has the keys `model`, `data` and `trainer`, and the options of
[`fit`](command-line.md#fit). A class is named by `class_path`, its arguments by `init_args`. The classes of this page
need no module in front of their names; a class of your own needs its full path.

```yaml
model:
  class_path: ClassifierTask
  init_args: {backbone: mobilenet_v2, lr: 2.0e-4}
data:
  class_path: FolderDataModule
  init_args: {root: photos, size: 320}
trainer:
  max_epochs: 8
```

On the command line the same options are `--model.init_args.lr 2e-4`, `--data.root photos` and `--trainer.max_epochs 8`.
The YAML of every other command has the command's own options as its keys.
"""
SEED_CACHE = """<!-- Written by docs/reference.py from the code: do not edit. -->
# Seed cache

A seed cache is a folder of shards `shard-00000.safetensors`, `shard-00001.safetensors`, … Each shard describes itself;
its file may have any name that ends in `.safetensors`. The folder is a local one, or a URI such as `s3://bucket/seeds`.
[`SeedCache`][datamodules.seed_cache.SeedCache] reads a cache; `seeds merge` writes an index by which a large
cache opens at once; `seeds verify` checks every byte. [Scale](scale.md) has sizes and times.
"""


class ParsedError(Exception):
    """Carries a parser and what it parsed out of a command, before the command runs."""

    def __init__(self, parser: argparse.ArgumentParser, options: Any) -> None:
        super().__init__(parser.prog)
        self.parser = parser
        self.options = options


def parse_command(words: Sequence[str], *, read: bool = True) -> ParsedError:
    """Run the command line up to the point where its options are parsed.

    Args:
        words: the words after ``tag2mask``.
        read: whether the parser reads the words; if not, only the parser is of interest.

    Raises:
        InputError: the words are wrong.
    """
    parse_args, parse_known = jsonargparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args

    outermost: list[Any] = []  # the parser of a subcommand is called by the parser of the program

    def stop_jsonargparse(parser: Any, *args: Any, **kwargs: Any) -> Any:
        if outermost:
            return parse_args(parser, *args, **kwargs)
        outermost.append(parser)
        raise ParsedError(parser, parse_args(parser, *args, **kwargs) if read else None)

    def stop_argparse(parser: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(parser, jsonargparse.ArgumentParser):
            return parse_known(parser, *args, **kwargs)
        raise ParsedError(parser, parse_known(parser, *args, **kwargs) if read else None)

    with (
        patch.object(jsonargparse.ArgumentParser, "parse_args", stop_jsonargparse),
        patch.object(argparse.ArgumentParser, "parse_known_args", stop_argparse),
    ):
        try:
            cli.dispatch(list(words))
        except ParsedError as parsed:
            return parsed
    raise AssertionError(f"{' '.join(words)} has no parser")


def options_of(parser: Any) -> list[argparse.Action]:
    """Return the options of a parser that take a value, without those of jsonargparse itself."""
    hidden = ("help", "print_config")
    return [
        action
        for action in parser._actions  # noqa: SLF001  neither argparse nor jsonargparse lists its options
        if action.dest not in hidden and not action.dest.endswith(".help") and action.help != argparse.SUPPRESS
        and type(action).__name__ not in ("ActionConfigFile", "_ActionConfigLoad", "_ActionSubCommands", "ActionLink")
    ]  # fmt: skip


def type_name(action: argparse.Action) -> str:
    """Return the type of an option's value in a few words."""
    hint = getattr(action, "_typehint", None) or action.type or str
    if callable(hint) and not isinstance(hint, type) and not hasattr(hint, "__args__"):
        hint = get_type_hints(hint)["return"]  # a function that reads the value
    text = hint.__name__ if isinstance(hint, type) and not getattr(hint, "__args__", None) else str(hint)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)  # typing.Union, pathlib.Path
    text = re.sub(r"Optional\[(.+)\]$", r"Union[\1, NoneType]", text)
    while (match := re.search(r"Union\[((?:[^\[\]]|\[[^\[\]]*\])*)\]", text)) is not None:
        parts = re.split(r", (?![^\[]*\])", match[1])
        text = text[: match.start()] + " | ".join(parts) + text[match.end() :]
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", "").replace(", ", " | "), text)
    text = text.replace("NoneType", "None")
    return text if len(text) < 60 else "…"


def column(text: str) -> str:
    """Return a text as the content of a table's column."""
    return markdown(" ".join(text.split())).replace("|", "\\|")


def markdown(text: str) -> str:
    """Return a docstring's text as Markdown, with links to what the page of the Python API documents."""
    text = re.sub(r"``([^`]+)``", r"`\1`", re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text))
    return re.sub(r"`([\w.]+)`", lambda name: f"[{name[0]}][{name[1]}]" if name[1] in documented() else name[0], text)


@cache
def documented() -> set[str]:
    """Return the names that the page of the Python API documents."""
    page = (PAGES / "python.md").read_text(encoding="utf-8")
    names = set()
    for block in page.split("\n::: ")[1:]:
        name, _, options = block.partition("\n")
        members = re.search(r"members: \[(.*?)\]", options.partition("\n\n")[0])
        names |= {name, *(f"{name}.{member}" for member in members[1].split(", "))} if members else {name}
    return names


def table(actions: Iterable[argparse.Action], parser: Any, prefix: str) -> str:
    """Return a Markdown table of options with type, default and meaning."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    defaults = parser.get_defaults() if isinstance(parser, jsonargparse.ArgumentParser) else {}
    for action in actions:
        name = action.option_strings[-1] if prefix and action.option_strings else action.dest
        name = name.removesuffix("+").lstrip("-")
        default = defaults.get(action.dest, action.default)
        if action.required or not action.option_strings:
            shown = "required"
        elif default in (None, "", argparse.SUPPRESS):
            shown = ""
        else:
            value = yaml.safe_dump(plain(default), default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
            shown = f"`{column(value)}`"
        shown_name = f"{prefix}{name}" if action.option_strings else f"{action.dest} …"
        meaning = column(action.help or "")
        if action.dest.startswith(("trainer.", "ckpt_path")):  # Lightning's own documentation has the rest
            meaning = meaning.split(". ")[0].rstrip(".") + "."
        if re.match(r"[a-z]+\b[^:/,]", meaning):  # not "crf: …", "i/N …", "sec, irn …"
            meaning = meaning[0].upper() + meaning[1:]
        meaning += "" if meaning.endswith((".", "…")) or not meaning else "."
        rows.append(f"| `{shown_name}`<br>{column(type_name(action))} | {shown} | {meaning} |")
    return "\n".join(rows) + "\n"


def plain(value: Any) -> Any:
    """Return a default as plain YAML values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def docstring(target: str) -> str:
    """Return the docstring of ``module:function``, without importing the module."""
    module, function = target.split(":")
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return ast.get_docstring(found) or ""


def description(text: str) -> str:
    """Return a docstring without its sections, as Markdown."""
    found = parse(text)
    text = "\n\n".join(part for part in (found.short_description, found.long_description) if part)
    return markdown(text) + "\n"


def command_line() -> str:
    """Return the page of the commands and their options."""
    parts = [COMMAND_LINE]
    shared: tuple[list[argparse.Action], Any] | None = None
    for name in chain.from_iterable(cli.GROUPS.values()):
        words = name.split()
        parsed = parse_command(words, read=False)
        parser: Any = parsed.parser
        parts.append(f"## {name}\n")
        if name in cli.LIGHTNING:
            parts.append(f"{sentence(cli.LIGHTNING[name])}\n")
            if name != "fit":
                parts.append(
                    "The options are those of [`fit`](#fit), and `--ckpt_path FILE` names the checkpoint. The "
                    "figures are those that a training logs. To score a segmentation network use "
                    "[`evaluate`](#evaluate): it has the dense CRF, the tables and the page of images.\n",
                )
                continue
            parser = parser._subcommands_action._name_parser_map[name]  # noqa: SLF001
            actions = options_of(parser)
            trainer = [action for action in actions if action.dest.startswith("trainer.")]
            own = [
                action for action in actions
                if not action.dest.startswith(("trainer.", "optimizer", "lr_scheduler", "weights_only"))
            ]  # fmt: skip
            parts.append("`model` and `data` name a class by `class_path`: see [Configuration](configuration.md).\n")
            parts += [table(own, parser, "--"), "### Trainer\n", "These options are Lightning's.\n"]
            parts.append(table(trainer, parser, "--"))
            continue
        actions = options_of(parser)
        if name in cli.RECIPE:
            parts += [
                f"{sentence(cli.RECIPE[name])}\n",
                "The settings of the recipe are options as well, such as `--root DIR` and `--seed N`.\n",
            ]
        else:
            parts.append(description(docstring(cli.FUNCTIONS[name][0])))
        if name in JOBS:
            shared = [action for action in actions if action.dest in JOB_OPTIONS], parser
            actions = [action for action in actions if action.dest not in JOB_OPTIONS]
            parts += [table(actions, parser, "--"), "It has the [options of a job](#options-of-a-job), too.\n"]
        else:
            parts.append(table(actions, parser, "--"))
    if shared is not None:
        names = ", ".join(f"`{name}`" for name in JOBS)
        parts += [
            "## Options of a job\n",
            f"{names} are jobs of the same kind: they run a network on images and write a seed cache.\n",
            table(*shared, "--"),
        ]
    return "\n".join(parts)


def sentence(text: str) -> str:
    """Return a line of the overview as a sentence."""
    return text[0].upper() + text[1:] + "."


def class_section(named: type) -> str:
    """Return a section with a class's description and its arguments."""
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(named, as_group=False, fail_untyped=False, skip={"classes"} if named in TASKS else set())
    text = description(inspect.getdoc(named) or "")
    return f"### {named.__name__}\n\n{text}\n{table(options_of(parser), parser, '')}"


def configuration() -> str:
    """Return the page of the classes that YAML files name, and of the package's configurations."""
    files = ["| file | content |", "|---|---|"]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        comments = re.match(r"(?:#.*\n)*", path.read_text(encoding="utf-8"))
        lines = [line.lstrip("# ") for line in (comments[0] if comments else "").splitlines()]
        text = " ".join(line for line in lines if not line.startswith("tag2mask "))
        files.append(f"| `{path.name}` | {column(text)} |")
    return "\n".join(
        [
            CONFIGURATION,
            "## Models\n",
            "The names of the classes come from the data.\n",
            *[class_section(task) for task in TASKS],
            "## Data\n",
            *[class_section(datamodule) for datamodule in DATA_MODULES],
            class_section(Augment),
            "## Configurations of the package\n",
            "`--config NAME.yaml` finds them in `configs/` by their names.\n",
            *files,
            "",
        ]
    )


def seed_cache() -> str:
    """Return the page of the seed cache's format: the docstrings of the modules of a shard and of the index."""
    shard, index = (with_markdown_tables(module.__doc__ or "") for module in (seed_shard, seed_cache_index))
    return f"{SEED_CACHE}\n## A shard\n\n{shard}\n## The index\n\n{index}"


def with_markdown_tables(text: str) -> str:
    """Return a docstring with two-column tables of reStructuredText turned into Markdown."""
    lines: list[str] = []
    inside = False
    for line in markdown(text).splitlines():
        if re.fullmatch(r"=+  =+", line):
            inside = not inside
            lines += ["| name | content |", "|---|---|"] if inside else []
        elif not inside:
            lines.append(line)
        elif line[:1].strip():
            name, _, meaning = line.partition("  ")
            lines.append(f"| {name} | {column(meaning)} |")
        else:  # a row that continues
            lines[-1] = f"{lines[-1].removesuffix(' |')} {column(line)} |"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name, page in (
        ("command-line.md", command_line), ("configuration.md", configuration), ("seed-cache.md", seed_cache)
    ):  # fmt: skip
        (PAGES / name).write_text(page(), encoding="utf-8")
