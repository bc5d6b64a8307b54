"""Making a seed cache: a trained classifier is asked where it looks, picture by picture."""

import hashlib
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from datamodules.cache import CacheWriter, as_stored
from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.photos import PhotoSet, check_labels
from seeds.asking import picture_loader, seeds_of
from seeds.checkpoint import load_task, read_checkpoint
from seeds.classifier import Classifier, ClassifierTask
from seeds.cues import label_map
from seeds.data import data_settings
from seeds.probe import find_layer

PACKAGES = ("tag2mask", "torch", "torchvision", "segmentation_models_pytorch", "timm", "numpy", "albumentations")


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
    batch_size: int | None = None,
    num_workers: int | None = None,
    device: str = "auto",
    precision: Literal["32", "bf16"] = "32",
    overwrite: bool = False,
) -> None:
    """Make the seeds of every picture of a split, for its own labels, and keep them as a seed cache.

    Args:
        checkpoint: a classifier's.
        output: the cache's folder, which must not exist.
        root: folder of the pictures; the classifier's own if not given.
        split: which list of pictures; the one the classifier was trained on if not given.
        layer: name of the layer whose Grad-CAM maps are taken, within the network; its last map if not given.
        saliency_layer: name of the layer for the background's saliency; the last of stride 8 if not given.
        scales: the maps at these sizes of the picture, relative to ``size``, are averaged.
        flip: average with the maps of the mirrored picture, too.
        size: side in pixels to which pictures are warped at scale 1; the classifier's if not given.
        cue_stride: pixels a cell of the cues: a side has ⌈size / cue_stride⌉ cells.
        fg_threshold: a class's cue is where its map exceeds this fraction of its own maximum.
        bg_fraction: the background's cue is this fraction of the cells, those of the lowest saliency.
        batch_size: pictures at once; the classifier's if not given.
        num_workers: processes that read pictures; the classifier's if not given.
        device: where the network runs: auto, cpu, cuda, …
        precision: what it computes in: 32 (float32), or bf16, several times as fast where the processor has it.
        overwrite: replace a cache that is already there.

    Raises:
        InputError: a checkpoint, folder, layer or number that is not usable; a picture that cannot be read; a
            classifier whose maps are not finite; a disk that is full. Nothing is left behind then.
    """
    _check_numbers(scales, fg_threshold, bg_fraction, cue_stride)
    task = load_task(checkpoint, ClassifierTask)
    stored = read_checkpoint(checkpoint, "classifier").get("datamodule_hyper_parameters")
    data = TagDataModule(
        **data_settings(
            stored,
            task.classes,
            root=root,
            train_split=split,
            size=size,
            batch_size=batch_size,
            num_workers=num_workers,
        )
    )
    photos = data.photos(data.hparams["train_split"], masks=False)
    check_labels(photos, f"labels: {data.hparams['labels']} of {data.root}")
    network: Classifier = task.model.to(_device(device))
    layers = (layer or network.default_layer, saliency_layer or network.saliency_layer)
    for name in layers:
        find_layer(network, name)
    side = data.hparams["size"]
    grid = math.ceil(side / cue_stride)
    manifest = _provenance(checkpoint, task, data, photos) | {
        "method": "gradcam", "layer": layers[0], "saliency_layer": layers[1], "scales": list(scales), "flip": flip,
        "precision": precision, "size": side, "grid": [grid, grid], "cue_stride": cue_stride,
        "fg_threshold": fg_threshold, "bg_fraction": bg_fraction,
    }  # fmt: skip
    sizes = [max(1, round(side * scale)) for scale in scales]
    loader = picture_loader(photos, sizes, data.hparams["batch_size"], data.hparams["num_workers"])
    with CacheWriter(output, task.classes, manifest, overwrite=overwrite) as cache, _progress() as bar:
        counter = bar.add_task("seeds", total=len(photos))
        for seed in seeds_of(network, loader, layers, grid, flip=flip, bf16=precision == "bf16"):
            maps, saliency = as_stored(seed.maps), as_stored(seed.saliency[None])[0]  # as whoever reads the cache
            cues = label_map(seed.classes, maps, saliency, fg_threshold, bg_fraction)
            cache.add(seed.name, cues, map_classes=seed.classes, maps=seed.maps, saliency=seed.saliency)
            bar.advance(counter)


def _provenance(checkpoint: Path, task: ClassifierTask, data: TagDataModule, photos: PhotoSet) -> dict[str, Any]:
    """What a cache remembers of where it came from."""
    return {
        "checkpoint": str(checkpoint), "checkpoint_sha256": file_sha256(checkpoint),
        "backbone": task.hparams["backbone"], "output_stride": task.hparams["output_stride"],
        "data": data_settings(data.hparams, task.classes),
        "label_source": data.hparams["labels"], "split": data.hparams["train_split"],
        "images_sha256": hashlib.sha256("\n".join(photos.ids).encode()).hexdigest(),
        "packages": _versions(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }  # fmt: skip


def _check_numbers(scales: Sequence[float], fg_threshold: float, bg_fraction: float, cue_stride: int) -> None:
    if not scales or min(scales) <= 0:
        raise InputError(f"scales {list(scales)} must be positive, at least one")
    for name, value in (("fg_threshold", fg_threshold), ("bg_fraction", bg_fraction)):
        if not 0 <= value < 1:
            raise InputError(f"{name} {value} is outside 0..1")
    if cue_stride < 1:
        raise InputError(f"cue_stride {cue_stride} is not a positive number of pixels")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name} is not there; use auto or cpu") from error


class _Speed(ProgressColumn):
    """Pictures a second."""

    def render(self, task: Task) -> Text:
        """The speed as text."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} pictures/s" if speed else "")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn()
    )


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split(maxsplit=1)[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a source tree that is not installed
            found[package] = "not installed"
    return found
