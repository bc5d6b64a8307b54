"""From one grid of cells to another: score maps, images for the CRF, label maps."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its customary name

from datamodules.images import to_uint8

__all__ = ["label_map", "resize", "small_pictures"]


def resize(maps: Tensor, size: tuple[int, ...], *, antialias: bool = False) -> Tensor:
    """Bilinear resizing of maps (B, K, h, w) to ``size`` (H, W); the maps themselves where they have it."""
    if maps.shape[-2:] == torch.Size(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False, antialias=antialias)


def label_map(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely class of every pixel: scores (K, h, w), resized bilinearly to ``size``; int64 (H, W)."""
    return resize(scores[None].float(), size)[0].argmax(dim=0)


def small_pictures(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Normalised images (B, 3, H, W) as the CRF wants them: uint8 (B, 3, h, w) at ``size``, smoothed when shrunk."""
    return resize(to_uint8(images).float(), size, antialias=True).round().clamp(0, 255).to(torch.uint8)
