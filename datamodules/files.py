"""Files and folders: read by path or URI, written whole or not at all, and compared by checksums and sizes."""

import csv
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from urllib.parse import urlsplit

from upath import UPath

from datamodules.errors import InputError, first_line, os_errors

CACHE = "TAG2MASK_CACHE"
"""Environment variable: the local folder in which `read_bytes` keeps a copy of each file that it reads by URI."""

RETRY_SECONDS = (0.5, 2.0)
"""Seconds before the second and the third attempt to read a file by URI."""

AnyPath = Path | UPath
"""The path of a local file, or of a URI that fsspec reads; ``UPath(text)`` makes either. A local path is a `Path`."""

_VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "CRC", "LastModified", "mtime", "created")
"""Keys of fsspec's metadata of a file: of S3, of Google and Azure, of Hugging Face, of zip files, and of others."""

_PART_BYTES = 200  # of the name of a file in that of its temporary neighbour

# lists, tags and labels, and what contains tags: a tag that is corrected in a tar file leaves its size as it is
_HASHED = (".csv", ".json", ".jsonl", ".npy", ".tar", ".txt", ".xml", ".yaml")

_SMALL = 1 << 16  # bytes up to which other files are hashed, too: most masks, few photos


def is_uri(path: str | AnyPath) -> bool:
    """Return whether a path is a URI, such as ``s3://bucket/a.jpg`` or ``zip://a.jpg::s3://bucket/a.zip``."""
    return "://" in str(path)


def uri_path(uri: str) -> str:
    """Return bucket and path of the file in a URI; no bucket, so that ``/`` is first, for http and in archives.

    Only in URIs of http do ``?`` and ``#`` end a path: an object store allows both in names.

    Raises:
        ValueError: a URI of http is malformed.
    """
    file = next((part for part in uri.split("::") if is_uri(part)), uri)  # zip://a.jpg::s3://bucket/a.zip
    if file.startswith(("http://", "https://")):
        return urlsplit(file).path
    path = file.partition("://")[2]
    return path if uri.endswith(file) else f"/{path}"


def join_path(folder: AnyPath, name: str) -> AnyPath:
    """Return the path of a file or folder by its name relative to a folder, which may begin with ``..``."""
    path = folder / PurePosixPath(name)
    return path.resolve() if is_uri(path) and ".." in PurePosixPath(name).parts else path  # object stores know no ..


def expand_home(path: str) -> str:
    """Return a path with the home folder in place of ``~/``, which no shell has replaced in a YAML."""
    return str(Path(path).expanduser()) if path.startswith("~/") else path


@contextmanager
def storage_errors(path: str | AnyPath) -> Iterator[None]:
    """Turn an error of fsspec or of the library behind it into an OSError whose ``strerror`` is one sentence.

    Those libraries have their own error types, such as botocore's, and some are no OSErrors.

    Raises:
        FileNotFoundError: there is no such file, or no such bucket.
        PermissionError: the credentials do not allow it, or there are none.
        OSError: anything else that the storage reports.
        InputError: fsspec has no file system for the URI.
    """
    try:
        yield
    except (InputError, tarfile.TarError):  # of what is read, not of the storage
        raise
    except (ImportError, ValueError) as error:  # such as gcsfs, which is not installed
        raise InputError(f"{path} cannot be accessed: {first_line(error).rstrip('.')}") from error
    except Exception as error:
        reason = first_line(error).rstrip(".")
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            bucket = str(path).rpartition("://")[2].partition("/")[0]
            missing = f"bucket {bucket}" if "bucket does not exist" in reason else "such file or folder"
            raise FileNotFoundError(errno.ENOENT, f"there is no {missing}", str(path)) from error
        if isinstance(error, PermissionError) or "credentials" in reason.lower():
            reason = f"access is denied, check the credentials ({reason})"
            raise PermissionError(errno.EACCES, reason, str(path)) from error
        raise OSError(errno.EIO, reason, str(path)) from error


def read_bytes(path: str | AnyPath, start: int = 0, end: int | None = None) -> bytes:
    """Read a local file, or a file that fsspec reads by URI: ``s3://bucket/a.jpg``, ``zip://a.jpg::archive.zip``, ….

    A file named by a URI is tried up to three times, also in a forked process, and by one request for the bytes wanted.
    Where `CACHE` names a folder, a copy of the file is read as `local_copy` makes it.

    Args:
        path: the file.
        start: its first byte to be read.
        end: the byte after the last one, if it is not the end of the file.

    Raises:
        OSError: the file cannot be read; ``strerror`` is the reason.
        InputError: fsspec has no file system for the URI, or the copy cannot be written.
    """
    local = local_copy(path) if is_uri(path) else Path(str(path))
    if local is not None:
        with local.open("rb") as file:
            file.seek(start)
            return file.read() if end is None else file.read(end - start)
    limits = {} if start == 0 and end is None else {"start": start, "end": end}
    return bytes(_request(path, lambda storage, name: storage.cat_file(name, **limits)))


