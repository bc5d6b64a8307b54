"""A list of images with their labels and masks, no pixel read yet; and the checks of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datamodules.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path


@dataclass(frozen=True)
class PhotoSet:
    """What is on disk for one split.

    Attributes:
        ids: Name of each of the N images, unique.
        images: Its file.
        masks: Its mask's file, None for an image without one; None in all where no image of the split has a mask.
        classes: The C classes, without background.
        labels: float32 (N, C), 1 where the image shows the class.
        lut: uint8 (256,), mask index to class index (`datamodules.class_names.mask_lut`); None without masks.
    """

    ids: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path | None, ...] | None
    classes: tuple[str, ...]
    labels: np.ndarray
    lut: np.ndarray | None

    def __len__(self) -> int:
        return len(self.ids)

    def without_masks(self) -> PhotoSet:
        """The same images, their masks forgotten."""
        return replace(self, masks=None, lut=None)

    def with_masks(self) -> PhotoSet:
        """The images that have a mask."""
        return self.subset([index for index, mask in enumerate(self.masks or ()) if mask is not None])

    def subset(self, indices: Sequence[int] | np.ndarray) -> PhotoSet:
        """The images at ``indices``, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices),
            images=tuple(self.images[i] for i in indices),
            masks=None if self.masks is None else tuple(self.masks[i] for i in indices),
            labels=self.labels[np.asarray(indices, dtype=np.intp)],
        )


def file_photos(paths: Sequence[Path], classes: Sequence[str]) -> PhotoSet:
    """Loose image files of which nothing is known: no labels, no masks; ids are the file names without their end.

    Raises:
        InputError: A file is missing, or two would have the same id.
    """
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"there is no image {missing}.")
    ids = tuple(path.stem for path in paths)
    seen: dict[str, Path] = {}
    for name, path in zip(ids, paths, strict=True):
        if name in seen:
            raise InputError(f"{seen[name]} and {path} would both be called {name!r}: rename one of them.")
        seen[name] = path
    return PhotoSet(ids, tuple(paths), None, tuple(classes), np.zeros((len(ids), len(classes)), np.float32), None)


def find_masks(folder: Path, ids: Sequence[str]) -> tuple[Path | None, ...] | None:
    """The mask ``<id>.png`` of each image, None for an image without one; None in all if none of them has one."""
    paths = tuple(folder / f"{name}.png" for name in ids)
    found = tuple(path if path.is_file() else None for path in paths)
    return found if any(found) else None


def all_masks(photos: PhotoSet, purpose: str) -> tuple[Path, ...]:
    """The masks of all images.

    Args:
        photos: a split.
        purpose: what needs a mask of every image, for the error.

    Raises:
        InputError: an image has none.
    """
    masks = photos.masks or (None,) * len(photos)
    lacking = [name for name, mask in zip(photos.ids, masks, strict=True) if mask is None]
    if lacking:
        folder = next((f" in {mask.parent}" for mask in masks if mask is not None), "")
        raise InputError(
            f"{len(lacking)} of {len(photos)} masks are missing{folder}, first {lacking[0]}.png; {purpose} needs a "
            "mask of every image."
        )
    return tuple(mask for mask in masks if mask is not None)


def check_labels(photos: PhotoSet, source: str) -> None:
    """Raises an InputError if no image shows any of the classes; ``source`` says where the labels came from."""
    if not photos.labels.any():
        raise InputError(
            f"the labels of all {len(photos)} images are zero: {source} gives none of them any of the classes "
            f"{', '.join(photos.classes)}."
        )


def one_hot(tags: Sequence[Sequence[str] | AbstractSet[str]], classes: Sequence[str]) -> np.ndarray:
    """Multi-hot labels.

    Args:
        tags: The tags of each of N images; those outside ``classes`` do not count.
        classes: C names.

    Returns:
        float32 (N, C).
    """
    return np.array([[name in own for name in classes] for own in tags], np.float32).reshape(len(tags), len(classes))
