"""Making a seed cache: a trained classifier is asked where it looks, image by image."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.seed_cache import as_stored
from datamodules.seed_shard import SHARD_SIZE
from datamodules.unreadable import MAX_UNREADABLE
from seeds.activations import find_layer
from seeds.background_saliency import check_saliency
from seeds.checkpoints import load_task
from seeds.classifier import Classifier, ClassifierTask
from seeds.crf_refinement import crf_settings, refined
from seeds.cues import label_map
from seeds.making.asking import CamSettings, Seed, extract_cams
from seeds.making.batches import ImageBatch
from seeds.making.resize import ResizePolicy
from seeds.making.running import Run, make_cache
from seeds.making.shards import Asked, CueRule
from seeds.making.source import Source
from seeds.precision import Precision


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
    precision: Precision = "auto",
    max_unreadable: float = MAX_UNREADABLE,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Make the seeds of every image of a split, for its own labels, and keep them as a seed cache.

    The result depends on the settings alone, to the bit, and not on how many processes share the work. A run that was
    stopped, however it was, goes on where it was when the same command is given again: finished shards are kept.

    Args:
        checkpoint: a classifier's.
        output: the cache's folder, which must not exist, or be one that the same command began.
        root: folder of the images; the classifier's own if not given.
        split: which list of images; the one the classifier was trained on if not given.
        layer: name of the layer whose Grad-CAM maps are taken, within the network; its last map if not given.
        saliency_layer: name of the layer for the background's saliency; the last of stride 8 if not given (of a network
            that ends there, the last of the stage before).
        scales: the maps at these sizes of the image, relative to ``size``, are averaged.
        flip: average with the maps of the mirrored image, too.
        size: side in pixels to which images are warped at scale 1; the classifier's if not given.
        cue_stride: pixels a cell of the cues: a side has ⌈size / cue_stride⌉ cells.
        fg_threshold: a class's cue is where its map exceeds this fraction of its own maximum.
        bg_fraction: the background's cue is this fraction of the cells, those of the lowest saliency.
        refine: crf: the cues are made by the dense CRF and not by the two thresholds, as irn does: confident
            foreground, confident background, the rest open. The raw maps are kept as they are.
        conf_fg: for crf: a class is confident where it wins against a background of this score, a fraction of the
            maps' own maxima.
        conf_bg: for crf: the background is confident where it wins with this score.
        batch_size: images at once; the classifier's if not given.
        num_workers: processes that read images, for each that asks; the classifier's if not given.
        shard_size: images a file.
        accelerator: where the network runs: auto, cpu, gpu, …
        devices: how many processes on each machine, each with a GPU or on the CPU; auto: a process on the CPU, all
            GPUs, and under torchrun as that says.
        num_nodes: how many machines, where SLURM starts the processes.
        threads: torch's in each process; their number changes the last bits of the result, that of processes does
            not, and more processes are faster than more threads.
        precision: what the network computes in: auto, 32-true or bf16-mixed. auto takes bf16-mixed where the
            processor computes bfloat16 natively, else 32-true (see `seeds.precision`).
        max_unreadable: the share of images that may be unreadable: they are left out, and listed on the terminal and
            in the manifest. With more of them the run stops.
        strict: stop at the first image that cannot be read.
        overwrite: replace a cache that is already there, or one half made with other settings.

    Raises:
        InputError: a checkpoint, folder, layer or number that is not usable; another process that makes the same
            cache; a classifier whose maps are not finite; a disk that is full. Finished shards stay then.
    """
    run = Run(
        shard_size,
        threads,
        accelerator,
        devices,
        num_nodes,
        precision,
        max_unreadable,
        strict=strict,
        overwrite=overwrite,
    )
    task = load_task(checkpoint, ClassifierTask)
    given = {"root": root, "train_split": split, "size": size, "batch_size": batch_size, "num_workers": num_workers}
    source = Source.of(checkpoint, ClassifierTask.task_name, task.classes, **given)
    cams = CamSettings(layer or task.model.default_layer, saliency_layer or task.model.saliency_layer, flip)
    policy = ResizePolicy(source.data.hparams["size"], tuple(scales), cue_stride)
    settings = Settings(cams, fg_threshold, bg_fraction, refine, conf_fg, conf_bg)
    settings.check(task.model)
    backbone = {name: task.hparams[name] for name in ("backbone", "output_stride")}
    plan = source.provenance() | backbone | settings.plan()
    make_cache(output, plan, source, Asked(task.model, settings.ask), settings.rule(), policy, run)


@dataclass(frozen=True)
class Settings:
    """How maps are extracted from the classifier, and cues made of them; see :func:`generate_seeds`."""

    cams: CamSettings
    fg_threshold: float
    bg_fraction: float
    refine: Literal["none", "crf"]
    conf_fg: float
    conf_bg: float

    def check(self, network: Classifier) -> None:
        """Raises an InputError for a number out of range, or a layer that the network does not have."""
        for name in ("fg_threshold", "bg_fraction", "conf_fg", "conf_bg"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is outside 0..1")
        for layer in (self.cams.layer, self.cams.saliency_layer):
            find_layer(network, layer)
        if self.bg_fraction and self.refine == "none":
            check_saliency(network, self.cams.saliency_layer, network.head.out_features)

    def plan(self) -> dict[str, Any]:
        """What the manifest says of these settings."""
        crf = {"method": "crf", "conf_fg": self.conf_fg, "conf_bg": self.conf_bg} | crf_settings()
        return {
            "method": "gradcam", "layer": self.cams.layer, "saliency_layer": self.cams.saliency_layer,
            "refinement": crf if self.refine == "crf" else None, "flip": self.cams.flip,
            "fg_threshold": self.fg_threshold, "bg_fraction": self.bg_fraction,
        }  # fmt: skip

    def ask(self, network: Classifier, batch: ImageBatch) -> list[Seed]:
        """Return the maps and the saliency of a batch."""
        return extract_cams(network, batch, self.cams)

    def rule(self) -> CueRule:
        """Return the rule by which cues are made of maps and saliency."""
        if self.refine == "crf":
            return partial(refined_by_crf, conf_fg=self.conf_fg, conf_bg=self.conf_bg)
        return partial(thresholded, fg_threshold=self.fg_threshold, bg_fraction=self.bg_fraction)


def thresholded(seed: Seed, *, fg_threshold: float, bg_fraction: float) -> NDArray[np.uint8]:
    """The cues of an image by SEC's rule, from its maps as they will come back from the cache."""
    assert seed.saliency is not None
    saliency = as_stored(seed.saliency[None])[0]
    return label_map(seed.classes, as_stored(seed.maps), saliency, fg_threshold, bg_fraction)


def refined_by_crf(seed: Seed, *, conf_fg: float, conf_bg: float) -> NDArray[np.uint8]:
    """The cues of an image refined by the CRF, from its maps as they will come back from the cache."""
    return refined(seed.classes, as_stored(seed.maps), seed.image, conf_fg, conf_bg)