def read_lines(path: AnyPath) -> list[str]:
    """Return the lines of a list, a text file in UTF-8, by `read_bytes`.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def local_copy(uri: str | AnyPath) -> Path | None:
    """Return the copy of a file in the folder that `CACHE` names, and make it if necessary; None without such a folder.

    The copy is used until the checksum or time that the storage reports for the file changes; errors as `read_bytes`.
    """
    folder = os.environ.get(CACHE)
    if not folder:
        return None
    version = _request(uri, _current_version)
    copy = Path(folder).expanduser() / hashlib.sha256(f"{uri}\0{version}".encode()).hexdigest()
    if not copy.is_file():
        content = _request(uri, lambda storage, name: storage.cat_file(name))
        write_atomically(copy, content)
    return copy


def _request(uri: str | AnyPath, request: Callable[[Any, str], Any]) -> Any:
    """Return what a function of a file's storage and name returns, in up to three attempts."""
    from fsspec.core import url_to_fs

    for pause in (*RETRY_SECONDS, None):
        try:
            with storage_errors(uri):
                return request(*url_to_fs(str(uri)))  # a forked process cannot use the file system that a UPath holds
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError


def _current_version(storage: Any, name: str) -> str:
    storage.invalidate_cache(name)  # an earlier listing may be outdated
    return _version(storage.info(name))


def _version(info: Mapping[str, Any]) -> str:
    """Return a file's size and checksum or time, as its storage reports them; it changes with the content."""
    return f"{info['size']} {next((info[key] for key in _VERSIONS if info.get(key)), '')}"


def list_folder(folder: AnyPath) -> tuple[list[str], list[str]]:
    """Return the sorted names of the folders and of the files in a folder; one behind a URI is listed anew each time.

    Raises:
        OSError: the folder does not exist or cannot be read; ``strerror`` is the reason.
        InputError: fsspec has no file system for the URI.
    """
    if isinstance(folder, Path):
        found = {entry.name: entry.is_dir() for entry in folder.iterdir()}
    else:

        def entries(storage: Any, path: str) -> dict[str, bool]:
            storage.invalidate_cache(path)
            listed = {
                entry["name"].rstrip("/"): entry["type"] == "directory" for entry in storage.ls(path, detail=True)
            }
            listed.pop(path.rstrip("/"), None)  # an object store may hold an empty object of the folder's name
            return listed

        found = {name.rpartition("/")[2]: is_folder for name, is_folder in _request(folder, entries).items()}
    folders, files = (sorted(name for name in found if found[name] is kind) for kind in (True, False))
    return folders, files


def existing_files(folder: AnyPath, names: Iterable[str]) -> set[str]:
    """Return those of the given names, relative to a folder, that are files; behind a URI each folder is listed once.

    Raises:
        OSError: the storage of a URI cannot be read.
    """
    if isinstance(folder, Path):
        return {name for name in names if (folder / name).is_file()}
    found, listings = set(), dict[str, set[str]]()
    for name in names:
        parent, _, file = name.rpartition("/")
        if parent not in listings:
            try:
                listings[parent] = set(list_folder(folder / parent)[1])
            except FileNotFoundError:
                listings[parent] = set()
        if file in listings[parent]:
            found.add(name)
    return found


