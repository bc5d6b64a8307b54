"""Large images: scores of overlapping tiles, blended on one grid for the whole image.

A tile of T x T pixels is resized as a whole image is, to the side of the network's input, and its scores have h x w
positions, T / h pixels apart. All tiles start at multiples of that distance, rounded to whole pixels, so
that their grids coincide. The last tile of a row or column starts at the first multiple from which it reaches the edge
of the image; the fraction of a position beyond the edge is filled by reflection, as is an image that is smaller than a
tile on one side.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import as_rgb, normalize
from datamodules.transforms import Transform

MIN_TILE = 32  # pixels: the coarsest output stride of a network
STRIP = 64  # rows of a reduced image that are made at a time


class WindowedImage(Protocol):
    """An image (H, W, C) that is read by windows, such as an array of numpy."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width and channels."""

    def __getitem__(self, window: Any, /) -> Any:
        """Return the pixels of ``[top:bottom, left:right]``, uint8 (h, w, C)."""


@dataclass(frozen=True)
class Tiling:
    """How images above a size are cut into tiles.

    Attributes:
        side: height and width of a tile in pixels; images up to this height and width are not cut.
        overlap: fraction of a tile's side that neighbours share.

    Raises:
        InputError: a number is out of range.
    """

    side: int
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if self.side < MIN_TILE or not 0 <= self.overlap < 1:
            given = f"tile is {self.side} and overlap is {self.overlap}"
            raise InputError(
                f"{given}: a tile has at least {MIN_TILE} pixels on a side, and overlap is at least 0 and below 1"
            )

    def places(self, pixels: int, positions: int) -> list[tuple[int, Tensor]]:
        """Return the tiles along one side of an image.

        Args:
            pixels: height or width of the image.
            positions: height or width of the grid of a tile.

        Returns:
            For each tile its first position on the grid of the image, and the weights of its positions, float32
            (positions,), above 0. The weights rise and fall linearly over the overlap, and are divided by their sum
            over all tiles, which is therefore 1 at every position.
        """
        last = max(0, -((self.side - pixels) * positions // self.side))  # the first from which a tile reaches the edge
        shared = min(round(self.overlap * positions), positions - 1)
        starts = [*range(0, last, positions - shared), last]
        centres = torch.arange(positions) + 0.5
        ramp = (torch.minimum(centres, positions - centres) / max(shared, 0.5)).clamp(max=1)
        total = torch.zeros(last + positions)
        for start in starts:
            total[start : start + positions] += ramp
        return [(start, ramp / total[start : start + positions]) for start in starts]


def read_tile(image: WindowedImage, top: int, left: int, side: int) -> NDArray[np.uint8]:
    """Return a tile uint8 (side, side, C); what lies below or to the right of the image is a reflection."""
    window = image[top : top + side, left : left + side]
    below, beside = side - window.shape[0], side - window.shape[1]
    return np.pad(window, ((0, below), (0, beside), (0, 0)), mode="reflect")


def blended_rows(
    image: WindowedImage, scores: Callable[[Tensor], Tensor], tiling: Tiling, *, size: int, grid: tuple[int, int],
    batch_size: int = 1,
) -> Iterator[Tensor]:  # fmt: skip
    """Yield the blended scores of an image from top to bottom, so that memory is bounded by a row of tiles.

    Args:
        image: the image.
        scores: scores (B, K, h, w) of normalised images (B, C, size, size).
        tiling: the tiles.
        size: side in pixels of the network's input, to which a tile is resized.
        grid: h and w.
        batch_size: tiles per batch.

    Yields:
        Rows of the grid of the image, float32 (K, rows, W'), in total (K, H', W'), with h positions for the side of a
        tile. The grid begins at the image's upper left corner and may reach beyond the right and lower edges.
    """
    transform, (h, w) = Transform(size), grid
    rows, columns = tiling.places(image.shape[0], h), tiling.places(image.shape[1], w)
    width, ends = columns[-1][0] + w, [*(first for first, _ in rows[1:]), rows[-1][0] + h]
    strip, pending = torch.empty(0), None  # (K, h, W') of a row of tiles, and what the next row of tiles adds to
    for (first, row_weights), end in zip(rows, ends, strict=True):
        for batch in (columns[start : start + batch_size] for start in range(0, len(columns), batch_size)):
            top = round(first * tiling.side / h)
            tiles = [read_tile(image, top, round(start * tiling.side / w), tiling.side) for start, _ in batch]
            resized = torch.from_numpy(np.stack([transform(tile)["image"] for tile in tiles]))  # (B, S, S, C)
            for (start, weights), found in zip(batch, scores(normalize(resized.permute(0, 3, 1, 2))), strict=True):
                if start == 0:
                    strip = found.new_zeros(len(found), h, width)
                    if pending is not None:
                        strip[:, : pending.shape[1]] = pending
                strip[:, :, start : start + w] += found * (row_weights[:, None] * weights).to(found.device)
        yield strip[:, : end - first]
        pending = strip[:, end - first :]


def sample_grid(rows: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return bilinear samples (K, Y, X) of maps (K, h, w) at positions y (Y,) and x (X,).

    Coordinates are counted in positions from the upper left corner, so that 0.5 is the centre of the first position.
    Beyond the centres of the outermost positions their values continue.
    """
    h, w = rows.shape[-2:]
    points = torch.stack(torch.meshgrid(2 * y / h - 1, 2 * x / w - 1, indexing="ij")[::-1], dim=-1)  # (Y, X, 2)
    return functional.grid_sample(
        rows[None], points[None].to(rows), mode="bilinear", padding_mode="border", align_corners=False
    )[0]


def reduce_image(image: WindowedImage, longest: int) -> NDArray[np.uint8]:
    """Return an image as RGB, uint8 (h, w, 3), reduced by a whole factor to at most ``longest`` pixels on a side."""
    height, width = image.shape[:2]
    factor = max(1, math.ceil(max(height, width) / longest))
    strips = []
    for top in range(0, height, factor * STRIP):
        strip = np.ascontiguousarray(as_rgb(image[top : top + factor * STRIP, 0:width]))
        size = max(1, width // factor), max(1, len(strip) // factor)
        strips.append(np.asarray(cv2.resize(strip, size, interpolation=cv2.INTER_AREA), np.uint8))
    return np.concatenate(strips)
