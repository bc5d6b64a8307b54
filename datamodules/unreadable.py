"""Images that cannot be read: left out and listed, up to a share of all of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from datamodules.errors import InputError, UnreadableError
from datamodules.images import image_size
from datamodules.progress import print_message

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datamodules.photos import PhotoSet

__all__ = ["MAX_UNREADABLE", "UnreadableImages", "check_share", "leave_out_unreadable", "too_many"]

MAX_UNREADABLE = 0.01
"""The share of unreadable images that is accepted by default."""

_LISTED = 10  # images named one by one on the terminal


class UnreadableImages:
    """Collects the images that cannot be read, names them on the terminal, and refuses too many of them.

    Attributes:
        found: id and reason of each.
    """

    def __init__(self, share: float = MAX_UNREADABLE, *, strict: bool = False) -> None:
        """Start with no image.

        Args:
            share: how many of all images may be unreadable, a fraction.
            strict: none may be, whatever ``share`` is.

        Raises:
            InputError: ``share`` is outside 0..1.
        """
        check_share(share)
        self.share, self.total = 0.0 if strict else share, 0
        self.found: dict[str, str] = {}

    def expect(self, images: int) -> None:
        """Count images among those of which a share may be unreadable."""
        self.total += images

    def add(self, name: str, reason: str) -> None:
        """Take note of an image, once.

        Raises:
            InputError: there are more than the share allows.
        """
        if name in self.found:
            return
        self.found[name] = reason
        if problem := too_many(self.found, self.total, self.share):
            raise InputError(problem)
        if len(self.found) <= _LISTED:
            print_message(f"left out: {name}: {reason}")


def too_many(found: Mapping[str, str], total: int, share: float) -> str:
    """Return the error for too many unreadable images; empty where there are not.

    Args:
        found: id and reason of each unreadable image.
        total: how many images there are in all.
        share: how many of them may be unreadable, a fraction; 1 allows any number, whatever ``total`` is.
    """
    if share >= 1 or len(found) <= share * total:
        return ""
    limit = f"max_unreadable allows a share of {share:g} (strict: none)"
    return f"{len(found)} of {total} images cannot be read, and {limit}; the first: {next(iter(found.values()))}"


def check_share(share: float) -> None:
    """Raise an InputError unless ``share`` is a fraction."""
    if not 0 <= share <= 1:
        raise InputError(f"max_unreadable is {share}, and must be a share of the images within 0..1.")


def leave_out_unreadable(photos: PhotoSet, unreadable: UnreadableImages) -> PhotoSet:
    """Look at the header of every image and mask, before any time is spent on them.

    Args:
        photos: a split.
        unreadable: receives the images whose header, or whose mask's header, cannot be read.

    Returns:
        The others, in their order.

    Raises:
        InputError: a mask has another size than its image, or too many images are unreadable.
    """
    unreadable.expect(len(photos))
    masks = photos.masks or (None,) * len(photos)
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_header_problem, photos.images, masks))
    for name, problem in zip(photos.ids, problems, strict=True):
        if problem:
            unreadable.add(name, problem)
    if len(unreadable.found) > _LISTED:
        print_message(f"left out in all: {len(unreadable.found)} images that cannot be read")
    return photos.subset(np.flatnonzero([not problem for problem in problems])) if any(problems) else photos


def _header_problem(image: Path, mask: Path | None) -> str:
    """Why an image or its mask cannot be read, by their headers; empty where they can."""
    try:
        height, width = image_size(image)
    except UnreadableError as error:
        return str(error)
    if mask is None:
        return ""
    try:
        with Image.open(mask) as opened:
            size = opened.size
    except (OSError, SyntaxError, ValueError) as error:
        return f"mask {mask} cannot be read ({error})."
    if size != (width, height):
        raise InputError(f"mask {mask} is {size[0]}x{size[1]}, and its image {image} is {width}x{height}.")
    return ""
