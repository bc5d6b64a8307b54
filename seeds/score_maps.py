"""Resizing of score maps, label maps and images; label maps from scores and from cues."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.class_names import IGNORE


def resize_maps(maps: Tensor, size: tuple[int, ...], *, antialias: bool = False) -> Tensor:
    """Resize maps (B, K, h, w) bilinearly to ``size`` (H, W); maps of that size are returned unchanged.

    B or K may be 0, as for an image without tags.
    """
    if maps.shape[-2:] == size:
        return maps
    if 0 in maps.shape[:2]:
        return maps.new_zeros(*maps.shape[:2], *size)
    return functional.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=antialias)


def label_map(scores: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the class with the highest score, int64 (H, W); scores (K, h, w) are resized to ``size``."""
    return highest_class(resize_maps(scores[None].float(), size)[0])


def highest_class(scores: Tensor) -> Tensor:
    """Return the first class with the highest score, int64 (H, W), of scores (K, H, W).

    On a CPU torch's ``max`` over the first dimension is several times as fast as ``argmax``.
    """
    return scores.max(dim=0).indices


def cue_labels(cues: Tensor) -> Tensor:
    """Return the first class with a cue at each position of cues bool (B, C+1, h, w), int64 (B, h, w); 255 for none."""
    return cues.int().argmax(dim=1).masked_fill(~cues.any(dim=1), IGNORE)


def resize_labels(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize label maps int64 (B, h, w) to ``size`` (H, W), as `datamodules.transforms.resize_nearest` does."""
    # in integers: interpolate rounds, and misses centres between two positions
    pairs = zip(size, labels.shape[-2:], strict=True)
    rows, columns = ((2 * torch.arange(n, device=labels.device) + 1) * side // (2 * n) for n, side in pairs)
    return labels.index_select(2, columns).index_select(1, rows)  # the other order takes longer where labels grow


def divide_by_maxima(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return maps (k, h, w), each divided by its maximum; maps of zeros stay zero."""
    maxima = maps.max(axis=(1, 2), keepdims=True)
    return (maps / np.where(maxima > 0, maxima, 1)).astype(np.float32)


def resize_images(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return images uint8 (B, C, H, W) at another size (h, w), antialiased if reduced."""
    return resize_maps(images.float(), size, antialias=True).round().clamp(0, 255).to(torch.uint8)
