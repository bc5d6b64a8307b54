"""A recipe: the stages of a whole experiment, each one of this program's commands, as one YAML says them."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import UsageError
from training.messages import nearest
from training.yaml_files import config_path

__all__ = ["STAGES", "Recipe", "Stage", "leaves", "read_recipe", "references"]

STAGES = "stages"  # the recipe's key, and the folder of the records in its output
TAKEN = (STAGES, "summary.json", "metrics.json", "metrics.csv", "index.html")  # of a recipe's output folder
OPTIONS = ("config", "help", "output", STAGES)  # of `tag2mask run` itself
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_REFERENCE = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Stage:
    """One command with its options.

    Attributes:
        name: the stage's, and its folder's in the recipe's output.
        command: as on the command line: ``fit``, ``seeds generate``, …
        options: the YAML of its own, with the recipe's options over it and settings filled in; folders of other stages
            are still ``{name}``.
        needs: the stages it refers to, in the order of the recipe.
        minutes: how long it took on the machine that the recipe names; None where the recipe does not say.
    """

    name: str
    command: str
    options: dict[str, Any]
    needs: tuple[str, ...]
    minutes: float | None = None

    def resolved(self, output: Path) -> dict[str, Any]:
        """The options with the folders that they refer to, and that of the stage itself as ``output``."""

        def folder(match: re.Match[str]) -> str:
            return str(output / match[1]) if match[1] in self.needs else match[0]

        changed: dict[str, Any] = _changed(self.options, lambda text: _REFERENCE.sub(folder, text))
        return changed | {"output": str(output / self.name)}


@dataclass(frozen=True)
class Recipe:
    """A whole experiment.

    Attributes:
        path: its YAML.
        output: the folder in which each stage has its own.
        stages: in their order; each refers to earlier ones only.
    """

    path: Path
    output: Path
    stages: tuple[Stage, ...]

    def chosen(self, names: list[str]) -> tuple[Stage, ...]:
        """The stages of these names and those they need; all where no name is given.

        Raises:
            UsageError: there is no stage of such a name.
        """
        known = {stage.name: stage for stage in self.stages}
        for name in names:
            if name not in known:
                raise UsageError(f"{self.path} has no stage '{name}'{nearest(name, known)}")
        wanted = set(names or known)
        for stage in reversed(self.stages):
            wanted |= set(stage.needs) if stage.name in wanted else set()
        return tuple(stage for stage in self.stages if stage.name in wanted)


class _Loader(yaml.SafeLoader):
    """YAML in which a key that comes twice is a mistake: a stage copied without a new name would replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping."""
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        twice = next((key for key in keys if isinstance(key, str) and keys.count(key) > 1), None)
        if twice is not None:
            raise UsageError(f"line {node.start_mark.line + 1}: '{twice}' comes twice")
        return super().construct_mapping(node, deep)


def read_recipe(path: Path, commands: list[str], given: Mapping[str, Any]) -> Recipe:
    """Read a recipe.

    Args:
        path: its YAML, with ``output``, ``stages`` and, if need be, ``settings``: values that options refer to by name.
        commands: those there are.
        given: values for ``output`` and the settings in place of the YAML's.

    Raises:
        UsageError: something in it is wrong; the message names the file, and the stage.
    """
    with _about(str(path)):
        content = _mapping(yaml.load(path.read_text(), _Loader), "it", ("output", "settings", STAGES))  # noqa: S506
        settings = _settings(content.get("settings"), given)
        output = given.get("output") or content.get("output")
        if not isinstance(output, str):
            raise UsageError("'output', the folder of the results, is missing")
        written = _mapping(content.get(STAGES), f"'{STAGES}'")
        if not written:
            raise UsageError(f"'{STAGES}' names no stage")
        stages: dict[str, Stage] = {}
        for name, said in written.items():
            with _about(f"stage '{name}'"):
                command, options = _said(path, name, said, commands, settings)
                minutes = _minutes(said.get("minutes"))
                filled = _filled(options, settings, list(written), list(stages))
            needs = set(references(filled))
            stages[name] = Stage(name, command, filled, tuple(each for each in stages if each in needs), minutes)
    return Recipe(path, Path(output), tuple(stages.values()))


@contextmanager
def _about(what: str) -> Iterator[None]:
    """Say of a mistake where it is."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{what}: {error}") from error


