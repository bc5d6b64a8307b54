"""Mean field with the full kernel matrix: exact, quadratic in the number of pixels, made for GPUs."""

import torch
from torch import Tensor

from seeds.crf.gaussian_kernels import Kernels, pixel_positions

CHUNK_BYTES = 1 << 30
"""Memory for the kernel matrices of the images that are processed together (fifteen of 41 by 41 take 170 MB)."""


def exact_mean_field(image: Tensor, logits: Tensor, kernels: Kernels, iterations: int) -> Tensor:
    """Run mean field with the kernel values of all pairs of pixels, for images up to some thousands of pixels.

    Args:
        image: uint8 (B, 3, H, W).
        logits: float32 (B, K, H, W), on the same device.
        kernels: the two kernels.
        iterations: number of mean-field updates.

    Returns:
        Probabilities, float32 (B, K, H, W).
    """
    b, k, h, w = logits.shape
    n = h * w
    x, y = pixel_positions(h, w, image.device).unbind(1)
    square = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2  # (N, N), in pixels²: whole numbers, exact in float32
    # Differences of whole numbers up to 255 are exact in float32, even as a matrix product, and even in TF32.
    smooth = kernels.gaussian_weight * _normalise(torch.exp(square * (-0.5 / kernels.gaussian_sxy**2)))
    near = square.mul_(-0.5 / kernels.bilateral_sxy**2)
    images = max(1, CHUNK_BYTES // (4 * n * n))
    probs = torch.empty((b, n, k), dtype=torch.float32, device=logits.device)
    for start in range(0, b, images):
        part = slice(start, start + images)
        colors = image[part].flatten(2).transpose(1, 2).to(torch.float32)  # (b, N, 3)
        lengths = (colors**2).sum(2)  # (b, N)
        matrix = torch.baddbmm(lengths[:, :, None] + lengths[:, None], colors, colors.transpose(1, 2), alpha=-2)
        matrix = matrix.mul_(-0.5 / kernels.bilateral_srgb**2).add_(near).exp_()  # (b, N, N)
        matrix = _normalise(matrix).mul_(kernels.bilateral_weight).add_(smooth)
        unary = logits[part].flatten(2).transpose(1, 2).contiguous()  # (b, N, K)
        q = torch.softmax(unary, dim=2)
        for _ in range(iterations):
            q = torch.softmax(torch.baddbmm(unary, matrix, q), dim=2)
        probs[part] = q
    return probs.transpose(1, 2).reshape(b, k, h, w)


def _normalise(matrix: Tensor) -> Tensor:
    """Divide rows and columns by the square roots of the row sums, in place; densecrf adds the same 1e-20."""
    norm = (matrix.sum(-1) + 1e-20).rsqrt_()
    return matrix.mul_(norm[..., :, None]).mul_(norm[..., None, :])
