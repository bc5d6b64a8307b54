"""What people have drawn into images beside masks: points, scribbles and boxes."""

from collections.abc import Iterator
from typing import NamedTuple

from datamodules.masks import RleMask

BACKGROUND = "background"
"""Name of the background in points and scribbles."""

NAMED_SOURCES = ("masks", "xml")
"""Sources of annotations that are no files: the data set's own masks, and the boxes of a VOC folder."""


class Point(NamedTuple):
    """A pixel of known class.

    Attributes:
        name: Name of the class, or `BACKGROUND`.
        x: Column in pixels, from 0 at the left edge of the image.
        y: Row in pixels, from 0 at the upper edge of the image.
    """

    name: str
    x: float
    y: float


class Scribble(NamedTuple):
    """A line through pixels of one class.

    Attributes:
        name: Name of the class, or `BACKGROUND`.
        vertices: (x, y) of the vertices of the line, as in `Point`; at least one.
    """

    name: str
    vertices: tuple[tuple[float, float], ...]


class LabelledBox(NamedTuple):
    """A rectangle around one object. An image with boxes of a class has a box of every object of the class.

    Attributes:
        name: Name of the class.
        left: x of the left side, as in `Point`.
        top: y of the upper side.
        right: x of the right side.
        bottom: y of the lower side.
    """

    name: str
    left: float
    top: float
    right: float
    bottom: float


Mask = str | RleMask
Shape = Point | Scribble | LabelledBox
Found = Iterator[tuple[str, str, Mask | Shape]]
"""Of each annotation in a file: the id of its image, its place in the file for messages, and the annotation."""
