"""Images of the embedded data set: textured cut-outs on clutter, each with its exact mask.

An object of each of the five classes is a silhouette filled with one texture from edge to edge, so that every part of
it shows the class: a *bee* is striped, a *fish* has scales, a *kite* is checkered, a *ladybird* dotted, a *starfish*
speckled. Colours correlate with a class and are not sufficient: the second tone of an object is any dark or light, and
three of ten colours of the clutter are those of a class, on shapes and in textures that no class has. The background
has a separate random stream and is drawn before a class is chosen, so its colours and textures are independent of the
objects.

Everything is drawn at twice the size and averaged down: edges are smooth, and a pixel belongs to the mask where an
object covers at least half of it. Lengths are fractions of the longer side of the image unless stated otherwise.
"""

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from datamodules import synthetic_textures as textures

Texture = Callable[[Generator, np.ndarray, np.ndarray, float], np.ndarray]

CLASSES = ("bee", "fish", "kite", "ladybird", "starfish")
"""Index i of a mask is ``CLASSES[i - 1]``."""

_HUES = (0.14, 0.57, 0.36, 0.01, 0.83)  # typical hue of each class: yellow, blue, green, red, violet
_TEXTURES = (textures.stripes, textures.scales, textures.checks, textures.dots, textures.speckles)
_CLUTTER = (textures.plain, textures.marble, textures.lattice, textures.squiggles)
_ZOOM = 2
_MUTED = 0.7  # fraction of the clutter's colours that belong to no class
_OVERLAP = 0.15  # fraction of an object that later ones may hide
_ATTEMPTS = 40


class Scene(NamedTuple):
    """One image: ``image`` uint8 (H, W, 3) RGB, ``mask`` uint8 (H, W), 0 = background, i = ``CLASSES[i - 1]``."""

    image: np.ndarray
    mask: np.ndarray


def draw_scene(seed: tuple[int, ...], size: int) -> Scene:
    """Draw the image of a seed.

    Args:
        seed: Any integers; the same integers give the same image.
        size: Longer side in pixels; the shorter side is as long or three quarters of it.

    Returns:
        The image, with one to three objects of different classes, each 25 to 65 % of ``size`` across. They may
        overlap a little; the mask shows the one in front.
    """
    behind, front = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    short = round(size * 3 / 4)
    height, width = ((size, size), (size, short), (short, size))[behind.integers(3)]
    canvas = _background(behind, height * _ZOOM, width * _ZOOM)
    mask = np.zeros((height, width), np.uint8)
    count = front.choice((1, 2, 3), p=(0.4, 0.4, 0.2))
    for kind in front.choice(len(CLASSES), size=count, replace=False):
        _place(front, canvas, mask, int(kind))
    image = cv2.resize(_light(front, canvas), (width, height), interpolation=cv2.INTER_AREA)
    image = image + front.normal(0, 0.015, image.shape)
    return Scene((image.clip(0, 1) * 255).round().astype(np.uint8), mask)


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    canvas = textures.blend(textures.noise(rng, height, width, octaves=4), _tone(rng), _tone(rng))
    side = max(height, width)
    for _ in range(rng.integers(3, 8)):
        outline = _turned(_clutter_outline(rng), rng.uniform(0, 2 * np.pi)) * side * rng.uniform(0.08, 0.3)
        outline += rng.uniform((0, 0), (width, height))
        texture = _CLUTTER[rng.integers(len(_CLUTTER))]
        _paint(rng, canvas, _cover(outline, height, width), texture, (_tone(rng), _tone(rng)))
    return canvas


def _place(rng: Generator, canvas: np.ndarray, mask: np.ndarray, kind: int) -> None:
    """Draw an object of class ``kind`` where it hides little of other objects, smaller after each failed attempt."""
    height, width = mask.shape
    diameter = rng.uniform(0.35, 0.65)
    for attempt in range(_ATTEMPTS):
        across = max(0.25, diameter * 0.97**attempt) * max(height, width)
        outline = _turned(_object_outline(rng, kind), rng.uniform(0, 2 * np.pi))
        outline *= across / np.ptp(outline, axis=0).max()
        outline -= (outline.min(axis=0) + outline.max(axis=0)) / 2
        margin = np.maximum((width, height) - np.ptp(outline, axis=0) * 0.9, 0) / 2  # a tenth may leave the image
        centre = np.array((width, height)) / 2 + rng.uniform(-margin, margin)
        cover = _cover((outline + centre) * _ZOOM, height * _ZOOM, width * _ZOOM)
        inside = cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA) >= 0.5
        hidden = np.bincount(mask[inside], minlength=len(CLASSES) + 1)
        if (hidden <= _OVERLAP * np.bincount(mask.ravel(), minlength=len(CLASSES) + 1))[1:].all():
            colour = _tone(rng, _HUES[kind])
            level = rng.uniform(0.05, 0.3) if rng.random() < 0.5 else rng.uniform(0.8, 1.0)  # nearly black or white
            contrast = np.asarray(0.8 * level + 0.2 * level * colour / colour.max(), np.float32)
            _paint(rng, canvas, cover, _TEXTURES[kind], (colour, contrast))
            mask[inside] = kind + 1
            return


