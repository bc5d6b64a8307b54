"""Boundary IoU against the authors' code, the bootstrap interval against a slow one, confused classes, memory."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from tests.training.label_maps import NAMES, blobs, counts_of
from training.evaluation import metrics
from training.evaluation.evaluation_table import compute_metrics
from training.evaluation.metrics import (
    RESAMPLES,
    SEED,
    SegmentationCounts,
    boundary_counts,
    confused_pairs,
    miou_interval,
)


def test_the_interval_is_that_of_a_slow_bootstrap():
    pairs = [(blobs(i, (20, 24)), blobs(i % 3 + 50, (20, 24), void=True)) for i in range(7)]
    counts = counts_of(pairs)
    matrices = [counts_of([pair]).matrix for pair in pairs]
    found = miou_interval(counts.per_image)
    draws = np.random.default_rng(SEED).multinomial(7, np.full(7, 1 / 7), size=RESAMPLES)
    means = []
    for draw in draws:
        drawn = sum(times * matrix for times, matrix in zip(draw, matrices, strict=True))
        hits, union = drawn.diagonal(), drawn.sum(0) + drawn.sum(1) - drawn.diagonal()
        means.append(np.mean(hits[union > 0] / union[union > 0]))
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)
    assert found["low"] < compute_metrics(counts)["miou"] < found["high"]
    assert found["level"] == 0.95


def test_the_interval_of_equal_images_is_a_point_and_void_images_do_not_count():
    pred, truth = blobs(1), blobs(2)
    blank = torch.full_like(truth, 255)
    assert miou_interval(counts_of([(pred, truth), (pred, blank)]).per_image) is None  # one image
    found = miou_interval(counts_of([(pred, truth), (pred, truth), (pred, blank)]).per_image)
    assert found["low"] == found["high"] == pytest.approx(compute_metrics(counts_of([(pred, truth)]))["miou"])
    assert compute_metrics(counts_of([(pred, blank)]))["miou"] is None


def test_a_class_of_two_images_has_no_interval():
    """One in eight draws of twenty images would lack it, and be the mean of other classes."""
    rare, usual = np.full((8, 8), 2), np.ones((8, 8), int)
    usual[:4] = 0
    for images in (2, 3):
        pairs = [(torch.tensor(each), torch.tensor(each)) for each in [rare] * images + [usual] * (20 - images)]
        found = miou_interval(counts_of(pairs).per_image)
        if images == 2:
            assert found is None
        else:  # a draw without the class is the mean of the others
            assert (found["low"], found["high"]) == (1, 1)


def test_confused_pairs_go_by_their_share():
    matrix = np.array([[900, 90, 10], [1, 5, 4], [0, 0, 0]])
    pairs = confused_pairs(matrix, NAMES[:3])
    assert [(pair["truth"], pair["predicted"], pair["pixels"]) for pair in pairs] == [
        ("cat", "dog", 4), ("cat", "background", 1), ("background", "cat", 90), ("background", "dog", 10),
    ]  # fmt: skip
    assert [pair["share"] for pair in pairs] == pytest.approx([0.4, 0.1, 0.09, 0.01])
    assert len(confused_pairs(np.ones((4, 4), int), NAMES)) == 10  # of 12


def test_memory_does_not_grow_with_images_times_squared_classes():
    """81 classes, as of COCO: two matrices an image of 5,000 would be 525 MB."""
    counts = SegmentationCounts([str(number) for number in range(81)])
    generator = np.random.default_rng(0)
    pred, truth = (torch.from_numpy(generator.integers(0, 81, (8, 8))) for _ in range(2))
    counts.update(pred.numpy(), truth.numpy())
    tracemalloc.start()
    for _ in range(500):
        counts.update(pred.numpy(), truth.numpy())
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 500 * 4 * 81 * 8
    assert counts.matrix.sum() == 501 * 64


def test_the_memory_of_cocos_classes_and_images():
    """81 classes and 5,000 images: three numbers a class and image, with all metrics; a matrix an image is 262 MB."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 81, (5000, 4, 4)).astype(np.uint8)
    tracemalloc.start()
    counts = SegmentationCounts(["background", *map(str, range(80))])
    for image in truth:
        counts.update(image, image)
    metrics = compute_metrics(counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (metrics["miou"], counts.matrix.sum()) == (1, truth.size)
    assert peak < 4 * 5000 * 3 * 81 * 8


def test_the_interval_of_many_images_needs_little_memory():
    generator = np.random.default_rng(0)
    sums = [generator.integers(1, 9, (3, 3)) for _ in range(4000)]
    tracemalloc.start()
    assert miou_interval(sums) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # all draws at once: 64 MB


def authors_boundary(mask: np.ndarray) -> np.ndarray:
    """``mask_to_boundary`` as Cheng et al. released it: a binary mask less its erosion, step by step."""
    height, width = mask.shape
    dilation = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - eroded[1:-1, 1:-1]


@pytest.mark.parametrize("rows", [2048, 16])
@pytest.mark.parametrize("size", [(60, 80), (150, 200), (100, 150), (9, 7)])
def test_boundary_is_the_authors(size, rows, monkeypatch):
    monkeypatch.setattr(metrics, "ROWS", rows)  # at a time
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


def test_an_image_of_unknown_pixels_alone_has_no_iou():
    truth = blobs(2)
    assert SegmentationCounts(NAMES).update(blobs(1).numpy(), torch.full_like(truth, 255).numpy()) is None
