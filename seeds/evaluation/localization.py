"""Weakly supervised localization: a box from a map, and the top-1 and top-5 localization error of ImageNet."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.bounding_boxes import Box

THRESHOLD = 0.15  # of the map's maximum (Grad-CAM, section 4.1)
MIN_IOU = 0.5  # of a correct box (ImageNet, VOC)


def box_from_map(cam: NDArray[np.floating], label: int = 0, threshold: float = THRESHOLD) -> Box | None:
    """Return the box of the largest connected component above a fraction of the map's maximum; None for a zero map.

    Args:
        cam: map (H, W) at the image's size.
        label: the box's class, 0..C-1.
        threshold: fraction of the maximum.
    """
    peak = float(cam.max())
    if not peak > 0:
        return None
    above = (cam > threshold * peak).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    left, top, width, height = stats[largest, :4].tolist()
    return Box(label, left, top, left + width, top + height)


def box_iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes; 0 for two empty ones."""
    width = min(first.right, second.right) - max(first.left, second.left)
    height = min(first.bottom, second.bottom) - max(first.top, second.top)
    intersection = max(width, 0.0) * max(height, 0.0)
    areas = sum((box.right - box.left) * (box.bottom - box.top) for box in (first, second))
    return intersection / (areas - intersection) if areas > intersection else 0.0


def is_correct(box: Box | None, truth: Sequence[Box]) -> bool:
    """Return whether a box has an IoU of at least ``MIN_IOU`` with a true box of the same class."""
    return box is not None and any(true.label == box.label and box_iou(box, true) >= MIN_IOU for true in truth)


def localization_error(boxes: Sequence[Sequence[Box | None]], truths: Sequence[Sequence[Box]]) -> tuple[float, float]:
    """Return the top-1 and the top-5 localization error, as fractions of images.

    An image is right at top 1 if the box of the class with the highest score is correct, and at top 5 if the box of one
    of the five classes with the highest scores is.

    Args:
        boxes: for each image, the boxes of its classes by descending score.
        truths: for each image, the true boxes.
    """
    correct = [[is_correct(box, truth) for box in own[:5]] for own, truth in zip(boxes, truths, strict=True)]
    wrong = [(not any(image[:1]), not any(image)) for image in correct]
    top1, top5 = np.mean(wrong, axis=0) if wrong else (float("nan"), float("nan"))
    return float(top1), float(top5)
