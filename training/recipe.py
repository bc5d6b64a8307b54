"""Recipes: whole experiments as stages, each a command of this program in its own process; unchanged stages are kept.

In the recipe's output, ``STAGE`` is the folder that a stage writes, and ``stages`` contains for each stage

==============  ======================================================================================================
``STAGE.yaml``  its options: ``tag2mask COMMAND --config STAGE.yaml`` runs the same stage by hand
``STAGE.json``  its record. While it runs: its key, and the record of the earlier result. Afterwards also all that
                the key is computed from, names and sizes of the files written, seconds, figures, and those of
                the earlier result
``.STAGE.old``  the result of other settings, until the new one is complete
==============  ======================================================================================================
"""

import argparse
import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import is_zipfile

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from upath import UPath

from datamodules.annotations import NAMED_SOURCES
from datamodules.errors import InputError, UsageError
from datamodules.files import (
    AnyPath,
    differences,
    file_sizes,
    folder_fingerprint,
    is_uri,
    read_json,
    require_folder,
    write_atomically,
    write_json,
)
from datamodules.seed_cache import cache_fingerprint
from datamodules.source_revision import ALL_PACKAGES, SEED_PACKAGES, source_revision
from training.child_process import run_process
from training.parsers import OneSentenceErrors, nearest, read_config

STAGES = "stages"  # the recipe's key, and the folder of the records in its output
RESULT_FILES = ("metrics.json", "metrics.csv", "index.html")  # copied from the last stage to the recipe's output
RUN_OPTIONS = ("config", "dry_run", "help", "output", STAGES)  # of `tag2mask run`, beside settings
PATH_OPTIONS = frozenset({
    "annotations", "cache", "caches", "checkpoint", "ckpt_path", "consensus", "cues", "cues_checkpoint", "evaluation",
    "ids", "images", "input_list", "photos", "predictions", "results", "root", "source", "weights",
})  # fmt: skip
"""Options of the commands whose values are files or folders."""

