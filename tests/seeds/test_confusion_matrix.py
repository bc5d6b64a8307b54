"""The confusion matrix against sets of pixels, and refused input."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from datamodules.errors import InputError
from seeds.evaluation import confusion_matrix
from seeds.evaluation.confusion_matrix import ConfusionMatrix, ratio


def test_worked_by_hand():
    confusion = ConfusionMatrix(4)
    confusion.update(torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[0, 1, 1], [1, 255, 0]]))
    assert confusion.matrix.tolist() == [[1, 0, 1, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    # 0: 1 hit of {3 pixels}; 1: 2 of 3; 2: predicted, never there: 0 of 1; 3: nowhere
    np.testing.assert_allclose(confusion.iou(), [1 / 3, 2 / 3, 0, np.nan])
    assert confusion.miou() == pytest.approx(1 / 3)


def test_a_class_present_and_never_hit_counts_zero():
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros(4, np.uint8), np.array([0, 0, 0, 1], np.uint8))
    assert confusion.iou().tolist() == [0.75, 0.0]
    assert confusion.miou() == 0.375


def test_pixels_of_a_large_mask_are_counted_part_by_part(monkeypatch):
    pred, target = np.random.default_rng(0).choice([0, 1, 2], (2, 31, 17))
    target[5] = 255
    whole, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(pred, target)
    monkeypatch.setattr(confusion_matrix, "CHUNK", 50)
    parts.update(pred, target)
    assert torch.equal(whole.matrix, parts.matrix)
    with pytest.raises(InputError, match="class index 2"):
        ConfusionMatrix(2).update(pred, target)


def test_nothing_counted_is_nan_without_a_warning():
    confusion = ConfusionMatrix(3)
    confusion.update(np.zeros(2, np.int64), np.full(2, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(confusion.miou())
        np.testing.assert_array_equal(ratio([1, 0, 3], [0, 0, 4]), [np.nan, np.nan, 0.75])


@given(
    arrays(np.uint8, 60, elements=st.integers(0, 4)),
    arrays(np.uint8, 60, elements=st.sampled_from([0, 1, 2, 3, 4, 255])),
)
def test_equals_counting_sets_and_adds_up(pred, target):
    whole, left, right = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(pred, target)
    left.update(pred[:23], target[:23])
    right.update(pred[23:], target[23:])
    assert torch.equal(left.matrix + right.matrix, whole.matrix)
    valid = target != 255
    for c, iou in enumerate(whole.iou()):
        union = ((pred == c) | (target == c)) & valid
        inter = (pred == c) & (target == c)
        expected = inter.sum() / union.sum() if union.any() else np.nan
        np.testing.assert_allclose(iou, expected)


@pytest.mark.parametrize(
    ("pred", "target", "words"),
    [([0, 3], [0, 0], "prediction holds class index 3"), ([0, 0], [0, 7], "mask holds class index 7"),
     ([0, -1], [0, 0], "prediction holds class index -1"), ([0], [0, 0], "shape")],
)  # fmt: skip
def test_bad_input(pred, target, words):
    with pytest.raises(InputError, match=words):
        ConfusionMatrix(3).update(np.array(pred), np.array(target))
