"""Parsers of the command line: options from words and from YAML, and mistakes as one sentence."""

import ast
import importlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, cast, get_args, get_type_hints

import yaml
from docstring_parser import parse
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type
from upath import UPath

from datamodules.errors import UsageError, did_you_mean, first_line
from datamodules.files import is_uri

UNKNOWN_KEY = (
    r"there is no option '([^']+)'",  # by this module for an inner parser, and quoted by the outer one
    r"[Kk]ey '([^']+)' is not expected",
    r"[Oo]ption '([^']+)'",
    r"unrecognized arguments: --?([^\s=]+)",
)
REPLACEMENTS = (
    (r'Parser key "([^"]+)":', r"\1:"),
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"typing\.Literal\[(.*?)\]", r"one of \1"),
    (r"Expected a ", "expected "),
    (r"\. Got value: ", ", got "),
    (r"NestedArg\(key='([^']+)', val=(.*)\)", r"\1=\2"),
    (r"'fit\.|'validate\.|'test\.", "'"),
    (r"\b(?:fit|validate|test)\.(?=(?:model|data|trainer|output|wandb)\b)", ""),
)
NO_TEXT = re.compile(r"expected str, got (?:True|False|None|[-+]?[\d.]+(?:e[-+]?\d+)?)(?=;|$)")
QUOTES = "put names such as no, on, null and numbers in quotes"  # YAML reads them as other values
NOT_NONE = "Expected a <class 'NoneType'>"  # the last alternative of every optional value: no help


def read_path(given: str | int) -> UPath:
    """Return an option's path or URI; a ValueError where a URI lacks its bucket, such as ``s3:/photos``.

    A YAML reads the name of a folder such as 2024 as a number.
    """
    text = cast("str", str(given) if type(given) is int else given)  # or of any other type
    is_local = isinstance(text, str) and text.startswith("file:///")
    path = UPath(text.removeprefix("file://") if is_local else text)
    path.joinpath("file")  # checks the bucket
    return path


def read_local_path(text: str) -> Path:
    """Return an option's local path; a ValueError where it is a URI, which would become folders of its name here."""
    if is_uri(text):
        raise ValueError(f"it must be a local path, not {text}")
    return Path(text)


register_type(UPath, deserializer=read_path)  # options that are paths or URIs
register_type(Path, deserializer=read_local_path, type_check=isinstance)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for a mistyped word.

    Args:
        word: the mistyped word.
        known: all words.

    Returns:
        ``; did you mean 'x'?`` with the nearest known word, or nothing where none is near. A known word was given in
        the wrong place.
    """
    known = set(known)
    if word in known:
        return " here, only in another group or of another class_path"
    hint = did_you_mean(word, sorted(known))
    return f"; {hint}" if hint else ""


def one_sentence(message: str, keys: Iterable[str]) -> str:
    """Return the cause of a parser's error, often of many nested lines, in one line.

    Args:
        message: the parser's message.
        keys: all known keys; the nearest one is proposed for a mistyped key.
    """
    for pattern in UNKNOWN_KEY:
        if found := re.search(pattern, message):
            *groups, word = found[1].split(".")
            mistyped = (each for each in groups if each != "init_args" and did_you_mean(each, ["init_args"]))
            return f"there is no option '{found[1]}'{nearest(next(mistyped, word), keys)}"
    key = re.search(r'Parser key "([^"]+)"', message)
    reasons = re.search(r"  Errors:\n(.*)\n  Given value type:", message, re.DOTALL)
    if key and reasons:  # the value fits none of its types: a reason for each
        each = [" ".join(reason.split()) for reason in re.split(r"^    - ", reasons[1], flags=re.MULTILINE)]
        kept = [reason for reason in each if reason and reason != NOT_NONE]
        value = message.rpartition("Given value: ")[2]
        repeated = value.startswith(("{", "NestedArg")) or any("Got value" in reason for reason in kept)
        message = f"{key[1]}: {'; or '.join(kept)}{'' if repeated else f'; got {value}'}"
    for pattern, replacement in REPLACEMENTS:
        message = re.sub(pattern, replacement, message)
    message = " ".join(message.split())
    return f"{message}; {QUOTES}" if NO_TEXT.search(message) else message


class OneSentenceErrors:
    """Mixin for a parser of jsonargparse whose errors are one sentence instead of the whole usage."""

    class_keys: frozenset[str] = frozenset()  # arguments of the classes that a YAML can name

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UsageError` instead of printing the usage and exiting.

        Args:
            message: jsonargparse's message, often of several lines, with the cause in the last.
            ex: the exception behind it.

        Raises:
            UsageError: always.
        """
        subcommands: Any = getattr(self, "_subcommands_action", None)
        parsers: list[Any] = [self, *getattr(subcommands, "_name_parser_map", {}).values()]
        keys = {action.dest.split(".")[-1] for each in parsers for action in each._actions if action.dest}  # noqa: SLF001
        if word := re.search(r"unrecognized arguments: ([^-\s].*)", message):
            is_checkpoint = word[1].endswith(".ckpt")
            likely = ("checkpoint",) if is_checkpoint else ("cache", "root", "images")
            if option := next((name for name in likely if name in keys), None):
                raise UsageError(f"'{word[1]}' is no option; did you mean --{option} {word[1]}?") from ex
        positional = {action.dest for action in self._actions if not action.option_strings}  # type: ignore[attr-defined]
        if "photos" in positional and re.search(r"(unrecognized arguments: |[Oo]ption '|[Kk]ey ')-*images", message):
            raise UsageError("images are given without an option, as in tag2mask explain IMAGE") from ex
        raise UsageError(one_sentence(message, keys | self.class_keys)) from ex