ABOUT = """Run a recipe: a YAML with the folder of its results ('output'), 'settings' (options of this command) and
'stages', each with a command of this program ('command'), a YAML for it ('config') and options that override the YAML
('options'). A stage writes to OUTPUT/STAGE; options refer to that folder as {STAGE}. A stage is kept as long as its
options, the stages and files it refers to and the code stay the same. A recipe that was stopped resumes."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"\{(?!\d+\.\.\d+\})([^{}]+)\}")  # {000..099} is a range of tar files


@dataclass(frozen=True)
class Stage:
    """One command with its options.

    Attributes:
        name: name of the stage and of its folder in the recipe's output.
        command: as on the command line: ``fit``, ``seeds generate``, …
        options: options of the stage's YAML, overridden by those of the recipe, with settings filled in; folders of
            other stages are still written as ``{name}``.
        needs: earlier stages to which the options refer, in order.
    """

    name: str
    command: str
    options: dict[str, Any]
    needs: tuple[str, ...]

    def write_options(self, output: Path) -> list[str]:
        """Write the options to the stage's YAML in the recipe's output, folders filled in; return the command line."""
        path = output / STAGES / f"{self.name}.yaml"
        options = substitute(self.options, {name: str(output / name) for name in self.needs})
        options |= {"output": str(output / self.name)}
        write_atomically(path, yaml.safe_dump(options, sort_keys=False, allow_unicode=True).encode())
        return [*self.command.split(), f"--config={path}"]


def read_recipe(path: Path, commands: Sequence[str], given: Mapping[str, str]) -> tuple[Path, list[Stage]]:
    """Read a recipe.

    Args:
        path: YAML with ``output``, ``stages`` and, if needed, ``settings``: values that options refer to by name.
        commands: all commands of the program.
        given: texts that replace the YAML's ``output`` and settings, see `_setting`.

    Returns:
        The folder in which each stage has a folder, and the stages in order; each refers to earlier stages only.

    Raises:
        UsageError: the recipe is invalid; the message names the stage.
    """
    read = yaml.load(path.read_text(), _UniqueKeyLoader)  # noqa: S506  a SafeLoader
    content = _mapping(read, "it", ("output", "settings", STAGES))
    settings = _mapping(content.get("settings"), "'settings'")
    if unknown := next((name for name in given if name not in ("output", *settings)), None):
        raise UsageError(f"there is no option or setting '{unknown}'{nearest(unknown, [*RUN_OPTIONS, *settings])}")
    settings |= {name: _setting(name, text, settings[name]) for name, text in given.items() if name != "output"}
    output = given.get("output", content.get("output"))
    if not isinstance(output, str):
        raise UsageError("'output', the folder of the results, is missing")
    if is_uri(output):
        raise UsageError(f"'output', the folder of the results, must be a local path, not {output}")
    stages: dict[str, Stage] = {}
    for name, stage in _mapping(content.get(STAGES), f"'{STAGES}'").items():
        try:
            stages[name] = _read_stage(path, name, stage, commands, settings, list(stages))
        except UsageError as error:
            raise UsageError(f"stage '{name}': {error}") from error
    if not stages:
        raise UsageError(f"'{STAGES}' names no stage")
    return Path(output), list(stages.values())


def _setting(name: str, text: str, default: Any) -> Any:
    """Return the value of a setting that is given as a text on the command line.

    It is the text itself where the recipe's own value is a text: a folder may be named ``2024`` or ``few #1``.
    Otherwise it is what YAML reads: where the recipe's value is null, only lists, numbers, true, false and null.

    Raises:
        UsageError: the text is no YAML.
    """
    if isinstance(default, str):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        if default is None:
            return text
        raise UsageError(f"--{name}: {text!r} is not YAML") from error
    return text if default is None and not isinstance(value, list | int | float | None) else value


def _read_stage(
    recipe: Path, name: str, content: Any, commands: Sequence[str], settings: Mapping[str, Any], earlier: Sequence[str]
) -> Stage:
    """Return a stage, given as in the YAML, with the settings filled in."""
    if not _NAME.fullmatch(name) or name in (STAGES, "summary.json", *RESULT_FILES) or name in settings:
        raise UsageError("choose another name, of letters, digits, '_', '-' and '.', which no setting has")
    stage = _mapping(content, "it", ("command", "config", "options"))
    command = stage.get("command")
    if command not in commands:
        mistake = "'command' is missing" if command is None else f"there is no command '{command}'"
        raise UsageError(mistake + nearest(str(command), commands))
    options = _mapping(stage.get("options"), "'options'")
    if "output" in options:
        raise UsageError("options: 'output' is not to be given: a stage's folder has the stage's name")
    if config := stage.get("config"):
        beside = recipe.parent / str(config)  # else as the command line finds it
        path, step = read_config(str(beside) if beside.is_file() else str(config))
        options = _merge(_mapping(step, str(path)), options)
        options.pop("output", None)
    texts = [value for _, value in leaves(options) if isinstance(value, str)]
    references = _REFERENCE.findall("\n".join(texts))
    if unknown := next((each for each in references if each not in settings and each not in earlier), None):
        close = nearest(unknown, [*settings, *earlier])
        raise UsageError(f"its options refer to {{{unknown}}}, which is no setting and no earlier stage{close}")
    needs = tuple(each for each in earlier if each in references)
    return Stage(name, str(command), substitute(options, settings), needs)


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice: a stage that is copied without a new name would replace the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag.endswith(":str")]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise UsageError(f"line {node.start_mark.line + 1}: '{twice}' comes twice")
        return super().construct_mapping(node, deep)


def _mapping(value: Any, title: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """Return a mapping of a YAML, empty for None; its keys must be names, and among ``known`` if that is given."""
    content = {} if value is None else value
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{title} is not a mapping of names to values")
    if known and (unknown := next((key for key in content if key not in known), None)):
        raise UsageError(f"there is no option '{unknown}'{nearest(unknown, known)}")
    return content


def _merge(base: Any, over: Any) -> Any:
    """Return nested options overridden by others.

    Where ``class_path`` names another class, the arguments of the first class are dropped.
    """
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if over.get("class_path") not in (None, base.get("class_path")):
        return over
    return base | {key: _merge(base.get(key), value) for key, value in over.items()}


def substitute(value: Any, values: Mapping[str, Any]) -> Any:
    """Return nested options with each ``{name}`` replaced by its value; unknown names stay.

    A text that consists of one reference is replaced by the value itself, of any type.
    """
    if isinstance(value, Mapping):
        return {key: substitute(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [substitute(each, values) for each in value]
    if not isinstance(value, str):
        return value
    if (whole := _REFERENCE.fullmatch(value)) and whole[1] in values:
        return values[whole[1]]
    return _REFERENCE.sub(lambda match: str(values.get(match[1], match[0])), value)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values in nested options.

    Yields:
        The name of the value, such as ``data.size`` and ``caches.0``, and the value.
    """
    children = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
    for key, each in children.items():
        yield from leaves(each, f"{name}.{key}" if name else str(key))
    if not children:
        yield name, value


