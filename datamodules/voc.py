"""A folder laid out as PASCAL VOC: JPEGImages, SegmentationClass, ImageSets, Annotations."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base_datamodule import BaseDataModule
from datamodules.class_names import check_classes, mask_lut, voc_classes
from datamodules.errors import InputError
from datamodules.masks import find_mask, mask_folder
from datamodules.photos import PhotoSet, all_masks, find_masks, one_hot
from datamodules.sample import Sample, read_ids, require_masks
from datamodules.voc_download import download_voc
from datamodules.voc_labels import list_tags, mask_tags, npy_tags, xml_tags

MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""Where ``masks="auto"`` looks, in this order."""


class VOCDataModule(BaseDataModule):
    """A folder of PASCAL VOC's layout: JPEGImages, ImageSets, SegmentationClass, Annotations.

    A split is a list ``ImageSets/Segmentation/<split>.txt``. The classes are those of ``classes.txt`` in the folder, or
    VOC's 20.

    Args:
        root: The folder that contains JPEGImages, for VOC itself ``…/VOCdevkit/VOC2012``.
        labels: Source of the tags: ``xml``, ``imagesets``, ``masks``, the path of a ``cls_labels.npy``; None for no
            tags. See `datamodules.voc_labels`.
        masks: Name of the folder of masks; ``auto`` for SegmentationClassAug or else SegmentationClass; None for no
            masks.
        download: Download VOC 2012 and SBD into ``root`` (which must end in VOCdevkit/VOC2012) if they are not there.
        **common: Arguments of `BaseDataModule`.
    """

    def __init__(
        self, root: str, *, labels: str | None = "imagesets", masks: str | None = "auto", download: bool = False,
        **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(root, **common)
        labels = None if labels is None else str(labels)
        self.save_hyperparameters({"labels": labels, "masks": masks, "download": download})

    def known_classes(self) -> tuple[str, ...]:
        """Return the classes of ``classes.txt`` if it is there, else VOC's 20."""
        return voc_classes(self.root)

    @property
    def source(self) -> str:
        """The folder and the source of the tags."""
        return f"{self.root} (labels: {self.hparams['labels']})" if "labels" in self.hparams else str(self.root)

    def prepare_data(self) -> None:
        """Download VOC where ``download`` is set."""
        if self.hparams["download"]:
            download_voc(self.root)

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of a list, in its order."""
        hp, root = self.hparams, self.root
        if not (root / "JPEGImages").is_dir():
            problem = "contains no JPEGImages" if root.is_dir() else "does not exist"
            raise InputError(f"folder {root} {problem}: give the folder of JPEGImages, ImageSets and the masks.")
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            existing = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
            raise InputError(f"there is no list {path}; the existing splits are: {existing}.")
        ids = read_ids(path)
        labels = hp["labels"] if tags else None
        folder = mask_folder(root, hp["masks"], MASK_FOLDERS) if masks or labels == "masks" else None
        samples = [Sample(name, str(root / "JPEGImages" / f"{name}.jpg"), mask=find_mask(folder, name)) for name in ids]
        found: Sequence[frozenset[str] | None]
        if labels is None:
            found = [None] * len(ids)
        elif labels == "xml":
            found = xml_tags(root, ids)
        elif labels == "imagesets":
            found = list_tags(root, split, ids, self.classes)
        elif labels == "masks":
            found = mask_tags(require_masks(samples, "labels: masks"), self.mask_lut, self.classes)
        elif labels.endswith(".npy"):
            found = npy_tags(Path(labels), ids, self.known_classes())
        else:
            raise InputError(f"labels is {labels!r}, and must be xml, imagesets, masks or the path of a .npy file.")
        if not masks:
            samples = [replace(sample, mask=None) for sample in samples]
        return [replace(sample, tags=own) for sample, own in zip(samples, found, strict=True)]


# OLD: used by datamodules.datamodule until its users are converted


def require_voc(root: Path) -> None:
    """Raise an InputError unless a folder contains JPEGImages."""
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
        return one_hot(xml_tags(root, ids), classes)
    if labels == "imagesets":
        return one_hot(list_tags(root, split, ids, classes), classes)
    if labels == "masks":
        if photos.masks is None or photos.lut is None:
            raise InputError(f"labels: masks needs masks, and the split {split!r} of {root} has none.")
        return one_hot(mask_tags(all_masks(photos, "labels: masks"), photos.lut, classes), classes)
    if labels.endswith(".npy"):
        return one_hot(npy_tags(Path(labels), ids, voc_classes(root)), classes)
    raise InputError(f"labels is {labels!r}, and must be xml, imagesets, masks or the path of a .npy file.")
