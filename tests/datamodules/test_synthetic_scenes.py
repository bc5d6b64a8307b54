from typing import NamedTuple

import numpy as np

from datamodules import synthetic_scenes as scenes


class Scene(NamedTuple):
    image: np.ndarray
    mask: np.ndarray


def draw_scene(seed, size):
    return Scene(*scenes.draw_scene(seed, size))


SIZE = 64
SCENES = [draw_scene((0, 0, i), SIZE) for i in range(240)]


def test_objects():
    assert {scene.image.shape for scene in SCENES} == {(64, 64, 3), (48, 64, 3), (64, 48, 3)}
    present = np.array([[(scene.mask == k).any() for k in range(1, 6)] for scene in SCENES])
    assert set(present.sum(1)) == {1, 2, 3}
    # 1.8 of 5 classes an image: 86 ± 7 of 240 for each class
    assert present.sum(0).min() > 58
    assert present.sum(0).max() < 115
    alone = [scene.mask for scene, row in zip(SCENES, present, strict=True) if row.sum() == 1]
    across = [max(np.ptp(np.nonzero(mask)[0]), np.ptp(np.nonzero(mask)[1])) + 1 for mask in alone]
    assert min(across) >= 0.2 * SIZE
    assert max(across) <= 0.65 * SIZE + 2
    assert np.mean(across) > 0.35 * SIZE
    # an object fills at least a quarter of its square, and little of it is hidden by others
    shares = [
        (scene.mask == k).sum() / max(np.ptp(np.nonzero(scene.mask == k), axis=1) + 1) ** 2
        for scene, row in zip(SCENES, present, strict=True) for k in 1 + np.flatnonzero(row)
    ]  # fmt: skip
    assert min(shares) > 0.22


def test_a_scene_follows_from_its_seed():
    for i in range(3):
        image, mask = scenes.draw_scene((0, 0, i), SIZE)
        assert np.array_equal(image, SCENES[i].image)
        assert np.array_equal(mask, SCENES[i].mask)
        assert not np.array_equal(image, draw_scene((1, 0, i), SIZE).image)


def test_each_class_has_its_texture(monkeypatch):
    seen, draw = [], scenes._texture
    monkeypatch.setattr(scenes, "_texture", lambda _rng, name, *more: seen.append(name) or draw(_rng, name, *more))
    names = {"bee": "stripes", "fish": "scales", "kite": "checks", "ladybird": "dots", "starfish": "speckles"}
    for i in range(12):
        seen.clear()
        mask = draw_scene((0, 0, i), SIZE).mask
        shown = {names[scenes.CLASSES[k - 1]] for k in np.unique(mask[mask > 0])}
        assert set(seen) - {"plain", "marble", "net", "squiggles"} == shown


def test_masks_are_exact(monkeypatch):
    """The image differs from the same scene without objects inside the mask only, except at edges (without JPEG)."""
    monkeypatch.setattr(scenes, "_light", lambda _rng, canvas: canvas)
    place = scenes._place
    for i in range(20):
        scene = draw_scene((5, i), SIZE)
        monkeypatch.setattr(scenes, "_place", lambda *_: None)
        empty = draw_scene((5, i), SIZE)
        monkeypatch.setattr(scenes, "_place", place)
        changed = np.abs(scene.image.astype(int) - empty.image).max(2) > 40
        inside = scene.mask > 0
        assert not empty.mask.any()
        assert changed[~inside].mean() < 0.03
        assert changed[inside].mean() > 0.6  # an object's colour may be that of the clutter behind it


def test_a_pixel_belongs_to_the_mask_where_objects_cover_half_of_it(monkeypatch):
    """White objects on black: the image shows how much of each pixel is covered."""
    monkeypatch.setattr(scenes, "_background", lambda _rng, height, width: np.zeros((height, width, 3), np.float32))
    monkeypatch.setattr(scenes, "_texture", lambda _rng, _name, u, *_: np.ones_like(u))
    monkeypatch.setattr(scenes, "_tone", lambda *_: np.ones(3, np.float32))
    monkeypatch.setattr(scenes, "_light", lambda _rng, canvas: canvas)
    for i in range(20):
        scene = draw_scene((6, i), SIZE)
        cover = scene.image.mean(2) / 255
        assert cover[scene.mask > 0].min() > 0.4  # the noise of an image has a standard deviation of 0.015
        assert (cover[scene.mask == 0] > 0.6).mean() < 0.002  # two objects that each cover less than half of a pixel


def _margin_statistics(scene):
    """Mean colour, contrast and fine texture of the background in the mask's absence."""
    pixels = scene.image.astype(float)
    fine = np.abs(np.diff(pixels, axis=1, prepend=pixels[:, :1])).mean(2)
    clear = scene.mask == 0
    clear[:, 1:] &= scene.mask[:, :-1] == 0
    values = pixels[clear]
    histogram = np.histogram((values - values.mean(1, keepdims=True)).argmax(1), bins=3, range=(0, 3))[0] / len(values)
    return [1, *values.mean(0) / 255, *values.std(0) / 255, fine[clear].mean() / 32, *histogram[:2]]


def test_the_background_depends_on_no_class():
    """A linear classifier that sees the background alone, fitted on 160 images, orders 80 others by chance."""
    features = np.array([_margin_statistics(scene) for scene in SCENES])
    labels = np.array([[(scene.mask == k).any() for k in range(1, 6)] for scene in SCENES])
    weights = np.linalg.lstsq(features[:160], labels[:160].astype(float), rcond=None)[0]
    scores = features[160:] @ weights
    areas = []
    for score, label in zip(scores.T, labels[160:].T, strict=True):
        areas.append((score[label][:, None] > score[~label][None]).mean())
    assert 0.42 < np.mean(areas) < 0.58  # its standard deviation is about 0.03
    whole = np.array([[1, *np.histogram(s.image[s.mask > 0].argmax(1), bins=3, range=(0, 3))[0] / (s.mask > 0).sum()]
                      for s in SCENES])  # fmt: skip
    scores = whole[160:] @ np.linalg.lstsq(whole[:160], labels[:160].astype(float), rcond=None)[0]
    areas = [(s[y][:, None] > s[~y][None]).mean() for s, y in zip(scores.T, labels[160:].T, strict=True)]
    assert np.mean(areas) > 0.6  # the same test sees what the objects tell
