"""The checkpoints of a run: ``best.ckpt`` by the validation's figure, and ``last.ckpt`` to resume from."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from datamodules.errors import InputError

__all__ = ["CheckpointIO", "checkpoint_callbacks"]

BEST_BY = {"classifier": "val/map", "segmentation": "val/miou"}  # by task; other tasks have no best.ckpt


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which does nothing where the figure is not logged (images without masks)."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch if its figure is the best so far."""
        if self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)


class CheckpointIO(TorchCheckpointIO):
    """Lightning's way of writing checkpoints; the error names the file that a full or protected disk does not take."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint as a whole or not at all.

        Raises:
            InputError: it cannot be written; an older file of that name is intact.
        """
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            raise InputError(f"the checkpoint {path} cannot be written: {error.strerror or error}") from error


def checkpoint_callbacks(folder: Path, task_name: str) -> list[ModelCheckpoint]:
    """Return the callbacks that write ``best.ckpt`` and ``last.ckpt`` of a task to a folder."""
    callbacks = [ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)]
    if monitor := BEST_BY.get(task_name):
        best = BestCheckpoint(
            folder, "best", monitor, mode="max", save_on_train_epoch_end=False, enable_version_counter=False
        )
        callbacks.insert(0, best)
    return callbacks
