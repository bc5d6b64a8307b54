"""Running the generator: Lightning's Trainer, quiet and always of the same threads, and what is seen of it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from datamodules.errors import InputError
from seeds.packs import Pack
from seeds.shards import SeedTask
from seeds.started import as_started, check_started


class _Speed(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        """The speed as text."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} pictures/s" if speed else "")


class ProgressBar(pl.Callback):
    """How far the first process is: of its own share, which is as large as any other's."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
        )

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show an empty bar."""
        if trainer.is_global_zero and isinstance(pl_module, SeedTask):
            others = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
            self._bar.add_task(f"seeds{others}", total=pl_module.pictures)
            self._bar.start()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Pack,
        *_numbers: int,
    ) -> None:
        """Count a batch."""
        for task in self._bar.task_ids:
            self._bar.advance(task, len(batch.names) + len(batch.left_out))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Let go of the terminal."""
        self._bar.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """As at the end."""
        self._bar.stop()


def make_trainer(
    accelerator: str, devices: int | Literal["auto"], num_nodes: int, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer for the generator: one process a device, one device of the CPU unless told otherwise.

    Args:
        accelerator: Lightning's: auto, cpu, gpu, cuda, …
        devices: how many on each machine; auto: all GPUs, one process on the CPU, and as torchrun says.
        num_nodes: machines.
        callbacks: what goes with the run.

    Raises:
        InputError: there is no such thing here, or torchrun or srun started another number of processes.
    """
    devices, num_nodes = as_started(devices, num_nodes)
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            callbacks=callbacks,
            inference_mode=False,  # Grad-CAM differentiates
            use_distributed_sampler=False,  # the shards are dealt out by number
            deterministic="warn" if accelerator != "cpu" and torch.cuda.is_available() else False,
            benchmark=False,  # which kernel is the fastest is not the same each time
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        line = str(error).strip().splitlines()[0]
        raise InputError(f"accelerator {accelerator} with devices {devices} cannot be used: {line}") from error
    check_started(trainer.world_size)
    return trainer


def make_shards(task: SeedTask, trainer: pl.Trainer) -> None:
    """Run the generator in this process, one of one or more.

    Args:
        task: what is asked, and of whom; its writer is among the trainer's callbacks.
        trainer: from :func:`make_trainer`.

    Raises:
        InputError: something stopped the run.
        KeyboardInterrupt: a person did.
    """
    threads = torch.get_num_threads()
    try:
        trainer.predict(task, return_predictions=False)
        task.writer.close(trainer)
    except SystemExit as leave:  # Lightning's answer to Ctrl-C, after it has stopped the other processes
        if leave.code:
            raise KeyboardInterrupt from leave
        raise
    finally:
        task.writer.abandon()
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning from talking about what this program arranges itself."""
    logs = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "lightning.fabric")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ("Couldn't infer the batch indices", "Total length of", ".*does not have many workers"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
