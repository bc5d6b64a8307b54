"""Figures as people read them: a table in the terminal, a CSV for a spreadsheet."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

__all__ = [
    "average", "class_csv", "class_table", "confused_table", "facts_table", "percent", "sample_std", "summary_lines",
]  # fmt: skip

COLUMNS = ("iou", "precision", "recall", "boundary_iou")  # of metrics.json, by class
TITLES = {"iou": "IoU", "precision": "precision", "recall": "recall", "boundary_iou": "boundary IoU"}
MEANS = {"iou": "miou", "recall": "mean_accuracy", "boundary_iou": "boundary_miou"}


def class_table(metrics: Mapping[str, Any]) -> Table:
    """Each class's figures in per cent, and their means."""
    plain = metrics.get("without_crf")
    table = Table(title=f"{metrics['split']}, {metrics['images']} images, per cent")
    table.add_column("class")
    if plain:
        table.add_column("IoU without CRF", justify="right")
    for column in COLUMNS:
        table.add_column(TITLES[column], justify="right")
    for name in shown_classes(metrics):
        cells = [metrics[column].get(name) for column in COLUMNS]
        table.add_row(Text(name), *map(percent, ([plain["iou"].get(name)] if plain else []) + cells))
    table.add_section()
    means = [metrics[MEANS[column]] if column in MEANS else None for column in COLUMNS]
    table.add_row("mean", *map(percent, ([plain["miou"]] if plain else []) + means), style="bold")
    return table


def confused_table(metrics: Mapping[str, Any], wanted: int = 5) -> Table:
    """The most confused pairs of classes."""
    table = Table("truth", "called", title="Most confused")
    table.add_column("of the truth", justify="right")
    for pair in metrics["confused"][:wanted]:
        table.add_row(Text(pair["truth"]), Text(pair["predicted"]), f"{percent(pair['share'])} %")
    return table


def summary_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """The mean with its interval, and the accuracies, a sentence each."""
    span = metrics["miou_interval"]
    if span:
        yield (
            f"mean IoU {percent(metrics['miou'])}, {100 * span['level']:.0f} % interval {percent(span['low'])} to "
            f"{percent(span['high'])} ({span['resamples']} draws of the images)"
        )
    yield f"pixel accuracy {percent(metrics['pixel_accuracy'])}, mean over classes {percent(metrics['mean_accuracy'])}"


def facts_table(facts: Iterable[tuple[str, str]]) -> Table:
    """Facts, each behind its name."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def class_csv(metrics: Mapping[str, Any]) -> str:
    """Each class's figures as fractions: ``class``, the columns of ``metrics.json``, ``iou_without_crf`` with the CRF.

    A cell is empty where a figure is undefined; the last line ``mean`` holds the means.
    """
    plain = metrics.get("without_crf")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["class", *COLUMNS, *(["iou_without_crf"] if plain else [])])
    for name in shown_classes(metrics):
        cells = [metrics[column].get(name) for column in COLUMNS]
        writer.writerow([name, *cells, *([plain["iou"].get(name)] if plain else [])])
    means = [metrics[MEANS[column]] if column in MEANS else None for column in COLUMNS]
    writer.writerow(["mean", *means, *([plain["miou"]] if plain else [])])
    return file.getvalue()


def shown_classes(metrics: Mapping[str, Any]) -> list[str]:
    """The classes that occur, background first, in their order."""
    return [name for name in ("background", *metrics["classes"]) if name in metrics["iou"]]


def percent(value: float | None) -> str:
    """A fraction in per cent with one decimal; empty for None."""
    return "" if value is None else f"{100 * value:.1f}"


def average(values: Sequence[float]) -> float:
    """The mean of at least one value."""
    return math.fsum(values) / len(values)


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation (divided by n - 1); None of a single value."""
    if len(values) < 2:
        return None
    middle = average(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))
