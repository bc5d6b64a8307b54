"""Counts of a segmentation over a data set, boundary IoU, bootstrap interval of the mean IoU, most confused classes."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.class_names import IGNORE, ILLEGAL
from seeds.evaluation.confusion_matrix import ConfusionMatrix, none_if_nan, ratio

BAND = 0.02  # width of the boundary relative to the image's diagonal, the authors' choice for every data set
ROWS = 2048  # of a label map whose boundaries are computed at a time
RESAMPLES = 1000  # of the bootstrap
CHUNK = 50  # resamples that are computed together
SEED = 0  # of the bootstrap
LEVEL = 0.95  # confidence level of the interval
MIN_IMAGES = 3  # with a class; a draw of many images lacks a class that is in three of them in one of 20 cases


class SegmentationCounts:
    """Pixel counts from which all metrics are computed. Memory grows by 3 K numbers per image, for the interval.

    Attributes:
        names: the K classes, background first.
        matrix: confusion matrix of all images, int64 (K, K); row = true class, column = predicted class.
        per_image: for each image int64 (3, K): pixels that are right, of the true class, of the predicted class.
        boundary: int64 (3, K), sum of `boundary_counts` over all images.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start from zero."""
        self.names = tuple(names)
        self.matrix = np.zeros((len(self.names), len(self.names)), np.int64)
        self.per_image: list[NDArray[np.int64]] = []
        self.boundary = np.zeros((3, len(self.names)), np.int64)

    def update(self, pred: NDArray[np.integer], truth: NDArray[np.integer]) -> float | None:
        """Count an image: label maps (H, W); pixels of 255 in ``truth`` are left out.

        Returns:
            The mean IoU of this image; None where all its pixels are left out.

        Raises:
            InputError: the shapes differ, or an index is not a class.
        """
        confusion = ConfusionMatrix(len(self.names))
        confusion.update(pred, truth)
        matrix = confusion.matrix.numpy()
        self.matrix += matrix
        self.per_image.append(np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]))
        self.boundary += boundary_counts(pred, truth, len(self.names))
        return none_if_nan(confusion.miou())


def boundary_counts(pred: NDArray[np.integer], truth: NDArray[np.integer], num_classes: int) -> NDArray[np.int64]:
    """Return the pixel counts of boundary IoU for one image.

    Cheng et al., *Boundary IoU*, CVPR 2021: only pixels within ``BAND`` times the image's diagonal of a class's outline
    count (12 pixels for VOC's 500x375), in prediction and in truth; their intersection is divided by their union.
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
    width = max(1, round(BAND * math.hypot(*truth.shape)))
    window = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    counts = np.zeros((3, num_classes), np.int64)
    for top in range(0, len(truth), ROWS):  # with the rows above and below that lie within the width
        first = max(0, top - width)
        target = truth[first : top + ROWS + width].astype(np.uint8)
        predicted = np.where(target == IGNORE, IGNORE, pred[first : top + ROWS + width]).astype(np.uint8)
        bands = []
        for labels in (predicted, target):  # where another label lies within the width minimum and maximum differ
            framed = cv2.copyMakeBorder(labels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=ILLEGAL)
            bands.append((cv2.erode(framed, window) != cv2.dilate(framed, window))[1:-1, 1:-1])
        own = slice(top - first, top - first + ROWS)
        predicted, target, in_predicted, in_target = (each[own] for each in (predicted, target, *bands))
        both = in_predicted & in_target & (predicted == target)
        parts = (predicted[both], predicted[in_predicted], target[in_target])
        counts += np.stack([np.bincount(part, minlength=IGNORE + 1)[:num_classes] for part in parts])
    return counts


def miou_interval(per_image: Sequence[NDArray[np.int64]]) -> dict[str, Any] | None:
    """Return the percentile bootstrap interval of the mean IoU over images.

    N of the N images are drawn with replacement, ``RESAMPLES`` times, by numpy's default generator with ``SEED``. The
    mean IoU of a draw is that of its summed confusion matrix, and the interval contains the middle ``LEVEL`` of them.
    It describes how far the mean IoU depends on the images of the split, not on the random seed of a training.

    Args:
        per_image: int64 (3, K) of each image, as in `SegmentationCounts`.

    Returns:
        ``low``, ``high``, ``level``, ``resamples``, ``seed``; None for fewer than two images with counted pixels, and
        where a class is in fewer than ``MIN_IMAGES`` of them (of two images: in one): many draws would lack it, and
        have another mean.
    """
    counted = [counts for counts in per_image if counts.any()]
    total = len(counted)
    if total < 2:
        return None
    stacked = np.stack(counted, axis=1).astype(np.float64)  # (3, N, K), exact
    images = stacked[1:].any(axis=0).sum(axis=0)  # (K,), of those in which a class is true or predicted
    if ((images > 0) & (images < min(MIN_IMAGES, total))).any():
        return None
    random, means = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES // CHUNK):  # all draws of many images together would not fit in memory
        draws = random.multinomial(total, np.full(total, 1 / total), size=CHUNK)  # (R, N)
        hits, true, predicted = draws.astype(np.float64) @ stacked  # (R, K) each
        means.append(np.nanmean(ratio(hits, true + predicted - hits), axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high), "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def confused_pairs(matrix: NDArray[np.int64], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return up to ten pairs of classes with the largest shares of ``truth`` pixels predicted as ``predicted``.

    Sorted by ``share`` of the true class, because by ``pixels`` the background would always come first.

    Args:
        matrix: int64 (K, K), row = true class, column = predicted class.
        names: the K classes.
    """
    shares = ratio(matrix, matrix.sum(1, keepdims=True))
    shares[np.eye(len(names), dtype=bool) | np.isnan(shares)] = 0
    order = np.argsort(-shares, axis=None, kind="stable")[:10]
    pairs = [divmod(int(index), len(names)) for index in order if shares.flat[index] > 0]
    return [
        {"truth": names[t], "predicted": names[p], "pixels": int(matrix[t, p]), "share": float(shares[t, p])}
        for t, p in pairs
    ]
