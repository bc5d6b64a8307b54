"""What a training run leaves in its folder: figures, checkpoints, and how they are called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from datamodules.errors import InputError
from training.runs.callbacks import PicturePanel
from training.runs.csv_logger import RunLog
from training.runs.loss_guard import LossGuard
from training.runs.provenance_record import RunRecord
from training.runs.step_seed import StepSeed
from training.runs.update_count import UpdateCount
from training.runs.wandb_logger import WandbLog

Wandb = Literal["disabled", "offline", "online"]

# The figure by which a task's best checkpoint is told, by the name under which its checkpoints are signed; others have
# none.
BEST_BY = {"classifier": "val/map", "segmentation": "val/miou"}


class BestCheckpoint(ModelCheckpoint):
    """`best.ckpt`: the epoch with the highest figure; nothing where no figure is logged (photos without masks)."""

    def __init__(self, folder: Path, figure: str) -> None:
        super().__init__(folder, filename="best", monitor=figure, mode="max", enable_version_counter=False)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch if its figure is the best so far."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As `on_validation_end`, where validation runs within the epoch."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's own way to disk, whole or not at all, that names the file a full or protected disk did not take."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            InputError: the disk does not take it; an older file of that name is still whole.
        """
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            raise InputError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def last_checkpoint(folder: Path) -> ModelCheckpoint:
    """`last.ckpt`: the run as it stood after its last epoch, to go on from."""
    return ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


def run_callbacks(
    folder: Path, task: pl.LightningModule, config: Mapping[str, Any], *, checkpoints: bool, logs: bool
) -> list[Callback]:
    """The callbacks every training run has.

    Args:
        folder: the run's folder.
        task: what is trained.
        config: the run's whole configuration, in plain JSON values.
        checkpoints: whether checkpoints are kept (`trainer.enable_checkpointing`).
        logs: whether anything is logged (`trainer.logger`).
    """
    found: list[Callback] = [StepSeed(), LossGuard(), RunRecord(folder, config), UpdateCount()]
    if logs:
        found += [LearningRateMonitor("epoch"), PicturePanel()]
    if checkpoints:
        figure = BEST_BY.get(str(task.task_name))
        found += [BestCheckpoint(folder, figure)] if figure else []
        found.append(last_checkpoint(folder))
    return found


def run_loggers(folder: Path, wandb: Wandb) -> list[Logger]:
    """`metrics.csv` in the run's folder, and Weights & Biases if asked for.

    Args:
        folder: the run's folder.
        wandb: `disabled`, `offline` (files in the folder, no account) or `online`.
    """
    loggers: list[Logger] = [RunLog(folder)]
    if wandb != "disabled":
        loggers.append(WandbLog(folder, offline=wandb == "offline"))
    return loggers
