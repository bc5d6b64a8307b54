"""The confusion matrix of a segmentation, and the intersection over union computed from it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.class_names import IGNORE
from datamodules.errors import InputError

CHUNK = 1 << 24  # pixels counted at a time: their indices are int64


class ConfusionMatrix:
    """Counts of pixels by true and predicted class. They are exact integers, so sums over processes are exact.

    Attributes:
        matrix: int64 (K, K); row = true class, column = predicted class. Assign it after a sum over processes.
    """

    def __init__(self, num_classes: int) -> None:
        """Start from zero; ``num_classes`` includes the background where there is one."""
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: torch.Tensor | np.ndarray, target: torch.Tensor | np.ndarray) -> None:
        """Count every pixel of ``target`` that is not 255.

        Args:
            pred: predicted class indices 0..K-1, any integer dtype and any shape.
            target: true class indices 0..K-1 or 255, of the same shape.

        Raises:
            InputError: the shapes differ, or an index lies outside 0..K-1.
        """
        predicted, truth = torch.as_tensor(pred), torch.as_tensor(target)
        if predicted.shape != truth.shape:
            raise InputError(f"a prediction of shape {tuple(predicted.shape)} for a mask of shape {tuple(truth.shape)}")
        counts = torch.zeros(self.num_classes**2, dtype=torch.int64, device=truth.device)
        truth, predicted = truth.flatten(), predicted.flatten()
        for start in range(0, len(truth), CHUNK):
            part = slice(start, start + CHUNK)
            kept = truth[part] != IGNORE
            rows, columns = truth[part][kept].long(), predicted[part][kept].long()
            for name, indices in (("mask", rows), ("prediction", columns)):
                outside = indices[(indices < 0) | (indices >= self.num_classes)]
                if len(outside):
                    raise InputError(f"a {name} holds class index {outside[0]}, outside 0..{self.num_classes - 1}")
            counts += torch.bincount(rows * self.num_classes + columns, minlength=self.num_classes**2)
        self.matrix += counts.view(self.num_classes, self.num_classes).to(self.matrix.device)

    def iou(self) -> NDArray[np.float64]:
        """Return the intersection over union of each class, float64 (K,).

        A class absent from truth and prediction is nan; a class that is present and never predicted is 0.
        """
        return class_iou(self.matrix.cpu().numpy())

    def miou(self) -> float:
        """Return the mean of `iou` over the classes that occur; nan where nothing was counted."""
        return mean_iou(self.iou())


def class_iou(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the intersection over union of each class of confusion matrices int64 (..., K, K), float64 (..., K)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return ratio(hits, matrix.sum(-1) + matrix.sum(-2) - hits)


def mean_iou(iou: NDArray[np.float64]) -> float:
    """Return the mean over the classes that are not nan, as VOC computes it; nan where there is none."""
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")


def ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """Return ``part / whole`` of numbers or arrays, with broadcasting, float64; nan where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    quotient: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return quotient


def none_if_nan(value: float) -> float | None:
    """Return the number as JSON can hold it: None in place of nan."""
    return None if math.isnan(value) else float(value)


def by_name(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Return values (K,) by their K names, None in place of nan."""
    return {name: none_if_nan(value) for name, value in zip(names, values.tolist(), strict=True)}
