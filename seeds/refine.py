"""``seeds refine``: spread the maps of a seed cache by a random walk along learned affinities, and label each position.

After irn's step for semantic segmentation (Ahn, Cho & Kwak, CVPR 2019, ``step/make_sem_seg_labels.py``).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import to_uint8
from datamodules.seed_cache import SeedCache
from datamodules.seed_shard import Floats, as_stored
from seeds.affinity.affinity_task import AffinityTask
from seeds.affinity.random_walk import random_walk
from seeds.cache_job import JobSource, Seed, SeedModule, cue_grid, write_seed_cache
from seeds.crf_refinement import crf_settings, labelled, of_maximum_one
from seeds.job_options import JobOptions

__all__ = ["RandomWalkModule", "refine_seeds"]


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
    job: JobOptions = JobOptions(),
) -> None:
    """Spread the maps of a seed cache by a random walk along learned affinities, and label each position.

    Boundaries hold up the walk, so that the map of a class fills its object. The background wins where no map exceeds
    its score. There are two differences from irn: a map is divided by its own maximum, because the tag proves that the
    class is in the image (irn divides all maps of an image by their common maximum); and the dense CRF follows. The
    new cache contains the spread maps. The job runs as ``seeds generate`` does, in any number of processes, and can be
    resumed. Images that ``cache`` has left out are left out.

    Args:
        cache: the seed cache whose maps are spread: CAMs, or the probabilities of ``pseudo-label``.
        checkpoint: checkpoint of an `seeds.affinity.affinity_task.AffinityTask`.
        output: folder of the new cache: a new folder, or a cache of the same settings to resume.
        root: folder of the images; by default that of the training.
        split: the images; by default the split of the training.
        radius: a step of the walk leads to positions nearer than this.
        beta: exponent of the affinities: with a higher one less crosses a weak boundary.
        steps: number of steps of the walk.
        fg_threshold: a class wins where its map exceeds this fraction of its maximum; 0.25 in irn.
        crf: sharpen the labels by the dense CRF, with the numbers of `seeds.crf_refinement`.
        size: side in pixels to which images are resized; by default that of the validation.
        cue_stride: pixels per position of the cue grid, on which the walk takes place.
        job: how the job reads images, shares the work and writes shards.

    Raises:
        InputError: a checkpoint, cache, folder or number is not usable, or the disk is full. Finished shards stay.
    """
    if radius < 2 or steps < 1 or beta <= 0:
        raise InputError(f"radius {radius}, steps {steps} or beta {beta} is too small for a walk")
    if not 0 < fg_threshold < 1:
        raise InputError(f"fg_threshold {fg_threshold} is not between 0 and 1")
    source = JobSource.load(checkpoint, AffinityTask, job, root=root, train_split=split)
    start = SeedCache(cache)
    size = source.data.hparams["eval_size"] if size is None else size
    walk = {"radius": radius, "beta": beta, "steps": steps}
    module = RandomWalkModule(source.task, start, cue_grid(size, cue_stride), walk, fg_threshold, crf=crf)
    settings = source.settings() | walk | {
        "method": "refine", "backbone": source.task.hparams["backbone"], "cache": start.fingerprint, "size": size,
        "cue_stride": cue_stride, "fg_threshold": fg_threshold, "crf": crf_settings() if crf else None,
    }  # fmt: skip
    write_seed_cache(
        output, module, source, settings, job, image_size=size, inputs={"cache": str(cache)},
        left_out=source.left_out_of(start),
    )  # fmt: skip


class RandomWalkModule(SeedModule):
    """Spreads the maps of a seed cache along the boundaries that a network predicts, and labels each position."""

    def __init__(
        self,
        network: torch.nn.Module,
        start: SeedCache,
        grid: tuple[int, int],
        walk: dict[str, Any],
        fg_threshold: float,
        *,
        crf: bool,
    ) -> None:
        """Prepare.

        Args:
            network: returns boundaries (B, h, w), 0..1, of normalised images (B, 3, H, W).
            start: the maps before the walk.
            grid: height and width of the cue grid.
            walk: keyword arguments of `seeds.affinity.random_walk.random_walk`.
            fg_threshold: score of the background beside maps of maximum 1.
            crf: sharpen the labels by the dense CRF.
        """
        super().__init__()
        self.network, self.start, self.grid = network, start, grid
        self.walk, self.fg_threshold, self.crf = walk, fg_threshold, crf

    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the maps after the walk, along boundaries averaged with those of the mirrored image.

        Raises:
            InputError: boundaries are not finite, or an image has no map of one of its tags.
        """
        images = batch["image"]
        boundaries = (self.network(images) + self.network(images.flip(-1)).flip(-1)) / 2  # (B, h, w)
        boundaries = functional.interpolate(boundaries[:, None].float(), self.grid, mode="bilinear")[:, 0]
        if not boundaries.isfinite().all():
            raise InputError(f"the network's boundaries of image {batch['id'][0]} or its neighbours are not finite")
        pixels, labels = to_uint8(images).cpu(), batch["labels"].cpu().numpy() != 0
        seeds = []
        for name, image, boundary, tags in zip(batch["id"], pixels, boundaries.cpu().numpy(), labels, strict=True):
            classes = np.flatnonzero(tags)
            maps = np.zeros((0, *self.grid), np.float32)
            if len(classes):
                maps = self._start_maps(name, classes)
                maps = functional.interpolate(torch.from_numpy(maps)[None], self.grid, mode="bilinear")[0].numpy()
            seeds.append(Seed(name, classes, random_walk(maps, boundary, **self.walk), None, image))
        return seeds

    def _start_maps(self, name: str, classes: NDArray[np.int64]) -> Floats:
        """Return the maps (k, h, w) of an image's tags in the order of ``classes``.

        A cache may have another order: imported maps are in the order of their source.

        Raises:
            InputError: the cache lacks one of them.
        """
        path, (found, maps) = self.start.path, self.start.maps(name)
        lacking = np.setdiff1d(classes, found)
        if len(lacking) and not len(found):
            raise InputError(f"the seed cache {path} has no maps of image {name}; it was made of labels only")
        if len(lacking):
            raise InputError(
                f"the seed cache {path} has no map of class {self.start.classes[lacking[0]]} of image {name}, which is "
                "tagged with it: generate the seeds again"
            )
        return maps[[found.tolist().index(label) for label in classes]]

    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the label map of an image, made of its maps as the cache returns them."""
        maps = as_stored(seed.maps)
        if self.crf or not len(maps):
            assert seed.image is not None
            return labelled(seed.classes, maps, seed.image, self.fg_threshold)
        background = np.full((1, *maps.shape[1:]), self.fg_threshold, np.float32)
        winners = np.concatenate([background, of_maximum_one(maps)]).argmax(axis=0)
        labels: NDArray[np.uint8] = np.array([0, *(seed.classes + 1)], np.uint8)[winners]
        return labels
