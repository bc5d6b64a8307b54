"""The job that writes a seed cache: Lightning's prediction loop over the images of a split, and a writer of shards.

A network is a :class:`SeedModule`. :func:`write_seed_cache` finds the shards that are missing, deals them to the
processes, and runs ``Trainer.predict``; :class:`ShardWriter` makes cues and writes each shard when it is complete.
A batch never contains images of two shards, so that every bit of a shard is the same for any number of processes.
"""

import hashlib
import logging
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, Self, TypeVar

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor

from datamodules.base_datamodule import BaseDataModule, covered_samples, datamodule_from_settings
from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.progress import Progress, print_message
from datamodules.sample import Sample, multi_hot, require_tags
from datamodules.seed_cache import SeedCache, list_shards
from datamodules.seed_cache_writer import CacheOutput
from datamodules.seed_shard import Parts, ShardBuilder
from datamodules.source_revision import SEED_PACKAGES, source_revision
from datamodules.unreadable import too_many
from seeds.base_task import BaseTask
from seeds.checkpoints import load_task, read_checkpoint
from seeds.distributed import check_process_count, gather_objects, launched_devices
from seeds.job_options import JobOptions
from seeds.precision import resolve_precision
from seeds.provenance import ids_sha256, package_versions

LISTED = 10  # left-out images that are printed one by one; the cache lists all

Task = TypeVar("Task", bound=BaseTask)


class Seed(NamedTuple):
    """The output of a network for one image.

    Attributes:
        name: the image's id.
        classes: 0..C-1, int64 (k,).
        maps: one per class, float32 (k, h, w), not negative.
        saliency: background saliency, float32 (h, w), or None.
        image: the image that the cues depend on, uint8 (3, H, W), or None where they depend on the maps alone.
    """

    name: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]
    saliency: NDArray[np.float32] | None = None
    image: Tensor | None = None


