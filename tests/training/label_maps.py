"""Label maps for tests of metrics."""

import cv2
import numpy as np
import torch

from training.evaluation.metrics import SegmentationCounts

NAMES = ("background", "cat", "dog", "owl")


def blobs(seed: int, size: tuple[int, int] = (60, 80), void: bool = False) -> torch.Tensor:
    """A label map of a few smooth regions; with ``void``, 255 along their borders."""
    noise = np.random.default_rng(seed).random((*size, 4)).astype(np.float32)
    labels = cv2.GaussianBlur(noise, (0, 0), 6).argmax(2).astype(np.uint8)
    if void:
        labels[cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = 255
    return torch.from_numpy(labels.astype(np.int64))


def counts_of(pairs) -> SegmentationCounts:
    counts = SegmentationCounts(NAMES)
    for pred, truth in pairs:
        counts.update(pred.numpy(), truth.numpy())
    return counts
