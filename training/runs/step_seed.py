"""Randomness that a resumed run finds again."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from datamodules.sampling import run_seed

__all__ = ["StepSeed"]


class StepSeed(pl.Callback):
    """Seeds torch anew before every training batch, from the run's seed, the batch's number and the process's rank.

    What dropout leaves out is then a function of these three, and the same whether the run was stopped in between or
    not. (What happens to images is settled by `datamodules.sampling`.)
    """

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Seed torch on all devices."""
        place = [run_seed(), trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
