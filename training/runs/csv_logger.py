"""`metrics.csv`, to which a resumed run adds, and in which each row is as soon as it is logged."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

__all__ = ["RunLog"]

FILE = "metrics.csv"


class RunLog(CSVLogger):
    """Lightning's CSV logger, which deletes an earlier ``metrics.csv``, changed to keep it.

    Rows from the step on at which the run resumes are of the part that is trained again, and left out. A new row is
    appended; the file is written anew only when a row has a column that no row before it had.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._file = folder / FILE
        self._earlier = _rows(self._file)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Lightning's writer, made with the earlier rows on disk: many minutes may pass before the first new row."""
        new = self._experiment is None
        writer: ExperimentWriter = super().experiment
        if new:
            writer.metrics = list(self._earlier)
            writer.save()
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        writer = self.experiment
        kept = [row for row in self._earlier if step is None or int(row["step"]) < step]
        if len(kept) < len(self._earlier):
            self._file.unlink()
            writer.metrics = list(kept)
        self._earlier = []
        super().log_metrics(dict(metrics), step)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
