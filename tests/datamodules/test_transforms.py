import colorsys
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.transforms import Augment, Transform, resize_nearest

COLOURS = np.array([(10, 10, 10), (240, 20, 20), (20, 240, 20), (20, 20, 240)], np.uint8)


def blocks(height, width, side=3):
    """A mask of big random blocks, and the image that shows it."""
    mask = resize_nearest(np.random.default_rng(0).integers(0, 4, (side, side), dtype=np.uint8), height, width)
    return COLOURS[mask], mask


def shown(image):
    """The class that each pixel shows."""
    return np.abs(image[..., None, :].astype(int) - COLOURS).sum(-1).argmin(-1)


@pytest.mark.parametrize("seed", range(12))
def test_image_mask_and_cues_move_together(seed):
    image, mask = blocks(90, 150)
    result = Transform(72, Augment(crop=(0.3, 0.8), color=0))(image, seed=seed, mask=mask, cues=mask[::10, ::10])
    assert {k: v.shape for k, v in result.items()} == {"image": (72, 72, 3), "mask": (72, 72), "cues": (72, 72)}
    for key in ("mask", "cues"):
        # edges are blended in the image: a seventh of the pixels at most lies on one
        assert (shown(result["image"]) == result[key]).mean() > (0.95 if key == "mask" else 0.85)
        assert set(np.unique(result[key])) <= set(range(4))


def test_the_same_seed_gives_the_same_and_another_another():
    image, mask = blocks(90, 150)
    transform = Transform(32, Augment())
    first = transform(image, seed=5, mask=mask)
    others = [transform(image, seed=s)["image"] for s in range(6)]
    again = Transform(32, Augment())(image, seed=5, mask=mask)
    assert all((first[k] == again[k]).all() for k in first)
    assert (first["image"] == others[5]).all()
    assert all((others[a] != others[b]).any() for a in range(6) for b in range(a))


def test_colours_change_in_brightness_and_contrast():
    """A gray image of two levels: brightness scales both alike, contrast changes their ratio."""
    jitter = Transform(8, Augment(crop=None, flip=False, color=0.3))
    gray = np.full((8, 8, 3), 80, np.uint8)
    gray[:4] = 120
    found = np.array([jitter(gray, seed=seed)["image"][[0, 7], 0, 0] for seed in range(40)]).astype(float)
    means, ratios = found.mean(axis=1), found[:, 0] / found[:, 1]
    assert 60 < means.min() < 85  # 0.7 of 100 at most, and half of the way there at least
    assert 115 < means.max() < 140
    assert ratios.min() < 1.4
    assert ratios.max() > 1.6


def test_each_part_of_the_augmentation_can_be_left_out():
    image, mask = blocks(32, 32)
    nothing = Transform(32, Augment(crop=None, flip=False, color=0))
    assert all((nothing(image, seed=s)["image"] == image).all() for s in range(5))
    flips = [Transform(32, Augment(crop=None, color=0))(image, seed=s, mask=mask) for s in range(20)]
    mirrored = [bool((f["image"] == image[:, ::-1]).all() and (f["mask"] == mask[:, ::-1]).all()) for f in flips]
    straight = [bool((f["image"] == image).all() and (f["mask"] == mask).all()) for f in flips]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert 3 <= sum(mirrored) <= 17
    painted = Transform(32, Augment(crop=None, flip=False, color=0.5))(image, seed=0, mask=mask)
    assert (painted["image"] != image).any()
    assert (painted["mask"] == mask).all()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**62),
    low=st.floats(0.1, 1),
    part=st.floats(0, 1),
    height=st.integers(60, 200),
    width=st.integers(60, 200),
)
def test_crops_keep_to_the_area_and_to_the_aspect_ratio_of_the_image(seed, low, part, height, width):
    area = (low, low + part * (1 - low))
    y, x = np.mgrid[:height, :width]
    position = np.stack((y, x, x * 0), -1).astype(np.uint8)
    result = Transform(50, Augment(crop=area, flip=False, color=0))(position, seed=seed, mask=position[..., 0])
    tall, across = (np.ptp(result["image"][..., c].astype(float)) + 1 for c in (0, 1))
    tall, across = tall * 50 / 49 / height, across * 50 / 49 / width  # from the first sample's centre to the last's
    assert area[0] * 0.9 - 0.02 < tall * across < area[1] * 1.1 + 0.02
    assert 3 / 4 * 0.92 < tall / across < 4 / 3 * 1.09


