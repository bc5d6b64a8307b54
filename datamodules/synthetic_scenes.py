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

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CLASSES = ("bee", "fish", "kite", "ladybird", "starfish")
"""Index i of a mask is ``CLASSES[i - 1]``."""

_HUES = (0.14, 0.57, 0.36, 0.01, 0.83)  # typical hue of each class: yellow, blue, green, red, violet
_TEXTURES = ("stripes", "scales", "checks", "dots", "speckles")  # of each class
_CLUTTER = ("plain", "marble", "net", "squiggles")  # textures of the background
_ZOOM = 2
_MUTED = 0.7  # fraction of the clutter's colours that belong to no class
_OVERLAP = 0.15  # fraction of an object that later ones may hide
_ATTEMPTS = 40
_ANGLES = np.linspace(0, 2 * np.pi, 96, endpoint=False)


def draw_scene(seed: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the image of a seed.

    Args:
        seed: any integers; the same integers give the same image.
        size: longer side in pixels; the shorter side is as long or three quarters of it.

    Returns:
        The image uint8 (H, W, 3), RGB, with one to three objects of different classes, each 25 to 65 % of ``size``
        across; and the mask uint8 (H, W), 0 = background, i = ``CLASSES[i - 1]``. Objects may overlap a little; the
        mask shows the one in front.
    """
    behind, front = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    short = round(size * 3 / 4)
    height, width = ((size, size), (size, short), (short, size))[behind.integers(3)]
    canvas = _background(behind, height * _ZOOM, width * _ZOOM)
    mask = np.zeros((height, width), np.uint8)
    for kind in front.choice(len(CLASSES), size=front.choice((1, 2, 3), p=(0.4, 0.4, 0.2)), replace=False):
        _place(front, canvas, mask, int(kind))
    image = cv2.resize(_light(front, canvas), (width, height), interpolation=cv2.INTER_AREA)
    image = image + front.normal(0, 0.015, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask


def _background(rng: Generator, height: int, width: int) -> np.ndarray:
    """Return clouds of two colours under rectangles, triangles and blobs."""
    canvas = _blend(_noise(rng, (height, width), octaves=4), _tone(rng), _tone(rng))
    for _ in range(rng.integers(3, 8)):
        match rng.integers(3):
            case 0:
                x, y = 1.4, rng.uniform(0.15, 0.5)
                outline = np.array(((-x, -y), (x, -y), (x, y), (-x, y)))
            case 1:
                angle = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.4, 0.4, 3)
                outline = np.stack((np.cos(angle), np.sin(angle)), axis=1)
            case _:
                one, two = rng.uniform(-0.25, 0.25, (2, 2))
                twice, thrice = (np.array((np.cos(k * _ANGLES), np.sin(k * _ANGLES))) for k in (2, 3))
                outline = _polar(1 + one @ twice + two @ thrice, 1)
        outline = _turned(outline, rng.uniform(0, 2 * np.pi)) * max(height, width) * rng.uniform(0.08, 0.3)
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


def _paint(rng: Generator, canvas: Floats, cover: Floats, texture: str, colours: tuple[Floats, Floats]) -> None:
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
    fill = _blend(_texture(rng, texture, u, v, max(cover.shape) / 128), *colours)
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
    return np.asarray(canvas * fall[..., None] * tint * rng.uniform(0.8, 1.1), np.float32)


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
    """Return an outline (K, 2) turned by an angle in radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(outline @ np.array(((c, s), (-s, c))))


def _polar(radius: np.ndarray, flat: float) -> np.ndarray:
    """Return an outline (96, 2) with a radius for each of `_ANGLES`, its second axis scaled by ``flat``."""
    return np.asarray(np.stack((np.cos(_ANGLES), np.sin(_ANGLES) * flat), axis=1) * radius[:, None])


def _object_outline(rng: Generator, kind: int) -> np.ndarray:
    """Return the silhouette of an object of class ``kind``, (K, 2), of any size."""
    match CLASSES[kind]:
        case "bee":
            sting = rng.uniform(0.15, 0.35)
            return _polar(1 + sting * np.exp(-((np.cos(_ANGLES) - 1) ** 2) * 300), rng.uniform(0.55, 0.7))
        case "fish":
            half, tail = rng.uniform(0.42, 0.55), rng.uniform(0.35, 0.5)
            angle = np.linspace(np.pi - 0.35, -np.pi + 0.35, 64)
            body = np.stack((np.cos(angle), np.sin(angle) * half), axis=1)
            return np.concatenate((body, [(-1.5, -tail), (-1.3, 0), (-1.5, tail)]))
        case "kite":
            return np.array(((0, -1), (rng.uniform(0.6, 0.8), -0.25), (0, 1), (-rng.uniform(0.6, 0.8), -0.25)))
        case "ladybird":
            head = rng.uniform(0.15, 0.25)
            return _polar(1 + head * np.exp(-(((_ANGLES - np.pi) / 0.35) ** 4)), rng.uniform(0.8, 0.95))
        case _:  # a starfish
            depth, phase = rng.uniform(0.28, 0.38), rng.uniform(-0.2, 0.2)
            return _polar(1 - depth + depth * np.cos(5 * (_ANGLES + phase * np.sin(_ANGLES))), rng.uniform(0.85, 1))


def _texture(rng: Generator, name: str, u: Floats, v: Floats, scale: float) -> Floats:
    """Return a texture, float32 (H, W) in [0, 1], which blends two colours.

    Args:
        rng: random generator of the image.
        name: one of `_TEXTURES` or `_CLUTTER`.
        u: float32 (H, W), first coordinate of the grid in pixels.
        v: float32 (H, W), second coordinate.
        scale: pixels per 128th of the image's longer side.
    """
    match name:
        case "stripes":  # straight bands of equal width
            value = np.sin(u * 2 * np.pi / (rng.uniform(8, 12) * scale))
        case "checks":  # a chess board
            period = rng.uniform(11, 14) * scale
            value = np.sin(u * 2 * np.pi / period) * np.sin(v * 2 * np.pi / period) * 2
        case "dots":  # round dots in staggered rows
            period = rng.uniform(9, 12) * scale
            row = np.floor(v / (period * 0.87))
            du = (u / period + row % 2 / 2) % 1 - 0.5
            dv = (v / (period * 0.87)) % 1 - 0.5
            value = (np.hypot(du, dv * 0.87) - rng.uniform(0.27, 0.33)) * 8
        case "scales":  # overlapping scales: each with a broad rim, row above row
            period = rng.uniform(10, 13) * scale
            rows = v / (period / 2)
            fill = np.zeros_like(u)
            for row in (np.floor(rows) - 1, np.floor(rows)):  # the row behind, then the row in front of it
                across = ((u / period + row % 2 / 2) % 1 - 0.5) * 2  # -1 … 1 over a scale
                distance = np.hypot(across, (rows - row) / 2)
                fill = np.where(distance < 1, _step((0.72 - distance) * 6), fill)
            return fill.astype(np.float32)
        case "speckles":  # grains of random tone, like coarse sand
            grain = rng.uniform(3, 4) * scale
            tones = rng.random((64, 64)).astype(np.float32)
            tones = (tones > 0.5).astype(np.float32) * 0.8 + tones * 0.2
            rows, columns = (np.floor(each / grain).astype(np.intp) % 64 for each in (v, u))  # the table repeats
            return np.asarray(tones[rows, columns])
        case "plain":  # a soft ramp
            return np.asarray(0.5 + 0.35 * np.sin(u / (60 * scale) + rng.uniform(0, 6)), np.float32)
        case "marble":  # clouds
            return _noise(rng, u.shape, octaves=3)
        case "net":  # a wide net of thin lines
            period = rng.uniform(12, 18) * scale
            value = (np.minimum(np.abs((u / period) % 1 - 0.5), np.abs((v / period) % 1 - 0.5)) - 0.07) * 30
        case _:  # squiggles: level lines of clouds, as on a map
            clouds = _noise(rng, u.shape, octaves=2) * rng.uniform(2.5, 4)
            value = np.abs(clouds % 1 - 0.5) * 20 - 2 * min(scale, 1.0)
    return _step(value)


def _noise(rng: Generator, shape: tuple[int, ...], octaves: int) -> Floats:
    """Return smooth random values float32 of a shape (H, W), scaled to [0, 1], finer and weaker in each octave."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        side = 3 * 2**octave
        coarse = rng.random((side, side)).astype(np.float32)
        total += (cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC) / 1.7**octave).astype(np.float32)
    return np.asarray((total - total.min()) / np.ptp(total), np.float32)


def _blend(texture: Floats, one: Floats, other: Floats) -> Floats:
    """Return colours float32 (H, W, 3): ``one`` where the texture is 1, ``other`` where it is 0."""
    return (texture[..., None] * one + (1 - texture[..., None]) * other).astype(np.float32, copy=False)


def _step(value: Floats) -> Floats:
    """Return 0 below zero and 1 above, with a soft edge."""
    return np.asarray(np.clip(value * 2.5 + 0.5, 0, 1), np.float32)
