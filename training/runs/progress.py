"""How far a training or a validation is, where Lightning's bar has no terminal to show itself on."""

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from pytorch_lightning.trainer.states import TrainerFn
from rich.console import Console

from datamodules.progress import Progress

__all__ = ["TrainingProgress", "progress_bar"]

Batch = Mapping[str, Any]


def progress_bar() -> ProgressBar:
    """Return Lightning's bar on a terminal, and lines on standard error elsewhere."""
    return RichProgressBar(leave=False) if Console().is_terminal else TrainingProgress()


class TrainingProgress(ProgressBar):
    """Reports epoch, step, loss, images a second and the time left of the whole training by `Progress`.

    The time left counts what validations took so far. Only the first process reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._images = 0  # of this epoch, in this process
        self._since = 0.0  # when this epoch began
        self._batches = 0  # of this validation

    def disable(self) -> None:
        """Report nothing; Lightning calls this in all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Report again."""
        self._enabled = True

    def _begin(self, progress: Progress) -> None:
        if self._enabled:
            self._progress = progress
            progress.start()

    def _end(self, *, finished: bool = True) -> None:
        if self._progress is not None:
            self._progress.stop(finished=finished)
            self._progress = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start to report the training; a resumed one from the step that it resumes from."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        self._begin(Progress("training", total, "steps", done=done, status=epoch_of(trainer)))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Begin to count the epoch's images."""
        self._images, self._since = 0, time.monotonic()
        if self._progress is not None:
            self._progress.update(status=epoch_of(trainer))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Report a step."""
        self._images += len(batch["id"])
        if self._progress is not None:
            rate = self._images * trainer.world_size / max(time.monotonic() - self._since, 1e-3)
            status = (
                f"{epoch_of(trainer)}, step {batch_idx + 1}/{trainer.num_training_batches}, "
                f"loss {float(outputs['loss']):.4g}, {rate:.1f} images/s"
            )
            self._progress.update(done=trainer.global_step, status=status)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop."""
        self._end()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start to report a validation, unless it is part of a training; the trial that precedes a training is not."""
        self._batches = 0
        if trainer.sanity_checking:
            self._begin(Progress("trying the validation", sum(trainer.num_sanity_val_batches), "batches"))
        elif trainer.state.fn == TrainerFn.VALIDATING:
            self._begin(Progress("validating", sum(trainer.num_val_batches), "batches"))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        *_batch: Any,
    ) -> None:
        """Report a batch; within a training as its status."""
        self._batches += 1
        if self._progress is not None and (trainer.sanity_checking or trainer.state.fn == TrainerFn.VALIDATING):
            self._progress.advance()
        elif self._progress is not None:
            status = f"{epoch_of(trainer)}, validation batch {self._batches}/{sum(trainer.num_val_batches)}"
            self._progress.update(status=status)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop, unless a training continues."""
        if trainer.sanity_checking or trainer.state.fn == TrainerFn.VALIDATING:
            self._end()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start to report a test."""
        self._begin(Progress("testing", sum(trainer.num_test_batches), "batches"))

    def on_test_batch_end(self, *_batch: Any) -> None:
        """Report a batch."""
        if self._progress is not None:
            self._progress.advance()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop."""
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Stop where the run does."""
        self._end(finished=False)


def epoch_of(trainer: pl.Trainer) -> str:
    """Return the number of the epoch, and how many there are if that is known."""
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")
