"""``seeds refine``: spread the maps of a seed cache by a random walk along learned affinities, and label each position.

After irn's step for semantic segmentation (Ahn, Cho & Kwak, CVPR 2019, ``step/make_sem_seg_labels.py``).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from upath import UPath

from datamodules.annotations.drawn_labels import Drawn, box_interiors, corrected_cues, drawn_in, reduce_labels
from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from datamodules.images import to_uint8
from datamodules.progress import print_message
from datamodules.sample import multi_hot
from datamodules.samplers import evenly_spaced
from datamodules.seed_cache.cache import SMALL_CLASSES, SeedCache
from datamodules.seed_cache.shard import NO_CUE, as_stored
from datamodules.transforms import resize_nearest
from seeds.affinity.affinity_task import AffinityTask
from seeds.affinity.random_walk import random_walk
from seeds.cache_job import JobSource, Seed, SeedModule, predict_some, write_seed_cache
from seeds.crf_refinement import crf_settings, refined_cues
from seeds.job_options import JobOptions
from seeds.precision import resolve_precision
from seeds.score_maps import divide_by_maxima, resize_maps

DRAWN_SHARE = 0.4
"""Weight of the walk from drawn pixels beside that of the seed cache, chosen with one point or one line for each class,
by the masks of VOC animals' ``train``."""
AREA_IMAGES = 256  # whose maps decide on a threshold; of 200 such choices 95 % differ by 0.03 at most
AREA_FILES = 8  # tar files from which they are chosen
IRN_THRESHOLD = 0.25
MAX_GROWTH = 1.5
"""How many times as many positions the maps may cover after the walk, at irn's threshold, as before it: they cover 1.1
times as many on VOC animals, 1.3 on close-ups of them, and 1.8 to 2.1 on industrial images without boundaries."""


def refine_seeds(
    cache: UPath,
    checkpoint: UPath,
    output: UPath,
    *,
    root: str | None = None,
    split: str | None = None,
    images: str | None = None,
    annotations: str | list[str] | None = None,
    radius: int = 5,
    beta: float = 10.0,
    steps: int = 256,
    fg_threshold: float | Literal["auto"] = 0.25,
    crf: bool = True,
    size: int | None = None,
    cue_stride: int = 4,
    job: JobOptions = JobOptions(),
) -> None:
    """Spread the maps of a seed cache by a random walk along learned affinities, and label each position.

    The random walk rarely crosses a boundary, so a map spreads over its object and not beyond. A position is background
    where no map exceeds ``fg_threshold``. There are two differences from irn: a map is divided by its own maximum,
    because the tag proves that the class is in the image (irn divides all maps of an image by their common maximum);
    and the dense CRF follows. The new cache contains the spread maps. Annotations count: annotated pixels spread in
    another random walk, and keep their label; a class stays within its boxes, and each box contains some of it. The job
    runs as ``seeds generate`` does, in any number of processes, and can be resumed. Images that ``cache`` has left out
    are left out.

    Maps of the small classes of ``cache`` are not spread, because the network predicts no boundary around such objects.
    Their cues are kept. In their images, positions without a cue that the other classes' maps leave to the background
    stay without a cue.

    Args:
        cache: the seed cache whose maps are spread: CAMs, or the probabilities of ``pseudo-label``.
        checkpoint: checkpoint of an `seeds.affinity.affinity_task.AffinityTask`.
        output: folder of the new cache: a new folder, or a cache of the same settings to resume.
        root: folder of the images; by default that of the training.
        split: the images; by default the split of the training.
        images: tar files of images and tags in place of ``root`` and ``split``, by path or URI: a folder, or a pattern
            such as ``shards/train-{000..099}.tar`` or ``shards/*.tar``. The cache gets a shard for each tar file, of
            the same name.
        annotations: source, or list of sources, of masks, points, scribbles and boxes of some images, see
            `datamodules.base_datamodule.BaseDataModule`; by default those of the training.
        radius: a step of the walk leads to positions of the cue grid nearer than this, in positions.
        beta: exponent of the affinities: with a higher one less crosses a weak boundary.
        steps: number of steps of the walk.
        fg_threshold: a class wins where its map exceeds this fraction of its maximum; 0.25 in irn. auto: 0.25, or
            where maps would then cover more than 1.5 times as many positions as before the walk, as many as before.
        crf: sharpen the labels by the dense CRF, with the numbers of `seeds.crf_refinement`.
        size: side in pixels to which images are resized; by default that of the validation.
        cue_stride: pixels per position of the cue grid, on which the walk takes place.
        job: how the job reads images, shares the work and writes shards.

    Raises:
        InputError: a checkpoint, cache, folder or number is not usable, or the disk is full. Finished shards stay.
    """
    if radius < 2 or steps < 1 or beta <= 0:
        raise InputError(f"radius {radius}, steps {steps} or beta {beta} is too small for a walk")
    if fg_threshold != "auto" and not 0 < fg_threshold < 1:
        raise InputError(f"fg_threshold {fg_threshold} is not between 0 and 1")
    source = JobSource.load(
        checkpoint, AffinityTask, job, images, root=root, train_split=split, annotations=annotations
    )
    start = SeedCache(cache)
    job = replace(job, precision=resolve_precision(job.precision, job.accelerator))  # once, as its choice is printed
    settings = {
        "method": "refine", "backbone": source.task.hparams["backbone"], "radius": radius, "beta": beta, "steps": steps,
        "size": source.data.hparams["eval_size"] if size is None else size, "cue_stride": cue_stride,
        "fg_threshold": fg_threshold, "crf": crf_settings() if crf else None,
        **({SMALL_CLASSES: start.settings[SMALL_CLASSES]} if start.small_labels else {}),
    }  # fmt: skip
    module = RandomWalkModule(source.task, settings, start)
    if fg_threshold == "auto":
        settings["fg_threshold"] = automatic_threshold(module, source, job)
    write_seed_cache(output, module, source, job, cache=start)


