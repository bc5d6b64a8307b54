"""Messages and progress on standard error (a bar on a terminal, lines in a log file), results on standard output."""

import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import suppress
from datetime import timedelta
from typing import Self, TypeVar

import rich.progress
from lightning_utilities.core.rank_zero import rank_zero_only
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

STAGE = "TAG2MASK_STAGE"  # environment variable: the recipe stage that this process runs; its lines begin with it
NAMED_WORDS = 5  # words of a list in a message
INTERVAL = 20.0  # seconds between two lines of a log file

Item = TypeVar("Item")


class Progress:
    """Progress of one task, reported while it is used as a context manager or between `start` and `stop`.

    On a terminal the report is a bar of ``rich``. In a log file it is a line at the start, one every `INTERVAL` seconds
    whether or not an item was done in that time, and one at the end. Only the process that called `start` writes.

    Args:
        description: what is being done.
        total: number of items; None or infinite where it is not known.
        unit: what the items are, in the plural.
        done: items that an earlier process has done; they do not count for the speed.
        status: further text, such as the loss.
    """

    def __init__(
        self, description: str, total: float | None = None, unit: str = "images", *, done: int = 0, status: str = ""
    ) -> None:
        stage = os.environ.get(STAGE)
        self._title, self._unit = f"[{stage}] {description}" if stage else description, unit
        self._total = int(total) if total is not None and math.isfinite(total) else None
        self._first = done
        self._state = done, status  # one object: the thread that writes lines never reads half of a change
        self._start = time.monotonic()
        self._process: int | None = None
        self._bar: rich.progress.Progress | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_lines, name="progress", daemon=True)

    def start(self) -> Self:
        """Show the bar, or write the first line, in the first of several processes; return the progress itself."""
        if getattr(rank_zero_only, "rank", 0):
            return self
        self._start, self._process = time.monotonic(), os.getpid()
        done, status = self._state
        console = Console(stderr=True)
        if console.is_terminal and not console.is_dumb_terminal:
            title, text = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[status]"))
            count = (BarColumn(), MofNCompleteColumn(), TextColumn(self._unit), TimeRemainingColumn())
            self._bar = rich.progress.Progress(title, *count, text, console=console)
            self._bar.add_task(self._title, total=self._total, completed=done, status=status)
            self._bar.start()
        else:
            write_line(self._line())
            self._thread.start()
        return self

    __enter__ = start

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        """Stop."""
        self.stop(finished=kind is None)

    def update(self, *, done: int | None = None, advance: int = 0, status: str | None = None) -> None:
        """Replace the number of items that are done, or add to it, and replace the status, where they are given."""
        done = (self._state[0] if done is None else done) + advance
        status = self._state[1] if status is None else status
        self._state = done, status
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, status=status)

    def stop(self, *, finished: bool = True) -> None:
        """Leave the bar, or write the last line; nothing is written afterwards.

        Args:
            finished: whether the task reached its end.
        """
        if self._ended.is_set() or self._process != os.getpid():
            return
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        else:
            self._thread.join()
            time_taken = timedelta(seconds=round(time.monotonic() - self._start))
            write_line(self._line(f" in {time_taken}" if finished else f" done, stopped after {time_taken}"))

    def _write_lines(self) -> None:
        while not self._ended.wait(INTERVAL):
            write_line(self._line())

    def _line(self, end: str | None = None) -> str:
        """Return the count, the speed and, before the end, the time left and the status, as far as they are known."""
        done, status = self._state
        parts = [f"{done}{'' if self._total is None else f'/{self._total}'} {self._unit}{end or ''}"]
        if done > self._first:
            rate = (done - self._first) / max(time.monotonic() - self._start, 1e-3)  # some clocks tick slowly
            parts.append(f"{rate:{'.1f' if rate >= 10 else '.2g'}} {self._unit}/s")
            if end is None and self._total is not None and done < self._total:
                parts.append(f"{timedelta(seconds=round((self._total - done) / rate))} left")
        if end is None and status:
            parts.append(status)
        return f"{self._title}: {', '.join(parts)}"


def track(items: Iterable[Item], description: str, total: int | None = None, unit: str = "images") -> Iterator[Item]:
    """Yield items and report how many of them are done.

    Args:
        items: what is worked on, one after the other.
        description: what is being done.
        total: number of items; their length if not given.
        unit: what the items are, in the plural.
    """
    with Progress(description, len(items) if total is None and isinstance(items, Sized) else total, unit) as progress:
        for item in items:
            yield item
            progress.update(advance=1)


def first_few(words: Sequence[str], separator: str = ", ") -> str:
    """Return the first words of a list, and how many there are beyond."""
    more = len(words) - NAMED_WORDS
    return separator.join(words[:NAMED_WORDS]) + (f" and {more} more" if more > 0 else "")


def percent(fraction: float | None) -> str:
    """Return a fraction in per cent with one decimal; an empty string for None."""
    return "" if fraction is None else f"{100 * fraction:.1f}"


def print_result(item: RenderableType, *, style: str | None = None) -> None:
    """Print a line or a table on standard output; names in square brackets are shown as they are."""
    Console(markup=False, emoji=False, highlight=False, soft_wrap=isinstance(item, str)).print(item, style=style)


@rank_zero_only
def print_message(line: str) -> None:
    """Print a line on standard error, once for all processes."""
    Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True).print(line)


def write_line(line: str) -> None:
    """Write a line to standard error at once. A log that is closed must not end the work."""
    with suppress(OSError, ValueError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
