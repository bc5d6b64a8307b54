"""The sizes to which images are resized for a network, and the grid of its maps and cues."""

import math
from dataclasses import dataclass
from typing import Any

from datamodules.errors import InputError


@dataclass(frozen=True)
class ResizePolicy:
    """Every image is resized to squares, one for each scale; the grid covers the whole image.

    Attributes:
        size: side in pixels of the square at scale 1.
        scales: sides of the squares, relative to ``size``.
        cue_stride: pixels per position of the grid, at scale 1.

    Raises:
        InputError: a number is out of range.
    """

    size: int
    scales: tuple[float, ...]
    cue_stride: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"size must be at least 1, not {self.size}")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"scales {list(self.scales)} must be positive, at least one")
        if self.cue_stride < 1:
            raise InputError(f"cue_stride must be at least 1, not {self.cue_stride}")

    @property
    def sides(self) -> list[int]:
        """Side in pixels of the square at each scale."""
        return [max(1, round(self.size * scale)) for scale in self.scales]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of maps, saliency and cues."""
        side = math.ceil(self.size / self.cue_stride)
        return side, side

    def plan(self) -> dict[str, Any]:
        """Return the policy's part of a cache's manifest."""
        numbers = {"size": self.size, "scales": list(self.scales), "cue_stride": self.cue_stride}
        return {**numbers, "grid": list(self.grid)}