def _paint(
    rng: Generator, canvas: np.ndarray, cover: np.ndarray, texture: Texture, colours: tuple[np.ndarray, np.ndarray]
) -> None:
    """Fill the area of ``cover`` with a texture on a rotated, shifted and slightly curved grid."""
    x, y, w, h = cv2.boundingRect((cover > 0).astype(np.uint8))  # nothing else is drawn, for speed
    if not (w and h):
        return
    rows, columns = np.mgrid[:h, :w].astype(np.float32)
    turn, shift = rng.uniform(0, 2 * np.pi), rng.uniform(0, 100, 2).astype(np.float32)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = columns * c + rows * s, rows * c - columns * s
    wave = np.float32(2 * np.pi / (max(h, w) * rng.uniform(0.5, 1)))
    depth = np.float32(0.35) / wave  # a slope of 0.35 at most
    u, v = u + depth * np.sin(v * wave) + shift[0], v + depth * np.sin(u * wave) + shift[1]
    fill = textures.blend(texture(rng, u, v, max(cover.shape) / 128), *colours)
    window = slice(y, y + h), slice(x, x + w)
    canvas[window] += cover[window][..., None] * (fill - canvas[window])


def _cover(outline: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return float32 (height, width): 1 inside the closed polygon (K, 2) of (x, y), smooth at the edge."""
    cover = np.zeros((height, width), np.uint8)
    cv2.fillPoly(cover, [np.round(outline * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    return cover.astype(np.float32) / 255


def _light(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """Return the canvas under tinted light that falls off across the image."""
    height, width = canvas.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    direction, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    fall = 1 + strength * (x * np.cos(direction) + y * np.sin(direction))
    tint = rng.uniform(0.9, 1.05, 3).astype(np.float32)
    lit: np.ndarray = (canvas * fall[..., None] * tint * rng.uniform(0.8, 1.1)).astype(np.float32)
    return lit


def _tone(rng: Generator, hue: float | None = None) -> np.ndarray:
    """Return a colour, RGB float32 (3,) in [0, 1]: saturated, near ``hue``; without it mostly muted, for clutter."""
    if hue is None:
        if rng.random() < _MUTED:
            rgb = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.4), rng.uniform(0.25, 0.9))
            return np.array(rgb, np.float32)
        hue = _HUES[rng.integers(len(_HUES))]
    turned = rng.normal(hue, 0.04) % 1
    return np.array(colorsys.hsv_to_rgb(turned, rng.uniform(0.55, 0.95), rng.uniform(0.6, 0.95)), np.float32)


def _turned(outline: np.ndarray, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    turned: np.ndarray = outline @ np.array(((c, s), (-s, c)))
    return turned


def _polar(radius: Callable[[np.ndarray], np.ndarray], flat: float) -> np.ndarray:
    """Return an outline (96, 2) with a radius for each angle, its second axis scaled by ``flat``."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    outline: np.ndarray = np.stack((np.cos(angle), np.sin(angle) * flat), axis=1) * radius(angle)[:, None]
    return outline


def _object_outline(rng: Generator, kind: int) -> np.ndarray:
    """Return the silhouette of an object of class ``kind``, (K, 2), of any size."""
    match CLASSES[kind]:
        case "bee":
            sting = rng.uniform(0.15, 0.35)
            return _polar(lambda a: 1 + sting * np.exp(-((np.cos(a) - 1) ** 2) * 300), rng.uniform(0.55, 0.7))
        case "fish":
            half, tail = rng.uniform(0.42, 0.55), rng.uniform(0.35, 0.5)
            angle = np.linspace(np.pi - 0.35, -np.pi + 0.35, 64)
            body = np.stack((np.cos(angle), np.sin(angle) * half), axis=1)
            return np.concatenate((body, [(-1.5, -tail), (-1.3, 0), (-1.5, tail)]))
        case "kite":
            return np.array(((0, -1), (rng.uniform(0.6, 0.8), -0.25), (0, 1), (-rng.uniform(0.6, 0.8), -0.25)))
        case "ladybird":
            head = rng.uniform(0.15, 0.25)
            return _polar(lambda a: 1 + head * np.exp(-(((a - np.pi) / 0.35) ** 4)), rng.uniform(0.8, 0.95))
        case _:  # a starfish
            depth, phase = rng.uniform(0.28, 0.38), rng.uniform(-0.2, 0.2)
            return _polar(lambda a: 1 - depth + depth * np.cos(5 * (a + phase * np.sin(a))), rng.uniform(0.85, 1))


def _clutter_outline(rng: Generator) -> np.ndarray:
    """Return a rectangle, a triangle or a blob, (K, 2), about 1 from its centre."""
    match rng.integers(3):
        case 0:
            x, y = 1.4, rng.uniform(0.15, 0.5)
            return np.array(((-x, -y), (x, -y), (x, y), (-x, y)))
        case 1:
            angle = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.4, 0.4, 3)
            return np.stack((np.cos(angle), np.sin(angle)), axis=1)
        case _:
            waves = rng.uniform(-0.25, 0.25, (2, 2))
            return _polar(
                lambda a: 1 + waves[0] @ (np.cos(2 * a), np.sin(2 * a)) + waves[1] @ (np.cos(3 * a), np.sin(3 * a)), 1
            )