class FunctionParser(OneSentenceErrors, ArgumentParser):
    """The parser of a command that is a function."""


def split_list(text: str) -> list[str]:
    """Return the names in a text with commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def split_lists(words: Sequence[str], names: Collection[str]) -> list[str]:
    """Return a command line in which lists of names without brackets have them: ``cat,dog`` is ``["cat", "dog"]``.

    Args:
        words: the command line.
        names: options that are lists of names. A value in brackets, null, and an empty one stay.
    """
    found, before = list[str](), ""
    for word in words:
        option, equals, value = word.partition("=")
        start = option + equals if option.removeprefix("--") in names and equals else ""
        is_list = bool(start) or (before.startswith("--") and before[2:] in names)
        text = (value if start else word).strip()
        is_plain = is_list and text not in ("", "null") and not text.startswith(("[", "-"))
        found.append(start + json.dumps(split_list(text), ensure_ascii=False) if is_plain else word)
        before = word
    return found


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
    hints, parameters = get_type_hints(function), signature(function).parameters.values()
    if paths := next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), ""):
        described = {each.arg_name: each.description for each in parse(function.__doc__ or "").params}
        parser.add_argument(paths, nargs="+", type=hints[paths], help=described.get(paths))
    job = hints.get("job")
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip={"job"} if job else set())
    if job:
        parser.add_class_arguments(job, as_group=False)
        hints |= get_type_hints(job)
    lists = {name for name, hint in hints.items() if hint == list[str] or get_args(hint) == (list[str], type(None))}
    options: dict[str, Any] = vars(parser.instantiate_classes(parser.parse_args(split_lists(words, lists))))
    options.pop("config", None)
    if job:
        options["job"] = job(**{field.name: options.pop(field.name) for field in fields(job)})
    if paths and not options[paths]:  # an empty list in a YAML
        raise UsageError(f"{paths}: give at least one")
    module, function_name = target.split(":")
    command = getattr(importlib.import_module(module), function_name)
    command(*options.pop(paths, ()), **options)


def read_signature(target: str) -> Callable[..., Any]:
    """Return a function with the signature and docstring of a command, and without its body.

    The module is not imported: torch and Lightning take seconds, and ``--help`` and mistakes must appear at once.
    Its source is parsed, and only those statements at its top level run that define names in the signature.

    Args:
        target: ``module:function``.

    Raises:
        NameError: the top level of the module does not define a name in the signature.
    """
    module, name = target.split(":")
    path = Path(getattr(find_spec(module), "origin", ""))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
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
    code = compile(ast.Module([*reversed(needed), function], []), path, "exec")
    exec(code, namespace)  # noqa: S102  the program's source
    return cast("Callable[..., Any]", namespace[name])


def find_configs(words: Sequence[str]) -> list[str]:
    """Return a command line in which ``--config NAME`` is replaced by the path of the YAML, see `read_config`.

    Raises:
        UsageError: as `read_config`, or the YAML is a recipe, or no mapping.
    """

    def step_path(name: str) -> str:
        path, content = read_config(name)
        if isinstance(content, dict) and "stages" in content:
            raise UsageError(f"{path} is a recipe: tag2mask run --config {path}")
        if not isinstance(content, dict):
            raise UsageError(f"{path} is not a mapping of options to values")
        return str(path)

    found = list(words)
    for place, word in enumerate(words):
        if word in ("-c", "--config") and place + 1 < len(words):
            found[place + 1] = step_path(words[place + 1])
        elif word.startswith("--config="):
            found[place] = "--config=" + step_path(word.removeprefix("--config="))
    return found


def read_config(name: str, *, unique_keys: bool = True) -> tuple[Path, Any]:
    """Return path and content of a YAML: the file itself, or for ``NAME`` and ``configs/NAME`` that of the package.

    Raises:
        UsageError: there is no such file, it is not YAML, or a key occurs twice in a mapping where it must not.
    """
    import configs

    shipped = Path(configs.__file__).parent / Path(name).name
    is_shipped = Path(name).parent in (Path(), Path("configs")) and shipped.is_file()
    path = Path(name) if Path(name).is_file() else shipped if is_shipped else None
    if path is None:
        known = [each.name for each in shipped.parent.glob("*.yaml")]
        raise UsageError(f"there is no file {name}{nearest(shipped.name, known)}")
    try:
        loader = UniqueKeyLoader if unique_keys else yaml.SafeLoader
        return path, yaml.load(path.read_text(encoding="utf-8"), loader)  # noqa: S506  both are SafeLoaders
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, or no text
        mark = getattr(error, "problem_mark", None)
        place = f"{name}, line {mark.line + 1}" if mark else name
        kind = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise UsageError(f"{place}: {kind}{getattr(error, 'problem', None) or first_line(error)}") from error


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads numbers such as 1e-4 as jsonargparse does, and refuses a key that occurs twice.

    A stage that is copied without a new name would replace the first one.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return the node of a mapping."""
        node = super().compose_mapping_node(anchor)  # before merged keys (<<) are added to it
        keys = [key.value for key, _ in node.value if key.tag.endswith(":str")]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"'{twice}' comes twice", node.start_mark)
        return node


class ConfigDumper(yaml.SafeDumper):
    """Quotes texts such as ``1e3``, which `UniqueKeyLoader` and the commands would read as numbers."""


_NUMBER = re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$")  # PyYAML alone reads 1e-4 as a text
UniqueKeyLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))
ConfigDumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))
