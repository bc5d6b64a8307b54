"""Training and other commands in several processes: what is refused, in one sentence, before it goes wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from datamodules.errors import InputError

if TYPE_CHECKING:
    import pytorch_lightning as pl

__all__ = ["check_trainer", "one_process"]

# how many processes torchrun and srun say they have started
STARTED = {"TORCHELASTIC_RUN_ID": "WORLD_SIZE", "SLURM_STEP_ID": "SLURM_STEP_NUM_TASKS"}


def one_process(command: str) -> None:
    """Raise an InputError if torchrun or srun started a command several times that works in one process."""
    for mark, name in STARTED.items():
        count = int(os.environ.get(name, "1")) if mark in os.environ else 1
        if count > 1:
            raise InputError(
                f"{command} works in one process, and {count} were started ({name}={count}): start it once, without "
                "torchrun or srun; fit, validate, test and seeds generate share their work among several"
            )


def check_trainer(trainer: pl.Trainer, *, sync_batchnorm: bool) -> None:
    """Look at what a Trainer is asked to do.

    Args:
        trainer: Lightning's.
        sync_batchnorm: whether batch norms are to take their statistics over all processes.

    Raises:
        InputError: something that torch cannot do, or that would spoil the training silently.
    """
    if sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise InputError(
            "sync_batchnorm is for GPUs: torch has no SyncBatchNorm for the CPU; leave it out, and each process "
            "normalises by its own batch"
        )
    if str(trainer.precision) in ("16-true", "bf16-true"):
        raise InputError(
            f"precision {trainer.precision} would round weights and pictures to 16 bits, and the CRF would see wrong "
            "colours: choose bf16-mixed, or 16-mixed on GPUs"
        )
