"""The generator's Lightning side: shards are dealt to processes, and each writes its own."""

from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from datamodules.cache.making import Making
from datamodules.cache.shard import Parts, ShardBuilder
from numpy.typing import NDArray
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import nn

from datamodules.errors import InputError
from datamodules.progress import print_message
from datamodules.unreadable import too_many
from seeds.making.asking import Seed
from seeds.making.batches import Batches, BatchLoader, ImageBatch

CueRule = Callable[[Seed], NDArray[np.uint8]]
TOLD = 10  # images that were left out are told one by one up to so many; the manifest has all


class Asked(NamedTuple):
    """A network, and how it is asked about a batch: an InputError where it has no answer."""

    network: nn.Module
    ask: Callable[[Any, ImageBatch], list[Seed]]


class SeedTask(pl.LightningModule):
    """Asks a network about the images of the shards that fall to this process."""

    def __init__(
        self,
        asked: Asked,
        batches: Callable[[list[int]], Batches],
        workers: int,
        threads: int,
        writer: "ShardWriter",
    ) -> None:
        """Prepare.

        Args:
            asked: the network, and how it is asked.
            batches: those of some shards.
            workers: processes that read images.
            threads: torch's in this process: how many there are changes the last bits of what a network says.
            writer: who knows which shards are to be made, and takes the seeds.
        """
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more processes than shards
        self.network, self._ask = asked  # an attribute of its own, so that Lightning takes it to its device
        self.writer = writer
        self._batches, self._workers, self._threads = batches, workers, threads
        self.pictures = 0  # of this process

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Set the threads, after Lightning has set them to the processors divided by the processes."""
        torch.set_num_threads(self._threads)

    def predict_dataloader(self) -> BatchLoader:
        """The batches of every n-th of the shards that are still to be made, n the number of processes."""
        writer = self.writer
        batches = self._batches(writer.todo[self.trainer.global_rank :: self.trainer.world_size])
        self.pictures = batches.image_count
        pin = self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(batches, self._workers, lambda: writer.stopped, pin=pin)

    def predict_step(self, batch: ImageBatch) -> list[Seed]:
        """The seeds of a batch; a network that gives none stops the run."""
        try:
            return self._ask(self.network, batch)
        except InputError as error:
            self.writer.fail(str(error))
            return []


class ShardWriter(BasePredictionWriter):
    """Makes cues of what the network said, and a shard when it is complete, in a thread beside the network.

    Attributes:
        todo: the shards still to be made, of all processes.
        finished: whether the cache was there already.
    """

    def __init__(
        self,
        making: Making,
        rule: CueRule,
        num_classes: int,
        *,
        max_unreadable: float,
        expected: Container[str],
        overwrite: bool,
        strict: bool,
    ) -> None:
        """Prepare; the folder is touched in :meth:`setup`.

        Args:
            making: the cache in the making.
            rule: cues of an image's seed.
            num_classes: without background.
            max_unreadable: share of all images that may be unreadable.
            expected: images that are left out for another reason.
            overwrite: as of :meth:`datamodules.cache.making.Making.begin`.
            strict: stop at the first image that cannot be read.
        """
        super().__init__("batch")
        self.making, self._rule, self._num_classes = making, rule, num_classes
        self._overwrite, self._strict = overwrite, strict
        self._share, self._expected = max_unreadable, expected
        self._total = sum(map(len, making.blocks))
        self._unreadable: dict[str, str] = {}  # of this process
        self.todo: list[int] = []
        self.finished = False
        self._problem = ""
        self._known = 0  # images of the shard at hand that have been asked about, or left out
        self._left_out: dict[str, str] = {}
        self._kept: dict[str, tuple[NDArray[np.uint8], Parts]] = {}  # of the shard at hand; the thread's own
        self._thread = ThreadPoolExecutor(1)
        self._working: Future[None] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder, in the first process, and tell the others what is to be done.

        Raises:
            InputError: the folder may not be used; said by the first process, while the others leave quietly.
        """
        super().setup(trainer, pl_module, stage)
        problem, todo = "", None
        if trainer.is_global_zero:
            try:
                todo = self.making.begin(overwrite=self._overwrite, strict=self._strict)
            except InputError as error:
                problem = str(error)
        problem, todo = trainer.strategy.broadcast((problem, todo))
        if problem and trainer.is_global_zero:
            raise InputError(problem)
        if problem:
            raise SystemExit(0)
        self.todo, self.finished = todo or [], todo is None
        done = len(self.making.blocks) - len(self.todo)
        if done and not self.finished:
            print_message(f"{done} of {len(self.making.blocks)} shards are there already, and sound")

    @property
    def stopped(self) -> bool:
        """Whether this or another process met something that stops the run."""
        return bool(self._problem) or self.making.stopped is not None

    def fail(self, reason: str) -> None:
        """Stop the run, in all its processes, after the batch at hand."""
        if not self._problem:
            self._problem = reason
            try:
                self.making.stop(reason)
            except InputError:  # a full disk takes no word either; this process stops all the same
                return

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        prediction: list[Seed],
        batch_indices: Any,  # noqa: ARG002
        batch: ImageBatch,
        *_numbers: int,
    ) -> None:
        """Hand a batch's seeds to the thread, which makes cues of them; with the last of a shard it writes that."""
        self._left_out |= batch.left_out
        self._known += len(batch.names) + len(batch.left_out)
        self._unreadable |= {name: why for name, why in batch.left_out.items() if name not in self._expected}
        if batch.left_out and self._strict:
            self.fail(next(iter(batch.left_out.values())))
        elif problem := too_many(self._unreadable, self._total, self._share):
            self.fail(problem)
        self._wait()  # so that no more than one batch's images are in memory
        if self._problem:
            return
        if self._known < len(self.making.blocks[batch.shard]):
            self._working = self._thread.submit(self._keep, prediction)
        else:
            self._working = self._thread.submit(self._finish, prediction, batch.shard, self._left_out)
            self._left_out, self._known = {}, 0

    def _wait(self) -> None:
        """Wait for what the thread is at; what went wrong there stops the run."""
        if self._working is not None:
            try:
                self._working.result()
            except InputError as error:
                self.fail(str(error))
            self._working = None

    def _keep(self, seeds: list[Seed]) -> None:
        for seed in seeds:
            parts = Parts(map_classes=seed.classes, maps=seed.maps)
            if seed.saliency is not None:
                parts["saliency"] = seed.saliency
            self._kept[seed.name] = self._rule(seed), parts

    def _finish(self, last: list[Seed], number: int, left_out: dict[str, str]) -> None:
        self._keep(last)
        shard = ShardBuilder(self._num_classes)
        for name in self.making.blocks[number]:
            if name in self._kept:
                cues, parts = self._kept[name]
                shard.add(name, cues, **parts)
        self._kept = {}
        self.making.write(number, shard, left_out)

    def close(self, trainer: pl.Trainer) -> None:
        """Wait for this process's last shard and for the other processes; then the first finishes the cache.

        Raises:
            InputError: something stopped the run; in the first process.
        """
        self._wait()
        self._thread.shutdown()
        trainer.strategy.barrier("shards")
        if not trainer.is_global_zero:
            return
        try:
            if self.finished:
                print_message(f"{self.making.path} is there already, made with these settings")
                return
            if self.stopped:
                raise InputError(self._problem or self.making.stopped or "")
            found = {name: why for name, why in self.making.left_out().items() if name not in self._expected}
            if problem := too_many(found, self._total, self._share):
                raise InputError(problem)
            left_out = self.making.finish()
        finally:
            self.making.release()
        for name, reason in list(left_out.items())[:TOLD]:
            print_message(f"left out: {name}: {reason}")
        if left_out:
            print_message(f"{len(left_out)} images were left out; the manifest names each")

    def abandon(self) -> None:
        """Let go of the folder after an error or an interruption; finished shards stay."""
        self._thread.shutdown(cancel_futures=True)
        self.making.release()
