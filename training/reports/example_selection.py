"""Select the images that a page shows: the best, the worst, and images drawn at random."""

from bisect import insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

SEED = 0  # of the random draw


@dataclass(frozen=True)
class Example:
    """An image with its label maps.

    Attributes:
        id: id of the image.
        image: uint8 (H, W, 3).
        prediction: label map uint8 (H, W).
        truth: label map uint8 (H, W); None where there is no mask.
        cues: label map uint8 (h, w); None where there are no cues.
        iou: mean IoU over the classes in the mask or the prediction; None where there is no mask.
    """

    id: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None = None
    cues: NDArray[np.uint8] | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Section:
    """Images under one heading, with a sentence about them."""

    title: str
    about: str
    examples: list[Example]


class ExampleSelector:
    """Selects images from a stream; keeps at most twice the wanted number in memory.

    A third has the highest IoU, a third the lowest, the rest is drawn with a fixed seed. Without IoU all are drawn.

    Args:
        total: number of images in the stream.
        wanted: number of images to select.

    Raises:
        InputError: the number is negative.
    """

    def __init__(self, total: int, wanted: int) -> None:
        if wanted < 0:
            raise InputError(f"num_images must be at least 0, not {wanted}")
        self.wanted = min(total, wanted)
        drawn = np.random.default_rng(SEED).permutation(total)[: self.wanted].tolist()
        self._drawn: dict[int, Example | None] = dict.fromkeys(drawn)  # None: not offered yet
        self._ranked: list[tuple[float, int, Example]] = []  # the worst and the best so far, by ascending IoU
        self._offered = 0

    def offer(self, example: Example) -> None:
        """Take the next image of the stream."""
        index, self._offered = self._offered, self._offered + 1
        if index in self._drawn:
            self._drawn[index] = example
        if example.iou is not None:
            insort(self._ranked, (example.iou, -index, example), key=lambda entry: entry[:2])
            third = self.wanted // 3
            del self._ranked[third : len(self._ranked) - third]

    def sections(self) -> list[Section]:
        """Return the selected images; no image occurs twice, and no section is empty."""
        ranked = [example for *_, example in self._ranked]
        best = ranked[::-1][: self.wanted // 3]
        worst = ranked[: len(ranked) - len(best)]
        names = {example.id for example in ranked}
        drawn = [example for example in self._drawn.values() if example is not None and example.id not in names]
        source = "all other images" if ranked else "all images"
        sections = [
            Section(
                "Best images", "Images with the highest mean IoU over the classes in their mask or prediction.", best
            ),
            Section("Worst images", "Images with the lowest mean IoU, the lowest first.", worst),
            Section("Random images", f"Drawn from {source} with a fixed seed.", drawn[: self.wanted - len(ranked)]),
        ]
        return [section for section in sections if section.examples]
