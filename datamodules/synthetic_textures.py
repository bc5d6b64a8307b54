"""Textures of the embedded data set: values in [0, 1] at grid coordinates, which blend two colours.

A texture takes a random generator, coordinates ``u``, ``v`` float32 (H, W) in pixels, and ``scale``, the pixels per
128th of the image's longer side; it returns float32 (H, W). The first five belong to the classes, the rest to clutter.
"""

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def stripes(rng: Generator, u: Floats, _v: Floats, scale: float) -> Floats:
    """Straight bands of equal width."""
    period = rng.uniform(8, 12) * scale
    return _step(np.sin(u * 2 * np.pi / period))


def checks(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:
    """A chess board."""
    period = rng.uniform(11, 14) * scale
    return _step(np.sin(u * 2 * np.pi / period) * np.sin(v * 2 * np.pi / period) * 2)


def dots(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:
    """Round dots in staggered rows."""
    period = rng.uniform(9, 12) * scale
    row = np.floor(v / (period * 0.87))
    du = (u / period + row % 2 / 2) % 1 - 0.5
    dv = (v / (period * 0.87)) % 1 - 0.5
    return _step((np.hypot(du, dv * 0.87) - rng.uniform(0.27, 0.33)) * 8)


def scales(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:
    """Overlapping scales: each with a broad rim, row above row."""
    period = rng.uniform(10, 13) * scale
    rows = v / (period / 2)
    row = np.floor(rows)
    value = np.zeros_like(u)
    for back in (1.0, 0.0):  # the row behind, then the row in front of it
        own = row - back
        across = ((u / period + own % 2 / 2) % 1 - 0.5) * 2  # -1 … 1 over a scale
        distance = np.hypot(across, (rows - own) / 2)
        value = np.where(distance < 1, _step((0.72 - distance) * 6), value)
    return value.astype(np.float32)


def speckles(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:
    """Grains of random tone, like coarse sand."""
    grain = rng.uniform(3, 4) * scale
    tones = rng.random((64, 64)).astype(np.float32)
    tones = (tones > 0.5).astype(np.float32) * 0.8 + tones * 0.2
    rows, columns = (np.floor(each / grain).astype(np.intp) % 64 for each in (v, u))  # the table repeats
    return np.asarray(tones[rows, columns])


def plain(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:  # noqa: ARG001
    """A soft ramp."""
    return np.asarray(0.5 + 0.35 * np.sin(u / (60 * scale) + rng.uniform(0, 6)), np.float32)


def marble(rng: Generator, u: Floats, _v: Floats, _scale: float) -> Floats:
    """Clouds."""
    return noise(rng, u.shape[0], u.shape[1], octaves=3)


def lattice(rng: Generator, u: Floats, v: Floats, scale: float) -> Floats:
    """A wide net of thin lines."""
    period = rng.uniform(12, 18) * scale
    near = np.minimum(np.abs((u / period) % 1 - 0.5), np.abs((v / period) % 1 - 0.5))
    return _step((near - 0.07) * 30)


def squiggles(rng: Generator, u: Floats, _v: Floats, scale: float) -> Floats:
    """Level lines of clouds, as on a map."""
    clouds = noise(rng, u.shape[0], u.shape[1], octaves=2)
    return _step(np.abs((clouds * rng.uniform(2.5, 4)) % 1 - 0.5) * 20 - 2 * min(scale, 1.0))


def noise(rng: Generator, height: int, width: int, octaves: int) -> Floats:
    """Return smooth random values float32 (height, width) scaled to [0, 1], finer and weaker in each octave."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        side = 3 * 2**octave
        coarse = rng.random((side, side)).astype(np.float32)
        total += (cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 1.7**octave).astype(np.float32)
    return np.asarray((total - total.min()) / np.ptp(total), np.float32)


def blend(texture: Floats, one: Floats, other: Floats) -> Floats:
    """Return colours float32 (H, W, 3): ``one`` where the texture is 1, ``other`` where it is 0."""
    return (texture[..., None] * one + (1 - texture[..., None]) * other).astype(np.float32, copy=False)


def _step(value: Floats) -> Floats:
    """Return 0 below zero and 1 above, with a soft edge."""
    return np.asarray(np.clip(value * 2.5 + 0.5, 0, 1), np.float32)
