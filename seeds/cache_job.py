"""The job that writes a seed cache: Lightning's prediction loop over the images of a split, and a writer of shards.

A network is a `SeedModule`. `write_seed_cache` finds the shards that are missing, deals them to the
processes, and runs ``Trainer.predict``; `ShardWriter` makes cues and writes each shard when it is complete.
A batch never contains images of two shards, so that every bit of a shard is the same for any number of processes.
"""

import hashlib
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from numpy.typing import NDArray
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torch.utils.data import SequentialSampler

from datamodules.annotations.drawn_labels import Drawn, corrected_cues
from datamodules.base_datamodule import BaseDataModule, covered_samples
from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError, first_line
from datamodules.files import AnyPath, file_sha256, is_uri
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import Progress, first_few, print_message
from datamodules.sample import Sample, multi_hot
from datamodules.sample_blocks import SampleBlocks
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.index import list_shards
from datamodules.seed_cache.shard import NO_CUE, ShardBuilder
from datamodules.seed_cache.writer import SeedCacheWriter
from datamodules.source_revision import SEED_PACKAGES, source_revision
from datamodules.unreadable_images import PRINTED_IMAGES, too_many
from seeds.base_task import BaseTask
from seeds.checkpoints import load_task
from seeds.distributed import (
    check_process_count,
    exit_reason,
    gather_objects,
    is_independent,
    launched_devices,
    local_rank,
    read_partition,
    wait_for_slower_processes,
)
from seeds.job_options import JobOptions
from seeds.lost_classes import report_lost_background, report_lost_classes
from seeds.precision import ResolvedPrecision, resolve_precision
from seeds.provenance import annotations_sha256, ids_sha256, package_versions

NOT_RECORDED = ("num_workers", "max_unreadable", "strict")  # data settings on which a shard's bytes do not depend
LOGGERS = ("pytorch_lightning", "lightning_fabric")


class Seed(NamedTuple):
    """The output of a network for one image.

    Attributes:
        id: the image's id.
        classes: 0..C-1, int64 (k,).
        maps: one per class, float32 (k, h, w), not negative.
        saliency: background saliency, float32 (h, w), or None.
        image: the image that the cues depend on, uint8 (3, H, W), or None where they depend on the maps alone.
        drawn: what people have drawn into the image; None without annotations.
    """

    id: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]
    saliency: NDArray[np.float32] | None = None
    image: Tensor | None = None
    drawn: Drawn | None = None


