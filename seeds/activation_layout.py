"""How a layer's output becomes a map (B, K, h, w): channels first, channels last, or a transformer's tokens."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAP_DIMS = 4  # (B, K, h, w)
TOKEN_DIMS = 3  # (B, N, K)
MAX_PREFIX_TOKENS = 9  # a class token, a distillation token and registers stand before the image's tokens


def as_map(output: object, images: Sequence[int]) -> Tensor | None:
    """Return a layer's output as a map (B, K, h, w), a view; None if it is no map.

    Four dimensions are (B, K, h, w) unless only the second and third have the image's proportions, as in Swin's
    (B, h, w, K). Three dimensions are tokens (B, N, K). The last h * w tokens must form a grid with the image's
    proportions that divides the image into whole patches; the shortest prefix that allows this is left out.

    Args:
        output: the layer's output.
        images: shape of the images, (B, 3, H, W).
    """
    if not isinstance(output, Tensor) or len(images) != MAP_DIMS or len(output) != images[0]:
        return None
    _, _, height, width = images
    if output.dim() == MAP_DIMS:
        _, first, second, last = output.shape
        is_last = has_proportions((first, second), images) and not has_proportions((second, last), images)
        return output.permute(0, 3, 1, 2) if is_last else output
    if output.dim() != TOKEN_DIMS:
        return None
    for prefix in range(min(MAX_PREFIX_TOKENS, output.shape[1] - 1) + 1):
        count = output.shape[1] - prefix
        h = math.isqrt(count * height // width)
        w = count // h if h else 0
        if h and h * w == count and h * width == w * height and height % h == 0 and width % w == 0:
            return output[:, prefix:].transpose(1, 2).reshape(len(output), -1, h, w)
    return None


def restore_layout(activation: Tensor, output: Tensor) -> Tensor:
    """Return a copy of a layer's output in its own layout, with the values of its map (B, K, h, w)."""
    if output.dim() == TOKEN_DIMS:
        tokens = activation.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : -tokens.shape[1]], tokens], dim=1)
    return (activation if activation.shape == output.shape else activation.permute(0, 2, 3, 1)).clone()


def has_proportions(grid: Sequence[int], images: Sequence[int]) -> bool:
    """Whether a grid (h, w) has the proportions of images (B, 3, H, W), up to the rounding of one position."""
    height, width = images[2:]
    return abs(grid[0] * width - grid[1] * height) <= max(height, width)
