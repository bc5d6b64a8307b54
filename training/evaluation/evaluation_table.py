"""The table of an evaluation: metrics of each class and their means, for metrics.json, metrics.csv and the terminal.

A new column is one entry of `COLUMNS`; the files, the terminal and the HTML page follow.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from datamodules.progress import first_few, percent, print_result
from seeds.evaluation.confusion_matrix import class_iou, mean_iou, none_if_nan, ratio
from training.evaluation.metrics import SegmentationCounts, confused_pairs, miou_interval
from training.runs.provenance_record import provenance_lines


class Column(NamedTuple):
    """A metric of each class.

    Attributes:
        title: heading in the terminal and on the page.
        mean: key in ``metrics.json`` of the mean over the classes; None for no mean.
        compute: values float64 (K,), nan where the metric is undefined.
    """

    title: str
    mean: str | None
    compute: Callable[[SegmentationCounts], NDArray[np.float64]]


COLUMNS = {  # by their key in metrics.json
    "iou": Column("IoU", "miou", lambda counts: class_iou(counts.matrix)),
    "precision": Column("precision", None, lambda counts: ratio(counts.matrix.diagonal(), counts.matrix.sum(0))),
    "recall": Column("recall", "mean_accuracy", lambda counts: ratio(counts.matrix.diagonal(), counts.matrix.sum(1))),
    "boundary_iou": Column(
        "boundary IoU",
        "boundary_miou",
        lambda counts: ratio(counts.boundary[0], counts.boundary[1:].sum(0) - counts.boundary[0]),
    ),
}


def compute_metrics(counts: SegmentationCounts) -> dict[str, Any]:
    """Return all metrics as fractions.

    Returns:
        ``iou``, ``precision`` (share of the predicted pixels), ``recall`` (share of the true pixels) and
        ``boundary_iou`` by class, without classes for which the metric is undefined; ``miou``, ``mean_accuracy`` (mean
        recall) and ``boundary_miou``, the means over these classes; ``background_iou``; ``pixel_accuracy`` over all
        pixels; ``miou_interval`` (`miou_interval`); ``confusion``: pixels by true class (row) and predicted class
        (column); ``confused`` (`confused_pairs`). None where no pixel was counted.
    """
    metrics: dict[str, Any] = {}
    for key, column in COLUMNS.items():
        values = column.compute(counts)
        by_class = zip(counts.names, values.tolist(), strict=True)
        metrics[key] = {name: value for name, value in by_class if not math.isnan(value)}
        if column.mean is not None:
            metrics[column.mean] = none_if_nan(mean_iou(values))
    matrix = counts.matrix
    return metrics | {
        "miou_interval": miou_interval(counts.per_image), "background_iou": metrics["iou"].get(counts.names[0]),
        "pixel_accuracy": none_if_nan(float(ratio(matrix.trace(), matrix.sum()))),
        "confusion": {"classes": list(counts.names), "pixels": matrix.tolist()},
        "confused": confused_pairs(matrix, counts.names),
    }  # fmt: skip


def metrics_rows(metrics: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of ``metrics.csv``: ``class``, `COLUMNS`, with the CRF also ``iou_without_crf``, as fractions.

    An undefined metric is empty; the last row, ``mean``, contains the means.
    """
    return [["class", *COLUMNS, *(["iou_without_crf"] if "without_crf" in metrics else [])], *_rows(metrics)]


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the content of ``metrics.json`` to the terminal, in per cent."""
    if not metrics["iou"]:
        problem = f"no pixel of {metrics['images']} images has a class in a mask"
        print_result(f"{metrics['split']}: {problem}, so there are no metrics")
        return
    if not any(map(any, metrics["confusion"]["pixels"][1:])):
        print_result("no mask shows a class, only background (0) and pixels that do not count (255)")
    if metrics["images_with_mask"] < metrics["images"]:
        print_result(f"{metrics['images_with_mask']} of {metrics['images']} images have a mask and are scored")
    table = Table("class", title=f"{metrics['split']}, {metrics['images_with_mask']} images, per cent")
    for title in [column.title for column in COLUMNS.values()] + ["IoU without CRF"] * ("without_crf" in metrics):
        table.add_column(title, justify="right")
    *rows, (_, *means) = _rows(metrics)
    for name, *values in rows:
        table.add_row(name, *map(percent, values))
    table.add_section()
    table.add_row("mean", *map(percent, means), style="bold")
    print_result(table)
    confused = Table("truth", "predicted", title="Most confused")
    confused.add_column("share of the truth", justify="right")
    for pair in metrics["confused"][:5]:
        confused.add_row(pair["truth"], pair["predicted"], f"{percent(pair['share'])} %")
    print_result(confused)
    if interval := metrics["miou_interval"]:
        bounds = f"{100 * interval['level']:.0f} % interval {percent(interval['low'])} to {percent(interval['high'])}"
        print_result(f"mean IoU {percent(metrics['miou'])}, {bounds} ({interval['resamples']} draws of the images)")
    if absent := absent_classes(metrics):
        print_result(absent)
    accuracy, mean_accuracy = percent(metrics["pixel_accuracy"]), percent(metrics["mean_accuracy"])
    print_result(f"pixel accuracy {accuracy}, mean over classes {mean_accuracy}")
    if record := metrics.get("provenance"):
        facts = Table.grid(padding=(0, 2))
        for name, value in provenance_lines(record):
            facts.add_row(Text(name, style="dim"), value)
        print_result(facts)


def absent_classes(metrics: Mapping[str, Any]) -> str:
    """Return a sentence about the classes that are neither in the masks nor predicted; empty where there are none."""
    known = metrics["confusion"]["classes"]
    absent = [name for name in known if name not in metrics["iou"]]
    counts = f"{len(absent)} of {len(known)} classes are in no mask and no prediction, and not in the means"
    return f"{counts}: {first_few(absent)}" if absent else ""


def _rows(metrics: Mapping[str, Any]) -> list[list[Any]]:
    """Return the name and the values of each class, then ``mean`` and the means."""
    tables = [(metrics[key], metrics[column.mean] if column.mean else None) for key, column in COLUMNS.items()]
    if plain := metrics.get("without_crf"):
        tables.append((plain["iou"], plain["miou"]))
    rows = [[name, *(by_class.get(name) for by_class, _ in tables)] for name in metrics["iou"]]
    return [*rows, ["mean", *(mean for _, mean in tables)]]
