"""Read recipes: YAMLs with settings and stages, each stage a command of this program with its options."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.annotations.sources import NAMED_SOURCES
from datamodules.errors import UsageError, errors_at
from datamodules.files import is_uri, write_atomically
from training.parsers import ConfigDumper, UniqueKeyLoader, nearest, read_config, split_list

STAGES = "stages"  # the recipe's key, and the folder of the records in its output
RESULT_FILES = ("metrics.json", "metrics.csv", "index.html")  # copied from the last stage to the recipe's output
RUN_OPTIONS = ("config", "dry_run", "help", "output", STAGES)  # of `tag2mask run`, beside settings
PATH_OPTIONS = frozenset({
    "annotations", "cache", "caches", "checkpoint", "ckpt_path", "consensus", "cues", "cues_checkpoint", "evaluation",
    "ids", "images", "input_list", "instances", "masks", "photos", "predictions", "results", "root", "source", "tags",
    "weights",
})  # fmt: skip
"""Options of the commands whose values are files or folders."""
ROOT_OPTIONS = frozenset({"instances", "masks", "tags"})
"""Those of `PATH_OPTIONS` that are relative to the folder ``root`` beside them."""
KEYWORDS = {
    "annotations": NAMED_SOURCES, "instances": ("auto",), "masks": ("auto",), "tags": ("auto", "folders"),
    "weights": ("none", "imagenet", "download"),
}  # fmt: skip
"""Values of these options that are no path, even where there is a file or folder of that name."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
REFERENCE = re.compile(r"\{(?!\d+\.\.\d+\})([^{}]+)\}")  # {000..099} is a range of tar files


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
        write_atomically(path, yaml.dump(options, Dumper=ConfigDumper, sort_keys=False, allow_unicode=True).encode())
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
    read = read_config(str(path))[1]
    keys = ("output", "settings", STAGES)
    if isinstance(read, dict) and STAGES not in read and any(not nearest(str(key), keys) for key in read):
        raise UsageError(f"it has no '{STAGES}' and is no recipe; it may be the YAML of one command, such as fit")
    content = _mapping(read, "it", keys)
    settings = _mapping(content.get("settings"), "'settings'")
    if unknown := next((name for name in given if name not in ("output", *settings)), None):
        raise UsageError(f"there is no option or setting '{unknown}'{nearest(unknown, [*RUN_OPTIONS, *settings])}")
    settings |= {name: _setting(name, text, settings[name]) for name, text in given.items() if name != "output"}
    for _ in settings:  # a setting may refer to another
        settings = substitute(settings, settings)
    if circular := next((name for name, value in settings.items() if f"{{{name}}}" in str(value)), None):
        raise UsageError(f"the setting '{circular}' refers to itself")
    output = given.get("output", content.get("output"))
    if not isinstance(output, str):
        raise UsageError("'output', the folder of the results, is missing")
    if is_uri(output):
        raise UsageError(f"'output', the folder of the results, must be a local path, not {output}")
    stages: dict[str, Stage] = {}
    for name, stage in _mapping(content.get(STAGES), f"'{STAGES}'").items():
        with errors_at(f"stage '{name}'"):
            stages[name] = _read_stage(path, name, stage, commands, settings, list(stages))
    if not stages:
        raise UsageError(f"'{STAGES}' names no stage")
    return Path(output), list(stages.values())


def _setting(name: str, text: str, default: Any) -> Any:
    """Return the value of a setting that is given as a text on the command line.

    It is the text itself where the recipe's own value is a text: a folder may be named ``2024`` or ``few #1``.
    Otherwise it is what YAML reads: where the recipe's value is null, only lists, numbers, true, false and null. Names
    without brackets are a list where the recipe has a list of names, and for ``classes``.

    Raises:
        UsageError: the text is no YAML.
    """
    if isinstance(default, str):
        return text
    is_list = name == "classes" or (isinstance(default, list) and all(isinstance(each, str) for each in default))
    if is_list and text not in ("", "null") and not text.lstrip().startswith("["):
        return split_list(text)
    try:
        value = yaml.load(text, UniqueKeyLoader)  # noqa: S506  a SafeLoader
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
    written, filled = _references(options), substitute(options, settings)
    if unknown := next((each for each in written if each not in settings and each not in earlier), None):
        close = nearest(unknown, [*settings, *earlier])
        raise UsageError(f"its options refer to {{{unknown}}}, which is no setting and no earlier stage{close}")
    needs = tuple(each for each in earlier if each in _references(filled))  # also by a setting
    if command == "fit":
        _require_steps(options, filled)
    return Stage(name, str(command), filled, needs)


def _references(options: Mapping[str, Any]) -> list[str]:
    """Return the names to which nested options refer."""
    return REFERENCE.findall("\n".join(value for _, value in leaves(options) if isinstance(value, str)))


def _require_steps(written: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise a UsageError where a training has no step: it would end without a checkpoint, and replace an earlier one.

    Lightning's -1 is allowed where there is a number of steps.

    Args:
        written: options of the stage as in the YAML, for the name of the setting.
        options: the same with the settings filled in.
    """
    trainer = options.get("trainer")
    if not isinstance(trainer, Mapping):
        return
    if name := next((name for name in ("max_steps", "limit_train_batches") if trainer.get(name) == 0), None):
        raise UsageError(f"trainer.{name} is 0, and the training would have no step")
    epochs = trainer.get("max_epochs")
    if not isinstance(epochs, int) or epochs >= 1:
        return
    if epochs == -1 and isinstance(steps := trainer.get("max_steps"), int) and steps >= 1:
        return
    setting = REFERENCE.fullmatch(str(written["trainer"]["max_epochs"]))
    raise UsageError(f"{setting[1] if setting else 'trainer.max_epochs'} is {epochs}, and must be at least 1")


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
    if (whole := REFERENCE.fullmatch(value)) and whole[1] in values:
        return values[whole[1]]
    return REFERENCE.sub(lambda match: str(values.get(match[1], match[0])), value)


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
    """Return whether an option's value is a file or folder: by the option's name, or because there is such a file.

    Args:
        option: name in nested options, such as ``data.root`` or ``caches.0``.
        value: its value.
    """
    names = option.split(".")[-2:]
    if not isinstance(value, str) or not value or any(value in KEYWORDS.get(name, ()) for name in names):
        return False
    named = not PATH_OPTIONS.isdisjoint(names)
    exists = os.path.isfile(value)  # noqa: PTH113  pathlib raises for a long text
    return named or value.endswith(".npy") or (exists and Path(value).suffix != "")


def is_annotation_file(option: str, value: Any) -> bool:
    """Return whether an option's value is the path of a file of annotations; arguments as in `is_path`."""
    return "annotations" in option.split(".")[-2:] and is_path(option, value)
