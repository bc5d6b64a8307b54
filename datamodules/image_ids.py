"""Ids of images: from paths, from lists, and from paths in files of annotations."""

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import PurePosixPath

from datamodules.errors import InputError
from datamodules.files import AnyPath, existing_files, is_uri, read_lines, uri_path

INVALID_ID = "no relative path without '.', '..', backslashes and unprintable characters"

_NOT_IN_ID = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def is_valid_id(name: str) -> bool:
    """Return whether an id is a printable name or relative path that stays inside its folder."""
    return not _NOT_IN_ID.search(name) and not {"", ".", ".."} & set(name.split("/"))


def forward_slashes(file: str) -> str:
    """Return a path in a file that may have been written on Windows with ``/`` for a backslash; a URI as it is."""
    return file if is_uri(file) else file.replace("\\", "/")


def image_id(file: str) -> str:
    """Return the id of an image that a table lists: the path below the images' folder, or in a URI, without suffix.

    Folders may be separated by backslashes, as on Windows.

    Raises:
        InputError: the text is no path of a file.
    """
    try:
        below = uri_path(file).partition("/")[2] if is_uri(file) else forward_slashes(file)
        path = PurePosixPath(below).with_suffix("")
    except ValueError as error:
        raise InputError(f"{file!r} is no path of an image: {error}") from error
    return "/".join(part for part in path.parts if part not in ("/", ".."))  # results are files of this name


def read_ids(path: AnyPath) -> tuple[str, ...]:
    """Return the ids of a list of images: the first word of each line.

    Raises:
        InputError: the list cannot be read, or contains an id twice.
    """
    ids = tuple(line.split()[0] for line in read_lines(path) if line.strip())
    if len(set(ids)) < len(ids):
        raise InputError(f"the list {path} contains {Counter(ids).most_common(1)[0][0]} more than once")
    return ids


def unicode_forms(name: str) -> list[str]:
    """Return a name, and the same with its accents as macOS and other systems write them in file names."""
    return list(dict.fromkeys((name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))))


def names_on_disk(folder: AnyPath, names: Sequence[str]) -> list[str]:
    """Return names of files, relative to a folder, as they are there: accents may have another form.

    A name without accents, and one without a file, is returned as it is.
    """
    forms = {name: unicode_forms(name) for name in names if not name.isascii()}
    files = existing_files(folder, itertools.chain(*forms.values()))
    return [next((form for form in forms.get(name, ()) if form in files), name) for name in names]


def match_id(name: str, *ids: Container[str]) -> str:
    """Return the longest end of a path that is one of the ids; the path itself where there is none.

    ``/home/me/photos/cat/a`` is ``cat/a``, or else ``a``.
    """
    parts = name.split("/")
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if any(end in each for each in ids)), name)
