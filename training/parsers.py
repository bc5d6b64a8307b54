"""Parsers that take YAML and options alike, and answer a mistake with one sentence."""

import importlib
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from jsonargparse import ArgumentParser

from datamodules.errors import UsageError
from training.messages import one_sentence
from training.signatures import read_signature


class OneSentenceErrors:
    """Of a parser of jsonargparse: its errors are one sentence and not the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `UsageError` instead of printing usage and leaving the process.

        Args:
            message: what jsonargparse says, often over several lines, the root of the matter in the last.
            ex: the exception behind it, kept as the cause.

        Raises:
            UsageError: always.
        """
        raise UsageError(one_sentence(message, self.known_keys())) from ex

    def known_keys(self) -> set[str]:
        """The last words of all keys that the parser knows, to offer the nearest of them."""
        actions: list[Any] = self._actions  # type: ignore[attr-defined]
        return {action.dest.split(".")[-1] for action in actions if action.dest}


class FunctionParser(OneSentenceErrors, ArgumentParser):
    """The parser of a command that is a function."""


def run_function(target: str, about: str, name: str, words: list[str]) -> None:
    """Call a function with arguments parsed from words and YAML.

    Args:
        target: `module:function`; its signature gives the options, its docstring their help. What it takes as
            `*paths` are the words that belong to no option, at least one.
        about: one line for `--help`.
        name: the command's name, for `--help`.
        words: the command line after the name.

    Raises:
        UsageError: the words do not fit the signature.
    """
    function = read_signature(target)
    parser = FunctionParser(prog=f"tag2mask {name}", description=about[0].upper() + about[1:] + ".")
    parser.add_argument("-c", "--config", action="config", help="a YAML file with these same options")
    loose = next(
        (each.name for each in signature(function).parameters.values() if each.kind is each.VAR_POSITIONAL), ""
    )
    if loose:
        parser.add_argument(loose, nargs="+", type=Path, help="files and folders")
    job = get_type_hints(function).get("job")  # a dataclass whose fields are plain options: --devices, not --job.devices
    parser.add_function_arguments(function, as_group=False, sub_configs=True, skip={"job"} if job else set())
    if job:
        parser.add_class_arguments(job, as_group=False)
    parsed = parser.instantiate_classes(parser.parse_args(gathered(words) if loose else words))
    options: dict[str, Any] = {key: value for key, value in parsed.items(branches=True) if "." not in key}
    options.pop("config", None)
    if job:
        options["job"] = job(**{field.name: options.pop(field.name) for field in fields(job)})
    module, function_name = target.split(":")
    command = getattr(importlib.import_module(module), function_name)
    command(*options.pop(loose, ()), **options)


def gathered(words: list[str]) -> list[str]:
    """The same command line with the words that belong to no option together and first: argparse takes but one run.

    Every option of this program is followed by its value, but for those that only print.
    """
    loose: list[str] = []
    options: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":  # what comes after it is no option, whatever it looks like
            loose += rest
        elif not word.startswith("-"):
            loose.append(word)
        else:
            options.append(word)
            if "=" not in word and word not in ("-h", "--help", "--print_config"):
                options += [value for value in [next(rest, None)] if value is not None]
    return [*loose, *options]
