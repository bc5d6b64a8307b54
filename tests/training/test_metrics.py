"""The bootstrap interval against a slow one, the most confused classes, and memory."""

import tracemalloc

import numpy as np
import pytest
import torch

from tests.training.label_maps import NAMES, blobs, counts_of
from training.evaluation.evaluation_table import compute_metrics
from training.evaluation.metrics import RESAMPLES, SEED, SegmentationCounts, confused_pairs, miou_interval


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
    found = miou_interval(counts_of([(pred, truth), (pred, truth), (pred, blank)]).per_image)
    assert found["low"] == found["high"] == pytest.approx(compute_metrics(counts_of([(pred, truth)]))["miou"])
    assert compute_metrics(counts_of([(pred, blank)]))["miou"] is None


def test_confused_pairs_go_by_their_share():
    matrix = np.array([[900, 90, 10], [1, 5, 4], [0, 0, 0]])
    pairs = confused_pairs(matrix, NAMES[:3], wanted=3)
    assert [(pair["truth"], pair["predicted"]) for pair in pairs] == [
        ("cat", "dog"), ("cat", "background"), ("background", "cat"),
    ]  # fmt: skip
    assert [pair["share"] for pair in pairs] == pytest.approx([0.4, 0.1, 0.09])


def test_memory_does_not_grow_with_images_times_squared_classes():
    """81 classes, as of COCO: two matrices an image of 5,000 would be 525 MB."""
    counts = SegmentationCounts([str(number) for number in range(81)])
    generator = np.random.default_rng(0)
    pred, truth = (torch.from_numpy(generator.integers(0, 81, (8, 8))) for _ in range(2))
    counts.update(pred, truth)
    tracemalloc.start()
    for _ in range(500):
        counts.update(pred, truth)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 500 * 4 * 81 * 8
    assert counts.matrix.sum() == 501 * 64


def test_the_interval_of_many_images_needs_little_memory():
    generator = np.random.default_rng(0)
    sums = [generator.integers(1, 9, (3, 3)) for _ in range(4000)]
    tracemalloc.start()
    assert miou_interval(sums) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # all draws at once: 64 MB
