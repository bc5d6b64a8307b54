"""Where the cells of a layer's output are: maps (B, K, h, w), maps with channels last, and a transformer's tokens."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAP_DIMS = 4  # (B, K, h, w)
TOKEN_DIMS = 3  # (B, N, K)
MOST_PREFIX_TOKENS = 9  # a class token, a distillation token, registers: they come before the image's own


class Layout(NamedTuple):
    """How a layer's output is a map.

    Attributes:
        kind: ``first`` (B, K, h, w), ``last`` (B, h, w, K), or ``tokens`` (B, prefix + h * w, K).
        height: h.
        width: w.
        prefix: number of tokens that are of no place.
    """

    kind: Literal["first", "last", "tokens"]
    height: int
    width: int
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """The output as (B, K, h, w), a view; tokens of no place are left out."""
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        cells = output[:, self.prefix :].transpose(1, 2)
        return cells.reshape(len(cells), -1, self.height, self.width)

    def from_map(self, cells: Tensor, output: Tensor) -> Tensor:
        """The output again, a copy, its cells taken from a map (B, K, h, w)."""
        if self.kind == "first":
            return cells.clone()
        if self.kind == "last":
            return cells.permute(0, 2, 3, 1).clone()
        return torch.cat([output[:, : self.prefix], cells.flatten(2).transpose(1, 2)], dim=1)


def layout_of(output: object, size: tuple[int, int] | None, grid: tuple[int, int] | None = None) -> Layout | None:
    """How a layer's output is a map, read off its shape; None where it is none.

    Four dimensions are (B, K, h, w) unless only the second and third have the image's proportions, as in Swin's
    (B, h, w, K). Three are tokens (B, N, K), of which the last h * w lie on a grid of the image's proportions that
    divides it into whole patches, behind as few others as possible.

    Args:
        output: what the layer gave.
        size: the image's height and width; None if not known.
        grid: the map's height and width, where its shape does not tell.
    """
    if not isinstance(output, Tensor):
        return None
    if output.dim() == MAP_DIMS:
        first, last = (output.shape[2], output.shape[3]), (output.shape[1], output.shape[2])
        if grid is None:
            is_last = size is not None and alike(last, size) and not alike(first, size)
        else:
            is_last = last == grid != first
        return Layout("last", *last) if is_last else Layout("first", *first)
    if output.dim() == TOKEN_DIMS:
        return _token_layout(output.shape[1], size, grid)
    return None


def alike(cells: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a grid has the image's proportions, up to the rounding of one cell."""
    return abs(cells[0] * size[1] - cells[1] * size[0]) <= max(size)


def _token_layout(count: int, size: tuple[int, int] | None, grid: tuple[int, int] | None) -> Layout | None:
    if grid is not None:
        prefix = count - grid[0] * grid[1]
        return Layout("tokens", *grid, prefix) if prefix >= 0 else None
    height, width = size or (1, 1)
    for prefix in range(min(MOST_PREFIX_TOKENS, count - 1) + 1):
        h = math.isqrt((count - prefix) * height // width)
        w = (count - prefix) // h if h else 0
        whole = size is None or (h and w and height % h == 0 and width % w == 0)
        if h and h * w == count - prefix and h * width == w * height and whole:
            return Layout("tokens", h, w, prefix)
    return None
