"""How a layer's output becomes a map (B, K, h, w): channels first, channels last, or a transformer's tokens."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAP_DIMS = 4  # (B, K, h, w)
TOKEN_DIMS = 3  # (B, N, K)
MAX_PREFIX_TOKENS = 9  # a class token, a distillation token and registers stand before the image's tokens


class Layout(NamedTuple):
    """How a layer's output is arranged.

    Attributes:
        kind: ``first`` (B, K, h, w), ``last`` (B, h, w, K), or ``tokens`` (B, prefix + h * w, K).
        height: h.
        width: w.
        prefix: number of leading tokens without a position.
    """

    kind: Literal["first", "last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """Return the output as a map (B, K, h, w), a view; tokens without a position are left out."""
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(len(tokens), -1, self.height, self.width)

    def from_map(self, activation: Tensor, output: Tensor) -> Tensor:
        """Return a copy of the output in its own layout, with the values of a map (B, K, h, w)."""
        if self.kind == "first":
            return activation.clone()
        if self.kind == "last":
            return activation.permute(0, 2, 3, 1).clone()
        return torch.cat([output[:, : self.prefix], activation.flatten(2).transpose(1, 2)], dim=1)


def layout_of(output: object, size: tuple[int, int] | None, grid: tuple[int, int] | None = None) -> Layout | None:
    """Infer the layout of a layer's output from its shape; None if the output is no map.

    Four dimensions are (B, K, h, w) unless only the second and third have the image's proportions, as in Swin's
    (B, h, w, K). Three dimensions are tokens (B, N, K). The last h * w tokens must form a grid with the image's
    proportions that divides the image into whole patches; the shortest prefix that allows this is taken.

    Args:
        output: the layer's output.
        size: the image's height and width; None if unknown.
        grid: the map's height and width, if the shape does not determine them.
    """
    if not isinstance(output, Tensor):
        return None
    if output.dim() == MAP_DIMS:
        first, last = (output.shape[2], output.shape[3]), (output.shape[1], output.shape[2])
        if grid is None:
            is_last = size is not None and same_proportions(last, size) and not same_proportions(first, size)
        else:
            is_last = last == grid != first
        return Layout("last", *last) if is_last else Layout("first", *first)
    if output.dim() != TOKEN_DIMS:
        return None
    count = output.shape[1]
    if grid is not None:
        prefix = count - grid[0] * grid[1]
        return Layout("tokens", *grid, prefix) if prefix >= 0 else None
    height, width = size or (1, 1)
    for prefix in range(min(MAX_PREFIX_TOKENS, count - 1) + 1):
        h = math.isqrt((count - prefix) * height // width)
        w = (count - prefix) // h if h else 0
        whole_patches = size is None or (h and w and height % h == 0 and width % w == 0)
        if h and h * w == count - prefix and h * width == w * height and whole_patches:
            return Layout("tokens", h, w, prefix)
    return None


def same_proportions(grid: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid has the image's proportions, up to the rounding of one position."""
    return abs(grid[0] * size[1] - grid[1] * size[0]) <= max(size)
