"""Images, labels, masks and cues as items and batches."""

import math
import signal
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.annotations.drawn_labels import (
    Drawn,
    corrected_cues,
    draw_labels,
    ignore_background_of_unmasked_objects,
    keep_all_classes,
)
from datamodules.annotations.shapes import BACKGROUND, Box, Shape, require_inside, vertices
from datamodules.class_names import IGNORE
from datamodules.errors import InputError, UnreadableError
from datamodules.images import any_size, as_rgb, image_size, normalize, read_image
from datamodules.masks import read_class_mask, require_same_size
from datamodules.sample import Sample, multi_hot
from datamodules.samplers import Draw, EvalSampler
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Augment, Transform, resize_nearest

_ATTEMPTS = 16  # images that are tried, one after the other, until one can be read


class ImageDataset(Dataset[dict[str, Any]]):
    """Reads images with their labels, masks and cues.

    An item contains ``image`` uint8 (S, S, channels); ``labels`` float32 (C,); ``id`` str; ``size`` (H, W) of the image
    on disk; where ``mask_lut`` is given and a sample has a mask ``mask`` uint8, (S, S) in training and (H, W)
    otherwise, all 255 for an image without a mask; where ``cues`` is given ``cues`` uint8 (h, w), a label map (0
    background, 1..C, 255 no cue) with h = w = ⌈S / cue_stride⌉. `collate` makes batches.

    With ``with_annotations``, ``mask`` uint8 (S, S) contains the masks, points and scribbles of every sample: 255 where
    nothing is drawn; each class of a mask keeps a pixel, except in training. ``boxes`` float32 (n, 5) contains its
    boxes: class 1..C, left, top, right, bottom, in fractions of the sides of the transformed image, beyond 0..1 where a
    box leaves it. What is drawn replaces the cues there, and no cue of a class with boxes lies outside of them.

    ``unreadable`` lists ids and reasons of images that cannot be read. In training the next readable image takes the
    place; otherwise the item contains nothing else.

    With ``largest``, images of more pixels on a side are not read: an item contains only ``large``, a dictionary of the
    sample's ``id``, ``image``, ``mask`` and ``labels``, and of ``channels``.

    The random changes of an item follow from the seed of a `Draw`; for a bare index the seed is drawn from torch's
    generator.

    Args:
        samples: what to read.
        classes: the C classes of the labels.
        size: S.
        mask_lut: uint8 (256,), see `datamodules.class_names.mask_lut`; None to read no masks.
        training: masks are resized and augmented with the image; otherwise they keep their own size.
        augment: random changes; None for resizing only.
        cues: cache with the cues of every image.
        cue_stride: pixels of the transformed image per position of the cues.
        with_originals: whether items contain ``original``, the image uint8 (H, W, 3) as it is on disk; see
            `datamodules.images.as_rgb` for images with other than 3 channels.
        channels: channels of the images, see `datamodules.images.read_image`.
        largest: height and width in pixels up to which images are read; None for any.
        with_annotations: whether items contain what people have drawn, as training targets.
    """

    def __init__(
        self, samples: Sequence[Sample], classes: Sequence[str], size: int, *, training: bool = False,
        mask_lut: NDArray[np.uint8] | None = None, augment: Augment | None = None, cues: SeedCache | None = None,
        cue_stride: int = 8, with_originals: bool = False, channels: int = 3, largest: int | None = None,
        with_annotations: bool = False,
    ) -> None:  # fmt: skip
        self.samples = samples
        self.labels = multi_hot(samples, classes)
        self.indices = {BACKGROUND: 0} | {name: index for index, name in enumerate(classes, start=1)}
        self.with_annotations = with_annotations
        self.mask_lut = mask_lut if any(sample.mask for sample in samples) else None
        self.training = training
        self.size = size
        self.transform = Transform(size, augment, channels)
        self.cues = cues
        self.grid = math.ceil(size / cue_stride)
        self.with_originals, self.channels = with_originals, channels
        self.largest = largest

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, wanted: int | Draw) -> dict[str, Any]:
        """Read one image, or in training the next readable one.

        Raises:
            InputError: a mask or cue map is unusable, or 16 images in a row, or all, are unreadable.
        """
        index, seed = wanted if isinstance(wanted, Draw) else (wanted, int(torch.randint(2**62, ())))
        unreadable: list[tuple[str, str]] = []
        for step in range(min(_ATTEMPTS, len(self)) if self.training else 1):
            chosen = (index + step) % len(self)
            try:
                return self._read(chosen, seed) | {"unreadable": unreadable}
            except UnreadableError as error:
                unreadable.append((self.samples[chosen].id, str(error)))
        if self.training:
            raise InputError(f"{len(unreadable)} images in a row cannot be read, first: {unreadable[0][1]}")
        return {"unreadable": unreadable}

    def _read(self, index: int, seed: int) -> dict[str, Any]:
        sample = self.samples[index]
        if self.largest is not None:
            with any_size():
                height, width = image_size(sample.image)
            if max(height, width) > self.largest:
                known = {"id": sample.id, "image": sample.image, "mask": sample.mask}
                return {"large": {**known, "labels": self.labels[index], "channels": self.channels}}
        image = read_image(sample.image, self.channels)  # (H, W, channels)
        mask: np.ndarray | None = None
        if self.mask_lut is not None:
            unknown = np.full(image.shape[:2], IGNORE, np.uint8)
            mask = unknown if sample.mask is None else read_class_mask(sample.mask, self.mask_lut)
            require_same_size(f"mask {sample.mask}", mask.shape, f"its image {sample.image}", image.shape)
        cues = None if self.cues is None else self.cues.cues(sample.id)
        item = {"labels": self.labels[index], "id": sample.id, "size": image.shape[:2]}
        if self.with_annotations:
            item |= self._transform_annotated(sample, item["labels"], image, mask, cues, seed)
        else:
            moved = self.transform(image, seed=seed, mask=mask if self.training else None, cues=cues)
            item["image"] = moved["image"]
            if mask is not None:
                item["mask"] = moved["mask"] if self.training else mask
            if cues is not None:
                item["cues"] = resize_nearest(moved["cues"], self.grid, self.grid)
        if self.with_originals:
            item["original"] = as_rgb(image)
        return item

    def _transform_annotated(
        self, sample: Sample, labels: np.ndarray, image: np.ndarray, mask: np.ndarray | None, cues: np.ndarray | None,
        seed: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the transformed image, labels and cues of a sample, and what people have drawn into it."""
        lines = self._lines(sample, image.shape[:2])
        boxes = [(self.indices[each.name], each) for each in sample.boxes if each.name in self.indices]
        if mask is not None and (lines or boxes):
            mask = ignore_background_of_unmasked_objects(mask, lines, boxes)
        corners = np.array([box[1:] for _, box in boxes], np.float32).reshape(-1, 2)
        points = np.concatenate([*(line for _, line in lines), corners])
        moved = self.transform(image, seed=seed, mask=mask, cues=cues, points=points)
        *strokes, corners = np.split(moved["points"], np.cumsum([len(line) for _, line in lines]))
        drawn = [(index, stroke) for (index, _), stroke in zip(lines, strokes, strict=True)]
        sides = corners.reshape(-1, 4) / self.size
        sides[:, ::2].sort(axis=1)  # a mirrored box has its left side on the right
        resized = moved.get("mask")
        if mask is not None and not self.training:
            resized = keep_all_classes(moved["mask"], mask)
        item = {
            "image": moved["image"], "mask": draw_labels((self.size, self.size), resized, drawn),
            "boxes": np.column_stack([[index for index, _ in boxes], sides]).astype(np.float32),
        }  # fmt: skip
        if mask is not None and self.training:  # a class of the mask is in the image, with or without a tag
            item["labels"] = labels.copy()
            item["labels"][np.setdiff1d(mask, (0, IGNORE)) - 1] = 1
        if cues is not None:
            cues = resize_nearest(moved["cues"], self.grid, self.grid)
            item["cues"] = corrected_cues(cues, Drawn(item["mask"], item["boxes"]))
        return item

    def _lines(self, sample: Sample, size: tuple[int, int]) -> list[tuple[int, np.ndarray]]:
        """Return index and vertices (n, 2) of the points and scribbles of an image of a size (H, W).

        Raises:
            InputError: a vertex or a whole box is outside the image.
        """
        lines = []
        shapes: tuple[Shape, ...] = (*sample.boxes, *sample.points, *sample.scribbles)
        for shape in shapes:
            require_inside(shape, sample.image, size)
            if not isinstance(shape, Box) and shape.name in self.indices:
                # the middle of its pixel: at a pixel's edge, the mirrored point would be in the pixel beside it
                lines.append((self.indices[shape.name], np.floor(np.array(vertices(shape), np.float32)) + 0.5))
        return lines


def image_loader(
    dataset: ImageDataset, *, num_workers: int, batch_size: int = 1, sampler: Sampler[Any] | None = None,
    batch_sampler: Iterable[list[int]] | None = None, persistent: bool = False,
) -> DataLoader[dict[str, Any]]:  # fmt: skip
    """Return a loader of batches as `collate` makes them.

    Args:
        dataset: what to read.
        num_workers: processes that read images, at most one per image.
        batch_size: images per batch.
        sampler: order of the images; None for the order of the samples, shared among processes (`EvalSampler`).
        batch_sampler: indices of each batch, in place of ``batch_size`` and ``sampler``.
        persistent: whether workers live on after an epoch.
    """
    workers = min(num_workers, len(dataset))
    order: dict[str, Any] = {"batch_sampler": batch_sampler}
    if batch_sampler is None:
        order = {"batch_size": batch_size, "sampler": sampler or EvalSampler(len(dataset))}
    return DataLoader(
        dataset, **order, num_workers=workers, persistent_workers=persistent and workers > 0,
        collate_fn=collate, worker_init_fn=prepare_worker, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of the items of an `ImageDataset`.

    Returns:
        ``image`` float32 (B, channels, S, S), normalised; ``labels`` float32 (B, C); ``id`` list of B str;
        ``size`` int64 (B, 2), (H, W) of the images on disk; where items have them ``mask`` int64 (B, Hmax, Wmax),
        padded with 255 to the right and below, ``cues`` bool (B, C+1, h, w), channel 0 = background, ``boxes``, a list
        of float32 (n, 5), and ``original``, a list of uint8 (H, W, 3). ``unreadable`` lists ids and reasons of
        unreadable images, if there are any; images that were not replaced are missing from the batch. ``large`` lists
        the images that were not read because of their size, if there are any: their dictionaries, with their position
        among all readable images of the batch as ``position``. Where B is 0, the batch contains only ``image``
        (0, 3, 0, 0), ``id``, ``unreadable`` and ``large``.
    """
    unreadable = [each for item in items for each in item["unreadable"]]
    items = [item for item in items if item.keys() != {"unreadable"}]
    large = [item["large"] | {"position": position} for position, item in enumerate(items) if "large" in item]
    items = [item for item in items if "image" in item]
    if not items:
        nothing = {"image": torch.empty(0, 3, 0, 0), "id": [], "unreadable": unreadable}
        return nothing | ({"large": large} if large else {})
    images = torch.from_numpy(np.stack([item["image"] for item in items]))  # (B, S, S, channels)
    labels = torch.from_numpy(np.stack([item["labels"] for item in items]))  # (B, C)
    batch: dict[str, Any] = {
        "image": normalize(images.permute(0, 3, 1, 2)), "labels": labels, "id": [item["id"] for item in items],
        "size": torch.tensor([item["size"] for item in items]),
    }  # fmt: skip
    if unreadable:
        batch["unreadable"] = unreadable
    if large:
        batch["large"] = large
    if "mask" in items[0]:
        height, width = np.max([item["mask"].shape for item in items], axis=0)
        batch["mask"] = torch.full((len(items), height, width), IGNORE, dtype=torch.int64)
        for padded, item in zip(batch["mask"], items, strict=True):
            height, width = item["mask"].shape
            padded[:height, :width] = torch.from_numpy(item["mask"])
    if "boxes" in items[0]:
        batch["boxes"] = [torch.from_numpy(item["boxes"]) for item in items]
    if "original" in items[0]:
        batch["original"] = [item["original"] for item in items]
    if "cues" in items[0]:
        maps = torch.from_numpy(np.stack([item["cues"] for item in items]))  # (B, h, w)
        classes = torch.arange(labels.shape[1] + 1, dtype=torch.uint8)
        batch["cues"] = maps[:, None] == classes[:, None, None]  # (B, C+1, h, w)
    return batch


def prepare_worker(_worker: int) -> None:
    """Turn off OpenCV's threads in a worker, as the workers run in parallel already, and let it ignore Ctrl-C.

    A worker that Ctrl-C ends while it has data to send makes the main process wait for 5 seconds.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
