"""Figures of explanations: images under their maps, in rows and columns with captions."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

__all__ = ["LONGEST", "gradient_picture", "grid", "heat_picture"]

Image = NDArray[np.uint8]

LONGEST = 300  # pixels of a panel's longer side
GAP, CAPTION, MARGIN = 6, 24, 96  # pixels: between panels, a caption's height, the rows' captions' width
BRIGHTEST = 99.5  # percentile of a gradient's values that is shown as full contrast: a few pixels dwarf all others


def heat_picture(image: Image, heat: NDArray[np.floating], *, strength: float = 0.75) -> Image:
    """A map over its image, from clear (0) to dark red (the map's own maximum); gray where it is 0 throughout.

    Args:
        image: uint8 (H, W, 3).
        heat: (H, W), not negative.
        strength: how much of a pixel is colour where the map is highest.
    """
    peak = float(heat.max())
    share = (heat / peak if peak > 0 else np.zeros_like(heat)).astype(np.float32)
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    colour = cv2.applyColorMap((share * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    weight = strength * np.sqrt(share)[..., None]
    return ((1 - weight) * (0.4 * image + 0.6 * gray) + weight * colour).round().astype(np.uint8)


def gradient_picture(gradient: NDArray[np.floating], height: int, width: int) -> Image:
    """Signed values (3, h, w) as an image uint8 (H, W, 3): 0 is gray, as the papers show guided backpropagation."""
    peak = float(np.percentile(np.abs(gradient), BRIGHTEST)) or 1.0
    shown = (127.5 + 127.5 * np.clip(gradient / peak, -1, 1)).round().astype(np.uint8).transpose(1, 2, 0)
    return np.asarray(cv2.resize(shown, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def grid(
    columns: Sequence[str], rows: Sequence[Sequence[str]], panels: Sequence[Sequence[Image | str]], title: str
) -> Image:
    """Panels of one size in rows and columns.

    Args:
        columns: a caption above each column.
        rows: the lines of the caption left of each row.
        panels: by row, an image uint8 (H, W, 3) of each column, or a short text where there is none.
        title: the line above all.

    Returns:
        uint8 (H', W', 3).
    """
    height, width = next(panel.shape[:2] for row in panels for panel in row if not isinstance(panel, str))
    size = (
        MARGIN + len(columns) * (width + GAP) + GAP,
        2 * CAPTION + GAP + len(rows) * (height + GAP),
    )
    page = Pillow.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    draw.text((GAP, GAP), title, fill="black", font=ImageFont.load_default(16))
    for c, caption in enumerate(columns):
        draw.text((MARGIN + c * (width + GAP), CAPTION + GAP), caption, fill="black", font=font)
    for r, (lines, row) in enumerate(zip(rows, panels, strict=True)):
        top = 2 * CAPTION + GAP + r * (height + GAP)
        draw.multiline_text((GAP, top + GAP), "\n".join(lines), fill="black", font=font)
        for c, panel in enumerate(row):
            place = (MARGIN + c * (width + GAP), top)
            if isinstance(panel, str):
                draw.multiline_text(place, panel, fill="gray", font=font)
            else:
                page.paste(Pillow.fromarray(panel), place)
    return np.asarray(page)
