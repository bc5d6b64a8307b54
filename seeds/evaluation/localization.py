"""Weakly-supervised localization: a box from a map, and how often it is right (ImageNet's localization task)."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.bounding_boxes import Box

SHARE = 0.15  # of a map's maximum (Grad-CAM, section 4.1)
OVERLAP = 0.5  # intersection over union from which on a box is right (ImageNet, VOC)

Map = NDArray[np.floating]


def box_of(heat: Map, label: int = 0, share: float = SHARE) -> Box | None:
    """The box of the largest connected part of a map above a share of its maximum; None where nothing is above 0.

    Args:
        heat: (H, W), of the image's size.
        label: the box's class, 0..C-1.
        share: fraction of the maximum.
    """
    peak = float(heat.max())
    if not peak > 0:
        return None
    above = (heat > share * peak).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height = stats[largest, :4].tolist()
    return Box(label, left, top, left + width, top + height)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    shared = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (one, other))
    return shared / (areas - shared) if areas > shared else 0.0


def is_right(box: Box | None, truth: Sequence[Box]) -> bool:
    """Whether a box overlaps a true box of its own class by half or more."""
    return box is not None and any(own.label == box.label and overlap(box, own) >= OVERLAP for own in truth)


class Localization(NamedTuple):
    """Errors as fractions of images.

    Attributes:
        top1: the box of the class of the highest score is wrong, or the class is not there.
        top5: so are those of the five classes of the highest scores.
    """

    top1: float
    top5: float


def localization_error(guesses: Sequence[Sequence[Box | None]], truths: Sequence[Sequence[Box]]) -> Localization:
    """Top-1 and top-5 localization error over images.

    Args:
        guesses: of each image, the boxes of its classes of the highest scores, in that order.
        truths: of each image, the true boxes.
    """
    right = [[is_right(box, truth) for box in boxes[:5]] for boxes, truth in zip(guesses, truths, strict=True)]
    wrong = [(not any(each[:1]), not any(each)) for each in right]
    top1, top5 = np.mean(wrong, axis=0) if wrong else (float("nan"), float("nan"))
    return Localization(float(top1), float(top5))
