"""A sign without masks that a stage has gone wrong: classes that most images tagged with them have lost."""

from collections.abc import Sequence

import numpy as np

from datamodules.progress import print_message

MIN_SHARE = 0.5
"""A class is lost where it is found in a smaller share of the images tagged with it."""


def report_lost_classes(tags: np.ndarray, classes: Sequence[str], *, what: str, advice: str) -> None:
    """Print the classes that are found in fewer than half of the images tagged with them; nothing where none is.

    Args:
        tags: number of images tagged with each class, and of those in which the class is found, (2, C).
        classes: the C names.
        what: what finds them, the beginning of the sentence.
        advice: what to do, the next sentence.
    """
    lost = [
        f"{name} in {found} of {tagged} images"
        for name, tagged, found in zip(classes, *tags.tolist(), strict=True)
        if found < MIN_SHARE * tagged
    ]
    if lost:
        print_message(f"warning: {what} fewer than half of the tags of some classes: {', '.join(lost)}. {advice}")
