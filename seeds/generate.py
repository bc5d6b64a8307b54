"""Making a seed cache: a trained classifier is asked where it looks, picture by picture."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.cache import SHARD_SIZE, as_stored
from datamodules.cache.format import MAX_PICTURES
from datamodules.cache.making import Making
from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.photos import PhotoSet, check_labels
from seeds.asking import Question, Seed
from seeds.checkpoint import load_task, read_checkpoint
from seeds.classifier import Classifier, ClassifierTask
from seeds.cues import label_map
from seeds.data import data_settings
from seeds.frames import Framing
from seeds.packs import Batches
from seeds.probe import find_layer
from seeds.provenance import ids_sha256, provenance
from seeds.refine import CRF, refined
from seeds.running import ProgressBar, make_shards, make_trainer, quiet
from seeds.shards import CueRule, SeedTask, ShardWriter


def generate_seeds(
    checkpoint: Path,
    output: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    layer: str | None = None,
    saliency_layer: str | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    size: int | None = None,
    keep_aspect: bool = False,
    cue_stride: int = 8,
    fg_threshold: float = 0.2,
    bg_fraction: float = 0.1,
    refine: Literal["none", "crf"] = "none",
    conf_fg: float = 0.30,
    conf_bg: float = 0.05,
    batch_size: int | None = None,
    num_workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    accelerator: str = "auto",
    devices: int | Literal["auto"] = "auto",
    num_nodes: int = 1,
    threads: int = 1,
    precision: Literal["32", "bf16"] = "32",
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Make the seeds of every picture of a split, for its own labels, and keep them as a seed cache.

    The result depends on the settings alone, to the bit, and not on how many processes share the work. A run that was
    stopped, however it was, goes on where it was when the same command is given again: finished shards are kept.

    Args:
        checkpoint: a classifier's.
        output: the cache's folder, which must not exist, or be one that the same command began.
        root: folder of the pictures; the classifier's own if not given.
        split: which list of pictures; the one the classifier was trained on if not given.
        layer: name of the layer whose Grad-CAM maps are taken, within the network; its last map if not given.
        saliency_layer: name of the layer for the background's saliency; the last of stride 8 if not given.
        scales: the maps at these sizes of the picture, relative to ``size``, are averaged.
        flip: average with the maps of the mirrored picture, too.
        size: side in pixels to which pictures are warped at scale 1; the classifier's if not given.
        keep_aspect: pictures are not warped to a square but brought to its area in their own proportions, up to 1:3
            and the rounding of sides to multiples of 32; the grid of cues and maps has a picture's proportions, too.
        cue_stride: pixels a cell of the cues: a side has ⌈size / cue_stride⌉ cells.
        fg_threshold: a class's cue is where its map exceeds this fraction of its own maximum.
        bg_fraction: the background's cue is this fraction of the cells, those of the lowest saliency.
        refine: crf: the cues are made by the dense CRF and not by the two thresholds, as irn does: confident
            foreground, confident background, the rest open. The raw maps are kept as they are.
        conf_fg: for crf: a class is confident where it wins against a background of this score, a fraction of the
            maps' own maxima.
        conf_bg: for crf: the background is confident where it wins with this score.
        batch_size: pictures at once; the classifier's if not given.
        num_workers: processes that read pictures, for each that asks; the classifier's if not given.
        shard_size: pictures a file.
        accelerator: where the network runs: auto, cpu, gpu, …
        devices: how many processes on each machine, each with a GPU or on the CPU; auto: a process on the CPU, all
            GPUs, and under torchrun as that says.
        num_nodes: how many machines, where SLURM starts the processes.
        threads: torch's in each process; their number changes the last bits of the result, that of processes does
            not, and more processes are faster than more threads.
        precision: what it computes in: 32 (float32), or bf16, several times as fast where the processor has it.
        strict: stop at the first picture that cannot be read; else such pictures are left out, which the manifest
            and the terminal tell.
        overwrite: replace a cache that is already there, or one half made with other settings.

    Raises:
        InputError: a checkpoint, folder, layer or number that is not usable; another process that makes the same
            cache; a classifier whose maps are not finite; a disk that is full. Finished shards stay then.
    """
    source = _source(
        checkpoint, root=root, train_split=split, size=size, batch_size=batch_size, num_workers=num_workers
    )
    network, hp = source.task.model, source.data.hparams
    layers = (layer or network.default_layer, saliency_layer or network.saliency_layer)
    settings = Settings(
        layers, tuple(scales), flip, precision, hp["size"], keep_aspect, cue_stride, fg_threshold, bg_fraction, refine,
        conf_fg, conf_bg, hp["batch_size"], shard_size, threads,
    )  # fmt: skip
    settings.check(network)
    making = Making(output, source.provenance(checkpoint) | settings.plan(), settings.blocks(source.photos.ids))
    writer = ShardWriter(making, settings.rule(), len(source.task.classes), overwrite=overwrite, strict=strict)
    batches = partial(
        Batches, source.photos, shard_size=shard_size, batch_size=hp["batch_size"], framing=settings.framing
    )
    with quiet():
        trainer = make_trainer(accelerator, devices, num_nodes, [writer, ProgressBar()])
        make_shards(SeedTask(network, settings.question(), batches, hp["num_workers"], threads, writer), trainer)


