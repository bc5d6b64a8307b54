"""Boundary IoU: the pixels near the outline of each class, in prediction and truth."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.class_names import IGNORE, ILLEGAL

__all__ = ["BAND", "boundary_counts"]

BAND = 0.02  # width relative to the image's diagonal, the authors' choice for every data set


def boundary_counts(pred: NDArray[np.integer], truth: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Return the pixel counts of boundary IoU for one image.

    Cheng et al., *Boundary IoU*, CVPR 2021: only pixels within ``BAND`` times the image's diagonal of a class's outline
    count (12 or 13 pixels for VOC's 500x375), in prediction and in truth; their intersection is divided by their union.
    Unlike the IoU in a trimap around the true outlines, boundary IoU includes predictions far from these outlines. As
    in the authors' code, distances are those of a square window, and the image's edge is an outline.

    Pixels of 255 in the truth are removed from the prediction too, so a perfect prediction scores 1.

    Args:
        pred: label map (H, W), 0..num_classes-1.
        truth: label map (H, W), 0..num_classes-1 or 255.
        num_classes: K, background included; at most 254.

    Returns:
        int64 (3, K): pixels in both bands, in the band of the prediction, in the band of the truth.
    """
    target = truth.astype(np.uint8)
    predicted = np.where(target == IGNORE, IGNORE, pred).astype(np.uint8)
    width = max(1, round(BAND * math.hypot(*target.shape)))
    in_predicted, in_target = _band(predicted, width), _band(target, width)
    both = in_predicted & in_target & (predicted == target)
    parts = (predicted[both], predicted[in_predicted], target[in_target])
    return np.stack([np.bincount(part, minlength=IGNORE + 1)[:num_classes] for part in parts])


def _band(labels: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Return where another label lies within ``width`` pixels: there the minimum and the maximum of labels differ."""
    framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=ILLEGAL)
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    band: NDArray[np.bool_] = cv2.erode(framed, window) != cv2.dilate(framed, window)
    return band[1:-1, 1:-1]
