"""Which images a page shows: the best, the worst, and some drawn by chance."""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gallery", "Row", "Section"]

SEED = 0  # of what is drawn by chance


@dataclass(frozen=True)
class Row:
    """What is shown of one image.

    Attributes:
        name: its id.
        image: uint8 (H, W, 3).
        prediction: label map (H, W).
        truth: label map (H, W), where known.
        cues: label map (h, w), where there are any.
        iou: mean IoU over the classes in this image, where the truth is known.
    """

    name: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.integer]
    truth: NDArray[np.integer] | None = None
    cues: NDArray[np.integer] | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Section:
    """Images under one heading, with a sentence about them."""

    title: str
    about: str
    rows: list[Row]


class Gallery:
    """Chooses among images that come one by one, holding no more than twice those wanted.

    A third are those of the highest IoU, a third those of the lowest; the others are drawn from the rest by a fixed
    seed. Without IoU all are drawn.

    Args:
        total: how many images will come.
        wanted: how many to show.
    """

    def __init__(self, total: int, wanted: int) -> None:
        self.wanted = max(0, min(total, wanted))
        self.order = np.random.default_rng(SEED).permutation(total)[: self.wanted].tolist()
        self._likely = set(self.order)
        self._drawn: dict[int, Row] = {}
        self._best: list[tuple[float, int, Row]] = []  # heaps; the index keeps equal ones apart
        self._worst: list[tuple[float, int, Row]] = []
        self._came = 0

    def offer(self, row: Row) -> None:
        """Take the next image, or pass it over."""
        index, self._came = self._came, self._came + 1
        if index in self._likely:
            self._drawn[index] = row
        if row.iou is not None:
            for heap, entry in ((self._best, (row.iou, -index, row)), (self._worst, (-row.iou, index, row))):
                heapq.heappush(heap, entry)
                if len(heap) > self.wanted // 3:
                    heapq.heappop(heap)

    def sections(self) -> list[Section]:
        """What was chosen, no image twice; without sections that are empty."""
        best = [row for *_, row in sorted(self._best, key=lambda entry: entry[:2], reverse=True)]
        worst = [row for *_, row in sorted(self._worst, key=lambda entry: entry[:2], reverse=True)]
        shown = {row.name for row in (*best, *worst)}
        drawn = [self._drawn[index] for index in self.order if index in self._drawn]  # fewer may have come
        rest = [row for row in drawn if row.name not in shown]
        about = "Neither the best nor the worst: drawn from the rest" if shown else "Drawn from all of them"
        sections = [
            Section("Best images", "The highest mean IoU over the classes in the image.", best),
            Section("Worst images", "The lowest, the lowest first.", worst),
            Section("Images drawn by chance", f"{about}, by a fixed seed.", rest[: self.wanted - len(shown)]),
        ]
        return [section for section in sections if section.rows]
