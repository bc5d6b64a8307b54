"""Loggers that a resumed run continues: ``metrics.csv`` in the run's folder, and Weights & Biases."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

ATTEMPT_ROWS = 10**9  # more than a training has steps


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes an earlier ``metrics.csv``, changed to keep it.

    Rows from the step at which the run resumes are of steps that are trained again, and are left out. New rows are
    appended at once; the file is rewritten only when a row has a new column.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._file = folder / "metrics.csv"
        lines = self._file.read_text().splitlines() if self._file.is_file() else []
        self._earlier: list[dict[str, Any]] = list(csv.DictReader(lines))

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Lightning's writer, created with the earlier rows on disk: the first new row may be many minutes away."""
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


class ResumableWandbLogger(WandbLogger):
    """Lightning's logger for Weights & Biases; a resumed run has the same id, and the run ends with the training.

    Offline, each attempt writes its own folder in ``wandb/``, all with one id: run ``wandb sync`` on the first folder
    and ``wandb sync --append`` on the later ones, for which no two attempts may have a row of the same number. wandb
    numbers rows from 0 in each attempt; here a row has the number of its step, plus 10^9 for each earlier attempt.
    (Curves are drawn over ``trainer/global_step``.)

    Args:
        folder: folder of the run.
        offline: keep everything in the folder; no account is needed.
    """

    def __init__(self, folder: Path, *, offline: bool) -> None:
        attempts = sorted(folder.glob("wandb/*run-*-*"))
        known = attempts[-1].name.rpartition("-")[2] if attempts else None
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__("/".join(folder.parts[-2:]), folder, id=known, project="tag2mask", offline=offline)
        self._first_row = ATTEMPT_ROWS * len(attempts)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step, or to the last row if that is later: wandb refuses earlier rows."""
        row = max(self.experiment.step, self._first_row + (step or 0))
        self.experiment.log({**metrics, **({} if step is None else {"trainer/global_step": step})}, step=row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that another training in the same process gets its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None
