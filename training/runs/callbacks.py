"""Callbacks of every training: reproducible randomness, a stop at a bad loss, and the effective batch size."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.progress import print_message
from datamodules.sampling import run_seed
from seeds.distributed import gather_objects

__all__ = ["LossGuard", "StepSeed", "UpdateCount"]


class StepSeed(pl.Callback):
    """Seeds torch before every training batch from the run's seed, the epoch, the batch's number and the rank.

    Dropout is then the same whether the run was interrupted or not. (`datamodules.sampling` does the same for the
    augmentation of images.)
    """

    def on_train_batch_start(self, trainer: pl.Trainer, *hook: Any) -> None:
        """Seed torch on all devices."""
        entropy = [run_seed(), trainer.current_epoch, hook[-1], trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class LossGuard(pl.Callback):
    """Stops a training at the first loss that is NaN or infinite, before it changes a weight.

    Checkpoints are written after an epoch, so the last one has good weights. All processes stop together.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []

    def on_train_batch_start(self, *hook: Any) -> None:
        """Remember the images of the batch."""
        self._ids = [str(name) for name in hook[2]["id"]]

    def on_before_backward(self, trainer: pl.Trainer, _task: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            InputError: it is NaN or infinite; the message names the step and its images.
        """
        bad = not torch.isfinite(loss)
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            found = [each for each in gather_objects((loss.item(), self._ids) if bad else None) if each]
            names = [name for _, ids in found for name in ids]
            step = f"step {trainer.global_step} (epoch {trainer.current_epoch})"
            images = f"its images: {', '.join(names)}. The run ends here"
            raise InputError(f"the loss of {step} is {found[0][0]}; {images}; a lower learning rate (lr) often helps")


class UpdateCount(pl.Callback):
    """Prints the effective batch size and the number of updates before a training starts.

    Several processes and accumulated batches enlarge the effective batch; at a fixed number of epochs the network is
    then updated less often.
    """

    def on_train_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Print both numbers and, where the effective batch is larger, how it is made up."""
        loader: Any = trainer.train_dataloader
        images, batch_size = len(loader.dataset), loader.batch_size
        processes, batches = trainer.world_size, trainer.accumulate_grad_batches
        effective, total = batch_size * processes * batches, trainer.estimated_stepping_batches
        print_message(f"training on {images} images, effective batch size {effective}: {total} updates of the weights")
        if effective > batch_size:
            product = f"{batch_size} (batch_size) x {processes} (processes) x {batches} (accumulate_grad_batches)"
            print_message(f"a step sees {product} images; the learning rate stays as it is")
