"""Small things around long commands: files written whole, a progress bar."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar", "write_whole"]

Item = TypeVar("Item")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: into a temporary neighbour, which then takes its place.

    Raises:
        OSError: it cannot be written; nothing of it is left then.
    """
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=f".{path.name}", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def progress_bar(items: Iterable[Item], about: str, total: int) -> Iterator[Item]:
    """The items, with a bar on standard error that says how far they are."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(about, total=total, rate="")
        for item in items:
            yield item
            progress.advance(task)
            speed = progress.tasks[0].speed
            progress.update(task, rate=f"{speed:.1f} pictures/s" if speed else "")
