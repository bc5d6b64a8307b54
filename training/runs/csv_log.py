"""`metrics.csv`, to which a resumed run adds."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities import rank_zero_only

__all__ = ["RunLog"]


class RunLog(CSVLogger):
    """Lightning's CSV logger, which deletes an earlier ``metrics.csv``, made to keep it.

    Rows from the step on at which the run goes on are of the part that is trained again, and left out.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")
        self._earlier = _rows(folder / "metrics.csv")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        if self._earlier:
            self.experiment.metrics = [row for row in self._earlier if step is None or int(row["step"]) < step]
            self._earlier = []
        super().log_metrics(dict(metrics), step)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
