"""Pictures for people: label maps and cues in colour over a picture."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["BACKGROUND_COLOUR", "class_colour", "cue_picture", "jpeg", "label_picture", "panel", "shrink"]

Image = NDArray[np.uint8]

# Twenty hues that stay apart side by side and on photographs; VOC's own palette holds near-blacks and look-alikes.
COLOURS = (
    (230, 57, 70), (38, 132, 255), (255, 183, 3), (46, 196, 102), (155, 81, 224), (255, 120, 45), (0, 190, 200),
    (240, 98, 170), (140, 200, 50), (90, 90, 235), (176, 110, 60), (0, 150, 120), (255, 145, 145), (120, 190, 255),
    (205, 170, 30), (190, 60, 150), (100, 160, 100), (200, 140, 255), (255, 205, 130), (70, 120, 150),
)  # fmt: skip
BACKGROUND_COLOUR = (84, 98, 122)  # of background cues
NONE = 255  # no cue; not scored


def class_colour(index: int) -> tuple[int, int, int]:
    """The colour (red, green, blue) of class 1, 2, …; they come round after twenty."""
    return COLOURS[(index - 1) % len(COLOURS)]


def label_picture(image: Image, labels: NDArray[np.integer], *, strength: float = 0.62) -> Image:
    """A label map over its picture: classes in colour with a light outline, the background darkened.

    Args:
        image: uint8 (H, W, 3).
        labels: (H, W), 0 background, 1..C, 255 not scored (left light).
        strength: how much of a pixel is the class's colour.

    Returns:
        uint8 (H, W, 3).
    """
    base = image.astype(np.float32)
    shown = 0.5 * base
    for index in np.unique(labels):
        here = labels == index
        if index == NONE:
            shown[here] = 0.5 * base[here] + 0.5 * 235.0
        elif index > 0:
            shown[here] = (1 - strength) * base[here] + strength * np.array(class_colour(int(index)), np.float32)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = cv2.morphologyEx(labels.astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0
    border &= (labels != 0) & (labels != NONE)  # the last pixel of a class, so that outlines stay thin
    shown[border] = 0.4 * shown[border] + 0.6 * 255.0
    return shown.round().astype(np.uint8)


def cue_picture(image: Image, cues: NDArray[np.integer]) -> Image:
    """Cues over their picture, cell by cell: classes in colour, background cues slate, cells without a cue pale.

    Args:
        image: uint8 (H, W, 3).
        cues: label map (h, w) of any size that covers the picture, 0 background, 1..C, 255 none.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    full = cv2.resize(cues.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    base = image.astype(np.float32)
    shown = 0.45 * base + 0.55 * 245.0
    for index in np.unique(full):
        if index != NONE:
            colour = class_colour(int(index)) if index else BACKGROUND_COLOUR
            here = full == index
            shown[here] = 0.3 * base[here] + 0.7 * np.array(colour, np.float32)
    return shown.round().astype(np.uint8)


def shrink(image: Image, longest: int) -> Image:
    """The picture with its longer side at most ``longest`` pixels."""
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    small: Image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return small


def panel(pictures: Sequence[Image], *, gap: int = 4) -> Image:
    """Pictures of one size side by side, with a white gap."""
    between = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, between)]
    return np.concatenate(parts[:-1], axis=1)


def jpeg(image: Image, *, quality: int) -> bytes:
    """The picture uint8 (H, W, 3) as a JPEG file."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"a picture of shape {image.shape} could not be written as JPEG")
    return bytes(data.tobytes())
