"""Starting a stage in a process of its own: nothing of one stage is left in the next, and its memory is its own.

The process is that of ``python -m training.recipes.stage_main fit --config …``. It ends by itself when the process that
started it is gone, however that ended: its standard input is a pipe of which only that process holds the writing end,
and which closes then.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from datamodules.errors import InputError, UsageError
from datamodules.progress import STAGE

__all__ = ["CHECK", "WATCHED", "Ended", "check_options", "run_process", "same_modules"]

MAIN = "training.recipes.stage_main"  # by name: it imports the command line, which imports this module
WATCHED = "TAG2MASK_ENDS_WITH_STDIN"  # environment: the process ends when its standard input does
CHECK = "check"  # in place of a command: the stages on standard input
PATIENCE = 20.0  # seconds a stage has to end after Ctrl-C, before it is told to
SAMPLE = 0.1  # seconds between two looks at a stage's memory


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        status: its exit status, or 128 and the signal's number.
        seconds: wall-clock.
        peak_memory: bytes that the process held at once, without the workers that read images for it.
    """

    status: int
    seconds: float
    peak_memory: int


def run_process(words: list[str], stage: str) -> Ended:
    """Run one command of this program with this process's output streams, and wait for it.

    Its memory is looked at every tenth of a second; a peak that is shorter is not seen.

    Args:
        words: the command line after ``tag2mask``.
        stage: which stage of the recipe it is, as its progress is to name it.

    Raises:
        KeyboardInterrupt: this process was interrupted; the other has ended by then.
    """
    start = time.monotonic()
    environment = same_modules() | {WATCHED: "1", STAGE: stage}
    process = subprocess.Popen([sys.executable, "-m", MAIN, *words], env=environment, stdin=subprocess.PIPE)  # noqa: S603
    with process:  # keeps the pipe open until the process has ended
        try:
            peak_memory = _wait(process)
        except BaseException:
            _end(process)
            raise
    code = process.returncode
    return Ended(code if code >= 0 else 128 - code, time.monotonic() - start, peak_memory)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; return the most memory that it was seen to hold, in bytes."""
    peak = 0
    while True:
        with suppress(psutil.Error):  # it has ended
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SAMPLE)
            return peak


def same_modules() -> dict[str, str]:
    """The environment for a process that is to find the same modules as this one, whatever lies in its folder."""
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return os.environ | {"PYTHONPATH": paths, "PYTHONSAFEPATH": "1"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that Ctrl-C has reached as well; if it was this one alone that was told, tell the other."""
    try:
        process.wait(PATIENCE)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def check_options(stages: list[tuple[str, list[str]]]) -> None:
    """Find mistakes in the options of stages before the first of them runs.

    Args:
        stages: names and command lines.

    Raises:
        UsageError: an option is unknown, missing or of the wrong type.
        InputError: the process that looks at them did not come to an end.
    """
    words = [sys.executable, "-m", MAIN, CHECK]
    done = subprocess.run(  # noqa: S603
        words, input=json.dumps(stages), capture_output=True, text=True, check=False, env=same_modules()
    )
    if done.returncode:
        raise InputError(f"the stages' options could not be checked: {(done.stderr.splitlines() or ['killed'])[-1]}")
    said = json.loads(done.stdout.splitlines()[-1])
    if said:
        raise UsageError(f"stage '{said['stage']}': {said['message']}")
