"""The IoU of localization maps as a segmentation, at every background threshold in one pass over the images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from seeds.evaluation.confusion_matrix import by_name, class_iou, mean_iou, none_if_nan, ratio
from seeds.score_maps import divide_by_maxima

GRID_STEP = 0.01  # between the oracle's thresholds: 0.00, 0.01, … 0.99


class ThresholdSweep:
    """The confusion matrices of all background thresholds, counted in one pass.

    The class with the highest map at a pixel does not depend on the threshold; the threshold only decides whether it
    wins over the background. A count by (true class, class of the highest map, thresholds below it) is therefore exact.
    """

    def __init__(self, num_classes: int, fixed: float) -> None:
        """Start from zero; ``num_classes`` includes the background, ``fixed`` is added to the thresholds.

        Raises:
            InputError: ``fixed`` is outside 0..1.
        """
        if not 0 <= fixed <= 1:
            raise InputError(f"threshold {fixed} is outside 0..1")
        self.fixed, self.grid = fixed, np.arange(round(1 / GRID_STEP)) * GRID_STEP
        self.thresholds = np.unique(np.append(self.grid, fixed).astype(np.float32))
        self.counts = np.zeros((num_classes, num_classes, len(self.thresholds) + 1), np.int64)
        self.histogram = np.zeros(len(self.grid), np.int64)  # of the highest map at each position, for Otsu's method

    def update(self, classes: NDArray[np.int64], maps: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Count one image.

        Args:
            classes: the maps' classes 0..C-1, (k,).
            maps: (k, h, w), not normalised.
            truth: mask (H, W): 0 = background, 1..C, 255 = ignore.
        """
        winner, below = np.zeros(truth.shape, np.int64), np.zeros(truth.shape, np.int64)
        if len(maps):
            normalised = torch.from_numpy(divide_by_maxima(maps))[None]
            highest = normalised[0].amax(dim=0).double().numpy()  # (h, w)
            self.histogram += np.histogram(highest, bins=len(self.histogram), range=(0, 1))[0]
            scores, index = functional.interpolate(normalised, truth.shape, mode="bilinear")[0].max(dim=0)  # (H, W)
            winner = classes[index.numpy()] + 1
            below = torch.bucketize(scores, torch.from_numpy(self.thresholds)).numpy()
        kept = truth != IGNORE
        shape = self.counts.shape
        flat = np.ravel_multi_index((truth[kept].astype(np.int64), winner[kept], below[kept]), shape)
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(shape)

    def matrices(self) -> NDArray[np.int64]:
        """Return the confusion matrix of each threshold, int64 (thresholds, classes, classes)."""
        background = self.counts.cumsum(axis=2)[:, :, :-1]  # pixels whose score does not exceed each threshold
        matrices: NDArray[np.int64] = np.moveaxis(self.counts.sum(axis=2, keepdims=True) - background, 2, 0)
        matrices[:, :, 0] += background.sum(axis=1).T
        return matrices

    def compute(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the mean IoU at the fixed, Otsu's and the oracle threshold, and the thresholds; None without a map.

        The IoU of each class is that at the fixed and at the oracle threshold.
        """
        if not self.histogram.any():
            undefined: dict[str, Any] = dict.fromkeys(names)
            keys = [f"{what}_{which}" for which in ("fixed", "otsu", "oracle") for what in ("miou", "threshold")]
            return dict.fromkeys(keys) | {"iou_fixed": undefined, "iou_oracle": dict(undefined)}
        ious = class_iou(self.matrices())  # (thresholds, classes)
        means = np.array([mean_iou(iou) for iou in ious])
        on_grid = np.isin(self.thresholds, self.grid.astype(np.float32))
        oracle = int(np.argmax(np.where(on_grid, means, -1.0)))  # without a counted pixel all means are nan
        otsu_threshold = otsus_threshold(self.histogram)
        fixed, otsu = np.searchsorted(self.thresholds, np.array([self.fixed, otsu_threshold], np.float32)).tolist()
        return {
            "miou_fixed": none_if_nan(means[fixed]), "threshold_fixed": self.fixed,
            "miou_otsu": none_if_nan(means[otsu]), "threshold_otsu": otsu_threshold,
            "miou_oracle": none_if_nan(means[oracle]), "threshold_oracle": round(float(self.thresholds[oracle]), 2),
            "iou_fixed": by_name(names, ious[fixed]), "iou_oracle": by_name(names, ious[oracle]),
        }  # fmt: skip


def otsus_threshold(histogram: NDArray[np.int64]) -> float:
    """Return the threshold with the largest variance between the two groups it separates.

    Otsu, *A threshold selection method from gray-level histograms*, IEEE Trans. SMC 1979. Of equal ones the first
    counts; the threshold is 0 where all numbers fall into one bin.

    Args:
        histogram: counts of numbers in n equal bins over 0..1, (n,).

    Returns:
        A bin's upper edge, k/n, rounded to 6 digits.
    """
    share = histogram / histogram.sum()
    below = share.cumsum()[:-1]
    moment = (share * np.arange(len(share))).cumsum()
    variance = np.nan_to_num(ratio((moment[-1] * below - moment[:-1]) ** 2, below * (1 - below)))
    return round((int(variance.argmax()) + 1) / len(histogram), 6) if variance.any() else 0.0
