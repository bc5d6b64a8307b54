"""Tiles of large images: coverage, weights, blending, and sampling of the blended grid."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import InputError
from seeds.tiles import Tiling, blended_rows, read_tile, reduce_image, sample_grid


@settings(max_examples=200, deadline=None)
@given(
    pixels=st.integers(1, 3000), side=st.integers(32, 1500), positions=st.integers(1, 60), overlap=st.floats(0, 0.95)
)
def test_tiles_cover_an_image_with_weights_above_0_that_sum_to_1(pixels, side, positions, overlap):
    places = Tiling(side, overlap).places(pixels, positions)
    total, covered = torch.zeros(places[-1][0] + positions), np.zeros(pixels, bool)
    for first, weights in places:
        assert (weights > 0).all()
        total[first : first + positions] += weights
        start = round(first * side / positions)
        covered[start : start + side] = True
    torch.testing.assert_close(total, torch.ones_like(total))
    assert covered.all()
    assert len(total) * side >= pixels * positions  # the grid, too, covers the image
    shared = [one + positions - other for (one, _), (other, _) in pairwise(places)]
    assert all(each >= min(round(overlap * positions), positions - 1) for each in shared)


def test_weights_rise_and_fall_linearly_over_the_overlap():
    (one, first), (other, second) = Tiling(80, 0.5).places(120, 8)
    assert (one, other) == (0, 4)
    torch.testing.assert_close(first, torch.tensor([1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]))
    torch.testing.assert_close(second, first.flip(0))


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(20, 200), width=st.integers(20, 200), side=st.integers(32, 90), overlap=st.floats(0, 0.8),
    batch_size=st.integers(1, 5),
)  # fmt: skip
def test_constant_scores_stay_constant(height, width, side, overlap, batch_size):
    """And each class keeps its own."""
    image = np.zeros((height, width, 3), np.uint8)
    constants = torch.tensor([0.2, 0.0, 7.0])[:, None, None]
    rows = blended_rows(
        image, lambda tiles: constants.expand(len(tiles), 3, 6, 6), Tiling(side, overlap),
        size=24, grid=(6, 6), batch_size=batch_size,
    )  # fmt: skip
    blended = torch.cat(list(rows), dim=1)
    torch.testing.assert_close(blended, constants.expand_as(blended))


@pytest.mark.parametrize("shape", [(160, 272), (40, 200), (65, 64)])
def test_scores_of_single_positions_are_blended_to_those_of_the_whole_image(shape):
    """A network that averages the pixels of each position: tiles then change nothing."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)

    def means(images):
        return torch.nn.functional.avg_pool2d(images, 8)

    rows = list(blended_rows(image, means, Tiling(64, 0.3), size=64, grid=(8, 8), batch_size=2))
    blended = torch.cat(rows, dim=1)
    h, w = shape[0] // 8, shape[1] // 8  # the positions that lie in the image as a whole
    padded = read_tile(image, 0, 0, 280)  # reflected
    whole = next(blended_rows(padded, means, Tiling(280), size=280, grid=(35, 35)))
    torch.testing.assert_close(blended[:, :h, :w], whole[:, :h, :w], rtol=1e-4, atol=1e-5)
    assert max(each.shape[1] for each in rows) <= 8  # no more than a row of tiles at a time


def test_tiles_beyond_the_edge_are_reflected():
    image = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    tile = read_tile(image, 2, 1, 6)
    assert tile.shape == (6, 6, 3)
    np.testing.assert_array_equal(tile[:3, :3], image[2:, 1:])
    np.testing.assert_array_equal(tile[3, :3], image[3, 1:])
    np.testing.assert_array_equal(tile[:3, 3], image[2:, 2])


def test_samples_of_a_grid_are_bilinear():
    grid = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    wanted = torch.nn.functional.interpolate(grid[None], (40, 21), mode="bilinear", align_corners=False)[0]
    y, x = (torch.arange(40) + 0.5) * 5 / 40, (torch.arange(21) + 0.5) * 7 / 21
    torch.testing.assert_close(sample_grid(grid, y, x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sample_grid(grid, y[10:20], x[5:9]), wanted[:, 10:20, 5:9], rtol=1e-4, atol=1e-5)


def test_a_reduced_image_is_its_mean_by_area():
    image = np.random.default_rng(0).integers(0, 256, (300, 1000, 3), dtype=np.uint8)
    small = reduce_image(image, 250)
    assert small.shape == (75, 250, 3)
    assert np.abs(small - cv2.resize(image, (250, 75), interpolation=cv2.INTER_AREA).astype(int)).max() <= 1
    np.testing.assert_array_equal(reduce_image(image, 1000), image)


@pytest.mark.parametrize(("side", "overlap"), [(31, 0.25), (-1, 0.25), (64, 1.0), (64, -0.1), (64, float("nan"))])
def test_tiles_that_are_none(side, overlap):
    with pytest.raises(InputError, match="tile is"):
        Tiling(side, overlap)


@pytest.mark.parametrize(("longest", "shape"), [(400, (34, 333, 3)), (333, (25, 250, 3)), (999, (51, 500, 3))])
def test_a_reduced_image_has_at_most_the_longest_side(longest, shape):
    """102x1000 pixels by a factor of 3, 4 and 2: those of 2.5, 3.003 and 1.001, rounded up."""
    assert reduce_image(np.zeros((102, 1000, 3), np.uint8), longest).shape == shape
