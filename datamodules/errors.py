"""Errors whose cause is the input of a user."""

import difflib
import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """An input (a file, a key, a shape) is not usable.

    The message is one sentence, without a full stop, that names the input and, where it helps, what to do; the command
    line prints it alone, without a traceback, and exits with ``status``.
    """

    status = 1

    def __init__(self, message: str) -> None:
        # A DataLoader rebuilds a worker's error with the whole traceback as its message; the sentence is its end.
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        super().__init__(message.rsplit(f"{kind}: ", 1)[-1].rstrip())


class UnreadableError(InputError):
    """A file cannot be read as an image or a mask: it is missing, cut short, or something else."""


class UsageError(InputError):
    """The command line or a YAML file is wrong: an unknown key, a value of the wrong type, no such file."""

    status = 2


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """Return the error for a name that is none of the known ones; its message names the nearest."""
    known = list(known)
    hint = did_you_mean(name, known) or f"there are {', '.join(known[:20])}"
    return InputError(f"there is no {kind} {name!r}; {hint}")


def require_choice(option: str, value: object, choices: Iterable[str]) -> None:
    """Raise an InputError where the value of an option is none of its choices; the command line has checked its own."""
    known = list(choices)
    if value not in known:
        raise InputError(f"{option} is {value!r}, and must be {' or '.join(known)}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with the known name nearest to a mistyped one, in any case of letters; empty where none is near."""
    by_lower_case = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    return f"did you mean {by_lower_case[near[0]]!r}?" if near else ""


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Put the place of an InputError, such as a file and line, before its message; its type stays."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


@contextmanager
def os_errors(problem: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn an OSError into an InputError: the problem, such as ``a.csv cannot be read``, and the system's reason."""
    try:
        yield
    except OSError as error:
        raise kind(f"{problem}: {error.strerror or error}") from error


def import_extra(module: str, extra: str, user: str, kind: type[InputError] = InputError) -> Any:
    """Return a module of an optional extra; raise an InputError, which names its user, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise kind(f"{user} needs the package {module}: pip install -c constraints.txt '.[{extra}]'") from error


def first_line(error: BaseException) -> str:
    """Return the first line of a library's error message; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def require_below_one(**numbers: float) -> None:
    """Raise an InputError for the first of the options that is not at least 0 and below 1."""
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} {value} must be at least 0 and below 1")
