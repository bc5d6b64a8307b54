"""Resizing of score maps and images, and label maps from scores."""

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.images import to_uint8


def resize_maps(maps: Tensor, size: tuple[int, ...], *, antialias: bool = False) -> Tensor:
    """Resize maps (B, K, h, w) bilinearly to ``size`` (H, W); maps of that size are returned unchanged.

    B or K may be 0, as for an image without tags.
    """
    if maps.shape[-2:] == torch.Size(size):
        return maps
    if 0 in maps.shape[:2]:
        return maps.new_zeros(*maps.shape[:2], *size)
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def label_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class with the highest score, int64 (H, W); scores (K, h, w) are resized to ``size``."""
    return resize_maps(scores[None].float(), size)[0].argmax(dim=0)


def small_images(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return normalised images (B, 3, H, W) as uint8 (B, 3, h, w) for the CRF, antialiased when reduced to ``size``."""
    return resize_maps(to_uint8(images).float(), size, antialias=True).round().clamp(0, 255).to(torch.uint8)
