"""Metrics by class against hand-worked tables and torchmetrics."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from tests.training.label_maps import NAMES, blobs, counts_of
from training.evaluation.evaluation_table import absent_classes, compute_metrics
from training.evaluation.metrics import SegmentationCounts


def test_worked_by_hand():
    pred = torch.tensor([[0, 0, 1, 1], [2, 1, 1, 0]])
    truth = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 255]])
    counts = SegmentationCounts(NAMES)
    # background: 1 hit of {3}; cat: 3 of {6}; dog: called once, never there; owl: nowhere
    assert counts.update(pred.numpy(), truth.numpy()) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    found = compute_metrics(counts)
    assert found["iou"] == pytest.approx({"background": 1 / 3, "cat": 1 / 2, "dog": 0})
    assert found["miou"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert found["background_iou"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx({"background": 1 / 2, "cat": 3 / 4, "dog": 0})
    assert found["recall"] == pytest.approx({"background": 1 / 2, "cat": 3 / 5})
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)
    assert found["mean_accuracy"] == pytest.approx((1 / 2 + 3 / 5) / 2)
    assert found["confusion"]["pixels"] == [[1, 1, 0, 0], [1, 3, 1, 0], [0] * 4, [0] * 4]
    assert found["miou_interval"] is None  # one image has no interval
    assert absent_classes(found) == "1 of 4 classes are in no mask and no prediction, and not in the means: owl"
    assert [(pair["truth"], pair["predicted"], pair["pixels"], pair["share"]) for pair in found["confused"]] == [
        ("background", "cat", 1, 0.5), ("cat", "background", 1, 0.2), ("cat", "dog", 1, 0.2),
    ]  # fmt: skip


def test_iou_is_torchmetrics():
    """Per class and over the set; the mean over classes that occur, which torchmetrics' own mean is not."""
    pairs = [(blobs(i), blobs(i + 100, void=True)) for i in range(4)]
    settings = {"num_classes": 4, "ignore_index": 255}
    jaccard, confusion = MulticlassJaccardIndex(average=None, **settings), MulticlassConfusionMatrix(**settings)
    for pred, truth in pairs:
        jaccard.update(pred[None], truth[None])
        confusion.update(pred[None], truth[None])
    counts = counts_of(pairs)
    assert counts.matrix.tolist() == confusion.compute().tolist()
    metrics = compute_metrics(counts)
    assert list(metrics["iou"].values()) == pytest.approx(jaccard.compute().tolist(), abs=1e-7)  # float32 there
    assert metrics["miou"] == pytest.approx(np.mean(list(metrics["iou"].values())), abs=1e-12)
