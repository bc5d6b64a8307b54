"""What is on disk, as short texts that change when it does: cheap enough to look at a whole data set each time."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from datamodules.files import file_sha256
from datamodules.seed_cache import cache_fingerprint

__all__ = ["fingerprint", "sizes"]

READ = (".csv", ".json", ".npy", ".txt", ".xml", ".yaml")  # lists, tags and labels: small files that decide much


def fingerprint(path: Path, leave_out: Path | None = None) -> str | None:
    """What a file or a folder holds.

    A file is told by its bytes. A seed cache is told by the checksums of its shards. Any other folder, such as images with their labels, is told
    by the names and sizes of all files in it and beneath (hidden ones left out), and the bytes of those that are lists
    or labels (``.csv .json .npy .txt .xml .yaml``): an image that is changed and keeps its size to the byte is not
    noticed.

    Args:
        path: the file or folder; links are followed.
        leave_out: a folder not to look into.

    Returns:
        Hexadecimal digits, or None where there is nothing of that name.

    Raises:
        OSError: something cannot be read.
    """
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        return None
    if found := cache_fingerprint(path):
        return found
    told = hashlib.sha256()
    for name, file in _files(path, leave_out):
        content = file_sha256(file) if file.suffix.lower() in READ else ""
        told.update(f"{name}\0{file.stat().st_size}\0{content}\n".encode(errors="surrogateescape"))
    return told.hexdigest()


def sizes(path: Path) -> dict[str, int]:
    """The files in a folder and beneath by name, hidden ones left out, with their bytes; a file's own under ``.``.

    Raises:
        OSError: something cannot be read.
    """
    if path.is_file():
        return {".": path.stat().st_size}
    return {name: file.stat().st_size for name, file in _files(path, None)}


def _files(folder: Path, leave_out: Path | None) -> Iterator[tuple[str, Path]]:
    """Names relative to the folder, sorted, and files; a folder that links lead to more than once is seen once."""
    skipped = {os.path.realpath(leave_out)} if leave_out else set()
    for place, folders, names in os.walk(folder, followlinks=True):
        skipped.add(os.path.realpath(place))
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(Path(place, name)) not in skipped
        )
        for name in sorted(names):
            file = Path(place, name)
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(folder).as_posix(), file
