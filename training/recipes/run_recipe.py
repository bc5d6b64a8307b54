"""The command ``tag2mask run``: its options, checks before the first stage, and the lock of the output."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from upath import UPath

from datamodules.errors import UsageError, errors_at
from datamodules.files import check_output_folder, is_uri, write_atomically
from training.folder_lock import lock_folder
from training.parsers import OneSentenceErrors, nearest, read_config, split_list
from training.recipes.recipe import (
    REFERENCE,
    RESULT_FILES,
    RUN_OPTIONS,
    STAGES,
    is_annotation_file,
    leaves,
    read_recipe,
)
from training.recipes.runner import Runner

ABOUT = """Run a recipe: a YAML with the folder of its results ('output'), 'settings' (options of this command) and
'stages', each with a command of this program ('command'), a YAML for it ('config') and options that override the YAML
('options'). A stage writes to OUTPUT/STAGE; options refer to that folder as {STAGE}. A stage is kept as long as its
options, the stages and files it refers to and the code stay the same. A recipe that was stopped resumes."""


class RunParser(OneSentenceErrors, argparse.ArgumentParser):
    """The parser of ``tag2mask run``."""


def run_recipe(words: Sequence[str], commands: Sequence[str], dispatch: Callable[[list[str]], None]) -> None:
    """Run ``tag2mask run``.

    Args:
        words: command line after ``run``.
        commands: all commands that a stage may name.
        dispatch: runs a command line of this program.

    Raises:
        InputError: the command line or the recipe is invalid (a `UsageError`), the output cannot be a folder, another
            process runs a recipe in it, or a stage failed.
    """
    parser = RunParser("tag2mask run", description=ABOUT, allow_abbrev=False)
    parser.add_argument("-c", "--config", metavar="FILE", required=True, help="the recipe; --help lists its settings")
    parser.add_argument("--stages", metavar="A,B", default="", help="only these stages and those they need")
    parser.add_argument("--output", metavar="DIR", help="folder of the results in place of the recipe's")
    parser.add_argument(
        "--dry_run", metavar="BOOL", type=_read_boolean, nargs="?", const=True, default=False,
        help="true: run nothing; check images, tags, options and files of weights, list the stages, and estimate "
        "images, steps, hours and memory of the trainings",
    )  # fmt: skip
    _add_settings(parser, words)
    options, rest = parser.parse_known_args([re.sub(r"^--dry-run(?=$|=)", "--dry_run", word) for word in words])
    given: dict[str, str] = {"output": options.output} if options.output else {}
    remaining = iter(rest)
    for word in remaining:  # settings: --name value or --name=value
        name, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(remaining, None)
        if not word.startswith("--") or value is None:
            raise UsageError(f"'{word}' is no option with a value")
        given[name] = value
    path, names = read_config(options.config)[0], split_list(options.stages)
    with errors_at(str(path)):
        output, stages = read_recipe(path, commands, given)
    known = [stage.name for stage in stages]
    wanted = set(names) or set(known)
    if unknown := next(iter(wanted - set(known)), None):
        raise UsageError(f"{path} has no stage '{unknown}'{nearest(unknown, known)}")
    for stage in reversed(stages):
        wanted |= set(stage.needs) if stage.name in wanted else set()
    stages = [stage for stage in stages if stage.name in wanted]
    for stage in stages:  # hours may pass before the first that reads them
        for name, value in leaves(stage.options):
            is_source = is_annotation_file(name, value) and not REFERENCE.search(value)  # else of an earlier stage
            if is_source and not UPath(value).is_file():
                raise UsageError(f"{path}: stage '{stage.name}': there is no file of annotations {value}")
            is_root = name.split(".")[-1] == "root" and isinstance(value, str) and not is_uri(value)
            if is_root and Path(value).resolve() == output.resolve():
                raise UsageError(f"the output {output} is the folder of the images: choose another --output")
    check_output_folder(output)
    if options.dry_run:
        Runner(output, dispatch).estimate(stages)
        return
    lock = lock_folder(output / STAGES / "lock", f"another process runs a recipe in {output}; wait for it, or stop it")
    try:
        Runner(output, dispatch).run(stages)
        if known[-1] in wanted and (output / known[-1] / RESULT_FILES[0]).is_file():
            for file in (output / known[-1] / name for name in RESULT_FILES):
                if file.is_file():
                    write_atomically(output / file.name, file.read_bytes())
    finally:
        if lock is not None:
            lock.release()


def _read_boolean(text: str) -> bool:
    """Return a boolean that is written as in other commands: true, false, yes or no, in any case of letters."""
    value = {"true": True, "yes": True, "false": False, "no": False}.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text}")
    return value


def _add_settings(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the settings of the recipe to a parser where `--help` is given: each with its comment."""
    if {"-h", "--help"}.isdisjoint(words):
        return
    finder = RunParser(add_help=False, allow_abbrev=False)
    finder.add_argument("-c", "--config")
    found, _ = finder.parse_known_args([word for word in words if word not in ("-h", "--help")])
    if found.config is None:
        return
    path, content = read_config(found.config, unique_keys=False)
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        return
    text = path.read_text(encoding="utf-8")
    root: Any = yaml.compose(text, yaml.SafeLoader)  # for the places of the comments
    nodes = {str(key.value): node for key, node in root.value}["settings"]
    group, lines = parser.add_argument_group(f"settings of {path}"), text.splitlines()
    for name, node in {str(key.value): node for key, node in nodes.value}.items():
        if name in RUN_OPTIONS or name not in settings:
            continue
        # a list or text in a block ends where the next setting begins
        is_block = node.style in ("|", ">") if isinstance(node, yaml.ScalarNode) else not node.flow_style
        comment = "" if is_block else lines[node.end_mark.line][node.end_mark.column :].partition("#")[2].strip()
        default = yaml.safe_dump(settings[name], default_flow_style=True, width=1000).removesuffix("...\n").strip()
        about = f"{comment} (default: {default})".strip()
        group.add_argument(f"--{name}", metavar="VALUE", help=about.replace("%", "%%"))
