"""Several evaluations side by side."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from training.tables import percent

__all__ = ["compare"]

SUMMARY = {"mean": "miou", "boundary mean": "boundary_miou", "pixel accuracy": "pixel_accuracy"}
NOTED = ("split", "images", "classes")  # figures of different ones of these are not of the same thing


def compare(*results: Path) -> None:
    """Print the IoU of several evaluations side by side, with each one's difference from the first.

    Differences are in points of per cent.

    Args:
        results: the ``metrics.json`` of ``tag2mask evaluate``, or folders that hold one; the first is compared with.

    Raises:
        InputError: one is missing, or is no such file.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in results]
    found = [read_metrics(path) for path in files]
    console = Console()
    console.print(_table(_titles(files), found))
    for key in NOTED:
        if len({json.dumps(metrics.get(key)) for metrics in found}) > 1:
            console.print(
                f"[bold]mind:[/] these differ in their {key}: " + " | ".join(_said(m.get(key)) for m in found)
            )


def read_metrics(path: Path) -> dict[str, Any]:
    """A ``metrics.json`` with figures.

    Raises:
        InputError: it is missing, no JSON, of something else, or of pictures without masks.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    iou = metrics.get("iou") if isinstance(metrics, dict) else None
    numbers = [*iou.values(), metrics.get("miou")] if isinstance(iou, dict) else []
    if not iou or not all(isinstance(value, (int, float)) for value in numbers):
        raise InputError(f"{path} holds no IoU: a metrics.json of 'tag2mask evaluate' on pictures with masks is needed")
    return dict(metrics)


def _table(titles: Sequence[str], found: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="IoU, per cent, and difference from the first")
    table.add_column("class")
    for title in titles:
        table.add_column(Text(title), justify="right", overflow="fold")
    for name in dict.fromkeys(name for metrics in found for name in metrics["iou"]):
        table.add_row(Text(name), *_cells([metrics["iou"].get(name) for metrics in found]))
    table.add_section()
    for title, key in SUMMARY.items():
        values = [metrics.get(key) for metrics in found]
        if any(value is not None for value in values):
            table.add_row(title, *_cells(values), style="bold" if key == "miou" else None)
    spans = [metrics.get("miou_interval") for metrics in found]
    if any(spans):
        shown = [f"{percent(span['low'])} to {percent(span['high'])}" if span else "" for span in spans]
        table.add_row("mean, interval", *shown)
    return table


def _cells(values: Sequence[float | None]) -> list[str]:
    """The values in per cent; behind all but the first the difference from it, where both are there."""
    base = values[0]
    cells = [percent(base)]
    for value in values[1:]:
        difference = "" if value is None or base is None else f" {100 * (value - base):+.1f}"
        cells.append(percent(value) + difference)
    return cells


def _titles(files: Sequence[Path]) -> list[str]:
    """Names that tell the files apart: their folders, without what all of these begin with."""
    folders = [path.resolve().parent.parts if path.name == "metrics.json" else path.resolve().parts for path in files]
    shared = 0
    while all(len(parts) > shared + 1 for parts in folders) and len({parts[shared] for parts in folders}) == 1:
        shared += 1
    return ["/".join(parts[shared:]) for parts in folders]


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
