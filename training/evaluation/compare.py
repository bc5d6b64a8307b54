"""Several evaluations side by side."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from datamodules.errors import InputError
from training.evaluation.tables import average, percent, sample_std

__all__ = ["compare"]

SUMMARY = {"mean": "miou", "boundary mean": "boundary_miou", "pixel accuracy": "pixel_accuracy"}
NOTED = ("split", "images", "classes")  # figures of different ones of these are not of the same thing


def compare(*results: Path, mean: bool = False) -> None:
    """Print the IoU of several evaluations side by side, with each one's difference from the first.

    Differences are in points of per cent.

    Args:
        results: the ``metrics.json`` of ``tag2mask evaluate``, or folders that hold one; the first is compared with.
        mean: take those together whose paths differ in a folder ``seed-N`` alone, as ``tag2mask fit --seeds`` names
            them: their mean ± sample standard deviation.

    Raises:
        InputError: one is missing, or is no such file.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in results]
    if mean:  # a file that is named twice counts once
        files = list(dict.fromkeys(path.resolve() for path in files))
    found = [read_metrics(path) for path in files]
    names, groups = _by_seed(files, found) if mean else (files, [[metrics] for metrics in found])
    console = Console()
    console.print(_table(_titles(names), groups))
    for key in NOTED:
        if len({json.dumps(metrics.get(key)) for metrics in found}) > 1:
            console.print(
                f"[bold]mind:[/] these differ in their {key}: " + " | ".join(_said(m.get(key)) for m in found)
            )


def _by_seed(files: Sequence[Path], found: Sequence[dict[str, Any]]) -> tuple[list[Path], list[list[dict[str, Any]]]]:
    """Evaluations taken together by their paths, in which folders ``seed-N`` are called ``seed-*``."""
    groups: dict[Path, list[dict[str, Any]]] = {}
    for path, metrics in zip(files, found, strict=True):
        name = Path(*(re.sub(r"^seed-\d+$", "seed-*", part) for part in path.parts))
        groups.setdefault(name, []).append(metrics)
    return list(groups), list(groups.values())


def read_metrics(path: Path) -> dict[str, Any]:
    """A ``metrics.json`` with figures.

    Raises:
        InputError: it is missing, no JSON, of something else, or of images without masks.
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
        raise InputError(f"{path} holds no IoU: a metrics.json of 'tag2mask evaluate' on images with masks is needed")
    return dict(metrics)


def _table(titles: Sequence[str], groups: Sequence[Sequence[Mapping[str, Any]]]) -> Table:
    table = Table(title="IoU, per cent, and difference from the first")
    table.add_column("class")
    for title in titles:
        table.add_column(Text(title), justify="right", overflow="fold")
    for name in dict.fromkeys(name for group in groups for metrics in group for name in metrics["iou"]):
        table.add_row(Text(name), *_cells([[metrics["iou"].get(name) for metrics in group] for group in groups]))
    table.add_section()
    for title, key in SUMMARY.items():
        values = [[metrics.get(key) for metrics in group] for group in groups]
        if any(value is not None for group in values for value in group):
            table.add_row(title, *_cells(values), style="bold" if key == "miou" else None)
    spans = [group[0].get("miou_interval") if len(group) == 1 else None for group in groups]
    if any(spans):
        shown = [f"{percent(span['low'])} to {percent(span['high'])}" if span else "" for span in spans]
        table.add_row("mean, interval", *shown)
    return table


def _cells(values: Sequence[Sequence[float | None]]) -> list[str]:
    """The means in per cent, of several values with their standard deviation; then the difference from the first.

    Empty where one of the values is lacking.
    """
    whole = [[value for value in group if value is not None] for group in values]
    means = [average(there) if len(there) == len(group) else None for there, group in zip(whole, values, strict=True)]
    cells = []
    for place, (middle, there) in enumerate(zip(means, whole, strict=True)):
        spread = None if middle is None else sample_std(there)
        difference = "" if place == 0 or middle is None or means[0] is None else f" {100 * (middle - means[0]):+.1f}"
        cells.append(percent(middle) + ("" if spread is None else f" ± {percent(spread)}") + difference)
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
