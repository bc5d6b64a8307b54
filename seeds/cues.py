"""From maps to localization cues: the rules of SEC (Kolesnikov & Lampert, ECCV 2016)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.cache import NO_CUE


def foreground_cues(maps: Tensor, threshold: float = 0.2) -> Tensor:
    """Cells where a class's map exceeds ``threshold`` times that map's own maximum.

    Args:
        maps: (B, C, h, w) on the output grid, not negative and not normalised; all 0 for absent classes.
        threshold: 0.2 in SEC.

    Returns:
        bool (B, C, h, w); a class may share cells with others.
    """
    return maps > threshold * maps.amax(dim=(2, 3), keepdim=True)


def background_cues(saliency: Tensor, fraction: float = 0.1) -> Tensor:
    """The ``fraction`` of each picture's cells that are lowest in saliency.

    Exactly so many cells, rounded down; but none where the saliency is the same everywhere, as it then says nothing.

    Args:
        saliency: (B, h, w) on the output grid.
        fraction: 0.1 in SEC.

    Returns:
        bool (B, h, w).
    """
    flat = saliency.flatten(1)  # (B, hw)
    lowest = flat.argsort(dim=1, stable=True)[:, : int(fraction * flat.shape[1])]
    cues = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, lowest, value=True)
    cues &= (flat.amax(dim=1) > flat.amin(dim=1)).unsqueeze(1)
    return cues.view_as(saliency)


def resolve_conflicts(foreground: Tensor, background: Tensor) -> Tensor:
    """Give each cell to one class: of two, the one with fewer cells in the picture; any class before background.

    Args:
        foreground: bool (B, C, h, w); of classes equally small the first wins.
        background: bool (B, h, w).

    Returns:
        uint8 (B, h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    labels = torch.where(background, 0, NO_CUE)
    if foreground.shape[1]:
        size = foreground.sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        size = torch.where(foreground, size, size.new_tensor(torch.iinfo(size.dtype).max))  # (B, C, h, w)
        labels = torch.where(foreground.any(dim=1), size.argmin(dim=1) + 1, labels)
    return labels.to(torch.uint8)


def label_map(
    classes: NDArray[np.int64],
    maps: NDArray[np.float32],
    saliency: NDArray[np.float32] | None,
    fg_threshold: float = 0.2,
    bg_fraction: float = 0.1,
) -> NDArray[np.uint8]:
    """The cues of one picture from what a cache keeps of it.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w).
        saliency: (h, w) or None, which gives no background cue.
        fg_threshold: see :func:`foreground_cues`.
        bg_fraction: see :func:`background_cues`.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    foreground = foreground_cues(torch.from_numpy(maps).unsqueeze(0), fg_threshold)  # (1, k, h, w)
    if saliency is None:
        background = torch.zeros(1, *maps.shape[1:], dtype=torch.bool)
    else:
        background = background_cues(torch.from_numpy(saliency).unsqueeze(0), bg_fraction)
    places = resolve_conflicts(foreground, background)[0].numpy()  # 1..k stands for the maps' order
    names = np.full(256, NO_CUE, np.uint8)
    names[0] = 0
    names[1 : len(classes) + 1] = classes + 1
    cues: NDArray[np.uint8] = names[places]
    return cues
