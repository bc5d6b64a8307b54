"""Bounding boxes of objects: from XML annotations of VOC or ImageNet, or around the connected parts of a mask."""

from collections.abc import Sequence

import cv2
import numpy as np
from upath import UPath

from datamodules.annotations.shapes import Box, valid_box
from datamodules.class_names import IGNORE, class_name
from datamodules.errors import InputError, errors_at
from datamodules.files import AnyPath
from datamodules.voc_tags import read_annotation


def xml_boxes(path: AnyPath, classes: Sequence[str]) -> list[Box]:
    """Return the boxes of an annotation file, without objects of other classes.

    VOC and ImageNet count pixels from 1, and xmax and ymax are the last pixel of the object; right and bottom of the
    result are the first column and row beyond it.

    Args:
        path: ``Annotations/<id>.xml``.
        classes: names as in the file, for ImageNet its synsets.

    Raises:
        InputError: the file is missing or malformed, or a box is empty.
    """
    boxes = []
    for element in read_annotation(path).iter("object"):
        name = class_name((element.findtext("name") or "").strip(), classes)
        if name not in classes:
            continue
        try:
            corners = (element.findtext(f"bndbox/{side}") or "" for side in ("xmin", "ymin", "xmax", "ymax"))
            left, top, right, bottom = map(float, corners)
        except ValueError as error:
            raise InputError(f"annotation {path} has no box of four numbers for a {name}") from error
        with errors_at(f"annotation {path}"):
            boxes.append(valid_box(name, left - 1, top - 1, right, bottom))
    return boxes


def mask_boxes(mask: np.ndarray, classes: Sequence[str]) -> list[Box]:
    """Return the boxes around the connected parts of each class in a mask.

    Objects that touch are one part; in VOC's masks a border of 255 separates most objects.

    Args:
        mask: uint8 (H, W): 0 background, 1..C, 255 ignore.
        classes: names of the classes.
    """
    boxes = []
    for value in np.setdiff1d(mask, (0, IGNORE)):
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == value).astype(np.uint8), connectivity=8)
        for left, top, width, height in stats[1:, :4].tolist():
            boxes.append(Box(classes[value - 1], left, top, left + width, top + height))
    return boxes


def ground_truth_boxes(image: str | AnyPath, mask: np.ndarray, classes: Sequence[str]) -> list[Box]:
    """Return the boxes of an image: from its annotation in a VOC folder, or else around the parts of its mask.

    Args:
        image: ``JPEGImages/<id>.jpg`` of a folder that may have ``Annotations/<id>.xml``.
        mask: uint8 (H, W), as for `mask_boxes`.
        classes: names of the classes.

    Raises:
        InputError: the annotation is malformed.
    """
    path = UPath(image)
    annotation = path.parent.parent / "Annotations" / f"{path.stem}.xml"
    return xml_boxes(annotation, classes) if annotation.is_file() else mask_boxes(mask, classes)