def _settings(written: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    settings = _mapping(written, "'settings'")
    for name in settings:
        if name in OPTIONS or not _NAME.fullmatch(name):
            raise UsageError(f"settings: '{name}' cannot be the name of a setting")
    for name in given:
        if name != "output" and name not in settings:
            raise UsageError(f"there is no option or setting '{name}'{nearest(name, [*OPTIONS, *settings])}")
    return settings | {name: value for name, value in given.items() if name != "output"}


def _said(
    recipe: Path, name: str, said: Any, commands: list[str], settings: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """A stage's command and options as the YAML says them.

    Raises:
        UsageError: something in it is wrong.
    """
    if not _NAME.fullmatch(name) or name in TAKEN or name in settings:
        raise UsageError("choose another name, of letters, digits, '_', '-' and '.', which is no setting's either")
    content = _mapping(said, "it", ("command", "config", "options", "minutes"))
    command = content.get("command")
    if command not in commands:
        what = "'command' is missing" if command is None else f"there is no command '{command}'"
        raise UsageError(what + nearest(str(command), commands))
    options = _mapping(content.get("options"), "'options'")
    if "output" in options:
        raise UsageError("options: 'output' is not to be given: a stage's folder has the stage's name")
    return str(command), merged(_config(recipe, content["config"]) if content.get("config") else {}, options)


def _minutes(value: Any) -> float | None:
    """How long a stage takes, as the YAML says it.

    Raises:
        UsageError: it is no positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"'minutes' must be a positive number, not {value!r}")
    return float(value)


def _config(recipe: Path, name: Any) -> dict[str, Any]:
    """A stage's own YAML: beside the recipe, or as the command line finds it; its ``output`` does not count."""
    beside = recipe.parent / str(name)
    path = Path(config_path(str(beside) if beside.is_file() else str(name)))
    content = _mapping(yaml.safe_load(path.read_text()), str(path))
    return {key: value for key, value in content.items() if key != "output"}


def _mapping(value: Any, what: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    """A YAML's mapping with names for keys, or nothing; of these keys only if told.

    Raises:
        UsageError: it is no such mapping.
    """
    content = {} if value is None else value
    if not isinstance(content, dict):
        raise UsageError(f"{what} is not a mapping of names to values")
    for key in content:
        if not isinstance(key, str):
            raise UsageError(f"{what} has the key {key!r}, which is no name")
        if known and key not in known:
            raise UsageError(f"there is no option '{key}'{nearest(key, known)}")
    return content


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options with others over them; another class (``class_path``) brings its own arguments alone."""
    found = dict(base)
    for key, value in over.items():
        old = found.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            same = value.get("class_path", old.get("class_path")) == old.get("class_path")
            found[key] = merged(old, value) if same else dict(value)
        else:
            found[key] = value
    return found


def _filled(options: Any, settings: Mapping[str, Any], names: list[str], before: list[str]) -> Any:
    """Options with settings in place of their names.

    Raises:
        UsageError: they refer to what is no setting and no earlier stage.
    """

    def fill(text: str) -> Any:
        for name in _REFERENCE.findall(text):
            if name not in settings and name not in before:
                if name in names:
                    raise UsageError(f"'{text}' refers to {{{name}}}, which does not come before this stage")
                raise UsageError(f"'{text}' refers to {{{name}}}: there is no such stage or setting"
                                 + nearest(name, [*settings, *names]))  # fmt: skip
        whole = _REFERENCE.fullmatch(text)
        if whole and whole[1] in settings:
            return settings[whole[1]]  # of whatever type
        return _REFERENCE.sub(lambda match: str(settings.get(match[1], match[0])), text)

    return _changed(options, fill)


def _changed(value: Any, change: Any) -> Any:
    """Nested options with every text changed."""
    if isinstance(value, Mapping):
        return {key: _changed(each, change) for key, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values in nested options with their names, such as ``data.size``."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value:
        for index, each in enumerate(value):
            yield from leaves(each, f"{name}[{index}]")
    else:
        yield name, value


def references(options: Any) -> Iterator[str]:
    """The names in braces in all texts of nested options."""
    for _, value in leaves(options):
        if isinstance(value, str):
            yield from _REFERENCE.findall(value)
