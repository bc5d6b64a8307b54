"""Rewriting jsonargparse's error messages, often of many nested lines, as one sentence."""

import difflib
import re
from collections.abc import Iterable

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
NOT_NONE = "Expected a <class 'NoneType'>"  # the last alternative of every optional value: no help


def one_sentence(message: str, keys: Iterable[str]) -> str:
    """Return the cause of a parser's error in one line.

    Args:
        message: the parser's message.
        keys: all known keys; the nearest one is proposed for a mistyped key.
    """
    for pattern in UNKNOWN_KEY:
        if found := re.search(pattern, message):
            return f"there is no option '{found[1]}'{nearest(found[1].split('.')[-1], keys)}"
    text = _in_one_line(message)
    key = re.search(r'Parser key "([^"]+)"', message)
    reasons = re.search(r"  Errors:\n(.*)\n  Given value type:", message, re.DOTALL)
    if key and reasons:  # the value fits none of its types: a reason for each
        each = [_in_one_line(reason) for reason in re.split(r"^    - ", reasons[1], flags=re.MULTILINE)]
        kept = [reason for reason in each if reason and reason != NOT_NONE]
        value = message.rpartition("Given value: ")[2]
        repeated = value.startswith(("{", "NestedArg")) or any("Got value" in reason for reason in kept)
        given = "" if repeated else f"; got {value}"
        text = f"{key[1]}: {'; or '.join(kept)}{given}"
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    return text


def _in_one_line(text: str) -> str:
    return " ".join(line.strip() for line in text.strip().splitlines())


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` with the known word nearest to a mistyped one, or nothing."""
    found = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
