"""The lock of a folder into which one process writes."""

from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from datamodules.errors import InputError
from datamodules.progress import print_message


def lock_folder(file: Path, problem: str) -> BaseFileLock | None:
    """Return the lock of a folder, to be released; None, with a message, where its file system has no locks.

    Args:
        file: the lock's file in the folder, which is created if necessary.
        problem: message of the error.

    Raises:
        InputError: another process has the lock.
    """
    lock = FileLock(file, blocking=False, fallback_to_soft=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(problem) from None
    except OSError as error:  # such as a network file system without locks
        print_message(f"{file.parent} cannot be locked: {error.strerror or error}; start no other process that uses it")
        return None
    return lock
