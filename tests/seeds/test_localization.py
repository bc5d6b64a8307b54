"""Boxes of maps, and the localization error, by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.bounding_boxes import Box
from seeds.evaluation.localization import box_from_map, box_iou, is_correct, localization_error


def test_the_largest_component_above_a_fraction_of_the_maximum():
    cam = np.zeros((6, 8))
    cam[0, 0] = 10.0  # the highest, but a part of one pixel
    cam[2:5, 3:6] = 1.6
    cam[5, 6] = 1.6  # touches by a corner
    cam[2:5, 1:3] = 1.4  # below 15 % of 10
    assert box_from_map(cam, 3) == Box(3, 3, 2, 7, 6)
    assert box_from_map(cam, threshold=0.13) == Box(0, 1, 2, 7, 6)
    assert box_from_map(cam * 1e-6) == box_from_map(cam)
    assert box_from_map(np.zeros((3, 3))) is None
    assert box_from_map(np.full((3, 4), 2.0)) == Box(0, 0, 0, 4, 3)


def test_box_iou_by_hand():
    assert box_iou(Box(0, 0, 0, 4, 4), Box(0, 2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert box_iou(Box(0, 0, 0, 4, 4), Box(0, 4, 0, 6, 4)) == 0
    assert box_iou(Box(0, 0, 0, 4, 4), Box(1, 0, 0, 4, 4)) == 1
    assert box_iou(Box(0, 1, 1, 1, 1), Box(0, 1, 1, 1, 1)) == 0


boxes = st.tuples(*[st.integers(0, 20)] * 4).map(
    lambda n: Box(0, min(n[0], n[1]), min(n[2], n[3]), max(n[0], n[1]) + 1, max(n[2], n[3]) + 1)
)


@settings(max_examples=40, deadline=None)
@given(boxes, boxes)
def test_box_iou_counts_pixels(one, other):
    canvas = np.zeros((2, 25, 25), bool)
    for layer, box in zip(canvas, (one, other), strict=True):
        layer[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    assert box_iou(one, other) == pytest.approx(canvas.all(0).sum() / canvas.any(0).sum())


def test_errors_by_hand():
    dog, cat, far = Box(0, 0, 0, 10, 10), Box(1, 0, 0, 10, 10), Box(0, 50, 50, 60, 60)
    half = Box(0, 0, 0, 10, 5)
    assert is_correct(half, [far, dog])  # half is enough
    assert not is_correct(Box(0, 0, 0, 10, 4.9), [dog])
    assert not is_correct(cat, [dog])
    assert not is_correct(None, [dog])
    truths = [[dog], [dog], [dog], [dog, cat]]
    guesses = [[dog, cat], [cat, dog], [far, None], [cat, None, None, None, None, dog]]
    assert localization_error(guesses, truths) == (0.5, 0.25)
    sixth = [[far, far, far, far, far, dog]]
    assert localization_error(sixth, [[dog]]) == (1.0, 1.0)
