"""Localization cues from class activation maps and saliency, by the rules of SEC (Kolesnikov & Lampert, ECCV 2016)."""

import numpy as np
from numpy.typing import NDArray

from datamodules.seed_cache.shard import NO_CUE, Floats


def foreground_cues(maps: Floats, threshold: float = 0.2) -> NDArray[np.bool_]:
    """Return the positions where a map exceeds ``threshold`` times its maximum.

    Args:
        maps: (B, C, h, w) on the output grid, not negative and not normalised; all 0 for absent classes.
        threshold: 0.2 in SEC.

    Returns:
        bool (B, C, h, w); a class may share positions with others.
    """
    cues: NDArray[np.bool_] = maps > threshold * maps.max(axis=(2, 3), keepdims=True)
    return cues


def background_cues(saliency: Floats, fraction: float = 0.1) -> NDArray[np.bool_]:
    """Return the ``fraction`` of each image's positions with the lowest saliency, their number rounded down.

    There are none where the saliency is the same everywhere.

    Args:
        saliency: (B, h, w) on the output grid.
        fraction: 0.1 in SEC.

    Returns:
        bool (B, h, w).
    """
    flat = saliency.reshape(len(saliency), -1)  # (B, hw)
    lowest = flat.argsort(axis=1, kind="stable")[:, : int(fraction * flat.shape[1] + 1e-9)]  # 0.29 · 100 is 28.999…
    cues = np.zeros(flat.shape, np.bool_)
    np.put_along_axis(cues, lowest, values=True, axis=1)
    cues &= (flat.max(axis=1) > flat.min(axis=1))[:, None]
    return cues.reshape(saliency.shape)


def resolve_conflicts(foreground: NDArray[np.bool_], background: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return one class per position: the class with fewer positions in the image wins, any class over the background.

    Args:
        foreground: bool (B, C, h, w); of classes equally small the first wins.
        background: bool (B, h, w).

    Returns:
        uint8 (B, h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    labels = np.where(background, 0, NO_CUE)
    if foreground.shape[1]:
        size = foreground.sum(axis=(2, 3), keepdims=True)  # (B, C, 1, 1)
        size = np.where(foreground, size, np.iinfo(size.dtype).max)  # (B, C, h, w)
        labels = np.where(foreground.any(axis=1), size.argmin(axis=1) + 1, labels)
    return labels.astype(np.uint8)


def threshold_cues(
    classes: NDArray[np.int64],
    maps: Floats,
    saliency: Floats | None,
    fg_threshold: float = 0.2,
    bg_fraction: float = 0.1,
) -> NDArray[np.uint8]:
    """Return the cues of one image from its maps and saliency.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w).
        saliency: (h, w); None for no background cues.
        fg_threshold: see `foreground_cues`.
        bg_fraction: see `background_cues`.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    foreground = foreground_cues(maps[None], fg_threshold)  # (1, k, h, w)
    if saliency is None:
        background = np.zeros((1, *maps.shape[1:]), np.bool_)
    else:
        background = background_cues(saliency[None], bg_fraction)
    winners = resolve_conflicts(foreground, background)[0]  # 1..k is the order of the maps
    names = np.pad([0, *(classes + 1)], (0, 255 - len(classes)), constant_values=NO_CUE).astype(np.uint8)
    cues: NDArray[np.uint8] = names[winners]
    return cues
