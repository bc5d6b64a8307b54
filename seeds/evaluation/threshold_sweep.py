"""Maps scored as a segmentation, at every background threshold in one pass."""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from datamodules.errors import InputError
from seeds.evaluation.confusion_matrix import IGNORE, iou_of, mean_iou

GRID_STEP = 0.01  # of the oracle's thresholds: 0.00, 0.01, … 0.99


class Sweep:
    """The confusion matrices of every background threshold in one pass over the images.

    Which class's map is highest at a pixel does not depend on the threshold; only whether it beats the background
    does. So a count by (true class, winning class, thresholds beaten) holds them all, exactly.
    """

    def __init__(self, num_classes: int, fixed: float) -> None:
        """Start from zero, with ``num_classes`` counting the background and ``fixed`` among the thresholds."""
        if not 0 <= fixed <= 1:
            raise InputError(f"threshold {fixed} is outside 0..1")
        grid = np.arange(round(1 / GRID_STEP)) * GRID_STEP
        self.fixed, self.grid = fixed, grid
        self.thresholds = np.unique(np.append(grid, fixed).astype(np.float32))
        self.counts = np.zeros((num_classes, num_classes, len(self.thresholds) + 1), np.int64)
        self.maps = 0
        self.cells = np.zeros(len(grid), np.int64)  # by the highest share of any map there: what Otsu's method reads

    def update(self, classes: NDArray[np.int64], maps: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Count an image.

        Args:
            classes: the maps' classes 0..C-1, (k,).
            maps: (k, h, w), not normalised.
            truth: mask (H, W): 0 = background, 1..C, 255 = not counted.
        """
        self.maps += len(maps)
        winner, beaten = np.zeros(truth.shape, np.int64), np.zeros(truth.shape, np.int64)
        if len(maps):
            peak = maps.max(axis=(1, 2), keepdims=True)
            share = torch.from_numpy(maps / np.where(peak > 0, peak, 1))[None]
            highest = share[0].amax(dim=0).double().numpy()  # (h, w)
            self.cells += np.histogram(highest, bins=len(self.cells), range=(0, 1))[0]
            scores, place = functional.interpolate(share, truth.shape, mode="bilinear")[0].max(dim=0)  # (H, W)
            winner = classes[place.numpy()] + 1
            beaten = torch.bucketize(scores, torch.from_numpy(self.thresholds)).numpy()  # thresholds below the score
        kept = truth != IGNORE
        shape = self.counts.shape
        flat = np.ravel_multi_index((truth[kept].astype(np.int64), winner[kept], beaten[kept]), shape)
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(shape)

    def matrices(self) -> NDArray[np.int64]:
        """The confusion matrix of each threshold, int64 (thresholds, classes, classes)."""
        below = self.counts.cumsum(axis=2)[:, :, :-1]  # pixels whose score does not exceed each threshold
        matrices: NDArray[np.int64] = np.moveaxis(self.counts.sum(axis=2, keepdims=True) - below, 2, 0)
        matrices[:, :, 0] += below.sum(axis=1).T
        return matrices

    def result(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Mean and per-class IoU at the fixed threshold, at Otsu's and at the best of the grid; None without a map."""
        if not self.maps:
            nothing = by_name(names, np.full(len(names), np.nan))
            keys = [f"{what}_{which}" for which in ("fixed", "otsu", "oracle") for what in ("miou", "threshold")]
            return dict.fromkeys(keys) | {"iou_fixed": nothing, "iou_oracle": nothing}
        ious = iou_of(self.matrices())  # (thresholds, classes)
        means = np.array([mean_iou(iou) for iou in ious])
        fixed = int(np.searchsorted(self.thresholds, np.float32(self.fixed)))
        on_grid = np.isin(self.thresholds, self.grid.astype(np.float32))
        best = int(np.argmax(np.where(on_grid, np.nan_to_num(means, nan=-1.0), -2.0)))
        otsu = otsus_threshold(self.cells)
        return {
            "miou_fixed": number_or_none(means[fixed]), "threshold_fixed": self.fixed,
            "miou_otsu": number_or_none(means[np.searchsorted(self.thresholds, np.float32(otsu))]),
            "threshold_otsu": otsu,
            "miou_oracle": number_or_none(means[best]), "threshold_oracle": round(float(self.thresholds[best]), 2),
            "iou_fixed": by_name(names, ious[fixed]), "iou_oracle": by_name(names, ious[best]),
        }  # fmt: skip


def otsus_threshold(counts: NDArray[np.int64]) -> float:
    """The threshold between two groups of numbers in 0..1 that lie the farthest apart, from their histogram.

    Otsu, *A threshold selection method from gray-level histograms*, IEEE Trans. SMC 1979: the variance between the
    groups is greatest. The first such threshold, and 0 where all numbers fall into one bin.

    Args:
        counts: of equal bins over 0..1, (n,).

    Returns:
        A bin's upper edge, k/n, rounded to 6 places.
    """
    share = counts / counts.sum()
    below = share.cumsum()[:-1]
    moment = (share * np.arange(len(share))).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (moment[-1] * below - moment[:-1]) ** 2 / (below * (1 - below))
    between = np.nan_to_num(between, nan=0.0, posinf=0.0)
    return round((int(between.argmax()) + 1) / len(counts), 6) if between.any() else 0.0


def number_or_none(value: float) -> float | None:
    """The figure, or None (JSON's null) for one that nothing was counted for."""
    return None if math.isnan(value) else float(value)


def by_name(names: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Figures (K,) by their K names, nan as None."""
    return {name: number_or_none(value) for name, value in zip(names, values, strict=True)}