def is_path(option: str, value: Any) -> bool:
    """Return whether an option's value is a file or folder.

    Args:
        option: name in nested options, such as ``data.root`` or ``caches.0``.
        value: its value.
    """
    named = not PATH_OPTIONS.isdisjoint(option.split(".")[-2:])
    return isinstance(value, str) and ((named and value != "") or value.endswith(".npy"))


def _plain_path(path: str) -> str:
    """Return a path without a slash at its end and without ``.`` in it; a URI as it is."""
    return path if is_uri(path) else str(Path(path))


def _is_annotation_file(option: str, value: Any) -> bool:
    """Return whether an option's value is the path of a file of annotations; arguments as in `is_path`."""
    return "annotations" in option.split(".")[-2:] and isinstance(value, str) and value not in NAMED_SOURCES


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
        "--dry_run", metavar="BOOL", choices=("true", "false"), default="false",
        help="true: run nothing; list the stages, and estimate images, steps, hours and memory of the trainings",
    )  # fmt: skip
    _add_settings(parser, words)
    options, rest = parser.parse_known_args(words)
    given: dict[str, str] = {"output": options.output} if options.output else {}
    remaining = iter(rest)
    for word in remaining:  # settings: --name value or --name=value
        name, equals, text = word.removeprefix("--").partition("=")
        value = text if equals else next(remaining, None)
        if not word.startswith("--") or value is None:
            raise UsageError(f"'{word}' is no option with a value")
        given[name] = value
    path, names = read_config(options.config)[0], options.stages.split(",")
    try:
        output, stages = read_recipe(path, commands, given)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    known = [stage.name for stage in stages]
    wanted = {name for name in names if name} or set(known)
    if unknown := next(iter(wanted - set(known)), None):
        raise UsageError(f"{path} has no stage '{unknown}'{nearest(unknown, known)}")
    for stage in reversed(stages):
        wanted |= set(stage.needs) if stage.name in wanted else set()
    for stage in (each for each in stages if each.name in wanted):  # hours may pass before the first that reads them
        for name, value in leaves(stage.options):
            is_source = _is_annotation_file(name, value) and not _REFERENCE.search(value)  # else of an earlier stage
            if is_source and not UPath(value).is_file():
                raise UsageError(f"{path}: stage '{stage.name}': there is no file of annotations {value}")
            is_root = name.split(".")[-1] == "root" and isinstance(value, str) and not is_uri(value)
            if is_root and Path(value).resolve() == output.resolve():
                raise UsageError(f"the output {output} is the folder of the images: choose another --output")
    require_folder(output)
    if options.dry_run == "true":
        Runner(output, dispatch).estimate([stage for stage in stages if stage.name in wanted])
        return
    (output / STAGES).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / STAGES / "lock", blocking=False, fallback_to_soft=False):
            Runner(output, dispatch).run([stage for stage in stages if stage.name in wanted])
            if known[-1] in wanted and (output / known[-1] / RESULT_FILES[0]).is_file():
                for file in (output / known[-1] / name for name in RESULT_FILES):
                    if file.is_file():
                        write_atomically(output / file.name, file.read_bytes())
    except Timeout as error:
        raise InputError(f"another process runs a recipe in {output}; wait for it, or stop it") from error