class SeedModule(pl.LightningModule):
    """A network that predicts seeds, and the rule that makes cues of them.

    Attributes:
        problem: the first error of this process, after which it predicts nothing.
    """

    problem = ""

    def predict_step(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the seeds of a batch of :func:`datamodules.dataset.collate`, or none after an error."""
        try:
            return self.predict_seeds(batch) if batch["id"] and not self.problem else []
        except InputError as error:
            self.problem = str(error)
            return []

    @abstractmethod
    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the seed of each image of a batch; raise an InputError where that is impossible."""

    @abstractmethod
    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the label map of an image, uint8 (h, w); runs in a thread beside the network."""


@dataclass(frozen=True)
class JobSource(Generic[Task]):
    """A trained network, and the images that it is applied to.

    Attributes:
        checkpoint: the file of the network.
        task: the network.
        data: the data module of its training, perhaps with other settings.
        samples: the images of the split, with tags.
    """

    checkpoint: Path
    task: Task
    data: BaseDataModule
    samples: list[Sample]

    @classmethod
    def load(cls, checkpoint: Path, task_class: type[Task], job: JobOptions, **overrides: Any) -> Self:
        """Load a checkpoint and list the images.

        Args:
            checkpoint: the file.
            task_class: class of the network.
            job: options of the job.
            **overrides: settings of the data module that replace those of the training, where they are not None.

        Raises:
            InputError: the checkpoint, the images or their tags are not usable.
        """
        task = load_task(checkpoint, task_class)
        stored = read_checkpoint(checkpoint, task.task_name).get("datamodule_hyper_parameters")
        given = {"classes": list(task.classes), "batch_size": job.batch_size, "num_workers": job.num_workers}
        data = datamodule_from_settings(stored, **given, **overrides)
        samples = data.samples(data.hparams["train_split"], masks=False)
        require_tags(samples, data.classes, data.source)
        return cls(checkpoint, task, data, samples)

    def settings(self, packages: tuple[str, ...] = SEED_PACKAGES) -> dict[str, Any]:
        """Return the settings of the result that follow from network, images and code (of ``packages``)."""
        labels = multi_hot(self.samples, self.data.classes)
        return {
            "checkpoint_sha256": file_sha256(self.checkpoint), "split": self.data.hparams["train_split"],
            "labels_sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
            "ids_sha256": ids_sha256([sample.id for sample in self.samples]), "packages": package_versions(),
            "source": source_revision(packages),
        }  # fmt: skip

    def left_out_of(self, cache: SeedCache) -> dict[str, str]:
        """Return the images that another cache has left out, with its reasons.

        Raises:
            InputError: the cache is of other classes, or lacks an image without giving a reason.
        """
        covered_samples(cache, self.samples, self.data.classes)
        return {sample.id: cache.left_out[sample.id] for sample in self.samples if sample.id not in cache}


def write_seed_cache(
    output: Path,
    module: SeedModule,
    source: JobSource[Any],
    settings: Mapping[str, Any],
    job: JobOptions,
    *,
    image_size: int,
    inputs: Mapping[str, Any] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> None:
    """Write the seeds of all images of a source, in this process, one of one or more.

    Shards that exist with the same settings are kept. After an error the other processes finish their shards.

    Args:
        output: the cache's folder.
        module: the network and the rule for cues.
        source: the images.
        settings: everything the result depends on, except for batches, threads and precision.
        job: options of the job.
        image_size: side in pixels to which images are resized.
        inputs: where further inputs are.
        left_out: images to leave out, and why, beside those that cannot be read.

    Raises:
        InputError: the folder cannot be used, an image or the network is not usable, or the disk is full.
        KeyboardInterrupt: a person stopped the job.
    """
    hp, size, left_out = source.data.hparams, job.shard_size, left_out or {}
    precision = resolve_precision(job.precision, job.accelerator)
    settings = {
        **settings, "batch_size": hp["batch_size"], "shard_size": size, "threads": job.threads, "precision": precision
    }  # fmt: skip
    inputs = {"checkpoint": str(source.checkpoint), "data": source.data.settings, **(inputs or {})}
    ids = [sample.id for sample in source.samples]
    blocks = [ids[first : first + size] for first in range(0, len(ids), size)]
    cache = CacheOutput(output, source.data.classes, settings, blocks, inputs)
    images = ImageDataset(source.samples, source.data.classes, image_size)
    writer = ShardWriter(cache, images.samples, job, hp["batch_size"], left_out)
    devices, num_nodes = launched_devices(job.devices, job.num_nodes)
    threads = torch.get_num_threads()
    try:
        with _quiet_lightning():
            try:
                trainer = pl.Trainer(
                    accelerator=job.accelerator,
                    devices=devices,
                    num_nodes=num_nodes,
                    precision=precision,
                    callbacks=[writer],
                    inference_mode=False,  # Grad-CAM differentiates
                    use_distributed_sampler=False,  # shards are dealt by number
                    deterministic="warn" if job.accelerator != "cpu" and torch.cuda.is_available() else False,
                    benchmark=False,  # the fastest kernel is not the same each time
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
            except (ValueError, RuntimeError, MisconfigurationException) as error:
                line = str(error).strip().splitlines()[0]
                raise InputError(
                    f"accelerator {job.accelerator} with devices {devices} cannot be used: {line}"
                ) from error
            check_process_count(trainer.world_size)
            sampler: Any = writer.batches
            loader = image_loader(
                images, batch_size=hp["batch_size"], num_workers=hp["num_workers"], batch_sampler=sampler
            )

            def batches() -> Iterator[dict[str, Any]]:
                for batch in loader:
                    if module.problem:
                        return
                    yield batch

            trainer.predict(module, batches(), return_predictions=False)
        writer.wait(module)
        problems = [problem for problem in gather_objects(module.problem) if problem]
        if trainer.is_global_zero:
            if problems:
                raise InputError(problems[0])
            _report(cache, len(ids), job, left_out)
    except SystemExit as leave:  # Lightning raises it for Ctrl-C, after it has stopped the other processes
        if leave.code:
            raise KeyboardInterrupt from leave
        raise
    finally:
        writer.close()
        torch.set_num_threads(threads)
        with suppress(OSError):
            output.rmdir()  # where no shard was finished


def _report(cache: CacheOutput, images: int, job: JobOptions, expected: Mapping[str, str]) -> None:
    """Check and report what the job has written, in the first process.

    Raises:
        InputError: too many images are unreadable.
    """
    lacking = len(cache.blocks) - len(list_shards(cache.path))
    if lacking:
        print_message(f"{lacking} of {len(cache.blocks)} shards are still missing: those of other partitions")
        return
    seeds = SeedCache(cache.path)
    unreadable = {name: reason for name, reason in seeds.left_out.items() if name not in expected}
    if problem := too_many(unreadable, images, job.max_unreadable):
        raise InputError(problem)
    for name, reason in list(seeds.left_out.items())[:LISTED]:
        print_message(f"left out: {name}: {reason}")
    if not len(seeds):
        name, reason = next(iter(seeds.left_out.items()))
        raise InputError(f"no image could be used; first {name}: {reason}")
    if seeds.left_out:
        print_message(f"{len(seeds.left_out)} images were left out; tag2mask seeds info lists all")


class ShardWriter(BasePredictionWriter):
    """Makes cues of seeds, and writes each shard when it is complete, in a thread beside the network.

    Attributes:
        batches: indices of the images in each batch of this process; known after :meth:`setup`.
    """

    def __init__(
        self,
        cache: CacheOutput,
        samples: Sequence[Sample],
        job: JobOptions,
        batch_size: int,
        excluded: Mapping[str, str],
    ) -> None:
        """Prepare; the folder is read in :meth:`setup`.

        Args:
            cache: the folder.
            samples: all images, in the order of the shards.
            job: options of the job.
            batch_size: images per batch.
            excluded: images that are not read, and why.
        """
        super().__init__("batch")
        self.cache, self.samples, self.job, self.excluded = cache, samples, job, excluded
        self.batches: list[list[int]] = []
        self._shards: list[int] = []  # the shard of each batch
        self._batch_size = batch_size
        self._thread = ThreadPoolExecutor(1)
        self._work: Future[None] | None = None
        self._progress: Progress | None = None
        self._unreadable: dict[str, str] = {}  # of this process
        self._builder = ShardBuilder(cache.classes)  # of the shard at hand; used by the thread alone

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the missing shards in the first process, and deal them to all: every n-th to each of n processes.

        Raises:
            InputError: the folder cannot be used; the other processes leave quietly.
        """
        super().setup(trainer, pl_module, stage)
        torch.set_num_threads(self.job.threads)  # Lightning has divided the processors by the processes
        problem, missing = "", []
        numbers, blocks = self.job.own_shards(len(self.cache.blocks)), self.cache.blocks
        if trainer.is_global_zero:
            try:
                missing = self.cache.missing(
                    numbers, overwrite=self.job.overwrite, strict=self.job.strict, expected=self.excluded
                )
            except InputError as error:
                problem = str(error)
        problem, missing = trainer.strategy.broadcast((problem, missing))
        if problem and trainer.is_global_zero:
            raise InputError(problem)
        if problem:
            raise SystemExit(0)
        if not missing:
            print_message(f"{self.cache.path} is there already, made with these settings")
        elif len(missing) < len(numbers):
            print_message(f"{len(numbers) - len(missing)} of {len(numbers)} shards are there already, and sound")
        for number in missing[trainer.global_rank :: trainer.world_size]:
            start = number * self.job.shard_size
            for first in range(start, start + len(blocks[number]), self._batch_size):
                indices = range(first, min(first + self._batch_size, start + len(blocks[number])))
                self.batches.append([index for index in indices if self.samples[index].id not in self.excluded])
                self._shards.append(number)
        others = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
        self._progress = Progress(f"seeds{others}", sum(map(len, self.batches))).start()

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: Any,
        prediction: list[Seed],
        batch_indices: Any,  # noqa: ARG002
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,  # noqa: ARG002
    ) -> None:
        """Pass the seeds of a batch to the thread; the last batch of a shard completes it."""
        if self._progress is not None:
            self._progress.update(advance=len(self.batches[batch_idx]))
        unreadable = dict(batch.get("unreadable", ()))
        self._unreadable |= unreadable
        self.wait(pl_module)  # so that no more than one batch of images is in memory
        problem = next(iter(unreadable.values()), "") if self.job.strict else ""
        problem = problem or too_many(self._unreadable, len(self.samples), self.job.max_unreadable)
        pl_module.problem = pl_module.problem or problem
        if not pl_module.problem:
            number = self._shards[batch_idx]
            complete = number not in self._shards[batch_idx + 1 : batch_idx + 2]
            self._work = self._thread.submit(self._add, pl_module, prediction, number, complete=complete)

    def _add(self, module: SeedModule, seeds: list[Seed], number: int, *, complete: bool) -> None:
        """Make the cues of a batch; write its shard if it is complete."""
        for seed in seeds:
            parts = Parts(map_classes=seed.classes, maps=seed.maps)
            if seed.saliency is not None:
                parts["saliency"] = seed.saliency
            self._builder.add(seed.name, module.cues(seed), **parts)
        if complete:
            reasons = {**self._unreadable, **self.excluded}
            left_out = {name: reasons[name] for name in self.cache.blocks[number] if name in reasons}
            self.cache.write(number, self._builder, left_out)
            self._builder = ShardBuilder(self.cache.classes)

    def wait(self, module: SeedModule) -> None:
        """Wait for the thread; an error in it becomes that of the module."""
        work, self._work = self._work, None
        try:
            if work is not None:
                work.result()
        except InputError as error:
            module.problem = module.problem or str(error)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Stop the progress line."""
        if self._progress is not None:
            self._progress.stop()

    def close(self) -> None:
        """End the thread and the progress line, also after an error or Ctrl-C; finished shards stay."""
        self._thread.shutdown(cancel_futures=True)
        if self._progress is not None:
            self._progress.stop(finished=False)


def cue_grid(size: int, cue_stride: int) -> tuple[int, int]:
    """Return height and width of the cue grid, ⌈size / cue_stride⌉ each; raise an InputError for invalid numbers."""
    for name, value in (("size", size), ("cue_stride", cue_stride)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, not {value}")
    side = math.ceil(size / cue_stride)
    return side, side


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on what this job arranges itself."""
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