def crops(area):
    """The first and the last sample of 60 crops: their row and column as fractions of the image's sides, (60, 2, 2)."""
    y, x = np.mgrid[:100, :120]
    position = (250 * np.stack((y / 100, x / 120, x * 0), -1)).astype(np.uint8)
    crop = Transform(20, Augment(crop=area, flip=False, color=0))
    return np.array([crop(position, seed=seed)["image"][[0, -1], [0, -1], :2] / 250 for seed in range(60)])


def test_crops_lie_anywhere_in_the_image():
    """Of a quarter of the area, with sides of 0.43 to 0.58 of the image's: they reach all four sides of the image."""
    first, last = crops((0.25, 0.25)).transpose(1, 0, 2)
    for axis in (0, 1):
        assert first[:, axis].min() < 0.1
        assert first[:, axis].max() > 0.4
        assert last[:, axis].min() < 0.6
        assert last[:, axis].max() > 0.9


def test_areas_and_aspect_ratios_of_crops_are_spread_over_their_ranges():
    first, last = crops((0.3, 0.9)).transpose(1, 0, 2)
    height, width = ((last - first) * 20 / 19).T
    assert (height * width).min() < 0.4
    assert (height * width).max() > 0.8
    assert (width / height).min() < 0.85
    assert (width / height).max() > 1.18


def test_without_augmentation_the_whole_image_is_resized():
    image, mask = blocks(90, 150)
    result = Transform(60)(image, seed=3, mask=mask, cues=mask)
    assert (shown(result["image"]) == result["mask"]).mean() > 0.95
    assert (result["mask"] == resize_nearest(mask, 60, 60)).all()
    assert (result["mask"] == result["cues"]).all()
    assert Transform(60)(image)["image"].shape == (60, 60, 3)


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(1, 12),
    height=st.integers(24, 120),
    width=st.integers(24, 120),
    size=st.integers(24, 120),
)
def test_cues_come_back_from_the_image_size_unchanged(side, height, width, size):
    cues = np.random.default_rng(side).integers(0, 5, (side, side), dtype=np.uint8)
    moved = Transform(size)(np.zeros((height, width, 3), np.uint8), cues=cues)["cues"]
    assert (resize_nearest(moved, side, side) == cues).all()


def test_nearest_takes_what_lies_under_the_centre():
    row = np.arange(9, dtype=np.uint8)[None]
    assert resize_nearest(row, 1, 3).tolist() == [[1, 4, 7]]
    assert resize_nearest(row[:, :2], 1, 4).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    "settings", [{"crop": (0, 1)}, {"crop": (0.8, 0.5)}, {"crop": (0.5, 1.2)}, {"color": 1}, {"color": -1}]
)
def test_bad_settings(settings):
    with pytest.raises(InputError, match=f"augment.{next(iter(settings))} is"):
        Augment(**settings)


def test_settings_from_a_checkpoint_are_the_same():
    assert Augment(crop=[1, 1]) == Augment(crop=(1.0, 1.0))


def test_settings_that_are_not_given():
    assert Augment() == Augment(crop=(0.4, 1.0), flip=True, color=0.3)


