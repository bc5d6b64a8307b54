"""Progress of a training or a validation in a log file, where Lightning's bar has no terminal."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn

from datamodules.progress import Progress

__all__ = ["LogProgress"]


class LogProgress(pl.Callback):
    """Reports epoch, step, loss, images per second and the time left of the whole training by `Progress`.

    The time left includes validations, as long as those so far. Only the first process reports.
    """

    def __init__(self) -> None:
        self._progress = Progress("")
        self._images, self._since = 0, 0.0  # images of this epoch in this process, and when the epoch began
        self._batches = 0  # of this validation or test

    def _begin(self, trainer: pl.Trainer, progress: Progress) -> None:
        self._progress = progress
        if trainer.is_global_zero:
            progress.start()

    def on_train_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Start to report the training; a resumed one from the step at which it resumes."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        self._begin(trainer, Progress("training", total, "steps", done=done, status=epoch_of(trainer)))

    def on_train_epoch_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Begin to count the epoch's images."""
        self._images, self._since = 0, time.monotonic()
        self._progress.update(status=epoch_of(trainer))

    def on_train_batch_end(self, trainer: pl.Trainer, _task: pl.LightningModule, *hook: Any) -> None:
        """Report a step."""
        outputs, batch, index = hook
        self._images += len(batch["id"])
        rate = self._images * trainer.world_size / max(time.monotonic() - self._since, 1e-3)
        step = f"step {index + 1}/{trainer.num_training_batches}"
        status = f"{epoch_of(trainer)}, {step}, loss {float(outputs['loss']):.4g}, {rate:.1f} images/s"
        self._progress.update(done=trainer.global_step, status=status)

    def on_validation_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Start to report a validation or a test, unless it is part of a training."""
        self._batches = 0
        if trainer.state.fn != TrainerFn.FITTING:
            total = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
            self._begin(trainer, Progress("testing" if trainer.testing else "validating", total, "batches"))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_hook: Any) -> None:
        """Report a batch; within a training as its status."""
        self._batches += 1
        if trainer.state.fn != TrainerFn.FITTING:
            self._progress.update(done=self._batches)
        else:
            total = sum(trainer.num_val_batches)
            self._progress.update(status=f"{epoch_of(trainer)}, validation batch {self._batches}/{total}")

    def on_validation_end(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Stop, unless a training continues."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._progress.stop()

    def on_train_end(self, *_hook: Any) -> None:
        """Stop."""
        self._progress.stop()

    on_test_start = on_validation_start  # type: ignore[assignment]
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_end = on_validation_end  # type: ignore[assignment]

    def on_exception(self, *_hook: Any) -> None:
        """Stop where the run does."""
        self._progress.stop(finished=False)


def epoch_of(trainer: pl.Trainer) -> str:
    """Return the number of the epoch, and how many there are if that is known."""
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")
