"""A folder laid out as PASCAL VOC: JPEGImages, SegmentationClass, ImageSets, Annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datamodules.class_names import VOC_CLASSES, check_classes, mask_lut, read_classes
from datamodules.errors import InputError
from datamodules.photos import PhotoSet, all_masks, find_masks
from datamodules.voc_labels import list_labels, mask_labels, npy_labels, xml_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""Where ``masks="auto"`` looks, in this order."""


def voc_classes(root: Path) -> tuple[str, ...]:
    """The classes of a folder's masks and label files: those of ``classes.txt`` if it is there, else VOC's 20."""
    path = root / "classes.txt"
    return read_classes(path) if path.is_file() else VOC_CLASSES


def require_voc(root: Path) -> None:
    """See that a folder is one of images.

    Raises:
        InputError: It is not there, or has no ``JPEGImages``.
    """
    if not (root / "JPEGImages").is_dir():
        what = "has no JPEGImages" if root.is_dir() else "does not exist"
        raise InputError(f"folder {root} {what}: give the folder that holds JPEGImages, ImageSets and the masks.")


def voc_photos(
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    labels: str | None = "imagesets",
    masks: str | None = "auto",
) -> PhotoSet:
    """The images of one split.

    Args:
        root: The folder with ``JPEGImages`` in it (for VOC itself ``…/VOCdevkit/VOC2012``).
        split: The list ``ImageSets/Segmentation/<split>.txt``.
        classes: Which classes; None for all of the folder's.
        labels: ``xml``, ``imagesets``, ``masks``, a path to a ``cls_labels.npy``; None for none (all zero).
        masks: Name of the masks' folder, ``auto`` for the first of `MASK_FOLDERS`; None to leave masks alone.

    Returns:
        The images in the list's order; ``masks`` is None where the split has none.

    Raises:
        InputError: Something is missing or malformed, see there.
    """
    require_voc(root)
    source = voc_classes(root)
    chosen = source if classes is None else check_classes(classes, source, f"of {root}")
    ids = _split_ids(root, split)
    images = tuple(root / "JPEGImages" / f"{name}.jpg" for name in ids)
    absent = next((path for path in images if not path.is_file()), None)
    if absent is not None:
        raise InputError(f"the list {split!r} names {absent.stem}, and there is no image {absent}.")
    lut = mask_lut(source, chosen)
    mask_paths = _find_masks(root, masks, ids)
    values = np.zeros((len(ids), len(chosen)), np.float32)
    if labels is not None:
        values = _labels(root, split, labels, PhotoSet(ids, images, mask_paths, chosen, values, lut))
    return PhotoSet(ids, images, mask_paths, chosen, values, None if mask_paths is None else lut)


def _split_ids(root: Path, split: str) -> tuple[str, ...]:
    folder = root / "ImageSets" / "Segmentation"
    path = folder / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        raise InputError(f"there is no list {path}; the splits there are: {there}.")
    return read_ids(path)


def read_ids(path: Path) -> tuple[str, ...]:
    """The images of a list: the first word of each line.

    Raises:
        InputError: It cannot be read, is empty, or names an image twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the list {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    ids = tuple(line.split()[0] for line in lines if line.strip())
    if not ids:
        raise InputError(f"the list {path} is empty.")
    if len(set(ids)) < len(ids):
        raise InputError(f"the list {path} names {next(i for i in ids if ids.count(i) > 1)} more than once.")
    return ids


def _find_masks(root: Path, masks: str | None, ids: Sequence[str]) -> tuple[Path | None, ...] | None:
    if masks == "auto":
        masks = next((name for name in MASK_FOLDERS if (root / name).is_dir()), None)
    if masks is None:
        return None
    if not (root / masks).is_dir():
        raise InputError(f"there is no folder of masks {root / masks}: name another, or none (null).")
    return find_masks(root / masks, ids)


def _labels(root: Path, split: str, labels: str, photos: PhotoSet) -> np.ndarray:
    ids, classes = photos.ids, photos.classes
    if labels == "xml":
        return xml_labels(root, ids, classes)
    if labels == "imagesets":
        return list_labels(root, split, ids, classes)
    if labels == "masks":
        if photos.masks is None or photos.lut is None:
            raise InputError(f"labels: masks needs masks, and the split {split!r} of {root} has none.")
        return mask_labels(all_masks(photos, "labels: masks"), photos.lut, len(classes))
    if labels.endswith(".npy"):
        return npy_labels(Path(labels), ids, classes, voc_classes(root))
    raise InputError(f"labels is {labels!r}, and must be xml, imagesets, masks or the path of a .npy file.")