def test_albumentations_looks_for_no_newer_version():
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"}
    code = (
        "import socket\n"
        "def no(*a, **k): raise SystemExit('looked online')\n"
        "socket.getaddrinfo = socket.create_connection = no\n"
        "import datamodules.transforms"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_images_of_other_numbers_of_channels(channels):
    """They are resized and flipped as RGB images are; of the colour jitter brightness and contrast remain."""
    image = np.random.default_rng(0).integers(0, 200, (40, 50, channels), dtype=np.uint8)
    plain = Transform(32, Augment(color=0), channels)
    for seed in range(3):
        moved = plain(image, seed=seed)["image"]
        assert moved.shape == (32, 32, channels)
        for channel in range(channels):
            alone = np.repeat(image[..., channel : channel + 1], 3, axis=2)
            assert np.array_equal(plain(alone, seed=seed)["image"][..., 0], moved[..., channel])
    jittered = Transform(32, Augment(crop=None, flip=False, color=0.5), channels)(image, seed=1)["image"]
    resized = Transform(32, None, channels)(image)["image"]
    assert jittered.shape == resized.shape
    assert not np.array_equal(jittered, resized)


@pytest.mark.parametrize("augment", [None, Augment(crop=(1, 1), flip=False, color=0)])
def test_images_shrink_to_the_mean_of_what_they_stand_for(augment):
    """Stripes of one bright column in four become gray; masks keep their values."""
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    image[:, ::4], mask[:, 2::4] = 200, 7  # column 2 is at the centre of each position
    moved = Transform(16, augment)(image, mask=mask)
    assert (moved["image"] == 50).all()
    assert (moved["mask"] == 7).all()


def test_the_hue_changes_by_up_to_an_eighth_of_the_strength():
    """Of red, whose hue is 0: at a strength of 0.4 by up to 0.05 of a full turn."""
    jitter = Transform(4, Augment(crop=None, flip=False, color=0.4))
    red = np.full((4, 4, 3), (160, 60, 60), np.uint8)
    hues = [colorsys.rgb_to_hsv(*(jitter(red, seed=seed)["image"][0, 0] / 255))[0] for seed in range(60)]
    turns = np.array([hue - 1 if hue > 0.5 else hue for hue in hues])
    assert turns.min() < -0.03
    assert turns.max() > 0.03
    assert abs(turns).max() < 0.06


def test_the_saturation_changes_by_up_to_the_strength():
    """Of red, beside two gray levels: their difference shows what brightness and contrast have changed."""
    jitter = Transform(4, Augment(crop=None, flip=False, color=0.3))
    image = np.full((4, 4, 3), 60, np.uint8)
    image[1], image[2:] = 140, (140, 80, 80)
    found = [jitter(image, seed=seed)["image"][:, 0].astype(float) for seed in range(60)]
    factors = np.array([np.ptp(red) / 60 / ((light - dark)[0] / 80) for dark, light, red, _ in found])
    assert 0.65 < factors.min() < 0.8
    assert 1.2 < factors.max() < 1.35


def test_brightness_and_contrast_of_other_numbers_of_channels():
    """Two gray levels in four channels: every image changes, the difference by up to 0.3 of itself."""
    jitter = Transform(8, Augment(crop=None, flip=False, color=0.3), channels=4)
    gray = np.full((8, 8, 4), 90, np.uint8)
    gray[:4] = 130
    found = np.array([jitter(gray, seed=seed)["image"][[0, 7], 0, 0] for seed in range(40)]).astype(float)
    assert (found != [130, 90]).any(axis=1).all()
    factors = (found[:, 0] - found[:, 1]) / 40
    assert factors.min() < 0.8
    assert 1.2 < factors.max() < 1.35
    changes = found.mean(axis=1) - 110 * factors  # of the brightness alone, by up to 0.3 of 255
    assert -80 < changes.min() < -40
    assert 40 < changes.max() < 80


@pytest.mark.parametrize(("size", "wanted"), [(41, 4032), (80, 8000), (40000, 512), (3, 7), (7, 3), (5, 5), (1, 9)])
def test_labels_at_another_size_are_those_at_the_centres(size, wanted):
    """Also of images that grow a hundredfold; no centre of these lies between two pixels."""
    centres = np.floor((np.arange(wanted) + 0.5) * size / wanted).astype(int)
    labels = (np.arange(size) % 251).astype(np.uint8)
    expected = labels[centres]
    assert resize_nearest(labels[None], 1, wanted)[0].tolist() == expected.tolist()
    assert resize_nearest(labels[:, None], wanted, 2).T.tolist() == [expected.tolist()] * 2


def test_a_centre_between_two_pixels_is_in_the_later_one():
    """As in torch's nearest-exact, with which the mask and the cues of an image are compared."""
    labels = np.arange(80, dtype=np.uint8)[None]
    resized = resize_nearest(labels, 1, 500)[0]
    assert resized[12] == 2  # 12.5 * 80 / 500
    large = torch.from_numpy(labels)[None, None].float()
    assert resized.tolist() == functional.interpolate(large, (1, 500), mode="nearest-exact")[0, 0, 0].int().tolist()
