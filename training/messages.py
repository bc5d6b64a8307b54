"""One sentence out of what jsonargparse says of a mistake, often in many nested lines."""

import difflib
import re
from collections.abc import Iterable

UNKNOWN_KEY = (
    r"there is no option '([^']+)'",  # said by this module for an inner parser, and quoted by the outer
    r"[Kk]ey '([^']+)' is not expected",
    r"[Oo]ption '([^']+)'",
    r"unrecognized arguments: --?([^\s=]+)",
)
TYPE_NAMES = (
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r"typing\.Literal\[(.*?)\]", r"one of \1"),
    (r"Expected a ", "expected "),
    (r"\. Got value: ", ", got "),
    (r"NestedArg\(key='([^']+)', val=(.*)\)", r"\1=\2"),
    (r"'fit\.|'validate\.|'test\.", "'"),
    (r"\b(?:fit|validate|test)\.(?=(?:model|data|trainer|output|wandb)\b)", ""),
)
NOT_NONE = "Expected a <class 'NoneType'>"  # every optional value's last alternative: true, and no help


def one_sentence(message: str, keys: Iterable[str]) -> str:
    """The root of the matter, on one line.

    Args:
        message: what a parser says.
        keys: all keys there are, to offer the nearest of them for a mistyped one.
    """
    for pattern in UNKNOWN_KEY:
        if found := re.search(pattern, message):
            key = found.group(1)
            return f"there is no option '{key}'{nearest(key.split('.')[-1], keys)}"
    text = alternatives(message) if "  Errors:" in message else joined(message)
    for pattern, name in TYPE_NAMES:
        text = re.sub(pattern, name, text)
    return text


def alternatives(message: str) -> str:
    """A value that fits none of the types it may have: its key, and why not, type by type."""
    key = re.search(r'Parser key "([^"]+)"', message)
    reasons = re.search(r"  Errors:\n(.*)\n  Given value type:", message, re.DOTALL)
    if not key or not reasons:
        return joined(message)
    each = [joined(reason) for reason in re.split(r"^    - ", reasons.group(1), flags=re.MULTILINE)]
    kept = [reason for reason in each if reason and reason != NOT_NONE]
    value = message.rpartition("Given value: ")[2]
    given = "" if value.startswith("{") or any("Got value" in reason for reason in kept) else f"; got {value}"
    return f"{key.group(1)}: {'; or '.join(kept)}{given}"


def joined(message: str) -> str:
    """Lines as one; without parsers' own way of naming a key."""
    line = " ".join(part.strip() for part in message.strip().splitlines())
    return re.sub(r'Parser key "([^"]+)":', r"\1:", line)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to a mistyped one, or nothing."""
    found = difflib.get_close_matches(word, sorted(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""
