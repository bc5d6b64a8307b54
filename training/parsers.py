"""Parsers of the command line: options from words and from YAML, and mistakes as one sentence."""

import ast
import importlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from datamodules.errors import UsageError
from training.parser_messages import nearest, one_sentence

__all__ = ["OneSentenceErrors", "config_path", "find_configs", "read_signature", "run_function"]


class OneSentenceErrors:
    """Mixin for a parser of jsonargparse whose errors are one sentence instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UsageError` instead of printing the usage and exiting.

        Args:
            message: jsonargparse's message, often of several lines, with the cause in the last.
            ex: the exception behind it.

        Raises:
            UsageError: always.
        """
        raise UsageError(one_sentence(message, self.known_keys())) from ex

    def known_keys(self) -> set[str]:
        """Return the last parts of all keys that the parser knows; the nearest one is proposed for a mistyped key."""
        actions: list[Any] = self._actions  # type: ignore[attr-defined]
        return {action.dest.split(".")[-1] for action in actions if action.dest}


class FunctionParser(OneSentenceErrors, ArgumentParser):
    """The parser of a command that is a function."""


def run_function(target: str, about: str, name: str, words: Sequence[str]) -> None:
    """Call a function with arguments from the command line and from YAML.

    Args:
        target: ``module:function``. Its signature gives the options, its docstring their help. ``*paths`` takes the
            words that belong to no option, at least one. The fields of a dataclass parameter ``job`` are options.
        about: one line for ``--help``.
        name: name of the command, for ``--help``.
        words: command line after the name.

    Raises:
        UsageError: the words do not fit the signature.
    """
    function = read_signature(target)
    parser = FunctionParser(prog=f"tag2mask {name}", description=about[0].upper() + about[1:] + ".")
    parser.add_argument("-c", "--config", action="config", help="a YAML file with these same options")
    parameters = signature(function).parameters.values()
    if paths := next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), ""):
        parser.add_argument(paths, nargs="+", type=Path, help="files and folders")
    job = get_type_hints(function).get("job")
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip={"job"} if job else set())
    if job:
        parser.add_class_arguments(job, as_group=False)
    parsed = parser.instantiate_classes(parser.parse_args(list(words)))
    options: dict[str, Any] = {key: value for key, value in parsed.items(branches=True) if "." not in key}
    options.pop("config", None)
    if job:
        options["job"] = job(**{field.name: options.pop(field.name) for field in fields(job)})
    module, function_name = target.split(":")
    command = getattr(importlib.import_module(module), function_name)
    command(*options.pop(paths, ()), **options)


def read_signature(target: str) -> Callable[..., Any]:
    """Return a function with the signature and docstring of a command, and without its body.

    The module is not imported: torch and Lightning take seconds, and ``--help`` and mistakes must be answered at once.
    Its source is parsed, and only those statements at its top level run that define names in the signature.

    Args:
        target: ``module:function``.

    Raises:
        ImportError: the module or the function does not exist.
        NameError: the top level of the module does not define a name in the signature.
    """
    module, name = target.split(":")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no module {module}")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)
    if function is None:
        raise ImportError(f"the module {module} has no function {name}")
    del function.body[1:]  # all but the docstring
    names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    needed: list[ast.stmt] = []
    for node in reversed(tree.body):  # an assignment may need names that are defined before it
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in names]
            needed += [node] if node.names else []
        elif isinstance(node, ast.Assign) and names & {each.id for each in node.targets if isinstance(each, ast.Name)}:
            names |= {each.id for each in ast.walk(node.value) if isinstance(each, ast.Name)}
            needed.append(node)
    namespace: dict[str, Any] = {"__name__": __name__}  # jsonargparse imports the module that a function names
    code = compile(ast.Module([*reversed(needed), function], []), spec.origin, "exec")
    exec(code, namespace)  # noqa: S102  the program's source
    stub: Callable[..., Any] = namespace[name]
    return stub


def find_configs(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``--config NAME`` is replaced by the path of the YAML, see `config_path`."""
    found = list(words)
    for place, word in enumerate(words):
        if word in ("-c", "--config") and place + 1 < len(words):
            found[place + 1] = config_path(words[place + 1])
        elif word.startswith("--config="):
            found[place] = "--config=" + config_path(word.removeprefix("--config="))
    return found


def config_path(name: str) -> str:
    """Return the path of a YAML: the file itself, or the one of this name that the package ``configs`` contains.

    Raises:
        UsageError: there is no such file, or it is not YAML.
    """
    import configs

    shipped = Path(configs.__file__).parent / Path(name).name
    path = next((path for path in (Path(name), shipped) if path.is_file()), None)
    if path is None:
        raise UsageError(
            f"there is no file {name}{nearest(shipped.name, [each.name for each in shipped.parent.glob('*.yaml')])}"
        )
    try:
        yaml.safe_load(path.read_text())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{name}{line}: not YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: not a text file") from error
    except (yaml.YAMLError, ValueError) as error:  # an invalid character; a date that does not exist
        raise UsageError(f"{name}: not YAML: {str(error).splitlines()[0]}") from error
    return str(path)
