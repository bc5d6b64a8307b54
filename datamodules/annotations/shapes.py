"""What people have drawn into images beside masks: points, scribbles and boxes."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from datamodules.class_names import IGNORE
from datamodules.errors import InputError, did_you_mean
from datamodules.files import AnyPath
from datamodules.masks import RleMask
from datamodules.progress import first_few, print_message

BACKGROUND = "background"
"""Name of the background in points and scribbles."""

UNKNOWN = "unknown"
"""Name of the class of unlabelled pixels in formats that only know classes."""


class Point(NamedTuple):
    """A pixel of known class.

    Attributes:
        name: name of the class, or `BACKGROUND`.
        x: column in pixels, from 0 at the left edge of the image.
        y: row in pixels, from 0 at the upper edge of the image.
    """

    name: str
    x: float
    y: float


class Scribble(NamedTuple):
    """A line through pixels of one class.

    Attributes:
        name: name of the class, or `BACKGROUND`.
        vertices: (x, y) of the vertices of the line, as in `Point`; at least one.
    """

    name: str
    vertices: tuple[tuple[float, float], ...]


class Box(NamedTuple):
    """A rectangle around one object. An image with boxes of a class has a box of every object of the class.

    Attributes:
        name: name of the class.
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


def mask_index(label: str | None, known: Sequence[str]) -> int:
    """Return the index in masks of a label: 0 for `BACKGROUND`, 255 for None and one that is no class."""
    return 0 if label == BACKGROUND else known.index(label) + 1 if label in known else IGNORE


def check_labels(labels: Collection[str], known: Sequence[str], path: AnyPath, what: str) -> None:
    """Check the labels of a file of annotations, and print those that are no class.

    Args:
        labels: the labels by `class_name`; `BACKGROUND` and `UNKNOWN` need not be classes.
        known: all classes of the data set.
        path: the file, for messages.
        what: what its labels are, for messages.

    Raises:
        InputError: none of the labels is a class.
    """
    labels = set(labels)
    others = sorted(labels.difference(known, (BACKGROUND, UNKNOWN)))
    if labels.isdisjoint(known):
        found = f"{first_few(sorted(labels))}; there are {', '.join(known[:20])}"
        raise InputError(f"{path}: none of {what} is a class of the data set: {found}")
    if others:
        hint = next(filter(None, (did_you_mean(each, known) for each in others)), "")
        print_message(
            f"{path}: some of {what} are not classes of the data set: {first_few(others)}{hint and f'; {hint}'}"
        )


def valid_box(label: str, left: float, top: float, right: float, bottom: float) -> Box:
    """Return a box; an InputError where it is empty or its sides are no finite numbers."""
    if not (-1e9 < left < right < 1e9 and -1e9 < top < bottom < 1e9):
        raise InputError(f"a box of {label!r} is empty: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}")
    return Box(label, left, top, right, bottom)


def are_numbers(values: Any, count: int) -> bool:
    """Return whether a value of a JSON is a list of finite numbers; those above 1e9 are no pixels, either."""
    numbers = isinstance(values, list) and len(values) == count and all(type(each) in (int, float) for each in values)
    return numbers and all(-1e9 < each < 1e9 for each in values)


Mask = str | RleMask
Shape = Point | Scribble | Box


class Annotation(NamedTuple):
    """One annotation in a file.

    Attributes:
        image_id: id of its image.
        location: where it is in the file, for messages.
        item: the mask, point, scribble or box.
    """

    image_id: str
    location: str
    item: Mask | Shape


def vertices(item: Point | Scribble) -> tuple[tuple[float, float], ...]:
    """Return the vertices of a scribble, or the only one of a point."""
    return item.vertices if isinstance(item, Scribble) else ((item.x, item.y),)


def require_inside(item: Shape, image: str, size: tuple[int, int]) -> None:
    """Raise an InputError unless each vertex of a point or scribble, or a part of a box, is inside of an image.

    Args:
        item: the annotation.
        image: path or URI of the image, for the message.
        size: its height and width.
    """
    height, width = size
    if isinstance(item, Box):
        is_inside = item.right > 0 and item.bottom > 0 and item.left < width and item.top < height
        outside = "" if is_inside else f"box ({item.left:g}, {item.top:g}, {item.right:g}, {item.bottom:g})"
    else:
        far = (f"point ({x:g}, {y:g})" for x, y in vertices(item) if not (0 <= x < width and 0 <= y < height))
        outside = next(far, "")
    if outside:
        raise InputError(f"the {outside} of {item.name} is outside of the image {image}, which is {width}x{height}")
