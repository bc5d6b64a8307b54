"""Boundary IoU against the authors' code."""

import cv2
import numpy as np
import pytest
import torch

from tests.training.label_maps import blobs, counts_of
from training.evaluation.boundary_iou import boundary_counts
from training.evaluation.evaluation_table import compute_metrics


def authors_boundary(mask: np.ndarray) -> np.ndarray:
    """``mask_to_boundary`` as Cheng et al. released it: a binary mask less its erosion, step by step."""
    height, width = mask.shape
    dilation = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - eroded[1:-1, 1:-1]


@pytest.mark.parametrize("size", [(60, 80), (150, 200), (9, 7)])
def test_boundary_is_the_authors(size):
    pred, truth = blobs(1, size), blobs(2, size, void=True)
    counts = boundary_counts(pred.numpy(), truth.numpy(), 4)
    for c in range(4):
        guess = authors_boundary(((pred == c) & (truth != 255)).numpy().astype(np.uint8)) > 0
        true = authors_boundary((truth == c).numpy().astype(np.uint8)) > 0
        assert counts[:, c].tolist() == [(guess & true).sum(), guess.sum(), true.sum()]


def test_boundary_is_one_for_a_perfect_prediction_and_below_iou_for_a_dented_one():
    truth = blobs(3, (150, 200), void=True)
    perfect = torch.where(truth == 255, 2, truth)  # the void has any class
    assert set(compute_metrics(counts_of([(perfect, truth)]))["boundary_iou"].values()) == {1.0}
    square, dented = torch.zeros(2, 150, 200, dtype=torch.int64)
    square[20:130, 20:180] = 1
    dented[24:126, 24:176] = 1
    found = compute_metrics(counts_of([(dented, square)]))
    assert found["boundary_iou"]["cat"] < 0.3
    assert found["iou"]["cat"] > 0.85
    assert found["boundary_miou"] == pytest.approx(np.mean(list(found["boundary_iou"].values())))
