"""Files and folders that appear whole or not at all, checksums, and lock files."""

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock

from datamodules.errors import InputError


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, and outlives a loss of power once this returns.

    The content goes to a neighbour ``.NAME.PID.RANDOM.part``, to the disk, and then gets its name: processes of several
    machines that write the same file have different neighbours.

    Raises:
        InputError: it cannot be written; the neighbour is removed.
    """
    part = _neighbour(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        with suppress(OSError):  # it has its name by now, or its folder is no folder
            part.unlink()


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears with all its files or not at all: within the context it is a neighbour ``.NAME.PID.part``.

    Raises:
        InputError: there is something under its name already other than an empty folder, or the disk does not take it.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} exists already and is not an empty folder; choose another output")
    part = _neighbour(path)
    try:
        part.mkdir(parents=True)
        yield part
        if path.is_dir():
            path.rmdir()  # it is empty; Windows renames nothing to the name of a folder
        part.replace(path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_lock(lock: BaseFileLock) -> None:
    """Release a lock that this process holds, and remove its file, which `filelock` leaves behind on POSIX.

    The file is removed first: a process that opened it before sees that its name is gone, and does not take a lock that
    no other process can see.
    """
    with suppress(PermissionError):  # Windows removes no open file; there `filelock` removes it on release
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {error.strerror or error}")


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a loss of power, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system that opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # nor a network file system
        pass
    finally:
        os.close(handle)
