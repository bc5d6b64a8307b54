"""A lock that dies with the process that holds it."""

import fcntl
import os
from pathlib import Path
from typing import IO


class FileLock:
    """A file that one process at a time may hold.

    The lock is the operating system's. On a network file system it needs that system's lock service, as all locks do;
    where that is off, the system grants every process the lock, or none.
    """

    def __init__(self, path: Path) -> None:
        """Prepare; nothing is touched yet.

        Args:
            path: the file, in a folder that is there when the lock is taken.
        """
        self.path = path
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Whether it is this object that holds the lock."""
        return self._file is not None

    def take(self) -> bool:
        """Take the lock without waiting.

        Returns:
            False where another process holds it.

        Raises:
            OSError: the file cannot be made.
        """
        while True:
            file = self.path.open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # either, by the system
                file.close()
                return False
            self._file = file
            try:
                if os.fstat(file.fileno()).st_ino == self.path.stat().st_ino:
                    return True
            except FileNotFoundError:  # its last holder removed it in between
                pass

    def release(self) -> None:
        """Remove the file and let go of it. Nothing where it is not held."""
        if self._file is None:
            return
        self.path.unlink(missing_ok=True)
        self._file.close()
        self._file = None
