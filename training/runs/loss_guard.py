"""A run whose loss is no longer a number ends there, with its last good checkpoint kept."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from datamodules.errors import InputError
from seeds.distributed import gather_objects

__all__ = ["LossGuard"]


class LossGuard(pl.Callback):
    """Stops a training at the first loss that is NaN or infinite, before it reaches a weight.

    Checkpoints are written after an epoch, so the last one is from before. The cost is one look at one number a step;
    of several processes all learn of it, and stop.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Mapping[str, Any],
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Remember which images are about to be learned from."""
        self._ids = [str(name) for name in batch["id"]]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Look at the loss.

        Raises:
            InputError: it is NaN or infinite; names the step and its images.
        """
        bad = not torch.isfinite(loss)
        if trainer.strategy.reduce_boolean_decision(bad, all=False):  # all processes stop together
            found = [each for each in gather_objects((loss.item(), self._ids) if bad else None) if each]
            names = [name for _, ids in found for name in ids]
            raise InputError(
                f"the loss of step {trainer.global_step} (epoch {trainer.current_epoch}) is {found[0][0]}; "
                f"its images: {', '.join(names)}. The run ends here, checkpoints of earlier epochs are kept; "
                "a lower learning rate (lr) often helps"
            )
