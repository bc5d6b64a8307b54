"""`tag2mask compare`: several evaluations side by side."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from datamodules.errors import InputError, os_errors
from datamodules.progress import percent, print_result

MEANS = {"mean": "miou", "boundary mean": "boundary_miou", "pixel accuracy": "pixel_accuracy"}
COMPARABLE = ("split", "images", "images_with_mask", "classes")  # else results are not comparable


def compare(*results: Path, mean: bool = False) -> None:
    """Print the IoU of several evaluations side by side, with the differences from the first in percentage points.

    Args:
        results: folders of ``tag2mask evaluate``, or their files ``metrics.json``.
        mean: average the results whose paths differ only in a folder ``seed-N``, as ``tag2mask fit --random_seeds``
            names them: mean ± sample standard deviation.

    Raises:
        InputError: a file is missing, or is not such a file.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in results]
    if mean:  # a file that is given twice counts once
        files = list(dict.fromkeys(path.resolve() for path in files))
    every = [_read_metrics(path) for path in files]
    groups: dict[tuple[Path, int], list[dict[str, Any]]] = {}
    for index, (path, metrics) in enumerate(zip(files, every, strict=True)):
        pattern = Path(*(re.sub(r"^seed-\d+$", "seed-*", part) for part in path.parts))
        groups.setdefault((pattern, 0) if mean else (path, index), []).append(metrics)

    table = Table("class", title="IoU, per cent, and difference from the first")
    folders = [path.resolve().parent if path.name == "metrics.json" else path.resolve() for path, _ in groups]
    shared = os.path.commonpath([folder.parent for folder in folders])
    for folder in folders:
        table.add_column(folder.relative_to(shared).as_posix(), justify="right", overflow="fold")
    compared = list(groups.values())
    for name in dict.fromkeys(name for metrics in every for name in metrics["iou"]):
        table.add_row(name, *_columns([[metrics["iou"].get(name) for metrics in group] for group in compared]))
    table.add_section()
    for title, key in MEANS.items():
        means = [[metrics.get(key) for metrics in group] for group in compared]
        table.add_row(title, *_columns(means), style="bold" if key == "miou" else None)
    intervals = [group[0].get("miou_interval") if len(group) == 1 else None for group in compared]
    if any(intervals):
        shown = [f"{percent(each['low'])} to {percent(each['high'])}" if each else "" for each in intervals]
        table.add_row("mean, interval", *shown)
    print_result(table)
    for key in COMPARABLE:
        values = dict.fromkeys(str(metrics.get(key)) for metrics in every)
        if len(values) > 1:
            print_result(f"note: the results differ in their {key}: {' | '.join(values)}")


def _read_metrics(path: Path) -> dict[str, Any]:
    """Return the content of a ``metrics.json``; raise an InputError if it is missing, no JSON, or contains no IoU."""
    metrics: Any = None
    with os_errors(f"{path} cannot be read"):
        content = path.read_bytes()
    try:
        metrics = json.loads(content)
        metrics["miou"] = float(metrics["miou"])
        metrics["iou"] = {name: float(value) for name, value in metrics["iou"].items()}
        metrics |= {key: float(metrics[key]) for key in MEANS.values() if metrics.get(key) is not None}
        if interval := metrics.get("miou_interval"):
            metrics["miou_interval"] = {end: float(interval[end]) for end in ("low", "high")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        purpose = "a metrics.json of 'tag2mask evaluate' on images with masks"
        if isinstance(metrics, dict) and "images_with_mask" in metrics and metrics.get("miou", 0) is None:
            no_mask = metrics.get("images_with_mask") == 0
            reason = "no image of that evaluation has a mask" if no_mask else "its masks contain no known class"
            raise InputError(f"{path} has no figures: {reason}") from error
        raise InputError(f"{path} cannot be read as {purpose}: {type(error).__name__} {error}") from error
    return dict(metrics)


def _columns(values: Sequence[Sequence[Any]]) -> list[str]:
    """Return a row, for each group: mean ± standard deviation, and the difference from the first mean.

    The text is empty where a value of the group is None.
    """
    means = [None if None in group else fmean(group) for group in values]
    texts = [percent(mean) for mean in means]
    for index, (group, mean) in enumerate(zip(values, means, strict=True)):
        if mean is not None and len(group) > 1:
            texts[index] += f" ± {percent(stdev(group))}"
        if mean is not None and index and means[0] is not None:
            texts[index] += f" {100 * (mean - means[0]):+.1f}"
    return texts
