"""Label maps of what people have drawn: tables by hand, and properties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from datamodules.annotations.drawn_labels import (
    Drawn,
    box_interiors,
    corrected_cues,
    draw_labels,
    ignore_background_of_unmasked_objects,
    keep_all_classes,
    reduce_labels,
)
from datamodules.annotations.shapes import Box
from datamodules.transforms import Augment, Transform, resize_nearest

NO_BOXES = np.zeros((0, 5), np.float32)


def line(index, *vertices):
    return index, np.array(vertices, np.float32)


def test_points_lines_and_masks():
    mask = np.full((4, 6), 255, np.uint8)
    mask[0] = 0
    lines = [line(2, (0.9, 1.2)), line(3, (2, 3), (5.5, 3.9)), line(1, (4, 1), (4, 2))]
    wanted = [
        [0, 0, 0, 0, 0, 0],
        [2, 255, 255, 255, 1, 255],
        [255, 255, 255, 255, 1, 255],
        [255, 255, 3, 3, 3, 3],
    ]
    for order in itertools.permutations(lines):
        assert draw_labels((4, 6), mask, order).tolist() == wanted
    assert mask[1, 0] == 255, "the mask that was given is unchanged"


def test_pixels_of_two_classes_have_no_label():
    lines = [line(1, (0, 0), (2, 0)), line(2, (2, 0), (4, 0)), line(1, (2, 0)), line(2, (4, 0))]
    for order in itertools.permutations(lines):
        assert draw_labels((1, 5), None, order).tolist() == [[1, 1, 255, 2, 2]]
    mask = np.array([[0, 1]], np.uint8)
    assert draw_labels((1, 2), mask, [line(1, (0, 0)), line(1, (1, 0))]).tolist() == [[255, 1]]


def test_background_is_unknown_where_a_box_has_an_object_that_the_mask_lacks():
    mask = np.array([[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0]], np.uint8)
    dog, cat, second_cat = Box("dog", 2.5, 0, 5, 1.2), Box("cat", 0, 0, 3.5, 3), Box("cat", 3, 2, 9, 9)
    wanted = [[0, 0, 255, 255, 255], [0, 1, 1, 255, 255], [0, 1, 1, 255, 255]]
    for boxes in itertools.permutations([(2, dog), (1, cat), (1, second_cat)]):
        assert ignore_background_of_unmasked_objects(mask, [], boxes).tolist() == wanted
    assert ignore_background_of_unmasked_objects(mask, [], [(1, cat)]).tolist() == mask.tolist()
    assert mask.max() == 1, "the mask that was given is unchanged"


def test_background_is_unknown_where_a_point_has_a_class_that_the_mask_lacks():
    mask = np.array([[0, 1, 255]], np.uint8)
    assert ignore_background_of_unmasked_objects(mask, [line(2, (0, 0))], []).tolist() == [[255, 1, 255]]
    assert ignore_background_of_unmasked_objects(mask, [line(1, (0, 0)), line(0, (0, 0))], []).tolist() == mask.tolist()


def test_lines_may_leave_the_image():
    assert draw_labels((2, 2), None, [line(1, (-5, 0), (9, 0)), line(2, (-1, 1))]).tolist() == [[1, 1], [255, 255]]


def test_a_position_keeps_its_single_pixel():
    labels = np.full((4, 6), 255, np.uint8)
    labels[0, 0] = 3  # the only pixel of the first position
    labels[2, 4:] = 1, 2  # two classes in the last position
    assert reduce_labels(labels, 2, 3).tolist() == [[3, 255, 255], [255, 255, 255]]
    labels[:2, 2:4] = [[0, 0], [0, 1]]  # the centre counts before the others
    assert reduce_labels(labels, 2, 3)[0, 1] == resize_nearest(labels, 2, 3)[0, 1] != 255


@pytest.mark.parametrize("size", range(1, 9))
def test_each_pixel_is_in_one_position(size):
    """The position of a single pixel is the one that contains its centre, also where the sizes do not divide."""
    for pixels in range(size, 25):
        labels = np.where(np.eye(pixels, dtype=bool), 0, 255).astype(np.uint8)
        positions = [reduce_labels(row[None], 1, size).ravel().tolist() for row in labels]
        expected = [[0 if k == (2 * p + 1) * size // (2 * pixels) else 255 for k in range(size)] for p in range(pixels)]
        assert positions == expected


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 5), st.data())
def test_reduced_labels_occur_in_their_position(height, width, data):
    shape = data.draw(st.tuples(st.integers(height, 12), st.integers(width, 12)))
    labels = data.draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255, 255, 255])))
    reduced = reduce_labels(labels, height, width)
    assert reduced.shape == (height, width)
    assert set(reduced.flat) <= {*labels.flat, 255}
    if (labels != 255).sum() == 1:  # a single point is never lost
        assert (reduced != 255).sum() == 1
    full = np.where(labels == 255, 0, labels).astype(np.uint8)
    assert (reduce_labels(full, height, width) == resize_nearest(full, height, width)).all()


def test_interiors_of_boxes():
    boxes = np.array([[2, 0, 0, 0.5, 0.5], [2, 0.5, 0.5, 1, 1], [1, 0.3, -1, 0.9, 2]], np.float32)
    interiors = box_interiors(boxes, 2, 4)  # centres at x = 1/8, 3/8, 5/8, 7/8 and y = 1/4, 3/4
    assert interiors[2].astype(int).tolist() == [[[1, 1, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [0, 0, 1, 1]]]
    assert interiors[1].astype(int).tolist() == [[[0, 1, 1, 1], [0, 1, 1, 1]]]
    assert box_interiors(NO_BOXES, 2, 4) == {}
    small = np.array([[1, 0.3, 0.3, 0.36, 0.4], [1, 0.3, -0.2, 0.36, -0.1]], np.float32)  # within and outside the image
    assert box_interiors(small, 2, 4)[1].astype(int).tolist() == [[[0, 1, 0, 0], [0, 0, 0, 0]], [[0] * 4] * 2]


def test_drawn_labels_replace_cues_and_boxes_exclude_their_class():
    cues = np.array([[1, 1, 2, 0]], np.uint8)
    mask = np.array([[255, 255, 255, 2]], np.uint8)
    boxes = np.array([[1, 0, 0, 0.25, 1]], np.float32)
    assert corrected_cues(cues, Drawn(mask, boxes)).tolist() == [[1, 255, 2, 2]]
    assert corrected_cues(cues, Drawn(np.full((1, 4), 255, np.uint8), NO_BOXES)).tolist() == cues.tolist()
    full = np.array([[0, 2, 1, 0]], np.uint8)
    assert corrected_cues(cues, Drawn(full, NO_BOXES)).tolist() == full.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_points_move_with_their_pixels(seed):
    """A point in the middle of a block of one colour lies in that block after crop, flip and resizing."""
    blocks = np.arange(1, 7 * 9 + 1, dtype=np.uint8).reshape(7, 9)
    mask = blocks.repeat(10, axis=0).repeat(8, axis=1)  # 70x72
    image = np.stack([mask] * 3, axis=2)
    rows, columns = np.mgrid[:7, :9]
    points = np.stack([columns.ravel() * 8 + 4.0, rows.ravel() * 10 + 5.0], axis=1)
    moved = Transform(96, Augment((0.3, 1.0), True, 0))(image, seed=seed, mask=mask, points=points)
    x, y = np.floor(moved["points"]).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < 96) & (y < 96)
    assert inside.sum() >= 9
    assert moved["mask"][y[inside], x[inside]].tolist() == blocks.ravel()[inside].tolist()
    plain = Transform(96, Augment((0.3, 1.0), True, 0))(image, seed=seed, mask=mask)
    assert (plain["image"] == moved["image"]).all()
    assert "points" not in plain


def test_a_mirrored_point_stays_in_its_pixel():
    image = np.zeros((4, 4, 3), np.uint8)
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    points = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2) + 0.01
    for seed in range(6):
        moved = Transform(4, Augment(None, True, 0))(image, seed=seed, mask=mask, points=points)
        x, y = np.floor(moved["points"]).astype(int).T
        assert moved["mask"][y, x].tolist() == mask.ravel().tolist()


def test_each_class_of_a_mask_keeps_a_pixel():
    mask = np.zeros((8, 8), np.uint8)
    mask[1, 6:8], mask[6, 0], mask[4:, 4:], mask[0, :3] = 3, 2, 1, 255
    resized = np.array([[0, 0], [0, 1]], np.uint8)
    assert keep_all_classes(resized, mask).tolist() == [[0, 3], [2, 1]]
    assert resized.tolist() == [[0, 0], [0, 1]]
    assert keep_all_classes(mask, mask).tolist() == mask.tolist()
    mask[6, 6] = 4  # where class 1 has its only pixel
    assert keep_all_classes(resized, mask).tolist() == [[4, 3], [2, 1]]


@given(hnp.arrays(np.uint8, (12, 12), elements=st.sampled_from([0, 0, 0, 1, 2, 3, 255])))
def test_no_class_of_a_mask_is_lost(mask):
    resized = resize_nearest(mask, 3, 4)
    kept = keep_all_classes(resized, mask)
    assert set(np.unique(kept)) >= set(np.unique(mask)) - {0, 255}
    assert (kept != resized).sum() == len(set(np.unique(mask)) - set(np.unique(resized)) - {0, 255})


def test_a_centre_on_the_left_or_upper_side_of_a_box_is_inside_and_one_on_the_others_is_not():
    boxes = np.array([[1, 0.125, 0.25, 0.625, 0.75]], np.float32)  # centres at x = 1/8, 3/8, 5/8, 7/8 and y = 1/4, 3/4
    assert box_interiors(boxes, 2, 4)[1].astype(int).tolist() == [[[1, 1, 0, 0], [0, 0, 0, 0]]]


@pytest.mark.parametrize(("side", "count"), [(320, 40), (320, 80), (640, 80), (512, 128), (480, 120), (321, 107)])
def test_sides_of_boxes_that_lie_on_a_centre(side, count):
    """Sides are float32, as in the loss of boxes, and equal to a centre at the same place."""
    for pixel in range(side):
        box = np.array([[1, pixel / side, 0, 1, 1]], np.float32)
        expected = [2 * pixel * count <= (2 * position + 1) * side for position in range(count)]
        if any(expected):
            assert box_interiors(box, 1, count)[1][0, 0].tolist() == expected, pixel