def file_sha256(path: str | AnyPath) -> str:
    """Return the SHA-256 of a file's bytes.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    if is_uri(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    with Path(str(path)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fingerprint(path: AnyPath, leave_out: Path | None = None) -> str | None:
    """Return a digest of a file's bytes, or of what a folder contains.

    A folder's digest covers the names and sizes of all files in it and beneath (hidden ones left out) and the bytes of
    files up to 64 KiB, such as masks, of lists and labels (``.csv .json .jsonl .npy .txt .xml .yaml``), and of tar
    files. Without tar files it is cheap for a whole data set; it does not notice a larger image that changes and keeps
    its size to the byte. Behind a URI one listing gives names, sizes, and checksums or times of all files.

    Args:
        path: the file or folder; links are followed.
        leave_out: a folder not to look into.

    Returns:
        Hexadecimal digits, or None where nothing has that name, or a folder without a file.

    Raises:
        OSError: something cannot be read.
    """
    total = hashlib.sha256()
    if not isinstance(path, Path):

        def versions(storage: Any, top: str) -> dict[str, str]:
            storage.invalidate_cache()
            found = storage.find(top, detail=True)
            return {name.removeprefix(top): _version(info) for name, info in found.items()}

        files = _request(path, versions)
        for name, version in sorted(files.items()):
            total.update(f"{name}\0{version}\n".encode())
        return total.hexdigest() if files else None
    if path.is_file():
        return file_sha256(path)
    if not path.is_dir():
        return None
    empty = True
    for name, file in _files(path, leave_out):
        size, empty = file.stat().st_size, False
        content = file_sha256(file) if size <= _SMALL or file.suffix.lower() in _HASHED else ""
        total.update(f"{name}\0{size}\0{content}\n".encode(errors="surrogateescape"))
    return None if empty else total.hexdigest()


def file_sizes(path: Path) -> dict[str, int]:
    """Return the size in bytes of each file in a folder and beneath by name, hidden ones left out.

    A path that is a file itself has the name ``.``.

    Raises:
        OSError: something cannot be read.
    """
    files = [(".", path)] if path.is_file() else _files(path, None)
    return {name: file.stat().st_size for name, file in files}


def read_json(path: AnyPath) -> Any:
    """Return the content of a JSON file.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    with os_errors(f"{path} cannot be read"):
        content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def read_json_or_empty(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file.

    Returns:
        The mapping that the file contains; an empty one where there is no file, or a damaged one.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def open_atomically(path: AnyPath) -> Iterator[IO[bytes]]:
    """Open a file to be written that appears whole or not at all, and is on the disk when the context ends.

    Its folder is made if necessary.

    The content is written to a neighbour ``.NAME.PID.RANDOM.part``, synced, and renamed: processes of several machines
    that write the same file have different neighbours. Only the last 200 bytes of a longer NAME are used. An object
    store writes an object whole or not at all.

    Raises:
        InputError: the file cannot be written; the neighbour is removed.
    """
    if not isinstance(path, Path):
        with SpooledTemporaryFile(1 << 26) as file:  # an object that is closed after an error would be written
            yield file
            file.seek(0)
            with os_errors(f"{path} cannot be written"), storage_errors(path), path.open("wb") as target:
                shutil.copyfileobj(file, target, 1 << 22)
        return
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        with suppress(OSError):  # the name, too, is on the disk; Windows and some network file systems cannot
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        if _is_of_another(error, part, path):
            raise
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it is renamed by now, or its folder is no folder
            part.unlink()


def _part(path: Path) -> Path:
    """Return the temporary neighbour of a file or folder; a file system allows 255 bytes for its name."""
    name = os.fsencode(path.name)[-_PART_BYTES:].decode(errors="ignore")
    return path.with_name(f".{name}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _is_of_another(error: OSError, *written: Path) -> bool:
    """Return whether an error names a file that is not one of those being written, nor in or above them."""
    if not isinstance(error.filename, str | bytes | Path):
        return False  # a full disk names no file
    named = Path(os.fsdecode(error.filename)).absolute()
    return not any(path.is_relative_to(named) or named.is_relative_to(path) for path in map(Path.absolute, written))


def write_atomically(path: AnyPath, content: bytes) -> None:
    """Write a file by `open_atomically`."""
    with open_atomically(path) as file:
        file.write(content)


def write_json(path: AnyPath, content: Mapping[str, Any], *, allow_nan: bool = True) -> None:
    """Write a mapping as a JSON file by `write_atomically`; a ValueError where it contains nan and must not."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=allow_nan) + "\n").encode())


def write_csv(path: AnyPath, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the header first, as a CSV file by `write_atomically`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomically(path, text.getvalue().encode())


def check_output_folder(path: Path) -> None:
    """Raise an InputError where a folder cannot be made or written: it, or one above it, is a file or read-only."""
    existing = next((each for each in (path, *path.absolute().parents) if each.exists()), path)
    if not existing.is_dir():
        raise InputError(f"the output {path} cannot be a folder: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise InputError(f"the output {path} cannot be written: {existing} is read-only")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Make a folder that appears with all its files or not at all; within the context it is ``.NAME.PID.RANDOM.part``.

    Raises:
        InputError: the name is taken by something other than an empty folder, or the folder cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already and is not an empty folder; choose another output")
    path = path.absolute()  # '.' has no name
    part = _part(path)
    try:
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            path.rmdir()  # it is empty; Windows renames nothing to the name of a folder
        part.replace(path)
    except OSError as error:
        if _is_of_another(error, part, path):
            raise
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _files(folder: Path, leave_out: Path | None) -> Iterator[tuple[str, Path]]:
    """Yield names relative to the folder, sorted, and files; a folder reached by several links is visited once."""

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # a folder may be removed meanwhile
            raise error

    visited = {os.path.realpath(leave_out)} if leave_out else set()
    for top, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(top)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(top, name)
            if not name.startswith(".") and file.is_file():
                yield file.relative_to(folder).as_posix(), file
