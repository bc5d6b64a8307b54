"""Tables of images: CSV with a header, or JSON lines."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from datamodules.errors import InputError, os_errors
from datamodules.files import AnyPath, is_uri, join_path, read_bytes
from datamodules.image_ids import forward_slashes

TABLES = (".csv", ".jsonl")
"""Suffixes of tables."""

csv.field_size_limit(1 << 30)  # by default 128 KiB, which a long scribble exceeds


def read_rows(path: AnyPath) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the columns of a table, and the location (file and line) and the fields of each row.

    Columns of a CSV are in lower case. They are separated by commas, or like the header by semicolons or tabs.
    Fields of JSON lines have any type of JSON; a field may be missing.

    Args:
        path: a CSV with a header, or JSON lines (``.jsonl``).

    Raises:
        InputError: the table is missing or malformed, or two columns have the same name. The iterator raises it for a
            row that is no JSON object, or has more fields than the header.
    """
    lines: list[tuple[int, Any]]
    with os_errors(f"table {path} cannot be read"):
        content = read_bytes(path)
    delimiter = ","
    try:
        text = content.decode("utf-8-sig")
        file = io.StringIO(text, newline="")
        if path.suffix.lower() == ".jsonl":
            lines = [(number, json.loads(line)) for number, line in enumerate(file, start=1) if line.strip()]
            header = sorted(set().union(*(row for _, row in lines if isinstance(row, dict))))
        else:
            first = next(iter(text.splitlines()), "")
            delimiter = next((each for each in ";\t" if each in first and "," not in first), ",")
            reader = csv.DictReader(file, strict=True, delimiter=delimiter)
            header = [field.strip().lower() for field in reader.fieldnames or ()]
            while header and not header[-1]:  # a spreadsheet pads the header to the longest row
                header.pop()
            reader.fieldnames = header
            lines = [(reader.line_num, row) for row in reader]
    except (csv.Error, ValueError, RecursionError) as error:  # ValueError: also an integer of thousands of digits
        kind, reason = path.suffix[1:].upper(), "it is an Excel file" if content.startswith(b"PK") else str(error)
        advice = f"; save it as '{kind} UTF-8'" if isinstance(error, UnicodeDecodeError) else ""
        raise InputError(f"table {path} is not a UTF-8 {kind}: {reason}{advice}") from error

    if repeated := next((name for name, times in Counter(filter(None, header)).items() if times > 1), None):
        raise InputError(f"table {path} has {header.count(repeated)} columns {repeated!r}: rename or remove one")

    def rows() -> Iterator[tuple[str, dict[str, Any]]]:
        for line, row in lines:
            where = f"{path}, line {line}"
            if not isinstance(row, dict):
                raise InputError(f"{where} is not a JSON object")
            # csv.DictReader stores columns beyond the header under None: "a.jpg,cat,dog" would lose its dog
            if beyond := next(filter(str.strip, row.get(None, ())), None):
                problem = f"{beyond.strip()!r} is beyond the columns of the header"
                advice = "';', and put a field with commas in quotes" if delimiter == "," else "'|'"
                raise InputError(f"{where}: {problem}; separate tags by {advice}")
            yield where, row

    return header, rows()


def path_in_table(table: AnyPath, name: str) -> str:
    """Return the path or URI of an image or mask that a table names relative to its own folder."""
    if is_uri(name) or PurePosixPath(name).is_absolute():
        return name
    return str(join_path(table.parent, forward_slashes(name)))
