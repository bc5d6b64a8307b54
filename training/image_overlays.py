"""Images for people: label maps and cues in colour over an image."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BACKGROUND_COLOUR", "class_colour", "cue_layer", "cue_picture", "jpeg", "label_layer", "label_picture",
    "layer_png", "panel", "shrink",
]  # fmt: skip

Image = NDArray[np.uint8]
Layer = NDArray[np.float32]

NEAREST = cv2.INTER_NEAREST_EXACT  # of label maps, whose pixels and cells are squares

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


def label_layer(labels: NDArray[np.integer], *, strength: float = 0.62) -> Layer:
    """A label map as something to lay over its image: classes in colour, lightly outlined, the background darkened.

    Args:
        labels: (H, W), 0 background, 1..C, 255 not scored (made light).
        strength: how much of a pixel is the class's colour.

    Returns:
        float32 (H, W, 4): red, green, blue 0..255, opacity 0..1.
    """
    layer = np.zeros((*labels.shape, 4), np.float32)
    layer[..., 3] = 0.5  # black
    for index in np.unique(labels):
        if index == NONE:
            layer[labels == index] = (235, 235, 235, 0.5)
        elif index > 0:
            layer[labels == index] = (*class_colour(int(index)), strength)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = cv2.morphologyEx(labels.astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0
    border &= (labels != 0) & (labels != NONE)  # the last pixel of a class, so that outlines stay thin
    opacity = 1 - 0.4 * (1 - strength)  # 60 % white over the class's colour
    layer[border, :3] = (0.4 * strength * layer[border, :3] + 0.6 * 255.0) / opacity
    layer[border, 3] = opacity
    return layer


def cue_layer(cues: NDArray[np.integer]) -> Layer:
    """Cues to lay over their image: classes in colour, background cues slate, cells without a cue pale.

    Args:
        cues: label map (h, w), 0 background, 1..C, 255 none.

    Returns:
        float32 (h, w, 4) as `label_layer`.
    """
    layer = np.full((*cues.shape, 4), (245, 245, 245, 0.55), np.float32)
    for index in np.unique(cues):
        if index != NONE:
            layer[cues == index] = (*(class_colour(int(index)) if index else BACKGROUND_COLOUR), 0.7)
    return layer


def blend(image: Image, layer: Layer) -> Image:
    """An image uint8 (H, W, 3) under a layer (H, W, 4)."""
    opacity = layer[..., 3:]
    shown: Image = ((1 - opacity) * image + opacity * layer[..., :3]).round().astype(np.uint8)
    return shown


def label_picture(image: Image, labels: NDArray[np.integer], *, strength: float = 0.62) -> Image:
    """A label map over its image, see `label_layer`: uint8 (H, W, 3) of an image uint8 (H, W, 3)."""
    return blend(image, label_layer(labels, strength=strength))


def cue_picture(image: Image, cues: NDArray[np.integer]) -> Image:
    """Cues over their image, cell by cell, see `cue_layer`.

    Args:
        image: uint8 (H, W, 3).
        cues: label map (h, w) of any size that covers the image, 0 background, 1..C, 255 none.

    Returns:
        uint8 (H, W, 3).
    """
    height, width = image.shape[:2]
    full = np.asarray(cv2.resize(cues.astype(np.uint8), (width, height), interpolation=NEAREST), dtype=np.uint8)
    return blend(image, cue_layer(full))


def layer_png(layer: Layer) -> bytes:
    """A layer (H, W, 4) as a PNG file with transparency."""
    pixels = np.concatenate([layer[..., 2::-1], 255 * layer[..., 3:]], axis=2).round().astype(np.uint8)
    done, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise RuntimeError(f"a layer of shape {layer.shape} could not be written as PNG")
    return bytes(data.tobytes())


def shrink(image: Image, longest: int) -> Image:
    """The image with its longer side at most ``longest`` pixels."""
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    small: Image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return small


def panel(pictures: Sequence[Image], *, gap: int = 4) -> Image:
    """Images of one size side by side, with a white gap."""
    between = np.full((pictures[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, between)]
    return np.concatenate(parts[:-1], axis=1)


def jpeg(image: Image, *, quality: int) -> bytes:
    """The image uint8 (H, W, 3) as a JPEG file."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"an image of shape {image.shape} could not be written as JPEG")
    return bytes(data.tobytes())
