"""A trained network's own account of its training images, as a cache to train on again."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.errors import InputError
from datamodules.fingerprints import fingerprint
from datamodules.images import normalize
from datamodules.seed_cache import NO_CUE, SeedCache, as_stored
from datamodules.seed_shard import SHARD_SIZE
from datamodules.source_revision import ALL_PACKAGES, source_revision
from datamodules.transforms import resize_nearest
from datamodules.unreadable import MAX_UNREADABLE
from seeds.checkpoints import load_task
from seeds.crf import dense_crf
from seeds.making.asking import Seed
from seeds.making.batches import ImageBatch
from seeds.making.resize import ResizePolicy
from seeds.making.running import Run, make_cache
from seeds.making.shards import Asked, CueRule
from seeds.making.source import Source
from seeds.precision import Precision
from training.grids import resize_maps
from training.inference import PROBABILITY_FLOOR, TEST_CRF
from training.segmentation_task import SegmentationTask

__all__ = ["pseudo_label", "pseudo_label_map"]


def pseudo_label(
    checkpoint: Path,
    output: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    size: int | None = None,
    cue_stride: int = 4,
    crf: bool = True,
    min_confidence: float = 0.0,
    consensus: Path | None = None,
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
    """Label the images of a split by a segmentation network and their tags, as a seed cache to train on again.

    A class that an image is not tagged with is left out before the softmax; what is left is smoothed by the dense CRF
    as at test time, and each cell becomes a cue of its likeliest class. The cache holds the probabilities of the tagged
    classes as its maps. It is made as `seeds generate` makes one: by any number of processes, and resumed.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task.
        output: the cache's folder, which must not exist, or be one that the same command began.
        root: folder of the images; that of the training if not given.
        split: which list of images; the one of the training if not given.
        scales: the softmax at these sizes of the image, relative to ``size``, is averaged.
        flip: average with that of the mirrored image, too.
        size: side in pixels to which images are warped at scale 1; the one validation had if not given.
        cue_stride: pixels a cell of the cues.
        crf: smooth with the dense CRF.
        min_confidence: positions whose likeliest class is less probable than this stay without a cue.
        consensus: a seed cache of the same images and classes, as that of the labels before these: positions that it
            labels otherwise, or not at all, stay without a cue, and images that it has left out are left out. Two
            networks seldom make the same mistake.
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
        InputError: a checkpoint, folder or number that is not usable; another process that makes the same cache; a
            disk that is full. Finished shards stay then.
    """
    if not 0 <= min_confidence < 1:
        raise InputError(f"min_confidence {min_confidence} is outside 0..1")
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
    task = load_task(checkpoint, SegmentationTask)
    given = {"root": root, "train_split": split, "batch_size": batch_size, "num_workers": num_workers}
    source = Source.of(checkpoint, task.task_name, task.classes, **given)
    others = None if consensus is None else SeedCache(consensus)
    size = source.data.hparams["eval_size"] if size is None else size
    policy = ResizePolicy(size, tuple(scales), cue_stride)
    plan = source.provenance() | {
        "method": "pseudo-label", "architecture": task.hparams["architecture"], "encoder": task.hparams["encoder"],
        "flip": flip, "crf": dict(TEST_CRF) if crf else None, "min_confidence": min_confidence,
        "consensus": None if consensus is None else fingerprint(consensus), "source": source_revision(ALL_PACKAGES),
    }  # fmt: skip
    rule, without = partial(pseudo_label_map, crf=crf, min_confidence=min_confidence), {}
    if others is not None:
        rule, without = partial(consensus_label_map, rule=rule, others=others), source.left_out_of(others)
    ask = partial(predicted, flip=flip)
    make_cache(output, plan, source, Asked(task, ask), rule, policy, run, without=without)


def predicted(network: torch.nn.Module, batch: ImageBatch, *, flip: bool) -> list[Seed]:
    """Probabilities of each image's own classes, on the cues' grid, averaged over views.

    Args:
        network: scores (B, C+1, h, w) of normalised images (B, 3, H, W).
        batch: the images, on the network's device.
        flip: average over mirrored images, too.

    Raises:
        InputError: probabilities that are not finite, or a size that the network does not take.
    """
    if not batch.images:
        return []
    absent = torch.nn.functional.pad(batch.labels == 0, (1, 0), value=False)[:, :, None, None]  # (B, C+1, 1, 1)
    found: list[Tensor] = []
    for images in batch.images:
        for mirrored in (False, True) if flip else (False,):
            view = normalize(images)
            scores = network(view.flip(-1) if mirrored else view).float()
            probs = scores.masked_fill(absent, -torch.inf).softmax(dim=1)
            found.append(resize_maps(probs.flip(-1) if mirrored else probs, batch.grid))
    mean = torch.stack(found).mean(dim=0).cpu().numpy()
    labels, images = batch.labels.cpu().numpy() != 0, batch.images[0].cpu()
    if not np.isfinite(mean).all():
        raise InputError(f"the network's scores of image {batch.names[0]} or its neighbours are not finite")
    return [
        Seed(name, np.flatnonzero(own), probs[1:][own], None, image)
        for name, own, probs, image in zip(batch.names, labels, mean, images, strict=True)
    ]


def pseudo_label_map(seed: Seed, *, crf: bool, min_confidence: float) -> NDArray[np.uint8]:
    """The label map of an image, from its probabilities as they will come back from the cache.

    Args:
        seed: probabilities (k, h, w) of its classes, and the image.
        crf: smooth them with the dense CRF, at the size the network saw the image.
        min_confidence: the probability below which a cell stays without a cue.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    maps = torch.from_numpy(as_stored(seed.maps))
    probs = torch.cat([(1 - maps.sum(dim=0, keepdim=True)).clamp(0, 1), maps])[None]  # (1, k+1, h, w)
    h, w = probs.shape[-2:]
    if crf:
        large = resize_maps(probs, (seed.image.shape[1], seed.image.shape[2]))
        logits = large.clamp_min(PROBABILITY_FLOOR).log()
        probs = dense_crf(seed.image[None].contiguous(), logits, **TEST_CRF)
    share, place = probs[0].max(dim=0)
    names = np.array([0, *(seed.classes + 1)], np.uint8)
    labels = np.where(share.numpy() < min_confidence, NO_CUE, names[place.numpy()]).astype(np.uint8)
    return resize_nearest(labels, h, w)


def consensus_label_map(seed: Seed, *, rule: CueRule, others: SeedCache) -> NDArray[np.uint8]:
    """The label map of an image, where another cache's agrees with it.

    Args:
        seed: the image's.
        rule: makes the label map.
        others: the other cache.

    Returns:
        As the rule's; 255 where the other's label, at the same place, is not the same.
    """
    labels = rule(seed)
    other = resize_nearest(others.cues(seed.name), *labels.shape)
    return np.where(labels == other, labels, NO_CUE).astype(np.uint8)
