"""The figures of a labelling: IoU, precision, recall, accuracy, outlines, confusions, and how sure the mean is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seeds.evaluation.confusion_matrix import ConfusionMatrix, class_iou, mean_iou
from training.evaluation.boundary_iou import boundary_counts

__all__ = ["CONFUSED", "LEVEL", "RESAMPLES", "SEED", "Tally", "confused_pairs", "figures", "miou_interval"]

RESAMPLES = 1000  # of the bootstrap
AT_ONCE = 50  # of them
SEED = 0  # of the bootstrap's draws
LEVEL = 0.95  # of its interval
CONFUSED = 10  # pairs of classes in metrics.json


class Tally:
    """Counts of one labelling of a split. Memory grows by 3 K numbers an image, for the interval of the mean.

    Attributes:
        names: the K classes, background first.
        matrix: the confusion matrix of the whole split, int64 (K, K); row = true class, column = predicted class.
        sums: int64 (3, K) of each image: pixels that are right, of the true class, of the predicted class.
        boundary: int64 (3, K), see `training.evaluation.boundary_iou.boundary_counts`, summed over images.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Start from zero."""
        self.names = tuple(names)
        self.matrix = np.zeros((len(self.names), len(self.names)), np.int64)
        self.sums: list[NDArray[np.int64]] = []
        self.boundary = np.zeros((3, len(self.names)), np.int64)

    def add(self, pred: torch.Tensor, truth: torch.Tensor) -> float | None:
        """Count an image: label maps (H, W), 255 in ``truth`` left out.

        Returns:
            The image's own mean IoU; None where all of it is left out.

        Raises:
            InputError: the shapes differ, or an index is none of a class.
        """
        own = ConfusionMatrix(len(self.names))
        own.update(pred, truth)
        matrix = own.matrix.numpy()
        self.matrix += matrix
        self.sums.append(np.stack([matrix.diagonal(), matrix.sum(1), matrix.sum(0)]))
        self.boundary += boundary_counts(pred.numpy(), truth.numpy(), len(self.names))
        return None if math.isnan(own.miou()) else own.miou()


def figures(tally: Tally) -> dict[str, Any]:
    """All figures of a labelling, as fractions; classes for which one is undefined are left out of it.

    ``iou``, ``precision`` (of the pixels called so), ``recall`` (of the pixels that are so) and ``boundary_iou`` by
    class; ``miou`` and ``boundary_miou``, their means over the classes that occur; ``background_iou``;
    ``pixel_accuracy`` over all pixels, ``mean_accuracy`` the mean recall; ``miou_interval`` (`miou_interval`);
    ``confusion`` (pixels by true class, row, and predicted class, column) and ``confused`` (`confused_pairs`).
    None stands where nothing was counted.
    """
    matrix, names = tally.matrix, tally.names
    hits, both, true, called = matrix.diagonal(), tally.boundary[0], matrix.sum(1), matrix.sum(0)
    iou = class_iou(matrix)
    recall = _ratio(hits, true)
    boundary = _ratio(both, tally.boundary[1] + tally.boundary[2] - both)
    by_class = _by_class(names, iou)
    return {
        "miou": _number(mean_iou(iou)),
        "miou_interval": miou_interval(tally.sums),
        "iou": by_class,
        "background_iou": by_class.get(names[0]),
        "precision": _by_class(names, _ratio(hits, called)),
        "recall": _by_class(names, recall),
        "pixel_accuracy": _number(float(_ratio(hits.sum(), matrix.sum()))),
        "mean_accuracy": _number(mean_iou(recall)),
        "boundary_iou": _by_class(names, boundary),
        "boundary_miou": _number(mean_iou(boundary)),
        "confusion": {"classes": list(names), "pixels": matrix.tolist()},
        "confused": confused_pairs(matrix, names),
    }


def miou_interval(sums: Sequence[NDArray[np.int64]]) -> dict[str, Any] | None:
    """Percentile bootstrap of the mean IoU over images.

    As many images as there are are drawn with replacement, ``RESAMPLES`` times, by numpy's default generator from
    ``SEED``; each draw's mean IoU is that of its summed confusion matrix; the interval holds the middle ``LEVEL`` of
    them. It says how far the figure hangs on which images are in the split, and nothing of other trainings.

    Args:
        sums: int64 (3, K) of each image, as of `Tally`.

    Returns:
        ``low``, ``high``, ``level``, ``resamples``, ``seed``; None for fewer than two images with counted pixels.
    """
    counted = [each for each in sums if each.any()]
    total = len(counted)
    if total < 2:
        return None
    stacked = np.stack(counted, axis=1).astype(np.float64)  # (3, N, K), exact
    random, means = np.random.default_rng(SEED), []
    for _ in range(RESAMPLES // AT_ONCE):  # all draws of many images together would not fit in memory
        draws = random.multinomial(total, np.full(total, 1 / total), size=AT_ONCE)  # (R, N)
        hits, true, called = draws.astype(np.float64) @ stacked  # (R, K) each
        means.append(np.nanmean(_ratio(hits, true + called - hits), axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"low": float(low), "high": float(high), "level": LEVEL, "resamples": RESAMPLES, "seed": SEED}


def confused_pairs(matrix: NDArray[np.int64], names: Sequence[str], wanted: int = CONFUSED) -> list[dict[str, Any]]:
    """The most confused pairs: ``truth`` called ``predicted``, on ``pixels``, which are ``share`` of the truth's.

    The largest shares come first; by pixels alone the background's would.

    Args:
        matrix: int64 (K, K), row = true class, column = predicted class.
        names: the K classes.
        wanted: at most how many.
    """
    shares = _ratio(matrix, matrix.sum(1, keepdims=True))
    shares[np.eye(len(names), dtype=bool) | np.isnan(shares)] = 0
    order = np.argsort(-shares, axis=None, kind="stable")[:wanted]
    places = [divmod(int(place), len(names)) for place in order if shares.flat[place] > 0]
    return [
        {"truth": names[t], "predicted": names[p], "pixels": int(matrix[t, p]), "share": float(shares[t, p])}
        for t, p in places
    ]


def _ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Quotients, nan where the divisor is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    result: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return result


def _by_class(names: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    return {name: value for name, value in zip(names, values.tolist(), strict=True) if not math.isnan(value)}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
