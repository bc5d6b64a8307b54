"""Loggers that a resumed run continues: ``metrics.csv`` in the run's folder, and Weights & Biases."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from datamodules.files import write_atomically

ATTEMPT_ROWS = 10**9  # more than a training has steps


class KeepingWriter(ExperimentWriter):
    """Lightning's writer, which deletes an earlier ``metrics.csv``, changed to keep it."""

    def _check_log_dir_exists(self) -> None:
        pass


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, changed so that a resumed run continues ``metrics.csv``.

    Rows from the step at which the run resumes are of steps that are trained again, and are left out, as is a row
    that a kill cut short. New rows are appended at once; the file is rewritten only when a run resumes and when a row
    has a new column.

    Args:
        folder: folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", flush_logs_every_n_steps=1)
        self._file = folder / "metrics.csv"
        lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines() if self._file.is_file() else []
        rows = csv.DictReader(lines)
        self._earlier: list[dict[str, Any]] = [row for row in rows if str(row.get("step")).isdecimal()]
        self._columns = list(rows.fieldnames or ()) if self._earlier else []

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which appends to an earlier file."""
        if self._experiment is None:
            self._experiment = KeepingWriter(self.log_dir)
            self._experiment.metrics_keys = self._columns
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row."""
        if self._earlier:
            text = io.StringIO()
            writer = csv.DictWriter(text, self._columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row for row in self._earlier if step is None or int(row["step"]) < step)
            write_atomically(self._file, text.getvalue().encode())
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
