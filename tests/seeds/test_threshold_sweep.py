"""The sweep of background thresholds against one confusion matrix per threshold, and Otsu's method against OpenCV."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from datamodules.errors import InputError
from seeds.evaluation.confusion_matrix import ConfusionMatrix
from seeds.evaluation.threshold_sweep import ThresholdSweep, otsus_threshold


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.2, 0.123456, 0.0, 1.0]))
@example(420, 0.15)  # neither image has a map
def test_one_pass_equals_a_confusion_matrix_for_each_threshold(seed, fixed):
    generator = np.random.default_rng(seed)
    sweep, confusions, found = ThresholdSweep(4, fixed), None, 0
    for _ in range(2):
        classes = np.flatnonzero(generator.random(3) < 0.6)
        found += len(classes)
        maps = np.maximum(generator.normal(size=(len(classes), 3, 4)), 0).astype(np.float32)
        truth = generator.choice([0, 1, 2, 3, 255], (9, 13)).astype(np.uint8)
        sweep.update(classes, maps, truth)
        confusions = confusions or [ConfusionMatrix(4) for _ in sweep.thresholds]
        for confusion, threshold in zip(confusions, sweep.thresholds, strict=True):
            scores = np.full((4, 9, 13), -1.0, np.float32)
            scores[0] = threshold
            for c, one in zip(classes, maps, strict=True):
                share = torch.from_numpy(one / one.max() if one.max() else one)[None, None]
                scores[c + 1] = functional.interpolate(share, (9, 13), mode="bilinear")[0, 0].numpy()
            confusion.update(scores.argmax(0), truth)  # of equals the first: the background, then the lower class
    matrices = sweep.matrices()
    for confusion, matrix in zip(confusions, matrices, strict=True):
        np.testing.assert_array_equal(matrix, confusion.matrix.numpy())
    result = sweep.compute(("background", "a", "b", "c"))
    if not found:  # without a map every threshold gives the background
        assert result["miou_fixed"] is result["miou_oracle"] is result["threshold_fixed"] is None
        return
    means = [confusion.miou() for confusion in confusions]
    at = int(np.argmin(abs(sweep.thresholds - fixed)))
    assert result["miou_fixed"] == pytest.approx(means[at])
    assert result["miou_oracle"] == pytest.approx(
        max(
            m
            for m, t in zip(means, sweep.thresholds, strict=True)
            if abs(t * 100 - round(t * 100)) < 1e-4 and t < 0.995
        )
    )
    assert result["threshold_fixed"] == fixed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1))
def test_otsus_threshold_parts_as_opencv_does(values):
    image = np.array([values], np.uint8)
    found = round(otsus_threshold(np.bincount(image[0], minlength=256)) * 256)
    theirs, _ = cv2.threshold(image, 0, 255, cv2.THRESH_OTSU)
    assert spread_between(image[0], found) == pytest.approx(spread_between(image[0], int(theirs) + 1))


def spread_between(values, limit):
    """The weighted gap between the means below a limit and above it, which the method makes large."""
    below, above = values[values < limit].astype(float), values[values >= limit].astype(float)
    return len(below) * len(above) * (below.mean() - above.mean()) ** 2


def test_otsus_threshold_of_one_number():
    assert otsus_threshold(np.array([0, 5, 0])) == 0


def test_the_threshold_of_the_maps_alone(tmp_path):
    """Positions of 0.1 and of 0.9, two classes of two scales: 0.11 is the first bin's edge between them."""
    sweep = ThresholdSweep(3, 0.2)
    weak = np.array([[0.1, 0.1], [0.9, 1.0]], np.float32)
    sweep.update(np.array([0, 1]), np.stack([weak, 5 * weak]), np.full((2, 2), 255, np.uint8))
    sweep.update(np.array([], int), np.zeros((0, 2, 2), np.float32), np.zeros((2, 2), np.uint8))
    assert sweep.compute(("background", "a", "b"))["threshold_otsu"] == pytest.approx(0.11)


def test_the_oracle_is_one_of_the_hundredths():
    """A class at 0.126 and 1, background at 0.124: only the fixed threshold 0.125, no hundredth, is perfect."""
    sweep = ThresholdSweep(2, 0.125)
    sweep.update(
        np.array([0]), np.array([[[1, 0.126], [0.124, 0.124]]], np.float32), np.array([[1, 1], [0, 0]], np.uint8)
    )
    found = sweep.compute(("background", "a"))
    assert found["miou_fixed"] == 1
    assert found["threshold_oracle"] == 0.13  # at 0.12 no position is background
    assert found["miou_oracle"] == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("fixed", [-0.01, 1.01, float("nan")])
def test_a_threshold_that_is_no_fraction(fixed):
    with pytest.raises(InputError, match=f"threshold {fixed} is outside 0..1"):
        ThresholdSweep(3, fixed)


def test_masks_without_a_known_pixel():
    """The maps have a threshold by Otsu's method; there is no IoU, and the oracle's threshold is the first."""
    sweep = ThresholdSweep(2, 0.005)
    sweep.update(np.array([0]), np.array([[[0.2, 0.2], [0.9, 1]]], np.float32), np.full((2, 2), 255, np.uint8))
    found = sweep.compute(("background", "a"))
    assert (found["miou_fixed"], found["miou_otsu"], found["miou_oracle"]) == (None, None, None)
    assert (found["threshold_fixed"], found["threshold_otsu"], found["threshold_oracle"]) == (0.005, 0.21, 0)
    assert found["iou_oracle"] == {"background": None, "a": None}
