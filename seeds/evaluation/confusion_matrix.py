"""The confusion matrix of a labelling, and the intersection over union read from it."""

import numpy as np
import torch
from numpy.typing import NDArray

from datamodules.errors import InputError

IGNORE = 255  # mask index of pixels that are not scored (VOC's object borders)

Indices = torch.Tensor | NDArray[np.generic]


class Confusion:
    """Counts of (true class, predicted class) over pixels: exact integers, so that sums over processes are sums.

    Attributes:
        matrix: int64 (K, K); row = true class, column = predicted class. Assign it after reducing over processes.
    """

    def __init__(self, num_classes: int) -> None:
        """Start from zero; ``num_classes`` counts the background where there is one."""
        self.num_classes = num_classes
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: Indices, target: Indices) -> None:
        """Count every pixel of ``target`` that is not 255.

        Args:
            pred: predicted class indices 0..K-1, any integer dtype and any shape.
            target: true class indices 0..K-1 or 255, of the same shape.

        Raises:
            InputError: the shapes differ, or an index lies outside 0..K-1.
        """
        guess, truth = torch.as_tensor(pred), torch.as_tensor(target)
        if guess.shape != truth.shape:
            raise InputError(f"a prediction of shape {tuple(guess.shape)} for a mask of shape {tuple(truth.shape)}")
        kept = truth != IGNORE
        truth, guess = truth[kept].long(), guess[kept].long()
        for name, indices in (("mask", truth), ("prediction", guess)):
            if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.num_classes:
                bad = int(indices.max()) if int(indices.max()) >= self.num_classes else int(indices.min())
                raise InputError(f"a {name} holds class index {bad}, outside 0..{self.num_classes - 1}")
        counts = torch.bincount(truth * self.num_classes + guess, minlength=self.num_classes**2)
        self.matrix += counts.view(self.num_classes, self.num_classes).to(self.matrix.device)

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class, float64 (K,).

        A class absent from truth and prediction alike is nan; one that is present and never hit is 0.
        """
        return iou_of(self.matrix.cpu().numpy())

    def miou(self) -> float:
        """Mean of :meth:`iou` over the classes that occur; nan where nothing was counted."""
        return mean_iou(self.iou())


def iou_of(matrix: NDArray[np.int64]) -> NDArray[np.float64]:
    """Intersection over union of each class of confusion matrices int64 (..., K, K), float64 (..., K)."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    union = matrix.sum(-1) + matrix.sum(-2) - hits
    iou: NDArray[np.float64] = np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
    return iou


def mean_iou(iou: NDArray[np.float64]) -> float:
    """Mean over the classes that are not nan, as VOC takes it; nan where there is none."""
    present = iou[~np.isnan(iou)]
    return float(present.mean()) if present.size else float("nan")
