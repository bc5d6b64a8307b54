"""The function `dense_crf`: it checks its arguments and chooses the engine."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from datamodules.errors import InputError, require_choice
from seeds.crf.exact_mean_field import exact_mean_field
from seeds.crf.gaussian_kernels import Kernels
from seeds.crf.lattice_mean_field import lattice_mean_field
from seeds.crf.torch_lattice_mean_field import torch_lattice_mean_field

NARROWEST = 1e-6  # standard deviation of a kernel: below about 1e-19 the inverse of its square overflows float32
Engine = Literal["auto", "exact", "lattice"]
EXACT_PIXELS = 4096
"""Largest image for which "auto" uses the exact engine on an accelerator; its kernel matrix takes 67 MB per image."""


@torch.no_grad()
def dense_crf(
    image: Tensor,
    logits: Tensor,
    *,
    iterations: int = 10,
    scale: float = 1.0,
    bilateral_weight: float = 10.0,
    bilateral_sxy: float = 80.0,
    bilateral_srgb: float = 13.0,
    gaussian_weight: float = 3.0,
    gaussian_sxy: float = 3.0,
    engine: Engine = "auto",
) -> Tensor:
    """Sharpen label scores along the edges of an image: mean field in the fully connected CRF.

    Krähenbühl & Koltun, "Efficient inference in fully connected CRFs with Gaussian edge potentials" (NeurIPS 2011),
    with the semantics of their densecrf as pydensecrf wraps it: Potts model, diagonal kernels, symmetric normalisation.
    The numbers are those of SEC (Kolesnikov & Lampert, ECCV 2016), which sets `scale` to 12 in training.

    Args:
        image: uint8 (B, 3, H, W), RGB.
        logits: floating point (B, K, H, W) on the same device; the unary energy is minus these. Log-probabilities are
            logits too, probabilities are not.
        iterations: number of mean-field updates; 0 gives the softmax of the logits.
        scale: divides both standard deviations over position, for grids much smaller than the image.
        bilateral_weight: weight of the kernel over position and colour.
        bilateral_sxy: standard deviation of the bilateral kernel over position in pixels, before `scale`.
        bilateral_srgb: standard deviation of the bilateral kernel over colour in grey levels.
        gaussian_weight: weight of the kernel over position alone.
        gaussian_sxy: standard deviation of the Gaussian kernel in pixels, before `scale`.
        engine: "exact" sums over all pairs of pixels; "lattice" filters on the permutohedral lattice, as densecrf does,
            and allows any size; "auto" is exact on an accelerator for up to 4096 pixels, and the lattice elsewhere.
            On the CPU the lattice runs on `torch.get_num_threads()` threads.

    Returns:
        Probabilities, float32 (B, K, H, W), without gradient.

    Raises:
        InputError: shapes, dtypes or devices do not fit, the input is empty, logits are not finite, or a setting is
            out of range.
    """
    shapes = f"image {tuple(image.shape)} {image.dtype}, logits {tuple(logits.shape)} {logits.dtype}"
    require_choice("the CRF's engine", engine, get_args(Engine))
    if iterations < 0:
        raise InputError(f"iterations of the CRF must not be negative, not {iterations}")
    if image.dtype != torch.uint8 or not getattr(logits.dtype, "is_floating_point", False):  # NumPy's have none
        raise InputError(f"the CRF takes tensors, an image of uint8 and logits of floating point, got {shapes}")
    if logits.ndim != 4 or image.shape != (logits.shape[0], 3, *logits.shape[2:]):
        same = "of the same batch size, height and width"
        raise InputError(f"the CRF takes an image (B, 3, H, W) and logits (B, K, H, W) {same}, got {shapes}")
    if logits.numel() == 0:
        raise InputError(f"the CRF's input is empty, got {shapes}")
    if image.device != logits.device:
        raise InputError(f"the CRF's image is on {image.device}, its logits on {logits.device}")
    unary = logits.detach().to(torch.float32)
    if not torch.isfinite(unary.sum()) and not torch.isfinite(unary).all():  # the sum is fast, but may overflow
        raise InputError(f"the CRF's logits contain NaN or infinity in float32, got {shapes}")
    positive = {"scale": scale, "bilateral_sxy": bilateral_sxy, "bilateral_srgb": bilateral_srgb}
    weights = {"bilateral_weight": bilateral_weight, "gaussian_weight": gaussian_weight}
    for name, value in {**positive, "gaussian_sxy": gaussian_sxy, **weights}.items():
        if not 0 <= value < math.inf or (value == 0 and name not in weights):
            raise InputError(f"{name} of the CRF must be positive (a weight may be 0) and finite, not {value}")
    kernels = Kernels(bilateral_weight, bilateral_sxy / scale, bilateral_srgb, gaussian_weight, gaussian_sxy / scale)
    if min(kernels.bilateral_sxy, kernels.bilateral_srgb, kernels.gaussian_sxy) < NARROWEST:
        raise InputError("the CRF's kernels are too narrow: raise sxy or srgb, or lower scale")
    if engine != "exact" and logits.device.type == "cpu":
        return lattice_mean_field(image, unary, kernels, iterations)
    exact = engine == "exact" or (engine == "auto" and logits[0, 0].numel() <= EXACT_PIXELS)
    with torch.autocast(logits.device.type, enabled=False):
        return (exact_mean_field if exact else torch_lattice_mean_field)(image, unary, kernels, iterations)
