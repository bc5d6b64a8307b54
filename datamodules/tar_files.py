"""Tar archives: which there are in a folder, what they contain, reading one member without the rest, and writing."""

import fnmatch
import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from datamodules.errors import InputError, UnreadableError, os_errors
from datamodules.files import AnyPath, is_uri, local_copy, open_atomically, read_bytes, storage_errors

MAX_TEXT = 1 << 20  # bytes of the largest text member
_REQUEST = 1 << 23  # bytes of a request while an archive behind a URI is listed
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MEMBER = re.compile(r"tar://[^:]*::(?P<tar>.+)#(?P<start>\d+)\+(?P<size>\d+)", re.DOTALL)


class TarContent(NamedTuple):
    """What an archive contains.

    Attributes:
        members: URI by name of each regular file, in the archive's order, for `read_content`.
        texts: content of the small files with one of the wanted suffixes, by name.
    """

    members: dict[str, str]
    texts: dict[str, bytes]


def find_tars(folder: AnyPath, pattern: str) -> dict[str, int]:
    """Return the tar files of a folder that a pattern names, and their sizes in bytes, by one listing of the folder.

    A web server lists no sizes: that of each tar file is a request. It is 0 where the server does not report one.

    Args:
        folder: path or URI.
        pattern: a file name, in which ``*``, ``?`` and ``[…]`` have the meaning they have in a shell, and
            ``{000..099}`` stands for each number in that range.

    Returns:
        Sizes by file name, in the order of the pattern, those of ``*`` sorted.

    Raises:
        InputError: the folder cannot be read, or a tar file is missing.
    """
    from fsspec.core import url_to_fs

    with os_errors(f"the folder of tar files {folder} cannot be read"), storage_errors(folder):
        storage, path = url_to_fs(str(folder))
        storage.invalidate_cache(path)
        entries = storage.ls(path, detail=True)
        listed = {entry["name"]: entry["size"] for entry in entries if entry["type"] != "directory"}
        unknown = [name for name, size in listed.items() if size is None and name.endswith(".tar")]
        listed |= zip(unknown, storage.sizes(unknown), strict=True)
    sizes = {name.rpartition("/")[2]: int(size or 0) for name, size in listed.items()}
    found = dict[str, int]()
    for name in _expand(pattern):
        names = [name]
        if name not in sizes and re.search(r"[*?[]", name):  # a file's name may contain brackets
            names = [each for each in fnmatch.filter(sorted(sizes), name) if each.endswith(".tar") and each[0] != "."]
        if not names or names[0] not in sizes:
            raise InputError(f"there is no tar file {folder}/{name}")
        found |= {each: sizes[each] for each in names}
    if not found:
        raise InputError(f"there is no tar file {folder}/{pattern}: a range such as {{000..099}} counts up")
    return found


def _expand(pattern: str) -> Iterator[str]:
    """Yield the names that a pattern with ranges such as ``{000..099}`` stands for, with their leading zeros."""
    match = _RANGE.search(pattern)
    if match is None:
        yield pattern
        return
    for number in range(int(match[1]), int(match[2]) + 1):
        yield from _expand(f"{pattern[: match.start()]}{number:0{len(match[1])}d}{pattern[match.end() :]}")


def read_tar(tar: AnyPath, suffixes: tuple[str, ...] = ()) -> TarContent:
    """Return what an archive contains, from its headers; one behind a URI is read in requests of 8 MiB.

    Args:
        tar: path or URI of an archive that is not compressed.
        suffixes: of the members whose text is read.

    Raises:
        UnreadableError: the archive cannot be read, is truncated, or contains a name twice.
    """
    members, texts, last = dict[str, str](), dict[str, bytes](), ""
    try:
        with _open(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                last = member.name.removeprefix("./")
                if not member.isreg():
                    continue
                if last in members:
                    raise UnreadableError(f"tar file {tar} contains {last} twice")
                name = last.replace(":", "%3A")  # :: separates the archive
                members[last] = f"tar://{name}::{tar}#{member.offset_data}+{member.size}"
                if last.lower().endswith(suffixes) and member.size <= MAX_TEXT:
                    texts[last] = cast("BinaryIO", archive.extractfile(member)).read()
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # an archive ends with a block of zeros
                after = f"after {last}" if last else "or is no tar archive"
                raise UnreadableError(f"tar file {tar} is truncated or damaged {after}")
    except tarfile.TarError as error:
        problem = f"is truncated in {last}" if last else f"is not a tar archive, or is compressed ({error})"
        raise UnreadableError(f"tar file {tar} {problem}") from error
    except OSError as error:
        raise UnreadableError(f"tar file {tar} cannot be read: {error.strerror or error}") from error
    return TarContent(members, texts)


@contextmanager
def _open(tar: AnyPath) -> Iterator[BinaryIO]:
    local = local_copy(tar) if is_uri(tar) else Path(str(tar))
    if local is not None:
        with local.open("rb") as file:
            yield file
        return
    from fsspec.core import url_to_fs

    with storage_errors(tar):
        storage, name = url_to_fs(str(tar))
        with storage.open(name, "rb", block_size=_REQUEST, cache_type="readahead") as file:
            yield file


def read_content(path: str | AnyPath) -> bytes:
    """Read a file by path or URI, or a member of a tar file by its URI in `TarContent`: nothing else of the archive.

    Raises:
        OSError: the file or archive cannot be read, or the archive has become shorter.
        InputError: fsspec has no file system for the URI.
    """
    match = _MEMBER.fullmatch(str(path))
    if match is None:
        return read_bytes(path)
    start, size = int(match["start"]), int(match["size"])
    content = read_bytes(match["tar"], start, start + size) if size else b""
    if len(content) != size:
        raise OSError(0, "the archive is truncated")
    return content


def open_file(path: str | AnyPath) -> BinaryIO:
    """Open an image or mask: a local file, or the content behind a URI (a member of a tar file, or what fsspec reads).

    Raises:
        UnreadableError: the file does not exist or cannot be opened.
        InputError: fsspec has no file system for the URI.
    """
    with os_errors(f"image {path} cannot be read", UnreadableError):
        return io.BytesIO(read_content(path)) if is_uri(path) else Path(str(path)).open("rb")


def write_tar(path: AnyPath, contents: Mapping[str, bytes], comment: str | None = None) -> None:
    """Write a tar file, whole or not at all, whose bytes follow from its content alone: no dates, no owners.

    Args:
        path: the file.
        contents: the members by name; they are sorted.
        comment: the ``comment`` of the archive's PAX header.
    """
    headers = None if comment is None else {"comment": comment}
    with open_atomically(path) as file, tarfile.open(fileobj=file, mode="w", pax_headers=headers) as archive:
        for name, content in sorted(contents.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