class RandomWalkModule(SeedModule):
    """Spreads the maps of a seed cache along the boundaries that a network predicts, and labels each position."""

    uses_annotations = True

    def __init__(self, network: nn.Module, settings: Mapping[str, Any], start: SeedCache) -> None:
        """Prepare.

        Args:
            network: returns boundaries (B, h, w), 0..1, of normalised images (B, in_channels, H, W).
            settings: as `refine_seeds` records them.
            start: the maps before the walk.
        """
        super().__init__(network, settings)
        self.start = start
        self.small = start.small_labels
        self.walk = {name: settings[name] for name in ("radius", "beta", "steps")}

    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the maps after the walk, along boundaries averaged with those of the mirrored image.

        Raises:
            InputError: boundaries are not finite, or an image has no map of one of its tags.
        """
        labels, drawings = batch["labels"].cpu().numpy() != 0, drawn_in(batch)
        # nothing is spread in an image without tags and annotations
        rows = [row for row, drawn in enumerate(drawings) if labels[row].any() or drawn is not None]
        boundaries = torch.zeros(len(labels), *self.grid)
        if rows:
            images = batch["image"][rows]
            found = (self.network(images) + self.network(images.flip(-1)).flip(-1)) / 2  # (n, h, w)
            boundaries[rows] = resize_maps(found[:, None].float(), self.grid)[:, 0].cpu()
        if not boundaries.isfinite().all():
            raise InputError(f"the network's boundaries of image {batch['id'][0]} or its neighbours are not finite")
        pixels = to_uint8(batch["image"]).cpu()
        per_image = zip(batch["id"], pixels, boundaries.numpy(), labels, drawings, strict=True)
        seeds = []
        for name, image, boundary, tags, drawn in per_image:
            classes = np.flatnonzero(tags)
            maps = self.start_maps(name, classes, drawn)
            if drawn is not None:
                maps = within_boxes(classes, maps, drawn.boxes)
            walks = ~np.isin(classes + 1, self.small)
            maps[walks] = random_walk(maps[walks], boundary, **self.walk)
            if drawn is not None:
                maps = within_boxes(classes, self._with_drawn(classes, maps, boundary, drawn), drawn.boxes)
            seeds.append(Seed(name, classes, maps, None, image, drawn))
        return seeds

    def start_maps(self, name: str, classes: NDArray[np.int64], drawn: Drawn | None = None) -> NDArray[np.float32]:
        """Return the maps of an image before the walk, (k, h, w), zeros for a class that only a mask shows.

        Raises:
            InputError: the seed cache has no map of a class.
        """
        maps = np.zeros((len(classes), *self.grid), np.float32)
        if not len(classes):
            return maps
        found, stored = self.start.maps(name)
        marked = [] if drawn is None else np.unique(drawn.mask).tolist()  # a tag may follow from a mask alone
        lacking = [label for label in np.setdiff1d(classes, found) if label + 1 not in marked]
        if lacking and (drawn is None or IGNORE in marked):  # else the mask labels every position
            what = f"map of class {self.start.classes[lacking[0]]}" if len(found) else "maps"
            raise InputError(f"the seed cache {self.start.path} has no {what} of image {name}, which is tagged")
        rows = {label: row for row, label in enumerate(found.tolist())}  # imported maps are in another order
        mapped = [label in rows for label in classes.tolist()]
        if any(mapped):
            own = stored[[rows[label] for label in classes[mapped].tolist()]]
            maps[mapped] = resize_maps(torch.from_numpy(own)[None], self.grid)[0].numpy()
        return maps

    def _with_drawn(
        self, classes: NDArray[np.int64], maps: NDArray[np.float32], boundary: NDArray[np.float32], drawn: Drawn
    ) -> NDArray[np.float32]:
        """Return maps after the walk, (k, h, w), joined with those of another walk from the drawn pixels."""
        known = reduce_labels(drawn.mask, *self.grid)
        fixed = known != IGNORE
        if not fixed.any():
            return maps
        one_hot = (known == np.array([*(classes + 1), 0])[:, None, None]).astype(np.float32)
        spread = random_walk(one_hot, boundary, **self.walk, fixed=fixed)  # the background last
        # the walk from a single point leaves small values everywhere
        spread /= max(spread[:, ~fixed].max(initial=0), np.finfo(np.float32).tiny)
        spread = np.where(fixed, one_hot, spread)
        own, others = spread[:-1], (spread.sum(axis=0) - spread[:-1]).clip(max=1)
        joined: NDArray[np.float32]
        joined = (1 - DRAWN_SHARE) * divide_by_maxima(maps) * (1 - others) + DRAWN_SHARE * own
        joined /= joined[:, ~fixed].max(axis=1, initial=1 - DRAWN_SHARE)[:, None, None]  # thresholds stay relative
        joined[:, fixed] = own[:, fixed]
        return joined

    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the label map of an image, made of its maps as the cache returns them."""
        fg_threshold, walks = self.settings["fg_threshold"], ~np.isin(seed.classes + 1, self.small)
        classes, maps = seed.classes[walks], as_stored(seed.maps)[walks]
        labels: NDArray[np.uint8]
        if self.settings["crf"] and len(maps):
            assert seed.image is not None
            labels = refined_cues(classes, maps, seed.image, fg_threshold, fg_threshold)
        else:
            background = np.full((1, *maps.shape[1:]), fg_threshold, np.float32)
            winners = np.concatenate([background, divide_by_maxima(maps)]).argmax(axis=0)
            labels = np.array([0, *(classes + 1)], np.uint8)[winners]
        if not walks.all():
            start = resize_nearest(self.start.cues(seed.id), *labels.shape)
            kept = np.isin(start, self.small) | ((start == NO_CUE) & (labels == 0))
            labels = np.where(kept, start, labels)
        return labels if seed.drawn is None else corrected_cues(labels, seed.drawn)


