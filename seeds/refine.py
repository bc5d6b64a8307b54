"""Refining a seed cache by affinities: its maps walk over each image, and what they reach becomes its labels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.fingerprints import fingerprint
from datamodules.images import normalize
from datamodules.seed_cache import SeedCache, as_stored
from datamodules.seed_shard import SHARD_SIZE
from datamodules.unreadable import MAX_UNREADABLE
from seeds.affinity.affinity_task import AffinityTask
from seeds.affinity.random_walk import random_walk
from seeds.checkpoints import load_task
from seeds.crf_refinement import crf_settings, labelled, of_maximum_one
from seeds.making.asking import Seed
from seeds.making.batches import ImageBatch
from seeds.making.resize import ResizePolicy
from seeds.making.running import Run, make_cache
from seeds.making.shards import Asked
from seeds.making.source import Source
from seeds.precision import Precision

__all__ = ["refine_seeds"]

Floats = NDArray[np.float32]
Walk = Callable[[Floats, Floats], Floats]


def refine_seeds(
    cache: Path,
    checkpoint: Path,
    output: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    radius: int = 5,
    beta: float = 10.0,
    steps: int = 256,
    fg_threshold: float = 0.25,
    crf: bool = True,
    size: int | None = None,
    cue_stride: int = 4,
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
    """Let the maps of a seed cache walk along learned affinities, and label every cell by what arrives there.

    After irn's step for semantic segmentation (Ahn, Cho & Kwak, CVPR 2019, ``step/make_sem_seg_labels.py``): a random
    walk that boundaries hold up spreads each class's map over its thing, and the background wins where no map exceeds
    its score. Two things differ: a map is divided by its own maximum, for the tag says that its thing is there (irn
    divides all maps of an image by their common one); and the CRF follows. The cache holds the walked maps, and is
    made as `seeds generate` makes one: by any number of processes, and resumed. Images that ``cache`` has left out
    are left out.

    Args:
        cache: the seed cache whose maps set out: Grad-CAM's, or the probabilities that `pseudo-label` keeps.
        checkpoint: of ``tag2mask fit`` with `seeds.affinity.affinity_task.AffinityTask`.
        output: the new cache's folder, which must not exist, or be one that the same command began.
        root: folder of the images; that of the training if not given.
        split: which list of images; the one of the training if not given.
        radius: a step of the walk leads to cells nearer than this.
        beta: exponent of the affinities: the higher, the fewer cross a weak boundary.
        steps: of the walk.
        fg_threshold: a class wins where its map exceeds this fraction of its own maximum; 0.25 is irn's number.
        crf: sharpen the labels with the dense CRF, by the numbers with which irn makes cues (`seeds.crf_refinement`).
        size: side in pixels to which images are warped; the one validation had if not given.
        cue_stride: pixels a cell of the cues and of the walk.
        batch_size: images at once; that of the training if not given.
        num_workers: processes that read images; as in training if not given.
        shard_size: images a file.
        accelerator: where the network runs: auto, cpu, gpu, …
        devices: how many processes on each machine.
        num_nodes: how many machines, where SLURM starts the processes.
        threads: torch's in each process; their number changes the last bits of the result.
        precision: what the network computes in: auto, 32-true or bf16-mixed. auto takes bf16-mixed where the
            processor computes bfloat16 natively, else 32-true (see `seeds.precision`).
        max_unreadable: the share of images that may be unreadable: they are left out, and listed on the terminal and
            in the manifest. With more of them the run stops.
        strict: stop at the first image that cannot be read.
        overwrite: replace a cache that is already there, or one half made with other settings.

    Raises:
        InputError: a checkpoint, cache, folder or number that is not usable; another process that makes the same
            cache; a disk that is full. Finished shards stay then.
    """
    if radius < 2 or steps < 1 or beta <= 0:
        raise InputError(f"radius {radius}, steps {steps} or beta {beta} is too small for a walk")
    if not 0 < fg_threshold < 1:
        raise InputError(f"fg_threshold {fg_threshold} is not between 0 and 1")
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
    task = load_task(checkpoint, AffinityTask)
    given = {"root": root, "train_split": split, "batch_size": batch_size, "num_workers": num_workers}
    source = Source.of(checkpoint, task.task_name, task.classes, **given)
    start = SeedCache(cache)
    policy = ResizePolicy(source.data.hparams["eval_size"] if size is None else size, (1.0,), cue_stride)
    plan = source.provenance() | {
        "method": "refine", "backbone": task.hparams["backbone"], "cache": fingerprint(cache),
        "radius": radius, "beta": beta, "steps": steps, "fg_threshold": fg_threshold,
        "crf": crf_settings() if crf else None,
    }  # fmt: skip
    walk = partial(random_walk, radius=radius, beta=beta, steps=steps)
    ask = partial(walked, start=start, walk=walk)
    rule = partial(refined_label_map, fg_threshold=fg_threshold, crf=crf)
    make_cache(output, plan, source, Asked(task, ask), rule, policy, run, without=source.left_out_of(start))


def walked(network: nn.Module, batch: ImageBatch, *, start: SeedCache, walk: Walk) -> list[Seed]:
    """The maps of a batch's images after their walk.

    Args:
        network: boundaries (B, h, w) of normalised images (B, 3, H, W).
        batch: the images, on the network's device.
        start: the maps that set out.
        walk: takes maps (k, h, w) and a boundary (h, w), and gives such maps.

    Raises:
        InputError: boundaries that are not finite, or an image without the map of a class that it is tagged with.
    """
    if not batch.images:
        return []
    images = batch.images[0]
    boundary = (network(normalize(images)) + network(normalize(images).flip(-1)).flip(-1)) / 2
    boundary = functional.interpolate(boundary[:, None].float(), batch.grid, mode="bilinear")[:, 0]
    if not boundary.isfinite().all():
        raise InputError(f"the network's boundaries of image {batch.names[0]} or its neighbours are not finite")
    found, tags = [], batch.labels.cpu().numpy() != 0
    for name, image, edge, own in zip(batch.names, images.cpu(), boundary.cpu().numpy(), tags, strict=True):
        classes = np.flatnonzero(own)
        found.append(Seed(name, classes, walk(_at(_maps(start, name, classes), batch.grid), edge), None, image))
    return found


def _maps(start: SeedCache, name: str, classes: NDArray[np.int64]) -> Floats:
    """An image's maps (k, h, w) of the classes that it is tagged with now, in the order of ``classes``.

    A cache may hold them in another order: imported maps lie in the order of their source.

    Raises:
        InputError: the cache has none of one of them.
    """
    there, maps = start.maps(name)
    lacking = np.setdiff1d(classes, there)
    if len(lacking) and not len(there):
        raise InputError(f"the seed cache {start.path} has no maps of image {name}; it was made of labels only")
    if len(lacking):
        raise InputError(
            f"the seed cache {start.path} has no map of class {start.classes[lacking[0]]} of image {name}, which is "
            "tagged with it: make the seeds anew"
        )
    index = {label: position for position, label in enumerate(there.tolist())}
    return maps[[index[label] for label in classes.tolist()]]


def refined_label_map(seed: Seed, *, fg_threshold: float, crf: bool) -> NDArray[np.uint8]:
    """The label map of an image, from its walked maps as they will come back from the cache.

    Args:
        seed: the maps (k, h, w) of its classes, and the image.
        fg_threshold: see :func:`refine_seeds`.
        crf: sharpen with the dense CRF.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class.
    """
    maps = as_stored(seed.maps)
    if crf or not len(maps):
        return labelled(seed.classes, maps, seed.image, fg_threshold)
    scores = np.concatenate([np.full((1, *maps.shape[1:]), fg_threshold, np.float32), of_maximum_one(maps)])
    labels: NDArray[np.uint8] = np.array([0, *(seed.classes + 1)], np.uint8)[scores.argmax(axis=0)]
    return labels


def _at(maps: Floats, grid: tuple[int, int]) -> Floats:
    """Maps (k, h, w) at another size, bilinearly."""
    if not len(maps):
        return np.zeros((0, *grid), np.float32)
    large: Floats = functional.interpolate(torch.from_numpy(maps)[None], grid, mode="bilinear")[0].numpy()
    return large