class SeedModule(pl.LightningModule):
    """A network that predicts seeds, and the rule that makes cues of them.

    Attributes:
        network: the network.
        settings: all settings that the result depends on, plain values as the cache records them.
        packages: packages of this project whose code the result depends on.
        uses_annotations: whether the result depends on what people have drawn into the images.
        grid: height and width of the cue grid.
        image_size: side in pixels to which images are resized.
        problem: the first error of this process, after which it predicts nothing.
    """

    packages: tuple[str, ...] = SEED_PACKAGES
    uses_annotations = False

    def __init__(self, network: nn.Module, settings: Mapping[str, Any]) -> None:
        """Prepare.

        Args:
            network: the network.
            settings: at least ``size`` in pixels and ``cue_stride``: the cue grid has ⌈size / cue_stride⌉ positions on
                a side.

        Raises:
            InputError: ``size`` or ``cue_stride`` is less than 1.
        """
        super().__init__()
        for name in ("size", "cue_stride"):
            if settings[name] < 1:
                raise InputError(f"{name} must be at least 1, not {settings[name]}")
        self.network, self.settings, self.problem = network, settings, ""
        self.image_size: int = settings["size"]
        side = math.ceil(self.image_size / settings["cue_stride"])
        self.grid = side, side

    def reads_annotations(self, data: BaseDataModule) -> bool:
        """Return whether the result depends on annotations of the data."""
        return self.uses_annotations and data.hparams["annotations"] is not None

    def predict_step(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the seeds of a batch of `datamodules.dataset.collate`, or none after an error."""
        try:
            empty = not (batch["id"] or batch.get("large"))  # all images unreadable, or left out of an earlier cache
            return [] if self.problem or empty else self.predict_seeds(batch)
        except InputError as error:
            self.problem = str(error)
            return []

    def on_predict_batch_end(self, *_: Any) -> None:
        """Stop after SIGTERM: Lightning stops trainings alone."""
        if self.trainer.received_sigterm:
            raise SIGTERMException

    @abstractmethod
    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the seed of each image of a batch; raise an InputError where that is impossible.

        ``id`` is empty where all images are in ``large``. An image of ``large`` that turns out unreadable is added to
        its ``unreadable``.
        """

    @abstractmethod
    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the label map of an image, uint8 (h, w); runs in a thread beside the network."""


@dataclass(frozen=True)
class JobSource:
    """A trained network, and the images that it is applied to.

    Attributes:
        checkpoint: the file of the network.
        task: the network.
        data: the data module of its training, perhaps with other settings.
        blocks: the images of the split, with tags, in a block for each shard.
    """

    checkpoint: AnyPath
    task: Any
    data: BaseDataModule
    blocks: SampleBlocks

    @classmethod
    def load(
        cls,
        checkpoint: AnyPath,
        task_class: type[BaseTask],
        job: JobOptions,
        images: str | None = None,
        **overrides: Any,
    ) -> Self:
        """Load a checkpoint and list the images.

        Args:
            checkpoint: the file.
            task_class: class of the network.
            job: options of the job.
            images: tar files in place of the data set, its root and its split: a folder, or a pattern of
                `datamodules.webdataset.WebDatasetDataModule` in one.
            **overrides: settings of the data module that replace those of the training, where they are not None.

        Raises:
            InputError: the checkpoint, the images or their tags are not usable.
        """
        task, content = load_task(checkpoint, task_class)
        stored = content.get("datamodule_hyper_parameters")
        if images is not None:
            folder, slash, pattern = images.rpartition("/") if images.endswith(".tar") else (images, "", "*.tar")
            stored = {**(stored or {}), "class_path": "datamodules.webdataset.WebDatasetDataModule"}
            if stored.pop("annotations", None) is not None:
                print_message("the annotations of the training are not used: the images are in tar files")
            overrides |= {"root": folder or slash or ".", "train_split": pattern}
        given = {"classes": list(task.classes), "batch_size": job.batch_size, "num_workers": job.num_workers}
        data = datamodule_from_settings(stored, **given, **overrides)
        return cls(checkpoint, task, data, data.blocks(data.hparams["train_split"], job.shard_size))


def write_seed_cache(
    output: AnyPath, module: SeedModule, source: JobSource, job: JobOptions, **caches: SeedCache | None
) -> None:
    """Write the seeds of all images of a source, in this process, one of one or more.

    Shards that exist with the same settings are kept. After an error the other processes finish their shards.

    Args:
        output: the cache's folder.
        module: the network and the rule for cues.
        source: the images.
        job: options of the job.
        **caches: caches of the same images that the result depends on, by the name of the option. Images that they
            have left out are left out.

    Raises:
        InputError: the folder cannot be used, an image, a cache or the network is not usable, or the disk is full.
        KeyboardInterrupt: a person stopped the job.
    """
    cache = _cache_writer(output, module, source, job, caches)
    writer = ShardWriter(cache, source.blocks, job)
    try:
        with _lightning_run():
            trainer = _trainer(job, cache.settings["precision"], writer)
            trainer.predict(module, writer.batches(source.data, module), return_predictions=False)
            writer.close(module, finished=True)
            states = gather_objects((module.problem, writer.found))
            if trainer.is_global_zero:
                if problem := next((each for each, _ in states if each), ""):
                    raise InputError(problem)
                _report(cache, job, sum(found for _, found in states))
    finally:
        writer.close(module, finished=False)  # finished shards stay, also after an error or Ctrl-C
        cache.remove_empty_folder()


def _cache_writer(
    output: AnyPath, module: SeedModule, source: JobSource, job: JobOptions, caches: Mapping[str, SeedCache | None]
) -> SeedCacheWriter:
    """Return the writer of the cache, with all that it records; arguments as for `write_seed_cache`."""
    data, blocks, samples = source.data, source.blocks, source.blocks.samples
    settings = {
        **module.settings, "checkpoint_sha256": file_sha256(source.checkpoint),
        "packages": package_versions(), "source": source_revision(module.packages),
        "batch_size": data.hparams["batch_size"], "shard_size": job.shard_size, "threads": job.threads,
        "precision": resolve_precision(job.precision, job.accelerator),
    }  # fmt: skip
    read = {key: value for key, value in data.settings.items() if key not in NOT_RECORDED}
    inputs, left_out = {"checkpoint": str(source.checkpoint), "data": read}, dict[str, str]()
    ids: list[list[str] | None] = [None] * len(blocks.names)
    if samples is None:
        settings["files_sha256"] = blocks.files_sha256
    else:
        settings["split"] = data.hparams["train_split"]
        labels = multi_hot(samples, data.classes)
        labels[[sample.tags is None for sample in samples]] = -1
        settings["labels_sha256"] = hashlib.sha256(labels.tobytes()).hexdigest()
        settings["ids_sha256"] = ids_sha256([sample.id for sample in samples])
        ids = [[sample.id for sample in blocks.read(number)] for number in range(len(ids))]
    if module.reads_annotations(data):
        settings |= {"annotations_sha256": annotations_sha256(samples or ()), "mask_classes": list(data.mask_classes)}
    for option, cache in caches.items():
        if cache is not None:
            covered_samples(cache, samples or (), data.classes)
            left_out |= cache.left_out
            settings[option], inputs[option] = cache.fingerprint, str(cache.path)
    return SeedCacheWriter(output, data.classes, settings, ids, inputs, left_out, blocks.names)


def predict_some(module: SeedModule, source: JobSource, job: JobOptions, samples: Sequence[Sample]) -> list[Seed]:
    """Return the seeds of some images in order, without their annotations; each process predicts all of them.

    Unreadable images are left out.

    Raises:
        InputError: a device or the network is not usable.
        KeyboardInterrupt: a person stopped the job.
    """
    data = source.data
    images = ImageDataset(samples, data.classes, module.image_size, channels=data.in_channels)
    loader = image_loader(
        images, num_workers=data.hparams["num_workers"], batch_size=data.hparams["batch_size"],
        sampler=SequentialSampler(images),
    )  # fmt: skip
    with _lightning_run():
        torch.set_num_threads(job.threads)
        trainer = _trainer(job, resolve_precision(job.precision, job.accelerator))
        seeds = cast("list[list[Seed]]", trainer.predict(module, loader))
    if module.problem:
        raise InputError(module.problem) if trainer.is_global_zero else SystemExit(0)
    return [seed for batch in seeds for seed in batch]


@contextmanager
def _lightning_run() -> Iterator[None]:
    """Silence Lightning's messages about what a job arranges itself, and restore torch's threads at the end.

    Raises:
        KeyboardInterrupt: in place of Lightning's exit after Ctrl-C.
    """
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    threads = torch.get_num_threads()
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.WARNING)
        yield
    except SystemExit as leave:
        raise exit_reason(leave) from None
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        torch.set_num_threads(threads)


def _trainer(job: JobOptions, precision: ResolvedPrecision, *callbacks: pl.Callback) -> pl.Trainer:
    """Return the trainer of this process: one of those that work together, or on its own.

    Raises:
        InputError: a device cannot be used, or torchrun or srun launched another number of processes.
    """
    devices, num_nodes = launched_devices(job.devices, job.num_nodes)
    on_gpu = job.accelerator != "cpu" and torch.cuda.is_available()
    environments: list[Any] = []
    if is_independent(job.partition, job.devices):  # no rendezvous with the other launched processes
        environments.append(LightningEnvironment())
        environments[0].set_global_rank(0)  # it prints, too
        devices, num_nodes = ([local_rank() % torch.cuda.device_count()] if on_gpu else 1), 1
    try:
        trainer = pl.Trainer(
            accelerator=job.accelerator, devices=devices, num_nodes=num_nodes, precision=precision,
            callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, deterministic="warn" if on_gpu else False,
            inference_mode=False,  # Grad-CAM differentiates
            use_distributed_sampler=False,  # shards are dealt by number
            plugins=environments,
        )  # fmt: skip
    except (ImportError, TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        used = f"accelerator {job.accelerator}, devices {devices}"
        raise InputError(f"{used} cannot be used: {first_line(error)}") from error
    if not environments:
        check_process_count(trainer)
    return trainer


def _report(cache: SeedCacheWriter, job: JobOptions, found: NDArray[np.int64]) -> None:
    """Check and report what the job has written, in the first process.

    Args:
        cache: the writer of the cache.
        job: options of the job.
        found: number of images, and of those tagged with each class; those with a cue of the background, and of each
            class: (2, C+1).

    Raises:
        InputError: too many images are unreadable.
    """
    if lacking := set(cache.names).difference(list_shards(cache.path)):
        print_message(f"{len(lacking)} of {len(cache.names)} shards are still missing: those of other partitions")
        return
    if job.partition != "0/1":  # one of many jobs does not read what the others have written
        print_message(f"all {len(cache.ids_by_shard)} shards are there; tag2mask seeds verify checks them")
        return
    seeds = SeedCache(cache.path)
    unreadable = {name: reason for name, reason in seeds.left_out.items() if name not in cache.left_out}
    if problem := too_many(unreadable, len(seeds) + len(seeds.left_out), job.max_unreadable):
        raise InputError(problem)
    for name, reason in list(seeds.left_out.items())[:PRINTED_IMAGES]:  # the cache lists all
        print_message(f"left out: {name}: {reason}")
    if not len(seeds):
        name, reason = next(iter(seeds.left_out.items()))
        raise InputError(f"no image could be used; first {name}: {reason}")
    if seeds.left_out:
        print_message(f"{len(seeds.left_out)} images were left out; tag2mask seeds info lists all")
    advice = "Look at them (tag2mask seeds show), at the network they come from, and at the tags."
    report_lost_classes(found[:, 1:], cache.classes, what="the new cues contain", advice=advice)
    report_lost_background(*found[:, 0].tolist(), where="in the new cues", advice=advice)


class ShardWriter(pl.Callback):
    """Makes cues of seeds, and writes each shard when it is complete, in a thread beside the network."""

    def __init__(self, cache: SeedCacheWriter, blocks: SampleBlocks, job: JobOptions) -> None:
        """Prepare; the folder is read in `setup`.

        Args:
            cache: writes the shards.
            blocks: the images of each shard.
            job: options of the job.
        """
        self.cache, self.blocks, self.job, self._batch_size = cache, blocks, job, int(cache.settings["batch_size"])
        self._numbers: list[int] = []  # of the shards that this process writes; known after setup
        self._batches: list[tuple[int, int]] = []  # shard and number of images of each batch
        self._images = 0  # of this partition; of tar files, those read so far
        self._thread = ThreadPoolExecutor(1)
        self._work: Future[None] | None = None
        self._progress = Progress("seeds")  # writes lines in the first process alone
        self._unreadable: dict[str, str] = {}  # of this process
        self._unlisted = ""  # the error that ended the list of images
        self._left_out: dict[int, dict[str, str]] = {}  # of each shard
        self._unknown: set[str] = set()  # images whose tags are not known
        self._builder = ShardBuilder(cache.classes)  # of the shard at hand; used by the thread alone
        # images, and those tagged with each class; those with a cue of the background, and of each class
        self.found = np.zeros((2, 1 + len(cache.classes)), int)

    def setup(self, trainer: pl.Trainer, _module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002  given by name
        """Find the missing shards in the first process, and deal them to all: every n-th to each of n processes.

        Raises:
            InputError: the folder cannot be used; the other processes leave quietly.
        """
        wait_for_slower_processes()
        job, count = self.job, len(self.blocks.names)
        torch.set_num_threads(job.threads)  # Lightning has divided the processors by the processes
        part, parts = read_partition(job.partition)
        numbers, problem, missing = range(part, count, parts), "", list[int]()
        if trainer.is_global_zero:
            try:
                missing = self.cache.missing(numbers, overwrite=job.overwrite, strict=job.strict)
            except InputError as error:
                problem = str(error)
        problem, missing = trainer.strategy.broadcast((problem, missing))
        if problem:
            raise InputError(problem) if trainer.is_global_zero else SystemExit(0)
        if trainer.is_global_zero:
            self._report_newer_files(sorted(set(numbers).difference(missing)))
        if not numbers:
            print_message(f"partition {job.partition} is empty: there are {count} shards")
        elif not missing:
            print_message(f"{self.cache.path} is there already, made with these settings")
        elif len(missing) < len(numbers):
            print_message(f"{len(numbers) - len(missing)} of {len(numbers)} shards are there already, and sound")
        self._numbers = missing[trainer.global_rank :: trainer.world_size]
        total = None
        if self.blocks.samples is not None:
            self._images = sum(len(self.blocks.read(number)) for number in numbers)
            total = sum(each.id not in self.cache.left_out for n in self._numbers for each in self.blocks.read(n))
        title = "seeds" if parts == 1 else f"seeds, partition {job.partition}"
        others = f", process 1 of {trainer.world_size}" if trainer.world_size > 1 else ""
        self._progress = Progress(f"{title}{others}", total).start()

    def _report_newer_files(self, kept: Iterable[int]) -> None:
        """Report kept shards that are older than a local file they were made from, whose content is not compared."""
        newer, tars = [], self.blocks.files
        for number in kept:
            files = [tars[number]] if tars else [each.image for each in self.blocks.read(number)]
            shard = self.cache.path / self.cache.names[number]
            if isinstance(shard, Path):
                with suppress(OSError):
                    times = [Path(str(file)).stat().st_mtime for file in files if not is_uri(file)]
                    if max(times, default=0) > shard.stat().st_mtime:
                        newer.append(shard.name)
        if newer:
            what, changed = ("their tar files", "tar file has") if tars else ("some of their images", "images have")
            advice = f"remove those whose {changed} changed"
            print_message(f"warning: {len(newer)} shards are older than {what}: {first_few(newer)}; {advice}")

    def batches(self, data: BaseDataModule, module: SeedModule) -> Iterator[Any]:
        """Yield the batches of all images, until ``module`` has a problem; starts a loader once its images are known.

        Where images cannot be listed, that becomes the problem of ``module``: batches before it are still written, and
        no process waits for this one.
        """
        annotated = module.reads_annotations(data)
        try:
            for samples, indices in self.rounds():
                images = ImageDataset(
                    samples, data.classes, module.image_size, channels=data.in_channels,
                    largest=module.settings.get("tile"), with_annotations=annotated,
                    mask_lut=data.mask_lut if annotated else None,
                )  # fmt: skip
                loader = image_loader(images, num_workers=data.hparams["num_workers"], batch_sampler=indices)
                yield from takewhile(lambda _batch: not module.problem, loader)
        except InputError as error:
            self._unlisted = str(error)

    def rounds(self) -> Iterator[tuple[list[Sample], list[list[int]]]]:
        """Yield the samples that one loader reads, and the indices of the images in each batch.

        There is one round where all samples are known, and a round for each shard otherwise.
        """
        known = self.blocks.samples is not None
        for numbers in [self._numbers] if known else [[number] for number in self._numbers]:
            samples, batches = list[Sample](), list[list[int]]()
            for number in numbers:
                found, excluded = self.blocks.read(number), self.cache.left_out
                self._left_out[number] = {each.id: excluded[each.id] for each in found if each.id in excluded}
                self._unknown |= {each.id for each in found if each.tags is None}
                for first in range(0, len(found), self._batch_size):
                    batch, start = found[first : first + self._batch_size], len(samples) + first
                    batches.append([start + i for i, sample in enumerate(batch) if sample.id not in excluded])
                    self._batches.append((number, len(batches[-1])))
                samples += found
            self._images += 0 if known else len(samples)
            yield samples, batches

    def on_predict_batch_end(self, _trainer: Any, module: Any, outputs: Any, batch: Any, index: int, *_: Any) -> None:
        """Pass the seeds of a batch to the thread; the last batch of a shard completes it."""
        number, images = self._batches[index]
        self._progress.update(advance=images)
        self.wait(module)  # so that no more than one batch of images is in memory
        unreadable = dict(batch.get("unreadable", ()))
        self._unreadable |= unreadable
        self._left_out[number] |= unreadable  # the thread reads it
        problem = next(iter(unreadable.values()), "") if self.job.strict else ""
        problem = problem or too_many(self._unreadable, self._images, self.job.max_unreadable)
        module.problem = module.problem or problem
        if not module.problem:
            complete = number not in [shard for shard, _ in self._batches[index + 1 : index + 2]]
            self._work = self._thread.submit(self._add, module, outputs, number, complete=complete)

    def _add(self, module: SeedModule, seeds: list[Seed], number: int, *, complete: bool) -> None:
        """Make the cues of a batch; write its shard if it is complete."""
        for seed in seeds:
            cues = module.cues(seed)
            if seed.id in self._unknown:  # it is not known to be background
                cues = np.full_like(cues, NO_CUE)
                cues = cues if seed.drawn is None else corrected_cues(cues, seed.drawn)
            self._builder.add(seed.id, cues, seed.classes, seed.maps, seed.saliency)
            if seed.id in self._unknown or (not len(seed.classes) and (cues == NO_CUE).all()):
                continue  # the CRF gives no cue to an image without tags
            present = np.array([0, *(seed.classes + 1)])
            self.found[0, present] += 1
            self.found[1, present] += np.isin(present, cues)
        if complete:
            self.cache.write(number, self._builder, self._left_out.pop(number))
            self._builder = ShardBuilder(self.cache.classes)

    def wait(self, module: SeedModule) -> None:
        """Wait for the thread; an error in it becomes that of the module."""
        work, self._work = self._work, None
        try:
            if work is not None:
                work.result()
        except InputError as error:
            module.problem = module.problem or str(error)

    def close(self, module: SeedModule, *, finished: bool) -> None:
        """Wait for the thread, and end it and the progress line."""
        self.wait(module)
        module.problem = module.problem or self._unlisted
        self._thread.shutdown(cancel_futures=True)
        self._progress.stop(finished=finished)
