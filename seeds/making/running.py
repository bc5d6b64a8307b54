"""Running the generator: Lightning's Trainer, quiet and always of the same threads, and what is seen of it."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from datamodules.cache.format import MAX_PICTURES
from datamodules.cache.making import Making
from lightning_fabric.utilities.exceptions import MisconfigurationException

from datamodules.errors import InputError
from datamodules.progress import Progress
from datamodules.unreadable import check_share
from seeds.distributed import check_process_count, launched_devices
from seeds.making.batches import Batches, ImageBatch
from seeds.making.resize import ResizePolicy
from seeds.making.shards import Asked, CueRule, SeedTask, ShardWriter
from seeds.making.source import Source
from seeds.precision import Chosen, Precision, resolve_precision


class SeedProgress(pl.Callback):
    """Reports how far the first process is with its own share, which is as large as any other's."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start, in the first process."""
        if trainer.is_global_zero and isinstance(pl_module, SeedTask):
            others = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
            self._progress = Progress(f"seeds{others}", pl_module.pictures)
            self._progress.start()

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: ImageBatch,
        *_numbers: int,
    ) -> None:
        """Count a batch."""
        if self._progress is not None:
            self._progress.advance(len(batch.names) + len(batch.left_out))

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop."""
        if self._progress is not None:
            self._progress.stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Stop where the run does."""
        if self._progress is not None:
            self._progress.stop(finished=False)


def make_trainer(
    accelerator: str, devices: int | Literal["auto"], num_nodes: int, precision: Chosen, callbacks: list[pl.Callback]
) -> pl.Trainer:
    """Lightning's Trainer for the generator: one process a device, one device of the CPU unless told otherwise.

    Args:
        accelerator: Lightning's: auto, cpu, gpu, cuda, …
        devices: how many on each machine; auto: all GPUs, one process on the CPU, and as torchrun says.
        num_nodes: machines.
        precision: Lightning's: 32-true or bf16-mixed.
        callbacks: what goes with the run.

    Raises:
        InputError: there is no such thing here, or torchrun or srun started another number of processes.
    """
    devices, num_nodes = launched_devices(devices, num_nodes)
    try:
        trainer = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            precision=precision,
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
    check_process_count(trainer.world_size)
    return trainer


@dataclass(frozen=True)
class Run:
    """How the work of making a cache is shared out and written.

    Attributes:
        shard_size: images a file.
        threads: torch's, in each process.
        accelerator: as of :func:`make_trainer`, and so the next two.
        devices: processes a machine.
        num_nodes: machines.
        precision: what the network computes in.
        max_unreadable: share of images that may be unreadable.
        strict: stop at the first image that cannot be read.
        overwrite: replace what is there.

    Raises:
        InputError: a number out of range.
    """

    shard_size: int
    threads: int
    accelerator: str
    devices: int | Literal["auto"]
    num_nodes: int
    precision: Precision
    max_unreadable: float
    strict: bool
    overwrite: bool

    def __post_init__(self) -> None:
        for name in ("shard_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_share(self.max_unreadable)
        if self.shard_size > MAX_PICTURES:
            raise InputError(f"shard_size must be at most {MAX_PICTURES}, not {self.shard_size}")


def make_cache(
    output: Path,
    plan: Mapping[str, Any],
    source: Source,
    asked: Asked,
    rule: CueRule,
    policy: ResizePolicy,
    run: Run,
    *,
    without: Mapping[str, str] | None = None,
) -> None:
    """Make a cache of what a network says about images, in this process, one of one or more.

    Args:
        output: the cache's folder.
        plan: what the manifest says of the making, without the settings of ``policy`` and ``run``.
        source: the images.
        asked: the network, and how it is asked.
        rule: cues of what it says.
        policy: the sizes to which images are resized.
        run: how the work is shared out.
        without: images that are left out, and why, beside those that cannot be read.

    Raises:
        InputError: something stopped the run; finished shards stay.
        KeyboardInterrupt: a person did.
    """
    hp, photos = source.data.hparams, source.photos
    precision = resolve_precision(run.precision, run.accelerator)
    plan = {**plan, **policy.plan(), "batch_size": hp["batch_size"], "shard_size": run.shard_size,
            "threads": run.threads, "precision": precision}  # fmt: skip
    blocks = [photos.ids[first : first + run.shard_size] for first in range(0, len(photos), run.shard_size)]
    writer = ShardWriter(
        Making(output, plan, blocks),
        rule,
        len(photos.classes),
        max_unreadable=run.max_unreadable,
        expected=without or {},
        overwrite=run.overwrite,
        strict=run.strict,
    )
    batches = partial(
        Batches, photos, shard_size=run.shard_size, batch_size=hp["batch_size"], policy=policy, without=without
    )
    with _quiet():
        trainer = make_trainer(run.accelerator, run.devices, run.num_nodes, precision, [writer, SeedProgress()])
        _make_shards(SeedTask(asked, batches, hp["num_workers"], run.threads, writer), trainer)


def _make_shards(task: SeedTask, trainer: pl.Trainer) -> None:
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
def _quiet() -> Iterator[None]:
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
