"""``pseudo-label``: write the label maps that a segmentation network predicts for training images as a seed cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from upath import UPath

from datamodules.annotations.drawn_labels import box_interiors, corrected_cues, drawn_in
from datamodules.class_names import IGNORE
from datamodules.errors import InputError, require_below_one
from datamodules.images import to_uint8
from datamodules.seed_cache.cache import SMALL_CLASSES, SeedCache
from datamodules.seed_cache.shard import NO_CUE, as_stored
from datamodules.source_revision import ALL_PACKAGES
from datamodules.transforms import resize_nearest
from seeds.cache_job import JobSource, Seed, SeedModule, write_seed_cache
from seeds.job_options import JobOptions
from seeds.score_maps import resize_maps
from training.inference import TEST_CRF, TEST_FLOOR, Views, crf_probabilities, view_scores
from training.segmentation_task import SegmentationTask


def pseudo_label(
    checkpoint: UPath,
    output: UPath,
    *,
    root: str | None = None,
    split: str | None = None,
    images: str | None = None,
    annotations: str | list[str] | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    size: int | None = None,
    cue_stride: int = 4,
    crf: bool = True,
    min_confidence: float = 0.0,
    consensus: UPath | None = None,
    job: JobOptions = JobOptions(),
) -> None:
    """Label the images of a split by a segmentation network and their tags, as a seed cache to train on again.

    Classes that are not tags of the image are removed before the softmax. The dense CRF with the numbers of test time
    smooths the probabilities on the resized image, and each position becomes a cue of its most likely class. The maps
    of the cache are the probabilities of the tags. Annotations count: what is drawn has its label, before and after the
    CRF and also where ``consensus`` differs, and a class stays within its boxes. The job runs as ``seeds generate``
    does, in any number of processes, and can be resumed.

    Args:
        checkpoint: checkpoint of a segmentation network.
        output: folder of the cache: a new folder, or a cache of the same settings to resume.
        root: folder of the images; by default that of the training.
        split: the images; by default the split of the training.
        images: tar files of images and tags in place of ``root`` and ``split``, by path or URI: a folder, or a pattern
            such as ``shards/train-{000..099}.tar`` or ``shards/*.tar``. The cache gets a shard for each tar file, of
            the same name.
        annotations: source, or list of sources, of masks, points, scribbles and boxes of some images, see
            `datamodules.base_datamodule.BaseDataModule`; by default those of the training.
        scales: sizes of the image relative to ``size``, over which probabilities are averaged.
        flip: average the probabilities with those of the mirrored image.
        size: side in pixels to which images are resized at scale 1; by default that of the validation.
        cue_stride: pixels per position of the cue grid.
        crf: smooth the probabilities by the dense CRF; but positions at which a small class of ``consensus`` is the
            most likely before it keep this class.
        min_confidence: positions whose most likely class is less probable than this have no cue.
        consensus: a seed cache of the same images and classes, such as earlier pseudo-labels: positions with another
            label there have no cue, and images that it has left out are left out. Two networks seldom make the same
            mistake.
        job: how the job reads images, shares the work and writes shards.

    Raises:
        InputError: a checkpoint, cache, folder or number is not usable, or the disk is full. Finished shards stay.
    """
    require_below_one(min_confidence=min_confidence)
    source = JobSource.load(
        checkpoint, SegmentationTask, job, images, root=root, train_split=split, annotations=annotations
    )
    task, other = source.task, None if consensus is None else SeedCache(consensus)
    names = ("architecture",) if task.hparams["architecture"] == "LargeFOV" else ("architecture", "encoder")
    settings = {
        "method": "pseudo-label", **{name: task.hparams[name] for name in names},
        "scales": list(scales), "flip": flip, "cue_stride": cue_stride, "min_confidence": min_confidence,
        "size": source.data.hparams["eval_size"] if size is None else size, "crf": dict(TEST_CRF) if crf else None,
        **({SMALL_CLASSES: other.settings[SMALL_CLASSES]} if other is not None and other.small_labels else {}),
    }  # fmt: skip
    module = PseudoLabelModule(task, settings, other, task.network.multiple)
    write_seed_cache(output, module, source, job, consensus=other)


class PseudoLabelModule(SeedModule):
    """Predicts the probabilities of each image's tags, and labels each position with the most likely class."""

    packages = ALL_PACKAGES
    uses_annotations = True

    def __init__(
        self, network: nn.Module, settings: Mapping[str, Any], consensus: SeedCache | None = None, multiple: int = 1
    ) -> None:
        """Prepare.

        Args:
            network: returns scores (B, C+1, h, w) of normalised images (B, in_channels, H, W).
            settings: as `pseudo_label` records them.
            consensus: a seed cache; positions with another label there have no cue.
            multiple: sides of scaled images are rounded to multiples of this number.
        """
        super().__init__(network, settings)
        self.views, self.consensus = Views(tuple(settings["scales"]), settings["flip"]), consensus
        self.multiple = multiple
        self.small = [] if consensus is None else consensus.small_labels

    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return the probabilities of each image's tags on the cue grid, averaged over views.

        Raises:
            InputError: probabilities are not finite, or the network does not take images of this size.
        """
        images, labels = batch["image"], batch["labels"]
        absent = nn.functional.pad(labels == 0, (1, 0), value=False)[:, :, None, None]  # (B, C+1, 1, 1)
        scores = view_scores(
            lambda view: self.network(view).float().masked_fill(absent, -torch.inf), images, self.views,
            multiple=self.multiple, grid=self.grid,
        )  # fmt: skip
        probs = resize_maps(scores.softmax(dim=1), self.grid).cpu().numpy()
        if not np.isfinite(probs).all():
            raise InputError(f"the network's scores of image {batch['id'][0]} or its neighbours are not finite")
        pixels, tags = to_uint8(images).cpu(), labels.cpu().numpy() != 0
        seeds = []
        per_image = zip(batch["id"], tags, probs, pixels, drawn_in(batch), strict=True)
        for name, own, each, image, drawn in per_image:
            if drawn:
                for index, interiors in box_interiors(drawn.boxes, *self.grid).items():
                    each[index, ~interiors.any(axis=0)] = 0
                np.divide(each, each.sum(axis=0).clip(min=TEST_FLOOR), out=each)
            seeds.append(Seed(name, np.flatnonzero(own), each[1:][own], None, image, drawn))
        return seeds

    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the label map of an image, made of its probabilities as the cache returns them."""
        maps = torch.from_numpy(as_stored(seed.maps))
        probs = torch.cat([(1 - maps.sum(dim=0, keepdim=True)).clamp(0, 1), maps])[None]  # (1, k+1, h, w)
        h, w = probs.shape[-2:]
        names = np.array([0, *(seed.classes + 1)], np.uint8)

        def most_likely(probs: Tensor) -> NDArray[np.uint8]:
            confidence, winners = (part.numpy() for part in probs[0].max(dim=0))
            return np.where(confidence < self.settings["min_confidence"], NO_CUE, names[winners]).astype(np.uint8)

        before = most_likely(probs)
        if self.settings["crf"]:
            assert seed.image is not None
            large = resize_maps(probs, seed.image.shape[1:])
            if seed.drawn is not None:
                mask = torch.from_numpy(seed.drawn.mask)
                large[0, :, mask != IGNORE] = 0
                for row, index in enumerate([0, *(seed.classes + 1).tolist()]):
                    large[0, row, mask == index] = 1
            probs = crf_probabilities(seed.image[None], large)
        labels = resize_nearest(most_likely(probs), h, w)
        labels = np.where(np.isin(before, self.small), before, labels)
        if self.consensus is not None:
            other = resize_nearest(self.consensus.cues(seed.id), h, w)
            labels = np.where(labels == other, labels, NO_CUE).astype(np.uint8)
        return labels if seed.drawn is None else corrected_cues(labels, seed.drawn)
