"""Draw label maps, cues, heat maps and gradients in colour over images; put images together; encode them as files."""

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from datamodules.class_names import IGNORE
from datamodules.images import as_rgb
from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest

Pixels = NDArray[np.uint8]
Layer = NDArray[np.float32]

# Twenty hues that stay apart side by side and on photographs; VOC's own palette contains near-blacks and look-alikes.
COLOURS = (
    (230, 57, 70), (38, 132, 255), (255, 183, 3), (46, 196, 102), (155, 81, 224), (255, 120, 45), (0, 190, 200),
    (240, 98, 170), (140, 200, 50), (90, 90, 235), (176, 110, 60), (0, 150, 120), (255, 145, 145), (120, 190, 255),
    (205, 170, 30), (190, 60, 150), (100, 160, 100), (200, 140, 255), (255, 205, 130), (70, 120, 150),
)  # fmt: skip
# Of each further twenty classes: share of the colour, and the gray with which it is mixed.
SHADES = ((1.0, 0), (0.5, 0), (0.4, 255), (0.55, 128))
BACKGROUND_COLOUR = (84, 98, 122)  # of background cues
LABEL_STRENGTH = 0.62  # share of the class's colour in a pixel
HEAT_STRENGTH = 0.75  # share of the colour in a pixel where a map is highest
GAP, CAPTION, MARGIN = 6, 24, 96  # pixels of `figure_grid`: gap, height of a line, least width of row labels
# Fonts of Linux, macOS and Windows, those with Chinese, Japanese and Korean last; Pillow's own has ASCII alone.
FONTS = (
    "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc", "msyh.ttc",
)  # fmt: skip
UNASSIGNED = "\U0010fffe"  # a character that no font has
BRIGHTEST = 99.5  # percentile of a gradient's values that is shown at full contrast: a few pixels exceed all others


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the colour (red, green, blue) of class 1, 2, …, repeated after eighty; 0 is the background cue."""
    if index == 0:
        return BACKGROUND_COLOUR
    shade, place = divmod(index - 1, len(COLOURS))
    share, mixed = SHADES[shade % len(SHADES)]
    red, green, blue = (round(share * value + (1 - share) * mixed) for value in COLOURS[place])
    return red, green, blue


def label_layer(labels: NDArray[np.integer]) -> Layer:
    """Return a label map as a layer: classes in colour with a light outline, the background darkened.

    Args:
        labels: label map (H, W), 0 background, 1..C, 255 not scored (drawn light).

    Returns:
        float32 (H, W, 4): red, green, blue 0..255, opacity 0..1.
    """
    layer = np.zeros((*labels.shape, 4), np.float32)
    layer[..., 3] = 0.5  # black
    for index in np.unique(labels):
        if index == IGNORE:
            layer[labels == index] = (235, 235, 235, 0.5)
        elif index > 0:
            layer[labels == index] = (*class_colour(int(index)), LABEL_STRENGTH)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    border = cv2.morphologyEx(labels.astype(np.uint8), cv2.MORPH_GRADIENT, cross) > 0
    border &= (labels != 0) & (labels != IGNORE)  # the last pixel of a class, so that outlines stay thin
    opacity = 1 - 0.4 * (1 - LABEL_STRENGTH)  # 60 % white over the class's colour
    layer[border, :3] = (0.4 * LABEL_STRENGTH * layer[border, :3] + 0.6 * 255.0) / opacity
    layer[border, 3] = opacity
    return layer


def cue_layer(cues: NDArray[np.integer]) -> Layer:
    """Return cues as a layer: classes in colour, background cues slate, positions without a cue pale.

    Args:
        cues: label map (h, w), 0 background, 1..C, 255 no cue.

    Returns:
        float32 (h, w, 4), as `label_layer`.
    """
    layer = np.full((*cues.shape, 4), (245, 245, 245, 0.55), np.float32)
    for index in np.unique(cues):
        if index != NO_CUE:
            layer[cues == index] = (*class_colour(int(index)), 0.7)
    return layer


def label_overlay(image: Pixels, labels: NDArray[np.integer]) -> Pixels:
    """Draw a label map (H, W) over its image, uint8 (H, W, 3), see `label_layer`."""
    return _blend(image, label_layer(labels))


def cue_overlay(image: Pixels, cues: NDArray[np.integer]) -> Pixels:
    """Draw cues (h, w) of any grid over their image, uint8 (H, W, 3), see `cue_layer`."""
    return _blend(image, cue_layer(resize_nearest(cues.astype(np.uint8), *image.shape[:2])))


def _blend(image: Pixels, layer: Layer) -> Pixels:
    opacity = layer[..., 3:]
    return ((1 - opacity) * image + opacity * layer[..., :3]).round().astype(np.uint8)


def heat_overlay(image: Pixels, heat: NDArray[np.floating]) -> Pixels:
    """Draw a map over its image, from clear (0) to dark red (the map's maximum); the image's own colours are faded.

    Args:
        image: image uint8 (H, W, 3).
        heat: map (H, W), not negative.
    """
    peak = float(heat.max())
    share = (heat / peak if peak > 0 else np.zeros_like(heat)).astype(np.float32)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    colour = cv2.applyColorMap((share * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    weight = HEAT_STRENGTH * np.sqrt(share)[..., None]
    return ((1 - weight) * (0.4 * image + 0.6 * gray) + weight * colour).round().astype(np.uint8)


def gradient_image(gradient: NDArray[np.floating], height: int, width: int) -> Pixels:
    """Draw signed values (C, h, w) as an image uint8 (H, W, 3): 0 is gray, as papers show guided backpropagation.

    Of other than three channels those of `datamodules.images.as_rgb` are drawn.
    """
    peak = float(np.percentile(np.abs(gradient), BRIGHTEST)) or 1.0
    shown = (127.5 + 127.5 * np.clip(gradient / peak, -1, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return np.asarray(cv2.resize(as_rgb(shown), (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def shrink(image: Pixels, longest: int) -> Pixels:
    """Return the image with its longer side at most ``longest`` pixels."""
    factor = longest / max(image.shape[:2])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def side_by_side(images: Sequence[Pixels]) -> Pixels:
    """Return images of one height side by side, with a white gap of 4 pixels."""
    white = np.full((images[0].shape[0], 4, 3), 255, np.uint8)
    parts = [part for image in images for part in (image, white)]
    return np.concatenate(parts[:-1], axis=1)


def figure_grid(columns: Sequence[str], rows: Sequence[str], images: Sequence[Sequence[Pixels]], title: str) -> Pixels:
    """Return images of one size in rows and columns with captions.

    Args:
        columns: caption above each column.
        rows: caption left of each row, of several lines.
        images: for each row an image uint8 (H, W, 3) per column.
        title: line above all images.

    Returns:
        uint8 (H', W', 3).
    """
    height, width = images[0][0].shape[:2]
    texts = "".join([title, *rows, *columns])
    font, title_font = _font(14, texts), _font(16, texts)
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))  # measures the texts, which may exceed their images
    labels = [draw.multiline_textbbox((0, 0), caption, font=font) for caption in rows]
    margin = max(MARGIN, *(int(right) + 2 * GAP for _, _, right, _ in labels))
    widths = [max(width, int(draw.textlength(caption, font)) + GAP) + GAP for caption in columns]
    heights = [max(height, int(bottom) + 2 * GAP) + GAP for _, _, _, bottom in labels]
    lefts, tops = np.cumsum([margin, *widths]).tolist(), np.cumsum([2 * CAPTION + GAP, *heights]).tolist()
    page = Image.new("RGB", (max(lefts[-1], int(draw.textlength(title, title_font)) + GAP) + GAP, tops[-1]), "white")
    draw = ImageDraw.Draw(page)
    draw.text((GAP, GAP), title, fill="black", font=title_font)
    for left, caption in zip(lefts[:-1], columns, strict=True):
        draw.text((left, CAPTION + GAP), caption, fill="black", font=font)
    for top, caption, row in zip(tops[:-1], rows, images, strict=True):
        draw.multiline_text((GAP, top + GAP), caption, fill="black", font=font)
        for left, image in zip(lefts[:-1], row, strict=True):
            page.paste(Image.fromarray(image), (left, top))
    return np.asarray(page)


def _font(size: int, text: str) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return the first of ``FONTS`` that has all characters of a text; the first one that exists where none has."""
    fonts = []
    for name in FONTS:
        with suppress(OSError):
            fonts.append(font := ImageFont.truetype(name, size))
            box = bytes(font.getmask(UNASSIGNED))  # what it draws for a character that it lacks
            if all(bytes(font.getmask(each)) != box for each in set(text) if not each.isspace()):
                return font
    return fonts[0] if fonts else ImageFont.load_default(size)


def encode_image(image: Pixels, kind: Literal["jpeg", "png"], **options: Any) -> bytes:
    """Return an image uint8 (H, W, 3), or (H, W, 4) with transparency, as a file; ``options`` are Pillow's."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()