def automatic_threshold(module: RandomWalkModule, source: JobSource, job: JobOptions) -> float:
    """Return irn's threshold, or the one at which maps cover as many positions as before the walk.

    The latter where, at irn's threshold, they cover more than `MAX_GROWTH` times as many: without a boundary that holds
    it, the walk spreads a map far beyond its object. Before the walk, a position counts where a map exceeds the
    foreground threshold of its cache, or else 0.2, SEC's.
    Areas are those of `AREA_IMAGES` tagged images, evenly chosen, without their annotations; small classes, whose maps
    are not spread, do not count.

    Returns:
        A multiple of 0.01, from 0.01 to 0.99; irn's threshold without any map.

    Raises:
        InputError: images of tar files cannot be listed, or a device or the network is not usable.
    """
    start, blocks, samples = module.start, source.blocks, source.blocks.samples
    if samples is None:
        samples = [each for number in evenly_spaced(len(blocks.names), AREA_FILES) for each in blocks.read(number)]
    labels = multi_hot(samples, source.data.classes) != 0
    large = np.setdiff1d(np.arange(labels.shape[1]), np.array(module.small, int) - 1)
    tagged = [i for i in np.flatnonzero(labels[:, large].any(axis=1)).tolist() if samples[i].id in start]
    chosen = [tagged[i] for i in evenly_spaced(len(tagged), AREA_IMAGES)]
    chosen = [i for i in chosen if np.isin(np.flatnonzero(labels[i]), start.maps(samples[i].id)[0]).all()]
    threshold = start.settings.get("fg_threshold", 0.2)
    before, after = 0, np.zeros(100, int)  # positions, of the maps after the walk by their hundredths of the maximum
    for seed in predict_some(module, source, job, [samples[i] for i in chosen]) if chosen else ():
        counted = np.isin(seed.classes, large)
        before += (divide_by_maxima(module.start_maps(seed.id, seed.classes)[counted]) > threshold).sum()
        after += np.histogram(divide_by_maxima(as_stored(seed.maps)[counted]), 100, (0, 1))[0]
    areas = after[::-1].cumsum()[::-1]  # at the thresholds 0, 0.01, ...
    growth = areas[round(100 * IRN_THRESHOLD)] / max(before, 1)
    walked = f"positions as the maps before the walk at {threshold}"
    if growth <= MAX_GROWTH:
        print_message(f"fg_threshold {IRN_THRESHOLD}: labels cover {growth:.2f} times as many {walked}")
        return IRN_THRESHOLD
    found = round(0.01 * float(1 + np.abs(areas[1:] - before).argmin()), 2)
    print_message(f"fg_threshold {found}: labels cover as many {walked}, {growth:.2f} times as many at {IRN_THRESHOLD}")
    return found


def within_boxes(
    classes: NDArray[np.int64], maps: NDArray[np.float32], boxes: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return maps; those of classes with boxes are 0 outside of the boxes and have the maximum 1 in each box.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w), not negative.
        boxes: (n, 5), see `datamodules.annotations.drawn_labels.box_interiors`.

    Returns:
        float32 (k, h, w); a box in which the map is 0 is filled with 1.
    """
    result = maps.copy()
    for index, interiors in box_interiors(boxes, *maps.shape[1:]).items():
        for row in np.flatnonzero(classes == index - 1):
            own = maps[row] * interiors  # (n, h, w)
            own[~own.any(axis=(1, 2))] = 1
            result[row] = (divide_by_maxima(own) * interiors).max(axis=0)
    return result