@dataclass(frozen=True)
class Settings:
    """All that the result depends on, but for classifier and pictures; see :func:`generate_seeds`."""

    layers: tuple[str, str]  # of maps and of saliency
    scales: tuple[float, ...]
    flip: bool
    precision: Literal["32", "bf16"]
    size: int
    keep_aspect: bool
    cue_stride: int
    fg_threshold: float
    bg_fraction: float
    refine: Literal["none", "crf"]
    conf_fg: float
    conf_bg: float
    batch_size: int
    shard_size: int
    threads: int

    def check(self, network: Classifier) -> None:
        """Raises an InputError for a number out of range, or a layer that the network does not have."""
        if not self.scales or min(self.scales) <= 0:
            raise InputError(f"scales {list(self.scales)} must be positive, at least one")
        for name in ("fg_threshold", "bg_fraction", "conf_fg", "conf_bg"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is outside 0..1")
        for name in ("cue_stride", "shard_size", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.shard_size > MAX_PICTURES:
            raise InputError(f"shard_size must be at most {MAX_PICTURES}, not {self.shard_size}")
        for layer in self.layers:
            find_layer(network, layer)

    @property
    def framing(self) -> Framing:
        """At which sizes pictures are seen."""
        return Framing(self.size, self.scales, self.cue_stride, self.keep_aspect)

    def plan(self) -> dict[str, Any]:
        """What the manifest says of these settings."""
        same = ("flip", "precision", "size", "keep_aspect", "cue_stride", "fg_threshold", "bg_fraction", "batch_size",
                "shard_size", "threads")  # fmt: skip
        crf = {"method": "crf", "conf_fg": self.conf_fg, "conf_bg": self.conf_bg} | CRF
        return {
            "method": "gradcam", "layer": self.layers[0], "saliency_layer": self.layers[1],
            "scales": list(self.scales), "keep_aspect": self.keep_aspect,
            "grid": None if self.keep_aspect else list(self.framing.square.grid),
            "refinement": crf if self.refine == "crf" else None,
        } | {name: getattr(self, name) for name in same}  # fmt: skip

    def question(self) -> Question:
        """How the classifier is asked."""
        return Question(self.layers, self.flip, self.precision == "bf16")

    def rule(self) -> CueRule:
        """How cues are made of what it says."""
        if self.refine == "crf":
            return partial(refined_by_crf, conf_fg=self.conf_fg, conf_bg=self.conf_bg)
        return partial(thresholded, fg_threshold=self.fg_threshold, bg_fraction=self.bg_fraction)

    def blocks(self, ids: Sequence[str]) -> list[Sequence[str]]:
        """The list's pictures, shard by shard."""
        return [ids[first : first + self.shard_size] for first in range(0, len(ids), self.shard_size)]


def thresholded(seed: Seed, *, fg_threshold: float, bg_fraction: float) -> NDArray[np.uint8]:
    """The cues of a picture by SEC's rule, from its maps as they will come back from the cache."""
    saliency = as_stored(seed.saliency[None])[0]
    return label_map(seed.classes, as_stored(seed.maps), saliency, fg_threshold, bg_fraction)


def refined_by_crf(seed: Seed, *, conf_fg: float, conf_bg: float) -> NDArray[np.uint8]:
    """The cues of a picture refined by the CRF, from its maps as they will come back from the cache."""
    return refined(seed.classes, as_stored(seed.maps), seed.image, conf_fg, conf_bg)


@dataclass(frozen=True)
class _Source:
    """Where seeds come from: the classifier, and the pictures of the split with their labels."""

    task: ClassifierTask
    data: TagDataModule
    photos: PhotoSet

    def provenance(self, checkpoint: Path) -> dict[str, Any]:
        """What a cache remembers of where it came from."""
        hp, photos = self.data.hparams, self.photos
        return {
            "checkpoint": str(checkpoint), "checkpoint_sha256": file_sha256(checkpoint),
            "backbone": self.task.hparams["backbone"], "output_stride": self.task.hparams["output_stride"],
            "classes": list(self.task.classes), "data": data_settings(hp, self.task.classes),
            "label_source": hp["labels"], "labels_sha256": hashlib.sha256(photos.labels.tobytes()).hexdigest(),
            "split": hp["train_split"], "images_sha256": ids_sha256(photos.ids), **provenance(),
        }  # fmt: skip


def _source(checkpoint: Path, **given: Any) -> _Source:
    """Load the classifier and find the pictures; ``given`` are settings of the data module that override its own."""
    task = load_task(checkpoint, ClassifierTask)
    stored = read_checkpoint(checkpoint, "classifier").get("datamodule_hyper_parameters")
    data = TagDataModule(**data_settings(stored, task.classes, **given))
    photos = data.photos(data.hparams["train_split"], masks=False)
    check_labels(photos, f"labels: {data.hparams['labels']} of {data.root}")
    return _Source(task, data, photos)
