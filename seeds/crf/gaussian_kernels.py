"""The dense CRF's two Gaussian kernels: their parameters, and the positions of pixels that they compare."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """Weights and standard deviations of the bilateral and the Gaussian kernel.

    Attributes:
        bilateral_weight: weight of the kernel over position and colour.
        bilateral_sxy: its standard deviation over position in pixels.
        bilateral_srgb: its standard deviation over colour in grey levels (0 to 255).
        gaussian_weight: weight of the kernel over position alone.
        gaussian_sxy: its standard deviation in pixels.
    """

    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    gaussian_weight: float
    gaussian_sxy: float


def pixel_positions(height: int, width: int, device: torch.device) -> Tensor:
    """Return column and row of each pixel of an image, row after row, float32 (H·W, 2)."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack((x.flatten(), y.flatten()), 1).to(torch.float32)
