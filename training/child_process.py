"""Running a command of this program in its own process, which ends when the process that started it does."""

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datamodules.progress import STAGE

WATCH = "TAG2MASK_EXIT_WITH_STDIN"  # environment variable: the process ends when its standard input does
PATIENCE = 20.0  # seconds that a process has after Ctrl-C before it is killed


def run_process(words: Sequence[str], title: str) -> int:
    """Run a command line of this program in a new process with the same output streams, and wait for it.

    The process imports the same modules as this one, not those of the working folder. Its standard input is a pipe that
    only this process holds open: the pipe closes when this process ends, also by a kill; see `exit_with_starter`.

    Args:
        words: command line after ``tag2mask``.
        title: name of the process, with which the lines of its progress begin.

    Returns:
        The exit status, or 128 and the number of the signal that ended the process.

    Raises:
        KeyboardInterrupt: Ctrl-C; the other process has ended by then.
    """
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    variables = os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1", WATCH: "1", STAGE: title}
    command = [sys.executable, "-m", "training.cli", *words]  # a module: Lightning can start it for further processes
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE) as process:  # noqa: S603
        try:
            status = process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # a terminal sends Ctrl-C to both processes
                process.wait(PATIENCE)
            process.kill()
            process.wait()
            raise
    return status if status >= 0 else 128 - status


def exit_with_starter() -> None:
    """End this process at the end of its standard input, if `run_process` started it."""
    if os.environ.pop(WATCH, None):  # removed: processes that this one starts have another standard input

        def wait_for_end() -> None:
            os.read(sys.stdin.fileno(), 1)
            os._exit(1)  # all files on disk are whole, and the same command resumes from them

        threading.Thread(target=wait_for_end, daemon=True).start()
