"""Signs without masks that a stage has gone wrong: classes that are lost, or found nearly everywhere."""

from collections.abc import Sequence

import numpy as np

from datamodules.progress import print_message

MIN_SHARE = 0.5
"""A class is lost where it is found in a smaller share of the images tagged with it, and so is the background in a
smaller share of the images that should have some; a class is found nearly everywhere from this share of the images
without its tag on."""

MIN_IMAGES = 10
"""Images without a tag below which a class is not reported as found nearly everywhere."""


def report_lost_classes(tags: np.ndarray, classes: Sequence[str], *, what: str, advice: str) -> None:
    """Print the classes that are found in fewer than half of the images tagged with them; nothing where none is.

    Args:
        tags: number of images tagged with each class, and of those in which the class is found, (2, C).
        classes: the C names.
        what: what finds them, the beginning of the sentence.
        advice: what to do, the next sentence.
    """
    if lost := _listed(classes, tags, tags[1] < MIN_SHARE * tags[0]):
        print_message(f"warning: {what} fewer than half of the tags of some classes: {lost}. {advice}")


def report_lost_background(images: int, found: int, *, where: str, advice: str) -> None:
    """Print that fewer than half of the images have background; nothing otherwise.

    Args:
        images: number of images.
        found: of those in which there is background.
        where: in what it is looked for.
        advice: what to do, the next sentence.
    """
    if found < MIN_SHARE * images:
        print_message(f"warning: {where} there is background in {found} of {images} images. {advice}")


def report_classes_found_everywhere(untagged: np.ndarray, classes: Sequence[str], *, what: str, advice: str) -> None:
    """Print the classes that are found in at least half of 10 or more images without their tag; nothing otherwise.

    Args:
        untagged: number of images without each tag, and of those in which the class is found, (2, C).
        classes: the C names.
        what: what finds them, the beginning of the sentence.
        advice: what to do, the next sentence.
    """
    is_everywhere = (untagged[0] >= MIN_IMAGES) & (untagged[1] >= MIN_SHARE * untagged[0])
    if everywhere := _listed(classes, untagged, is_everywhere):
        print_message(f"warning: {what} some classes in most images without that tag: {everywhere}. {advice}")


def _listed(classes: Sequence[str], counts: np.ndarray, chosen: np.ndarray) -> str:
    """Return the chosen classes, bool (C,), with the numbers of images and of those in which each is found, (2, C)."""
    rows = zip(classes, *counts.tolist(), chosen, strict=True)
    return ", ".join(f"{name} in {found} of {images} images" for name, images, found, is_chosen in rows if is_chosen)
