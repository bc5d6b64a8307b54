import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seeds.cues import background_cues, foreground_cues, resolve_conflicts, threshold_cues


def test_foreground_is_relative_to_each_maps_own_maximum():
    maps = np.array([[[[10.0, 2.0, 2.1]], [[0.1, 0.01, 0.021]], [[0.0, 0.0, 0.0]]]], np.float32)
    assert foreground_cues(maps, 0.2).tolist() == [[[[True, False, True]], [[True, False, True]], [[False] * 3]]]


def test_min_max_normalised_maps_would_give_other_cues():
    """The mistake of a port: with 1 subtracted first, the middle position falls under 20 % of the maximum."""
    maps = np.array([[[[1.0, 1.1, 2.0]]]], np.float32)
    assert foreground_cues(maps).all()
    low, high = maps.min(), maps.max()
    assert foreground_cues((maps - low) / (high - low)).tolist() == [[[[False, False, True]]]]


@given(arrays(np.float32, (2, 5, 7), elements=st.floats(0, 1, width=32)), st.floats(0, 0.99))
def test_background_is_the_lowest_part(saliency, fraction):
    cues = background_cues(saliency, fraction)
    for low, one in zip(cues, saliency, strict=True):
        if np.ptp(one) == 0:
            assert not low.any()
        else:
            assert low.sum() == int(fraction * 35)
            assert one[low].max(initial=0) <= one[~low].min()


def test_a_fraction_that_is_no_binary_number():
    """0.29 of 100 positions are 29, though the product of the floats is 28.99…"""
    saliency = np.arange(200, dtype=np.float32).reshape(2, 10, 10)
    assert background_cues(saliency, 0.29).sum(axis=(1, 2)).tolist() == [29, 29]


def test_conflicts_by_hand():
    foreground = np.array([[[[1, 1, 1, 0, 0]], [[0, 1, 1, 0, 0]], [[0, 0, 1, 1, 0]]]], np.bool_)
    background = np.array([[[1, 0, 0, 0, 1]]], np.bool_)
    # class 1 has three positions; 2 and 3 have two: the first of them takes the position that all claim
    assert resolve_conflicts(foreground, background).tolist() == [[[1, 2, 2, 3, 0]]]
    assert resolve_conflicts(foreground, background).dtype == np.uint8


@given(arrays(np.bool_, (1, 3, 4, 4)), arrays(np.bool_, (1, 4, 4)))
def test_a_position_has_one_class_the_smallest(foreground, background):
    labels = resolve_conflicts(foreground, background)[0]
    sizes = foreground[0].sum((1, 2))
    for (i, j), label in np.ndenumerate(labels):
        claims = np.flatnonzero(foreground[0, :, i, j])
        expected = min(claims, key=lambda c: (sizes[c], c)) + 1 if len(claims) else (0 if background[0, i, j] else 255)
        assert label == expected


def test_no_class_at_all():
    background = np.array([[[True, False]]])
    assert resolve_conflicts(np.zeros((1, 0, 1, 2), np.bool_), background).tolist() == [[[0, 255]]]


@pytest.mark.parametrize("saliency", [None, np.array([[5, 4, 3, 2, 0]], np.float32)])
def test_label_map_names_the_classes(saliency):
    classes = np.array([3, 17])
    maps = np.array([[[0, 0, 5, 1.1, 0]], [[0, 9, 9, 0, 0]]], np.float32)
    expected = [255, 18, 4, 4, 255 if saliency is None else 0]  # equally small: the first
    cues = threshold_cues(classes, maps, saliency, 0.2, 0.2)
    assert cues.tolist() == [expected]
    assert cues.dtype == np.uint8


def test_of_equal_saliency_the_first_positions_are_background():
    """On every processor: the bytes of a shard follow from its inputs."""
    saliency = np.random.default_rng(0).choice(np.float32([0, 1]), (1, 20, 30))
    wanted = np.flatnonzero(saliency == 0)[:60]
    assert np.flatnonzero(background_cues(saliency, 0.1)).tolist() == wanted.tolist()


def test_thresholds_of_the_paper_are_the_defaults():
    assert foreground_cues(np.float32([[[[1, 0.2, 0.21]]]])).tolist() == [[[[True, False, True]]]]
    assert background_cues(np.arange(100, dtype=np.float32).reshape(1, 10, 10)).sum() == 10
    ramp, peaks = np.arange(100, dtype=np.float32).reshape(10, 10), np.zeros((1, 10, 10), np.float32)
    peaks[0, 9, 7:] = 1, 0.2, 0.21
    cues = threshold_cues(np.array([0]), peaks, ramp)
    assert (cues == 0).sum() == 10
    assert cues[9].tolist() == [255] * 7 + [1, 255, 1]
