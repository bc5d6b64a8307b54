"""Names of classes, and the lookup table from the indices of a mask to classes."""

import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from datamodules.errors import InputError, did_you_mean
from datamodules.files import AnyPath, read_lines

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 20 classes of PASCAL VOC in its own order; index i of a VOC mask is ``VOC_CLASSES[i - 1]``, 0 is background."""

IGNORE = 255
"""Mask index of pixels that losses and metrics ignore."""

ILLEGAL = 254
"""Value in a lookup table for indices that are invalid in the masks of a data set."""

MAX_CLASSES = 253


def voc_palette() -> np.ndarray:
    """Return the colours of VOC's masks (``VOClabelcolormap`` of the devkit), uint8 (256, 3): r, g, b of each index."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")  # (256, 8)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):  # three bits of the index at a time, one for each channel, highest bit first
        palette[:, bit % 3] |= bits[:, bit] << (7 - bit // 3)
    return palette


def voc_classes(root: AnyPath) -> tuple[str, ...]:
    """Return the classes of a folder's masks and labels: those of ``classes.txt`` if it is there, else VOC's 20."""
    path = root / "classes.txt"
    return read_classes(path) if path.is_file() else VOC_CLASSES


def mask_lut(mask_classes: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return the lookup table from an index in a mask file to a class index.

    Args:
        mask_classes: classes of the masks on disk; index i is ``mask_classes[i - 1]``.
        classes: the chosen classes.

    Returns:
        uint8 (256,): 0 for background, 1..C for ``classes``, ``IGNORE`` for other classes of ``mask_classes`` and for
        255, ``ILLEGAL`` for every index above their number.
    """
    table = np.full(256, ILLEGAL, np.uint8)
    table[[0, IGNORE]] = 0, IGNORE
    for index, name in enumerate(mask_classes, start=1):
        table[index] = list(classes).index(name) + 1 if name in classes else IGNORE
    return table


@lru_cache(1 << 16)
def normalize_name(text: str) -> str:
    """Return a tag or class without spaces around it, with single spaces in it, and accents as one character (NFC)."""
    return " ".join(unicodedata.normalize("NFC", text).replace("\u200b", "").split())


def class_name(label: str, known: Sequence[str]) -> str:
    """Return a label as a data set writes it: other spaces and other forms of accents are no other name."""
    if label in known:
        return label
    return next((name for name in known if normalize_name(name) == normalize_name(label)), normalize_name(label))


def check_classes(classes: Sequence[str], known: Sequence[str], where: str, advice: str = "") -> tuple[str, ...]:
    """Return ``classes`` as a tuple after checking that all of them are in ``known``; ``advice`` ends that message.

    Raises:
        InputError: a name is unknown (the message suggests the nearest known one) or given twice; or there are none or
            too many.
    """
    if not classes:
        raise InputError(f"no class is given: name at least one of the classes {where}")
    if len(classes) > MAX_CLASSES:
        raise InputError(f"there are {len(classes)} classes {where}, and an 8-bit mask has at most {MAX_CLASSES}")
    for name in classes:
        if name not in known:
            hint = did_you_mean(name, known) or f"the classes are {', '.join(known)}"
            raise InputError(f"class {name!r} does not exist among the classes {where}: {hint}{advice}")
        if list(classes).count(name) > 1:
            raise InputError(f"class {name!r} is given twice")
    return tuple(classes)


def require_same_classes(subject: str, own: Sequence[str], wanted: Sequence[str]) -> None:
    """Raise an InputError where two lists of classes differ, or their order does; ``subject`` has the first."""
    if tuple(own) != tuple(wanted):
        raise InputError(f"{subject} has the classes {', '.join(own)}, not {', '.join(wanted)}")


def class_list(classes: Iterable[str]) -> bytes:
    """Return the content of ``classes.txt``: the names of the classes without background, one a line, in UTF-8."""
    return "".join(f"{name}\n" for name in classes).encode()


def read_classes(path: AnyPath) -> tuple[str, ...]:
    """Return class names from a text file, one a line, without background; empty lines are skipped.

    Raises:
        InputError: the file is not UTF-8 text, is empty, or names a class twice.
    """
    names = tuple(line.strip() for line in read_lines(path) if line.strip())
    return check_classes(names, names, f"in {path}")
