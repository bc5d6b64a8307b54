"""Simulated scribbles: one line through the middle of a region's largest part."""

import cv2
import numpy as np
import pytest

from tests.experiments.simulate_annotations import stroke


def test_a_bar_has_a_line_from_end_to_end_through_its_middle():
    region = np.zeros((80, 200), bool)
    region[40:60, 20:180] = True
    region[5:15, 5:15] = True  # a smaller part
    vertices = stroke(region)
    assert abs(vertices[-1][0] - vertices[0][0]) >= 150
    assert all(40 <= y < 60 for _, y in vertices)
    assert all(abs(y - 50) <= 4 for x, y in vertices if 60 < x < 140)


def test_a_bent_bar_has_a_line_around_the_corner():
    region = np.zeros((200, 200), bool)
    region[20:40, 20:180] = region[20:180, 160:180] = True
    line = np.zeros(region.shape, np.uint8)
    cv2.polylines(line, [np.array(stroke(region), np.int32)], isClosed=False, color=1)
    assert not line[~region].any()
    assert line.sum() > 250


@pytest.mark.parametrize("side", [1, 3])
def test_a_region_between_the_places_of_the_grid_has_one_point(side):
    region = np.zeros((40, 40), bool)
    region[19 : 19 + side, 15 : 15 + side] = True
    ((x, y),) = stroke(region)
    assert region[int(y), int(x)]
