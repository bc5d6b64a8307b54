"""The parameters of the dense CRF's two Gaussian kernels."""

from dataclasses import dataclass


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
