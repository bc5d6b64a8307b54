"""The sizes at which the classifier sees a picture, and the grid of what it says: a square, or the picture's own shape.

Whatever its shape, a grid covers the whole picture; readers bring it to whichever size they work at.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from datamodules.errors import InputError
from datamodules.images import image_size

STEP = 32  # pixels: the coarsest stride of a network, so that none of them cuts or pads at the edges
LONGEST = 3.0  # times as long as wide is the longest shape; what is longer is warped to it

Shape = tuple[int, int]  # height and width


class Frame(NamedTuple):
    """How a picture is looked at: the cells of its cues, maps and saliency, and its pixels at each scale."""

    grid: Shape
    views: tuple[Shape, ...]


@dataclass(frozen=True)
class Framing:
    """The rule by which pictures get their frames.

    Attributes:
        size: side in pixels of the square at scale 1, or of one of as large an area.
        scales: the sizes of the views, relative to ``size``.
        cue_stride: pixels a cell at scale 1.
        keep_aspect: whether pictures keep their proportions, up to the rounding of sides to multiples of 32; else they
            are warped to squares.
    """

    size: int
    scales: tuple[float, ...]
    cue_stride: int
    keep_aspect: bool

    def __post_init__(self) -> None:
        """Look at the numbers.

        Raises:
            InputError: one is out of range.
        """
        if self.size < 1:
            raise InputError(f"size must be at least 1, not {self.size}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales {list(self.scales)} must be positive, at least one")
        if self.cue_stride < 1:
            raise InputError(f"cue_stride must be at least 1, not {self.cue_stride}")

    def plan(self) -> dict[str, Any]:
        """What a cache's manifest says of it."""
        own = {"size": self.size, "scales": list(self.scales), "cue_stride": self.cue_stride}
        return own | {"keep_aspect": self.keep_aspect, "grid": None if self.keep_aspect else list(self.square.grid)}

    @property
    def square(self) -> Frame:
        """The frame of a square picture."""
        return self.of(1, 1)

    def of(self, height: int, width: int) -> Frame:
        """The frame of a picture of these sides."""
        ratio = 1.0
        if self.keep_aspect:  # as rounded at scale 1: few shapes, and so full batches, of almost the same proportions
            high, wide = self._sides(min(max(height / width, 1 / LONGEST), LONGEST))
            ratio = self._pixels(high) / self._pixels(wide)
        high, wide = self._sides(ratio)
        views = tuple((self._pixels(high * scale), self._pixels(wide * scale)) for scale in self.scales)
        return Frame((self._cells(high), self._cells(wide)), views)

    def read(self, path: Path) -> Frame:
        """The frame of the picture of that file, from its header; a square picture's where that cannot be read."""
        if not self.keep_aspect:
            return self.square
        try:
            return self.of(*image_size(path))
        except InputError:  # whoever reads the picture will say what is wrong with it
            return self.square

    def _sides(self, ratio: float) -> tuple[float, float]:
        return self.size * math.sqrt(ratio), self.size / math.sqrt(ratio)

    def _cells(self, side: float) -> int:
        return math.ceil(round(side) / self.cue_stride)

    def _pixels(self, side: float) -> int:
        return STEP * max(1, round(side / STEP)) if self.keep_aspect else max(1, round(side))
