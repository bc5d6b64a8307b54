"""Select the images that a page shows: the best, the worst, and images drawn at random."""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Gallery", "Row", "Section"]

SEED = 0  # of the random draw


@dataclass(frozen=True)
class Row:
    """An image with its label maps.

    Attributes:
        name: Id of the image.
        image: uint8 (H, W, 3).
        prediction: Label map (H, W).
        truth: Label map (H, W); None where there is no mask.
        cues: Label map (h, w); None where there are no cues.
        iou: Mean IoU over the classes in the image; None where there is no mask.
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
    """Selects images from a stream; keeps at most twice the wanted number in memory.

    A third has the highest IoU, a third the lowest, the rest is drawn with a fixed seed. Without IoU all are drawn.

    Args:
        total: Number of images in the stream.
        wanted: Number of images to select.
    """

    def __init__(self, total: int, wanted: int) -> None:
        self.wanted = max(0, min(total, wanted))
        drawn = np.random.default_rng(SEED).permutation(total)[: self.wanted].tolist()
        self._drawn: dict[int, Row | None] = dict.fromkeys(drawn)  # None: not offered yet
        self._best: list[tuple[float, int, Row]] = []  # heaps; the index orders images of equal IoU
        self._worst: list[tuple[float, int, Row]] = []
        self._offered = 0

    def offer(self, row: Row) -> None:
        """Take the next image of the stream."""
        index, self._offered = self._offered, self._offered + 1
        if index in self._drawn:
            self._drawn[index] = row
        if row.iou is not None:
            for heap, entry in ((self._best, (row.iou, -index, row)), (self._worst, (-row.iou, index, row))):
                heapq.heappush(heap, entry)
                if len(heap) > self.wanted // 3:
                    heapq.heappop(heap)

    def sections(self) -> list[Section]:
        """Return the selected images; no image occurs twice, and no section is empty."""
        best, worst = (
            [row for *_, row in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
            for heap in (self._best, self._worst)
        )
        ranked = {row.name for row in (*best, *worst)}
        drawn = [row for row in self._drawn.values() if row is not None and row.name not in ranked]
        source = "all other images" if ranked else "all images"
        sections = [
            Section("Best images", "Images with the highest mean IoU over the classes in the image.", best),
            Section("Worst images", "Images with the lowest mean IoU, the lowest first.", worst),
            Section("Random images", f"Drawn from {source} with a fixed seed.", drawn[: self.wanted - len(ranked)]),
        ]
        return [section for section in sections if section.rows]
