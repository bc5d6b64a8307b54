"""Reading a recipe: the YAML of a whole experiment, with stages that are commands of this program."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import UsageError
from training.parser_messages import nearest
from training.parsers import config_path

__all__ = ["RESULT_FILES", "STAGES", "Recipe", "Stage", "leaves", "read_recipe", "references", "substitute"]

STAGES = "stages"  # the recipe's key, and the folder of the records in its output
RESULT_FILES = ("metrics.json", "metrics.csv", "index.html")  # copied from the last stage to the recipe's output
RUN_OPTIONS = ("config", "help", "output", STAGES)  # of `tag2mask run`: no setting may have these names
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Stage:
    """One command with its options.

    Attributes:
        name: name of the stage and of its folder in the recipe's output.
        command: as on the command line: ``fit``, ``seeds generate``, …
        options: options of the stage's YAML, overridden by those of the recipe, with settings filled in; folders of
            other stages are still written as ``{name}``.
        needs: earlier stages to which the options refer, in order.
        minutes: duration on the machine that the recipe names; None where the recipe does not give it.
    """

    name: str
    command: str
    options: dict[str, Any]
    needs: tuple[str, ...]
    minutes: float | None = None

    def resolved_options(self, output: Path) -> dict[str, Any]:
        """Return the options with the folders of other stages filled in, and with the stage's folder as ``output``."""
        options: dict[str, Any] = substitute(self.options, {name: str(output / name) for name in self.needs})
        return options | {"output": str(output / self.name)}


@dataclass(frozen=True)
class Recipe:
    """A whole experiment.

    Attributes:
        path: the YAML.
        output: folder in which each stage has a folder.
        stages: in order; each refers to earlier stages only.
    """

    path: Path
    output: Path
    stages: tuple[Stage, ...]

    def chosen(self, names: Sequence[str]) -> tuple[Stage, ...]:
        """Return the stages of these names and the stages they need; without names, all stages.

        Raises:
            UsageError: no stage has such a name.
        """
        known = [stage.name for stage in self.stages]
        for name in names:
            if name not in known:
                raise UsageError(f"{self.path} has no stage '{name}'{nearest(name, known)}")
        wanted = set(names or known)
        for stage in reversed(self.stages):
            wanted |= set(stage.needs) if stage.name in wanted else set()
        return tuple(stage for stage in self.stages if stage.name in wanted)


def read_recipe(path: Path, commands: Sequence[str], given: Mapping[str, Any]) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML with ``output``, ``stages`` and, if needed, ``settings``: values that options refer to by name.
        commands: all commands of the program.
        given: values that replace the YAML's ``output`` and settings.

    Raises:
        UsageError: the recipe is invalid; the message names the file and the stage.
    """
    with _locate_mistakes(str(path)):
        read = yaml.load(path.read_text(), _UniqueKeyLoader)  # noqa: S506  a SafeLoader
        content = _mapping(read, "it", ("output", "settings", STAGES))
        settings = _mapping(content.get("settings"), "'settings'")
        for name in settings:
            if name in RUN_OPTIONS or not _NAME.fullmatch(name):
                raise UsageError(f"settings: '{name}' cannot be the name of a setting")
        for name in given:
            if name != "output" and name not in settings:
                raise UsageError(f"there is no option or setting '{name}'{nearest(name, [*RUN_OPTIONS, *settings])}")
        settings |= {name: value for name, value in given.items() if name != "output"}
        output = given.get("output") or content.get("output")
        if not isinstance(output, str):
            raise UsageError("'output', the folder of the results, is missing")
        contents = _mapping(content.get(STAGES), f"'{STAGES}'")
        if not contents:
            raise UsageError(f"'{STAGES}' names no stage")
        stages: dict[str, Stage] = {}
        for name, stage in contents.items():
            with _locate_mistakes(f"stage '{name}'"):
                if not _NAME.fullmatch(name) or name in (STAGES, "summary.json", *RESULT_FILES) or name in settings:
                    raise UsageError("choose another name, of letters, digits, '_', '-' and '.', which no setting has")
                command, options, minutes = _read_stage(path, stage, commands)
                for reference in references(options):
                    if reference not in settings and reference not in stages:
                        if reference in contents:
                            raise UsageError(f"its options refer to {{{reference}}}, which does not come before it")
                        close = nearest(reference, [*settings, *contents])
                        raise UsageError(f"its options refer to {{{reference}}}: no such stage or setting{close}")
                options = substitute(options, settings)
            needs = set(references(options))
            stages[name] = Stage(name, command, options, tuple(each for each in stages if each in needs), minutes)
    return Recipe(path, Path(output), tuple(stages.values()))


def _read_stage(recipe: Path, content: Any, commands: Sequence[str]) -> tuple[str, dict[str, Any], float | None]:
    """Return command, options with references and minutes of a stage, given as in the YAML."""
    stage = _mapping(content, "it", ("command", "config", "options", "minutes"))
    command, minutes = stage.get("command"), stage.get("minutes")
    if command not in commands:
        mistake = "'command' is missing" if command is None else f"there is no command '{command}'"
        raise UsageError(mistake + nearest(str(command), commands))
    if minutes is not None and (type(minutes) not in (int, float) or not 0 < minutes < math.inf):
        raise UsageError(f"'minutes' must be a positive number, not {minutes!r}")
    options = _mapping(stage.get("options"), "'options'")
    if "output" in options:
        raise UsageError("options: 'output' is not to be given: a stage's folder has the stage's name")
    if config := stage.get("config"):
        beside = recipe.parent / str(config)  # else as the command line finds it
        path = Path(config_path(str(beside) if beside.is_file() else str(config)))
        base = _mapping(yaml.safe_load(path.read_text()), str(path))
        options = _merge({key: value for key, value in base.items() if key != "output"}, options)
    return str(command), options, minutes


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice: a stage that is copied without a new name would replace the first one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        twice = next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None)
        if twice is not None:
            raise UsageError(f"line {node.start_mark.line + 1}: '{twice}' comes twice")
        return super().construct_mapping(node, deep)


@contextmanager
def _locate_mistakes(place: str) -> Iterator[None]:
    """Put a file or a stage before the message of a mistake in it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def _mapping(value: Any, title: str, known: Sequence[str] = ()) -> dict[str, Any]:
    """Return a mapping of a YAML, empty for None; its keys must be names, and among ``known`` if that is given."""
    content = {} if value is None else value
    if not isinstance(content, dict):
        raise UsageError(f"{title} is not a mapping of names to values")
    for key in content:
        if not isinstance(key, str):
            raise UsageError(f"{title} has the key {key!r}, which is no name")
        if known and key not in known:
            raise UsageError(f"there is no option '{key}'{nearest(key, known)}")
    return content


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested options overridden by others; another ``class_path`` drops the arguments of the first class."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            same = value.get("class_path", old.get("class_path")) == old.get("class_path")
            merged[key] = _merge(old, value) if same else dict(value)
        else:
            merged[key] = value
    return merged


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
    whole = _REFERENCE.fullmatch(value)
    if whole and whole[1] in values:
        return values[whole[1]]
    return _REFERENCE.sub(lambda match: str(values.get(match[1], match[0])), value)


def references(options: Any) -> list[str]:
    """Return the names in braces in nested options."""
    return [name for _, value in leaves(options) if isinstance(value, str) for name in _REFERENCE.findall(value)]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values in nested options with their names, such as ``data.size`` and ``caches[0]``."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, f"{name}[{index}]")
    else:
        yield name, value
