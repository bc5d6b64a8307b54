"""The two Gaussian kernels of the dense CRF, as numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kernels:
    """Weights and standard deviations of the bilateral and the Gaussian kernel, on the grid at hand.

    Attributes:
        bilateral_weight: weight of the kernel over position and colour.
        bilateral_sxy: its standard deviation in cells.
        bilateral_srgb: its standard deviation in grey levels (0 to 255).
        gaussian_weight: weight of the kernel over position alone.
        gaussian_sxy: its standard deviation in cells.
    """

    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    gaussian_weight: float
    gaussian_sxy: float
