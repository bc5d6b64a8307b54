"""What is said of a recipe's stages: why one runs, and what each took and gained."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from datamodules.files import differences
from training.evaluation.tables import percent

__all__ = ["figures_of", "summary_table", "why"]

VALIDATED = ("val/map", "val/miou")  # of a training's metrics.csv


def figures_of(folder: Path) -> dict[str, float]:
    """The main figures that a stage left in its folder, as fractions.

    These are all of ``metrics.json`` whose names begin with ``miou`` (and ``miou`` of ``without_crf``), or the last
    ``val/map`` or ``val/miou`` of a training's ``metrics.csv``.
    """
    if (folder / "metrics.json").is_file():
        return dict(_of_json(json.loads((folder / "metrics.json").read_text())))
    if (folder / "metrics.csv").is_file():
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: float(row[name]) for name in VALIDATED for row in rows if row.get(name)}
    return {}


def _of_json(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    plain = metrics.get("without_crf")
    nested = {"miou without CRF": plain.get("miou")} if isinstance(plain, dict) else {}
    for name, value in {**metrics, **nested}.items():
        if name.startswith("miou") and isinstance(value, (int, float)):
            yield name, float(value)


def why(record: Mapping[str, Any] | None, dependencies: Mapping[str, Any]) -> str:
    """Why a stage runs: the first thing that is not as the record of its last run says."""
    if record is None:
        return "not made yet"
    was = record["dependencies"]
    if was["command"] != dependencies["command"]:
        return f"was {was['command']}"
    for name, before, now in differences(was["options"], dependencies["options"]):
        return f"{name} is {now!r}, was {before!r}"
    for kind, what in (("files", "{} has changed"), ("stages", "{} was made again")):
        for name in dependencies[kind]:
            if dependencies[kind][name] != was[kind].get(name):
                return what.format(name)
    for package, revision in dependencies["source"].items():
        if was.get("source", {}).get(package) != revision:
            return f"the code in {package}/ has changed"
    return "files are missing, or not as it left them"


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Each stage's state, minutes, memory and figures in per cent; of a kept one, those of when it ran."""
    table = Table(title=str(summary["output"]))
    table.add_column("stage")
    table.add_column("state")
    table.add_column("minutes", justify="right")
    table.add_column("peak memory", justify="right")
    table.add_column("per cent")
    for stage in summary["stages"]:
        figures = ", ".join(f"{name} {percent(value)}" for name, value in stage["figures"].items())
        minutes = f"{stage['seconds'] / 60:.1f}{'+' if stage['resumed'] else ''}"
        table.add_row(
            Text(stage["name"]), stage["state"], minutes, f"{stage['peak_memory'] / 1e6:.0f} MB", Text(figures)
        )
    if any(stage["resumed"] for stage in summary["stages"]):
        table.caption = "+ since it was last taken up"
    return table
