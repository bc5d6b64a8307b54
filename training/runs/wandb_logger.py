"""Weights & Biases, to which a resumed run adds."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from datamodules.files import write_atomically

__all__ = ["WandbLog"]

ID_FILE = "wandb-id"
ROWS = 10**9  # more than a training has steps


class WandbLog(WandbLogger):
    """Lightning's logger, made to go on with the run whose id is kept in the folder, and to end with the training.

    Offline, each attempt makes a folder of its own in ``wandb/``, all of one id: ``wandb sync`` the first, the later
    ones with ``--append``, for which no two attempts may have a row of the same number. Left to itself, wandb counts
    from 0 each time; here rows are numbered by steps, those of the second attempt from 10^9 on, and so forth. (Curves
    are drawn over ``trainer/global_step``.)

    Args:
        folder: the run's folder.
        offline: keep all in the folder; no account is needed.
    """

    def __init__(self, folder: Path, *, offline: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = "/".join(folder.parts[-2:])
        known = kept_id(folder)
        super().__init__(name=name, save_dir=folder, project="tag2mask", offline=offline, id=known)
        self._first = ROWS * len(list(folder.glob(f"wandb/*run-*-{known}")))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add to the row of a step; never to an earlier row than the last, which wandb would refuse."""
        row = max(self.experiment.step, self._first + (step or 0))
        self.experiment.log({**metrics, **({} if step is None else {"trainer/global_step": step})}, step=row)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that another training in the same process gets one of its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment = None


def kept_id(folder: Path) -> str | None:
    """The id of the folder's run at Weights & Biases, made where there is none yet; None in all processes but one."""
    path = folder / ID_FILE
    if not path.is_file():
        _make_id(path)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


@rank_zero_only
def _make_id(path: Path) -> None:
    write_atomically(path, f"{secrets.token_hex(4)}\n".encode())
