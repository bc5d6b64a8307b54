"""Label maps of what people have drawn into images: masks, points, scribbles and boxes."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from datamodules.annotations.shapes import Box
from datamodules.class_names import IGNORE
from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest


class Drawn(NamedTuple):
    """What people have drawn into one image.

    Attributes:
        mask: uint8 (H, W): 0 background, 1..C; 255 where nothing is drawn.
        boxes: float32 (n, 5): class 1..C, left, top, right, bottom, in fractions of the image's sides.
    """

    mask: np.ndarray
    boxes: np.ndarray


def drawn_in(batch: dict[str, Any]) -> list[Drawn] | list[None]:
    """Return what is drawn into each image of a batch; None for each where the batch contains no annotations."""
    if "boxes" not in batch:
        return [None] * len(batch["id"])
    masks = batch["mask"].cpu().numpy().astype(np.uint8)
    return [Drawn(mask, boxes.cpu().numpy()) for mask, boxes in zip(masks, batch["boxes"], strict=True)]


def draw_labels(size: tuple[int, int], mask: np.ndarray | None, lines: Iterable[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return the label map of what is drawn into an image; the order of the lines does not matter.

    Args:
        size: H, W.
        mask: uint8 (H, W): 0 background, 1..C, 255 not known; None where there is none.
        lines: index (0..C) and vertices float (n, 2) of each line, x and y in pixels; a point is a line of one vertex.
            Lines have a width of one pixel.

    Returns:
        uint8 (H, W): 0..C; 255 where nothing is drawn, and where two classes are.
    """
    labels = np.full(size, IGNORE, np.uint8) if mask is None else mask.copy()
    conflict = np.zeros(size, bool)
    for index, vertices in lines:
        stroke = np.zeros(size, np.uint8)
        pixels = np.floor(vertices[[0, *range(len(vertices))]]).astype(np.int32)  # of one vertex, OpenCV draws nothing
        cv2.polylines(stroke, [pixels], isClosed=False, color=1)
        drawn = stroke > 0
        conflict |= drawn & (labels != IGNORE) & (labels != index)
        labels[drawn] = index
    labels[conflict] = IGNORE
    return labels


def ignore_background_of_unmasked_objects(
    mask: np.ndarray, lines: Sequence[tuple[int, np.ndarray]], boxes: Iterable[tuple[int, Box]]
) -> np.ndarray:
    """Return a mask whose background is unknown where an object may be that only points, scribbles or boxes show.

    In annotation tools, an image may have brush masks of some objects and a box or a point of another one.

    Args:
        mask: uint8 (H, W): 0 background, 1..C, 255 not known.
        lines: as for `draw_labels`. Without a pixel of a line's class in the mask, its whole background is unknown.
        boxes: indices 1..C, and boxes in pixels. Without a pixel of the class in the box, the background in it is
            unknown.

    Returns:
        uint8 (H, W).
    """
    labels = mask.copy()
    for index, box in boxes:
        inside = math.floor(box.top), math.ceil(box.bottom), math.floor(box.left), math.ceil(box.right)
        top, bottom, left, right = (max(0, side) for side in inside)
        if not (mask[top:bottom, left:right] == index).any():
            interior = labels[top:bottom, left:right]
            interior[interior == 0] = IGNORE
    if {index for index, _ in lines} - {0} - set(np.unique(mask).tolist() if lines else ()):
        labels[labels == 0] = IGNORE
    return labels


def keep_all_classes(resized: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return a resized mask in which a class whose pixels have all been lost has one pixel.

    Args:
        resized: uint8 (h, w): 0 background, 1..C, 255 not known.
        mask: uint8 (H, W), the same before.

    Returns:
        uint8 (h, w). The pixel of a lost class is the one that contains the middle one of its pixels in reading order,
        or else the nearest that is not the only one of another class.
    """
    labels = resized.copy()
    for index in np.setdiff1d(mask, [*np.unique(resized), 0, IGNORE]):
        rows, columns = (mask == index).nonzero()
        row, column = (
            int(each[len(each) // 2]) * small // large
            for each, small, large in zip((rows, columns), labels.shape, mask.shape, strict=True)
        )
        only = np.bincount(labels.ravel(), minlength=256) == 1
        only[[0, IGNORE]] = False
        down, right = np.indices(labels.shape)
        distance = np.where(only[labels], np.inf, (down - row) ** 2 + (right - column) ** 2)
        labels.flat[distance.argmin()] = index
    return labels


def reduce_labels(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a label map at a smaller size that keeps single pixels.

    Args:
        labels: uint8 (H, W), 255 where nothing is known.
        height: h, at most H.
        width: w, at most W.

    Returns:
        uint8 (h, w): the label at the centre of each position; if that is 255, the only label within the position; 255
        where there is none, or more than one.
    """
    if not (labels != IGNORE).any():
        return np.full((height, width), IGNORE, np.uint8)
    reduced = resize_nearest(labels, height, width)
    # position k contains the pixels whose centres lie in it, from ceil(k * m / n - 1/2), and so the one at its centre
    sides = (height, labels.shape[0]), (width, labels.shape[1])
    rows, columns = (-((n - 2 * m * np.arange(n)) // (2 * n)) for n, m in sides)

    def within(ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
        result: np.ndarray = ufunc.reduceat(ufunc.reduceat(values, rows, axis=0), columns, axis=1)
        return result

    lowest = within(np.minimum, labels)
    highest = within(np.maximum, np.where(labels == IGNORE, 0, labels))
    only = np.where((lowest == highest) & (lowest != IGNORE), lowest, IGNORE)
    return np.where(reduced == IGNORE, only, reduced).astype(np.uint8)


def box_interiors(boxes: np.ndarray, height: int, width: int) -> dict[int, np.ndarray]:
    """Return the positions whose centres lie in the boxes of each class; for a smaller box, the one around its centre.

    Args:
        boxes: float (n, 5): index 1..C, left, top, right, bottom; in fractions of the image's sides.
        height: h.
        width: w.

    Returns:
        bool (n, h, w), one for each box, by the index of the class.
    """

    def positions(first: np.float32, last: np.float32, count: int) -> np.ndarray:
        centres = (np.arange(count, dtype=np.float32) + 0.5) / count
        middle = math.floor((first + last) / 2 * count)
        inside = (first <= centres) & (centres < last)
        return inside if inside.any() else np.arange(count) == middle

    interiors: dict[int, list[np.ndarray]] = {}
    for index, left, top, right, bottom in boxes.astype(np.float32):  # as the loss: a side may lie on a centre
        inside = positions(top, bottom, height)[:, None] & positions(left, right, width)
        interiors.setdefault(int(index), []).append(inside)
    return {index: np.stack(each) for index, each in interiors.items()}


def corrected_cues(cues: np.ndarray, drawn: Drawn) -> np.ndarray:
    """Return cues with what people have drawn in their place.

    Args:
        cues: uint8 label map (h, w): 0 background, 1..C, 255 no cue.
        drawn: what is drawn into the same image. No cue of a class with boxes is left outside of them.

    Returns:
        uint8 (h, w).
    """
    labels = cues.copy()
    for index, interiors in box_interiors(drawn.boxes, *cues.shape).items():
        labels[(labels == index) & ~interiors.any(axis=0)] = NO_CUE
    known = reduce_labels(drawn.mask, *cues.shape)
    return np.where(known == IGNORE, labels, known).astype(np.uint8)