def _add_settings(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the settings of the recipe to a parser where `--help` is given: each with its comment."""
    if {"-h", "--help"}.isdisjoint(words):
        return
    finder = RunParser(add_help=False, allow_abbrev=False)
    finder.add_argument("-c", "--config")
    found, _ = finder.parse_known_args([word for word in words if word not in ("-h", "--help")])
    if found.config is None:
        return
    path, content = read_config(found.config)
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        return
    text = path.read_text()
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


class StageResult:
    """Folder and record of a stage, from which its state is known after a kill at any moment.

    Args:
        output: the recipe's folder.
        stage: the stage.
    """

    def __init__(self, output: Path, stage: Stage) -> None:
        self.stage, self.folder, self.old = stage, output / stage.name, output / STAGES / f".{stage.name}.old"
        self.record_path = output / STAGES / f"{stage.name}.json"

    def kept(self, key: str) -> dict[str, Any] | None:
        """Return the record of a complete result of this key, or None; an earlier result of this key is put back."""
        last = read_json(self.record_path)
        for record, folder in product((last, last.get("old") or {}), (self.folder, self.old)):
            complete = record.get("key") == key and "files" in record
            if complete and record["files"].items() <= file_sizes(folder).items():  # a user may have added files
                if folder == self.old:
                    write_json(self.record_path, {**record, "old": record})
                    _remove(self.folder)
                    self.old.rename(self.folder)
                return dict(record)
        return None

    def begin(self, key: str) -> list[str] | None:
        """Prepare the folder for a result of this key; a complete result of another key is set aside until then.

        Returns:
            Words of the command line with which the stage resumes, or None where it starts anew in an empty folder.
        """
        record = read_json(self.record_path)
        if record.get("key") == key and "files" not in record:
            if self.stage.options.get("random_seeds"):  # it resumes by itself
                return []
            if self.stage.command == "fit" and is_zipfile(self.folder / "last.ckpt"):  # else it is damaged
                return ["--ckpt_path=last"]
            if any(self.folder.glob("*.safetensors")):  # shards of the same settings are kept, others replaced
                return ["--overwrite=true"]
        if "files" in record and record["key"] != key and self.folder.exists():
            _remove(self.old)
            self.folder.rename(self.old)
        _remove(self.folder)
        old = record if "files" in record else record.get("old")
        write_json(self.record_path, {"key": key, "old": old})
        return None


class Runner:
    """Runs the stages of a recipe."""

    def __init__(self, output: Path, dispatch: Callable[[list[str]], None]) -> None:
        self.output, self._dispatch = output, dispatch
        self.keys: dict[str, str] = {}  # of the stages so far
        self._console = Console(highlight=False, markup=False, soft_wrap=True)

    def run(self, stages: Sequence[Stage]) -> None:
        """Run or keep stages in their order; write and print the summary."""
        waiting = self._waiting(stages)
        self._check_options(waiting, self.output)
        self._check_annotations(waiting)
        self._console.print(f"{self.output}: stages to run: {', '.join(each.name for each in waiting) or 'none'}")
        reports = []
        for number, stage in enumerate(stages, 1):
            record, state = self._run_or_keep(stage, f"stage {number} of {len(stages)}: {stage.name}")
            shown = {name: value for name, value in record.items() if name not in ("dependencies", "files", "old")}
            reports.append({"name": stage.name, "command": stage.command, "state": state, **shown})
        write_json(self.output / "summary.json", {"output": str(self.output), "stages": reports})
        table = Table("stage", "state", "minutes", "figures in %", title=str(self.output))
        for report in reports:
            minutes = f"{report['seconds'] / 60:.1f}{' since resumed' if report['resumed'] else ''}"
            before = report.get("figures_before", {})
            figures = ", ".join(
                f"{name} {100 * value:.1f}" + (f" (before: {100 * before[name]:.1f})" if name in before else "")
                for name, value in report["figures"].items()
            )
            table.add_row(Text(report["name"]), report["state"], minutes, Text(figures))
        Console().print(table)

    def _check_options(self, stages: Sequence[Stage], folder: Path) -> None:
        """Write the options of stages into a folder and parse them; a UsageError names the stage."""
        for stage in stages:
            try:
                with redirect_stdout(StringIO()), suppress(SystemExit):  # after printing
                    self._dispatch([*stage.write_options(folder), "--print_config"])
            except InputError as error:
                raise UsageError(f"stage '{stage.name}': {error}") from None

    def _check_annotations(self, stages: Sequence[Stage]) -> None:
        """Read the annotations of the first training that has some: hours may pass before it does."""
        for stage in stages:
            options = dict(leaves(stage.options))
            root = UPath(options.get("data.init_args.root") or ".")  # which an earlier stage may download
            given = any(_is_annotation_file(name, value) for name, value in options.items())
            if given and stage.command == "fit" and (is_uri(root) or root.is_dir()):
                from training.recipe_estimate import open_training_data  # torch, here only

                try:
                    open_training_data(stage.options)
                except InputError as error:
                    raise InputError(f"stage '{stage.name}': {error}") from error
                return

    def _waiting(self, stages: Sequence[Stage]) -> list[Stage]:
        """Return the stages that will run, as far as is known before the others have."""
        _fingerprint.cache_clear()
        waiting: list[Stage] = []
        for stage in stages:
            result = StageResult(self.output, stage)
            changed = any(each.name in stage.needs for each in waiting)
            if changed or result.kept(self._key(stage)[0]) is None:
                if result.folder.exists() and not result.record_path.exists():
                    raise InputError(f"{result.folder} exists already, and no recipe has written it: move it away")
                waiting.append(stage)
        return waiting

    def estimate(self, stages: Sequence[Stage]) -> None:
        """Print the stages and what the trainings among them will take, and run none.

        Raises:
            InputError: data or weights do not exist, or an option is invalid; the message names the stage.
        """
        from training.recipe_estimate import estimate_training  # torch, here only

        waiting, hours = self._waiting(stages), 0.0
        with TemporaryDirectory() as folder:
            (Path(folder) / STAGES).mkdir()
            self._check_options(waiting, Path(folder))
        table = Table(Column("stage", no_wrap=True), "command", "state", title=str(self.output))
        for column in ("images", "steps", "hours", "PFLOP", "GB"):
            table.add_column(column, justify="right")
        for stage in stages:
            state, figures = ("to run" if stage in waiting else "kept"), [""] * 5
            if stage.command == "fit" and state == "to run":
                try:
                    images, steps, time_needed, operations, memory = estimate_training(stage.options)
                except InputError as error:
                    raise InputError(f"stage '{stage.name}': {error}") from error
                hours += time_needed
                figures = [f"{images:,}", f"{steps:,}", f"{time_needed:.2f}", f"{operations / 1e15:,.1f}"]
                figures.append(f"{memory / 1e9:.1f}")
            table.add_row(Text(stage.name), stage.command, state, *figures)
        Console().print(table)
        self._console.print(
            f"trainings: {hours:.1f} hours, estimated by two steps of each network on this machine, without reading "
            "of images, validations and the other stages; PFLOP: 1e15 floating-point operations, a GPU at "
            "10 TFLOP/s computes 36 PFLOP per hour; GB: weights, gradients, optimizer and activations"
        )

    def _run_or_keep(self, stage: Stage, title: str) -> tuple[dict[str, Any], str]:
        """Run a stage or keep its result; return the record, and ``done`` or ``kept``.

        Args:
            stage: the stage.
            title: its number and name, for messages.

        Raises:
            InputError: the stage failed, with its exit status; what it wrote stays, to resume from.
        """
        result = StageResult(self.output, stage)
        key, dependencies = self._key(stage)
        if (record := result.kept(key)) is not None:
            self._console.print(f"[{title}] {stage.command}: kept", style="bold")
            return record, "kept"
        earlier = read_json(result.record_path)
        earlier, last = earlier.get("old") or earlier, earlier.get("dependencies")
        changed = next((name for name, _, _ in differences(last or {}, dependencies)), "a file of the result")
        reason = f"{changed} has changed" if last else "not made yet"
        self._console.print(f"[{title}] {stage.command}: {reason}", style="bold")
        resume_arguments, start = result.begin(key), time.monotonic()
        if status := run_process([*stage.write_options(self.output), *(resume_arguments or [])], title):
            failed = f"stage '{stage.name}' (tag2mask {stage.command}) failed with exit status {status}"
            error = InputError(f"{failed}; the same command resumes here")
            error.status = status  # 128 and its number, after a signal
            raise error
        _fingerprint.cache_clear()  # the stage may have downloaded data
        key, dependencies = self._key(stage, dependencies)
        record = {
            "key": key, "files": file_sizes(result.folder),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - start, 1), "resumed": resume_arguments is not None,
            "figures": read_figures(result.folder), "dependencies": dependencies,
        }  # fmt: skip
        if earlier.get("figures"):
            record["figures_before"] = earlier["figures"]
        write_json(result.record_path, record)
        _remove(result.old)
        return record, "done"

    def _key(self, stage: Stage, started: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Return a digest of all that a stage's result depends on, and the dependencies in plain JSON values.

        These are the command, its options, the source of the packages that run it, the keys of the stages it needs,
        and the content of the files and folders that its options name; see `datamodules.files.folder_fingerprint`.

        Args:
            stage: the stage.
            started: dependencies when the stage started, once it has ended: changes of code and files since then count
                for the next run. Only files that did not exist, such as downloads, are those of now.
        """
        of_seeds = stage.command.startswith("seeds ") and stage.command != "seeds show"  # which training/ draws
        options = {name: _plain_path(value) if is_path(name, value) else value for name, value in leaves(stage.options)}
        paths = [value for name, value in options.items() if is_path(name, value)]
        folders = {name: str(self.output / name) for name in stage.needs}
        for name, value in options.items():
            if _is_annotation_file(name, value):
                from datamodules.annotation_files import referenced_files  # OpenCV, here only

                paths += referenced_files(UPath(substitute(value, folders)))
        before: Mapping[str, str | None] = started["files"] if started else {}
        dependencies = {
            "command": stage.command, "options": options,
            "files": {path: before.get(path) or _fingerprint(substitute(path, folders), self.output) for path in paths},
            "stages": {name: self.keys[name] for name in stage.needs},
            "source": (started or {}).get("source") or source_revision(SEED_PACKAGES if of_seeds else ALL_PACKAGES),
        }  # fmt: skip
        text = json.dumps(dependencies, sort_keys=True, default=str)
        self.keys[stage.name] = hashlib.sha256(text.encode()).hexdigest()
        return self.keys[stage.name], json.loads(text)


@functools.cache
def _fingerprint(value: str, output: Path) -> str | None:
    """Return the fingerprint of a file or folder.

    Returns:
        Hexadecimal digits; None where there is no such file, and for '/' and '..'.
    """
    path: AnyPath = UPath(value).expanduser()
    if path.name.endswith(".tar") and re.search(r"[*?[{]", path.name):  # a pattern of tar files
        path = path.parent
    if isinstance(path, Path) and path.resolve() in Path.cwd().parents:
        return None
    return cache_fingerprint(path) or folder_fingerprint(path, output)


def read_figures(folder: Path) -> dict[str, float]:
    """Return the main figures that a stage wrote, as fractions.

    These are the mean IoUs of an evaluation (``metrics.json``), or the last ``val/map`` or ``val/miou`` of a training.
    """
    metrics, training = read_json(folder / "metrics.json"), read_json(folder / "provenance.json").get("figures", {})
    figures = {**metrics, **training, "miou without CRF": (metrics.get("without_crf") or {}).get("miou")}
    main = ("miou", "val/map", "val/miou")
    return {name: value for name, value in figures.items() if name.startswith(main) and isinstance(value, int | float)}


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
