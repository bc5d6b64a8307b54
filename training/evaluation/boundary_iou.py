"""How well outlines agree: the pixels near the border of each class, in prediction and truth."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.class_names import IGNORE, ILLEGAL

__all__ = ["BAND", "boundary_counts"]

BAND = 0.02  # of the image's diagonal, the authors' choice for every data set


def boundary_counts(pred: NDArray[np.integer], truth: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """What boundary IoU is made of, for one image.

    Cheng et al., *Boundary IoU*, CVPR 2021: of each class only the pixels within ``BAND`` times the image's diagonal
    of its own outline are kept (12 or 13 pixels for VOC's 500x375), in prediction and in truth, and their intersection
    is divided by their union. Unlike the IoU in a trimap around the true outlines, it also sees what is predicted far
    from them, and it does not fall to the band's own share for small objects. As in the authors' code distances are
    those of a square window, and the image's edge is an outline.

    Pixels of 255 belong to no class, in the prediction neither: a perfect prediction scores 1, whatever it says of
    the void along VOC's objects.

    Args:
        pred: label map (H, W), 0..num_classes-1.
        truth: label map (H, W), 0..num_classes-1 or 255.
        num_classes: K, background included; at most 254.

    Returns:
        int64 (3, K): pixels in both bands, in the prediction's, in the truth's.
    """
    target = truth.astype(np.uint8)
    guess = np.where(target == IGNORE, IGNORE, pred).astype(np.uint8)
    width = max(1, round(BAND * math.hypot(*target.shape)))
    of_guess, of_target = _band(guess, width), _band(target, width)
    parts = (guess[of_guess & of_target & (guess == target)], guess[of_guess], target[of_target])
    return np.stack([np.bincount(part, minlength=IGNORE + 1)[:num_classes] for part in parts])


def _band(labels: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Whether another label lies within ``width`` pixels, for all classes at once: least and greatest label differ."""
    framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=ILLEGAL)
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    band: NDArray[np.bool_] = cv2.erode(framed, window) != cv2.dilate(framed, window)
    return band[1:-1, 1:-1]
