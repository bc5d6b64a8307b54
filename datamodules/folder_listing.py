"""People's own photos: a folder with one CSV of tags, or one folder a tag."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodules.class_names import check_classes, mask_lut, read_classes
from datamodules.errors import InputError
from datamodules.images import IMAGE_SUFFIXES
from datamodules.photos import PhotoSet, find_masks, one_hot

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MASK_FOLDER = "masks"
"""Where ``masks="auto"`` looks."""

_ALL, _TRAIN, _VAL = ("all",), ("train", "trainaug"), ("val", "test")


@dataclass(frozen=True)
class Listing:
    """Images and their tags, N of each.

    Attributes:
        ids: Path of the image inside the folder, without its end.
        images: Its file.
        tags: Its tags.
        source: Where the tags were read, for messages.
    """

    ids: tuple[str, ...]
    images: tuple[Path, ...]
    tags: tuple[frozenset[str], ...]
    source: Path


def read_csv(root: Path, name: str = "tags.csv") -> Listing:
    """Images and tags from a CSV with the columns ``file,tags``.

    ``file`` is a path inside ``root``. ``tags`` are separated by ``;``, ``|`` or, inside quotes, ``,``; a tag may
    hold spaces; an empty cell is an image that shows none of the classes. Other columns are skipped.

    Raises:
        InputError: The CSV is missing or malformed, names an image that is not there, names one twice, or lacks
            an image that lies beside those it names.
    """
    path = root / name
    _require_folder(root)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = [field.strip().lower() for field in reader.fieldnames or ()]
            reader.fieldnames = header
            if not {"file", "tags"} <= set(header):
                raise InputError(f"{path} must start with the line 'file,tags', not {','.join(header)!r}.")
            rows = [_cells(row, path, reader.line_num) for row in reader]
    except OSError as error:
        raise InputError(f"tag file {path} cannot be read: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"tag file {path} is not a UTF-8 CSV: {error}.") from error
    rows = [row for row in rows if row[0]]
    images = [root / file for file, _ in rows]
    absent = next((image for image in images if not image.is_file()), None)
    if absent is not None:
        raise InputError(f"{path} names {absent.relative_to(root)}, and there is no such image in {root}.")
    tags = [frozenset(tag.strip() for tag in re.split("[;|,]", cell) if tag.strip()) for _, cell in rows]
    _refuse_untagged(path, images)
    return _listing(root, images, tags, path)


def _refuse_untagged(path: Path, images: Sequence[Path]) -> None:
    named = set(images)
    beside = (p for folder in sorted({image.parent for image in images}) for p in _pictures(folder))
    untagged = [picture for picture in beside if picture not in named]
    if untagged:
        raise InputError(
            f"{path} has no row for {len(untagged)} images beside those it names, first {untagged[0].name}: "
            "give each a row, with empty tags if it shows none of the classes."
        )


def read_tag_folders(root: Path, masks: str | None = None) -> Listing:
    """Images whose tag is the name of the folder they lie in.

    An image that shows two things may lie in both folders: files of one name and the same bytes are one image
    with both tags, and its id is the first of them.

    Args:
        root: The folder of folders; hidden ones and those without an image are passed over.
        masks: A folder in ``root`` that is no tag.

    Raises:
        InputError: There is no image in any folder.
    """
    _require_folder(root)
    images: list[Path] = []
    tags: list[set[str]] = []
    by_name: dict[str, list[int]] = {}
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != masks)
    for folder in folders:
        for picture in _pictures(folder):
            same = [i for i in by_name.get(picture.name, []) if _same_bytes(images[i], picture)]
            if same:
                tags[same[0]].add(folder.name)
                continue
            by_name.setdefault(picture.name, []).append(len(images))
            images.append(picture)
            tags.append({folder.name})
    return _listing(root, images, [frozenset(own) for own in tags], root)


def listing_classes(listing: Listing, root: Path) -> tuple[str, ...]:
    """The classes of a listing: those of ``classes.txt`` if it is there, else all tags, sorted.

    Raises:
        InputError: A tag is not in ``classes.txt``; or there is no tag at all.
    """
    found = sorted(set().union(*listing.tags))
    path = root / "classes.txt"
    if path.is_file():
        known = read_classes(path)
        if found:
            check_classes(found, known, f"in {path}")
        return known
    if not found:
        raise InputError(f"{listing.source} gives no image any tag.")
    return check_classes(found, found, f"in {listing.source}")


def listing_photos(
    listing: Listing,
    root: Path,
    split: str,
    classes: Sequence[str] | None = None,
    *,
    masks: str | None = "auto",
    val_fraction: float = 0.1,
) -> PhotoSet:
    """One part of a listing.

    Which part an image belongs to is told by a hash of its id alone, so that it stays there when others are added.

    Args:
        listing: All images.
        root: Their folder.
        split: ``train`` (or ``trainaug``), ``val`` (or ``test``), or ``all``.
        classes: Which classes; None for all. Tags outside them do not count.
        masks: Name of a folder in ``root`` with ``<id>.png``, ``auto`` for ``masks`` if there is one; None for none.
            Their index i is the i-th class of `listing_classes`.
        val_fraction: The part of the images that is ``val``.

    Raises:
        InputError: No such split, class or masks' folder; or no image in the split.
    """
    source = listing_classes(listing, root)
    chosen = source if classes is None else check_classes(classes, source, f"of {listing.source}")
    in_val = np.array([_hash_fraction(name) < val_fraction for name in listing.ids])
    if split not in _ALL + _TRAIN + _VAL:
        raise InputError(f"there is no split {split!r}: these photos have train, val and all.")
    keep = np.flatnonzero(in_val if split in _VAL else ~in_val if split in _TRAIN else np.ones_like(in_val))
    if not keep.size:
        raise InputError(f"none of the {len(in_val)} images of {root} falls to {split!r}: change val_fraction.")
    if masks == "auto":
        masks = MASK_FOLDER if (root / MASK_FOLDER).is_dir() else None
    if masks is not None and not (root / masks).is_dir():
        raise InputError(f"there is no folder of masks {root / masks}: name another, or none (null).")
    paths = None if masks is None else find_masks(root / masks, [listing.ids[i] for i in keep])
    labels = one_hot(listing.tags, chosen)
    everything = PhotoSet(listing.ids, listing.images, None, chosen, labels, None).subset(keep)
    lut = None if paths is None else mask_lut(source, chosen)
    return PhotoSet(everything.ids, everything.images, paths, chosen, everything.labels, lut)


def _listing(root: Path, images: Sequence[Path], tags: Iterable[frozenset[str]], source: Path) -> Listing:
    if not images:
        raise InputError(f"{source} holds no image ({', '.join(IMAGE_SUFFIXES)}).")
    ids = tuple(image.relative_to(root).with_suffix("").as_posix() for image in images)
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{source}: two images are called {twice!r}; rename one of them or drop its second row.")
    return Listing(ids, tuple(images), tuple(tags), source)


def _cells(row: dict[str | None, Any], path: Path, line: int) -> tuple[str, str]:
    # csv.DictReader puts what is beyond the header under None: "a.jpg,cat,dog" would lose its dog.
    beyond = [cell for cell in row.get(None, ()) if cell.strip()]
    if beyond:
        raise InputError(
            f"{path}, line {line}: {beyond[0].strip()!r} is beyond the columns of the header; "
            "separate the tags of an image by ';', or put them in quotes."
        )
    return (row["file"] or "").strip(), row["tags"] or ""


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"folder {root} does not exist: give the folder that holds the photos.")


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def _same_bytes(a: Path, b: Path) -> bool:
    return a.stat().st_size == b.stat().st_size and a.read_bytes() == b.read_bytes()


def _hash_fraction(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 256**6
