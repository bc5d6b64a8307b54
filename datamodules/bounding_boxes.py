"""True boxes of objects: from XML annotations (VOC's and ImageNet's are alike), or around the parts of a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from datamodules.errors import InputError
from datamodules.voc_labels import read_annotation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Box(NamedTuple):
    """An object's box, in pixels from 0; right and bottom are the first column and row beyond it.

    Attributes:
        label: its class, 0..C-1.
        left: first column.
        top: first row.
        right: column behind the last.
        bottom: row behind the last.
    """

    label: int
    left: float
    top: float
    right: float
    bottom: float


def xml_boxes(path: Path, classes: Sequence[str]) -> list[Box]:
    """The boxes of an annotation file; objects of other classes are left out.

    VOC and ImageNet count pixels from 1 and name the last one within the box.

    Args:
        path: ``Annotations/<id>.xml``.
        classes: Names as in the file, of ImageNet its synsets.

    Raises:
        InputError: The file is missing or malformed, or a box is empty.
    """
    boxes = []
    for thing in read_annotation(path).iter("object"):
        name = (thing.findtext("name") or "").strip()
        if name not in classes:
            continue
        try:
            left, top, right, bottom = (float(thing.findtext(f"bndbox/{corner}") or "") for corner in CORNERS)
        except ValueError as error:
            raise InputError(f"annotation {path} has no box of four numbers for a {name}.") from error
        if right < left or bottom < top:
            raise InputError(f"annotation {path} holds an empty box of a {name}.")
        boxes.append(Box(list(classes).index(name), left - 1, top - 1, right, bottom))
    return boxes


def mask_boxes(mask: np.ndarray) -> list[Box]:
    """The boxes around the connected parts of each class in a mask.

    Objects that touch are one part, though VOC's masks have a border of 255 between most.

    Args:
        mask: uint8 (H, W): 0 background, 1..C, 255 ignore.
    """
    boxes = []
    for value in np.unique(mask):
        if value in (0, 255):
            continue
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
        for left, top, width, height in stats[1:, :4].tolist():
            boxes.append(Box(int(value) - 1, left, top, left + width, top + height))
    return boxes


def true_boxes(image: Path, mask: np.ndarray, classes: Sequence[str]) -> list[Box]:
    """An image's boxes: those of its annotation in a VOC folder, or else around the parts of its mask.

    Args:
        image: ``JPEGImages/<id>.jpg``, beside which ``Annotations/<id>.xml`` may be.
        mask: uint8 (H, W), as for `mask_boxes`.
        classes: Names of the classes.

    Raises:
        InputError: A malformed annotation.
    """
    annotation = image.parent.parent / "Annotations" / f"{image.stem}.xml"
    return xml_boxes(annotation, classes) if annotation.is_file() else mask_boxes(mask)
