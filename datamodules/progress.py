"""How far long work is, on standard error: a bar on a terminal, plain lines in a log file."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["STAGE", "Progress", "duration", "track"]

STAGE = "TAG2MASK_STAGE"  # environment: the recipe stage that this process is, with which its lines begin
INTERVAL = 20.0  # seconds between two lines; half a minute without any looks like a job that hangs
BAR_WIDTH = 30  # characters

Item = TypeVar("Item")


class Progress:
    """Reports how far a task is, while it is used as a context manager or between `start` and `stop`.

    On a terminal that is a bar. In a log file it is a line at the start, one every `INTERVAL` seconds whether or not an
    item was done in that time, and one at the end. Only the process that started it writes; forked workers do not.

    """

    def __init__(
        self, description: str, total: float | None = None, unit: str = "images", *, done: int = 0, status: str = ""
    ) -> None:
        """Prepare; nothing is written yet.

        Args:
            description: what is being done.
            total: items in all; None or infinite where that is not known.
            unit: what the items are, in the plural.
            done: items that were done by an earlier process; its speed does not count.
            status: what else there is to report at the start.
        """
        stage = os.environ.get(STAGE)
        self._title = f"[{stage}] {description}" if stage else description
        self._total = int(total) if total is not None and math.isfinite(total) else None
        self._unit = unit
        self._first = done
        self._state = done, status  # one object: the thread that writes lines never reads half of a change
        self._start = time.monotonic()
        self._process: int | None = None
        self._live: Live | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop(finished=kind is None)

    def start(self) -> None:
        """Show the bar, or write the first line."""
        self._start, self._process = time.monotonic(), os.getpid()
        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(get_renderable=self._bar, console=console)
            self._live.start()
        else:
            write_line(self._line())
            self._thread.start()

    def advance(self, count: int = 1) -> None:
        """Count items that are done."""
        done, status = self._state
        self._state = done + count, status

    def update(self, *, done: int | None = None, status: str) -> None:
        """Replace the status, such as the loss, and the number of items done, where it is given."""
        self._state = self._state[0] if done is None else done, status

    def stop(self, *, finished: bool = True) -> None:
        """Leave the bar, or write the last line; nothing is written from then on.

        Args:
            finished: whether the task came to its end.
        """
        if self._ended.is_set() or self._process != os.getpid():
            return
        self._ended.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._thread.join()
            how = "in" if finished else "done, stopped after"
            items = self._state[0]
            done = f"{self._count(items)} {how} {duration(time.monotonic() - self._start)}"
            write_line(f"{self._title}: {', '.join([done, *self._speed(items)])}")

    def _repeat(self) -> None:
        while not self._ended.wait(INTERVAL):
            write_line(self._line())

    def _line(self) -> str:
        return f"{self._title}: {self._report(*self._state)}"

    def _bar(self) -> Table:
        row = Table.grid(padding=(0, 1))
        done, status = self._state
        bar = ProgressBar(self._total, done, width=BAR_WIDTH)
        row.add_row(Text(self._title), bar, Text(self._report(done, status)))
        return row

    def _count(self, done: int) -> str:
        return f"{done} {self._unit}" if self._total is None else f"{done}/{self._total} {self._unit}"

    def _rate(self, done: int) -> float:
        """Items a second since the start."""
        return (done - self._first) / max(time.monotonic() - self._start, 1e-3)  # clocks tick, some slowly

    def _speed(self, done: int) -> Iterator[str]:
        """The speed, once it is known."""
        if done > self._first:
            rate = self._rate(done)
            digits = f"{rate:.1f}" if rate >= 10 else f"{rate:.2g}"
            yield f"{digits} {self._unit}/s"

    def _report(self, done: int, status: str) -> str:
        """The count, and speed, time left and status as far as they are known."""
        details = [self._count(done), *self._speed(done)]
        if self._total is not None and self._first < done < self._total:
            details.append(f"about {duration((self._total - done) / self._rate(done))} left")
        return ", ".join([*details, status] if status else details)


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "images") -> Iterator[Item]:
    """Yield items and report how many of them are done.

    Args:
        items: what is worked on, one after the other.
        description: what is being done.
        total: how many items there are; their own length if not given.
        unit: what the items are, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(description, total, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def duration(seconds: float) -> str:
    """Return a time as people say it: ``40 s``, ``12 min``, ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def write_line(line: str) -> None:
    """Write a line to standard error at once. A log that is gone must not end the work."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
