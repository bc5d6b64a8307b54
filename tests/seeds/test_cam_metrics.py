"""Metrics of one map, by hand."""

import numpy as np
import pytest
import torch

from datamodules.annotations.shapes import Box
from seeds.evaluation.cam_metrics import (
    box_from_map,
    deletion_insertion,
    energy_inside,
    is_correct,
    occlusion_maps,
    points_at,
    rank_correlation,
)


def region(shape, rows, columns):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_the_pointing_game_allows_fifteen_pixels():
    target = region((60, 60), slice(0, 10), slice(0, 10))
    for position, hit in (((5, 5), True), ((9, 24), True), ((9, 25), False), ((18, 21), True), ((21, 21), False)):
        cam = np.zeros((60, 60))
        cam[position] = 1.0
        assert points_at(cam, target) == hit, position
    assert not points_at(np.ones((60, 60)), target)
    assert not points_at(np.eye(60), np.zeros((60, 60), bool))


def test_energy():
    cam = np.array([[3.0, 1.0], [-5.0, 0.0]])
    assert energy_inside(cam, np.array([[True, False], [True, True]])) == 0.75
    assert energy_inside(np.zeros((2, 2)), np.ones((2, 2), bool)) == 0


def test_rank_correlation_by_hand():
    one, other = np.array([[1.0, 2.0], [3.0, 40.0]]), np.array([[0.0, 0.1], [0.3, 0.2]])
    assert rank_correlation(one, other) == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 Σd² / n(n² - 1)
    assert rank_correlation(one, -one) == pytest.approx(-1)
    assert rank_correlation(one, np.zeros((2, 2))) == 0


def test_occlusion_finds_the_pixel_that_counts():
    image = torch.zeros(3, 40, 60)
    image[:, 11, 47] = 2.0

    def scores(images):
        return torch.stack([images[:, 0, 11, 47], -images[:, 0, 11, 47], images.sum((1, 2, 3)) * 0], 1)

    maps = occlusion_maps(scores, image, patches=10)  # centres at 2, 6, … and 3, 9, …; patches of 8 x 12
    assert maps.shape == (3, 10, 10)
    hidden = torch.zeros(10, 10)
    hidden[2:4, 7:9] = 2.0  # rows [6, 14) and [10, 18), columns [39, 51) and [45, 57)
    torch.testing.assert_close(maps[0], hidden)
    torch.testing.assert_close(maps[1], -hidden)
    assert not maps[2].any()
    assert image[0, 11, 47] == 2


def test_curves_by_hand():
    """The probability is the unchanged share of the image's left half."""
    image = torch.rand(3, 8, 16, generator=torch.Generator().manual_seed(0)) + 0.1

    def scores(images):
        probability = (images == image)[:, 0, :, :8].float().mean((1, 2))
        return torch.stack([-probability, probability.logit()], 1)

    right_first = torch.zeros(8, 16)
    right_first[:, 8:] = 1.0
    wrong, right = (deletion_insertion(scores, 1, image, cam, 4) for cam in (right_first, -right_first))
    # 4 steps of a quarter each. Deleted from the right first: 1, 1, 1, 1/2, 0; from the left first: 1, 1/2, 0, 0, 0
    assert wrong[0] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)
    assert right[0] == pytest.approx((0.5 + 0.5) / 4)
    # inserted from the right first: 0, 0, 0, 1/2, 1; from the left first: 0, 1/2, 1, 1, 1
    assert wrong[1] == pytest.approx((0.5 + 0.5) / 4)
    assert right[1] == pytest.approx((0.5 + 1 + 1 + 0.5) / 4)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_blur_keeps_a_flat_image(channels):
    image = torch.full((channels, 20, 30), 0.7)
    seen = []
    deletion_insertion(lambda images: seen.append(images) or images.mean((2, 3)), 0, image, torch.rand(20, 30), 2)
    torch.testing.assert_close(seen[1], image.expand(3, channels, 20, 30))
    assert not seen[0][-1].any()


def test_insertion_starts_from_a_blur_of_a_twentieth_of_the_longer_side():
    image, seen = torch.zeros(1, 40, 100), []
    image[:, :, 50] = 1
    deletion_insertion(lambda images: seen.append(images) or images.mean((2, 3)), 0, image, torch.rand(40, 100), 2)
    gaussian = np.exp(-(np.arange(-15, 16) ** 2) / (2 * 5**2))  # up to three standard deviations
    expected = np.zeros(100)
    expected[35:66] = gaussian / gaussian.sum()
    np.testing.assert_allclose(seen[1][0, 0], np.tile(expected, (40, 1)), atol=1e-6)


def test_the_largest_component_above_a_fraction_of_the_maximum():
    cam = np.zeros((6, 8))
    cam[0, 0] = 10.0  # the highest, but a part of one pixel
    cam[2:5, 3:6] = 1.6
    cam[5, 6] = 1.6  # touches by a corner
    cam[2:5, 1:3] = 1.4  # below 15 % of 10
    assert box_from_map(cam, "cat") == Box("cat", 3, 2, 7, 6)
    assert box_from_map(cam * 1e-6, "cat") == box_from_map(cam, "cat")
    assert box_from_map(np.zeros((3, 3)), "cat") is None
    assert box_from_map(np.full((3, 4), 2.0), "cat") == Box("cat", 0, 0, 4, 3)


def test_correct_boxes_by_hand():
    dog, cat, far = Box("dog", 0, 0, 10, 10), Box("cat", 0, 0, 10, 10), Box("dog", 50, 50, 60, 60)
    half = Box("dog", 0, 0, 10, 5)
    assert is_correct(half, [far, dog])  # half is enough
    assert not is_correct(Box("dog", 0, 0, 10, 4.9), [dog])
    assert not is_correct(cat, [dog])
    assert not is_correct(None, [dog])
    assert not is_correct(dog, [])
    assert not is_correct(Box("dog", 1, 1, 1, 1), [Box("dog", 1, 1, 1, 1)])  # empty boxes
