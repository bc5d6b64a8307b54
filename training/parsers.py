"""Parsers that take YAML and options alike, and answer a mistake with one sentence."""

import importlib
from inspect import signature
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning.cli import LightningArgumentParser

from training.messages import one_sentence
from training.yaml_files import UsageError


class OneSentenceParser(LightningArgumentParser):
    """jsonargparse's parser (with Lightning's additions), whose errors are one sentence and not the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `UsageError` instead of printing usage and leaving the process.

        Args:
            message: what jsonargparse says, often over several lines, the root of the matter in the last.
            ex: the exception behind it, kept as the cause.

        Raises:
            UsageError: always.
        """
        raise UsageError(one_sentence(message, known_keys(self))) from ex


def known_keys(parser: LightningArgumentParser) -> set[str]:
    """The last words of all keys a parser knows (`lr` of `model.init_args.lr`), to offer the nearest of.

    Arguments of classes named in a YAML are not actions of the parser, so those are read off the classes.
    """
    from datamodules.transforms import Augment  # noqa: PLC0415
    from seeds.affinity.task import AffinityTask  # noqa: PLC0415
    from seeds.classifier import ClassifierTask  # noqa: PLC0415
    from training.task import SegmentationTask  # noqa: PLC0415

    parsers = [parser, *getattr(parser._subcommands_action, "_name_parser_map", {}).values()]  # noqa: SLF001
    keys = {action.dest.split(".")[-1] for each in parsers for action in each._actions if action.dest}  # noqa: SLF001
    named = (ClassifierTask, AffinityTask, SegmentationTask, Augment)
    return keys.union(*(signature(known).parameters for known in named))


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
    module, function_name = target.split(":")
    function = getattr(importlib.import_module(module), function_name)
    parser = OneSentenceParser(prog=f"tag2mask {name}", description=about[0].upper() + about[1:] + ".")
    parser.add_argument("-c", "--config", action="config", help="a YAML file with these same options")
    loose = next(
        (each.name for each in signature(function).parameters.values() if each.kind is each.VAR_POSITIONAL), ""
    )
    if loose:
        parser.add_argument(loose, nargs="+", type=Path, help="files and folders")
    parser.add_function_arguments(function, as_group=False, sub_configs=True)
    parsed = parser.instantiate_classes(parser.parse_args(gathered(words) if loose else words))
    options: dict[str, Any] = {key: value for key, value in parsed.items(branches=True) if "." not in key}
    options.pop("config", None)
    function(*options.pop(loose, ()), **options)


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
