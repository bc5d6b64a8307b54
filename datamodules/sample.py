"""Samples: what is known about images before a pixel is read, and the checks of lists of samples."""

import hashlib
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from datamodules.annotations.shapes import Box, Point, Scribble
from datamodules.errors import InputError, UnreadableError
from datamodules.files import AnyPath, is_uri
from datamodules.image_ids import INVALID_ID, is_valid_id, match_id, unicode_forms
from datamodules.images import image_size
from datamodules.masks import RleMask, require_same_size
from datamodules.progress import print_message


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known about one image.

    Attributes:
        id: name of the image, unique in its data set.
        image: path or URI of the image.
        tags: names of the classes in the image; names outside the chosen classes are ignored. None: not known.
        mask: path or URI of the mask, a palette or gray PNG or TIFF of class indices; or the instances from which it is
            rendered. Index 255: not known. None: there is no mask.
        points: pixels of known classes.
        scribbles: lines through pixels of known classes.
        boxes: rectangles around objects.
    """

    id: str
    image: str
    tags: frozenset[str] | None = None
    mask: str | RleMask | None = None
    points: tuple[Point, ...] = ()
    scribbles: tuple[Scribble, ...] = ()
    boxes: tuple[Box, ...] = ()


def split_samples(samples: Sequence[Sample], split: str, val_fraction: float, root: AnyPath) -> list[Sample]:
    """Return the samples of the split ``train``, ``val`` or ``all`` of images without lists of splits.

    A hash of the id alone decides, so that an image stays in its split when others are added. Where few images leave
    ``val`` without any, it contains the one with the smallest hash.

    Args:
        samples: all images.
        split: name of the split.
        val_fraction: fraction of the images in ``val``; 0 for none.
        root: folder of the images, for messages.

    Raises:
        InputError: the split is not ``train``, ``val`` or ``all``, or none of the images is in it.
    """
    if split not in ("train", "val", "all"):
        raise InputError(f"there is no split {split!r}: the images of {root} have train, val and all")
    if split == "all":
        return list(samples)
    hashes = {sample.id: hashlib.sha256(sample.id.encode(errors="surrogateescape")).digest()[:6] for sample in samples}
    in_val = {name for name, each in hashes.items() if int.from_bytes(each) < val_fraction * 256**6}
    if not in_val and val_fraction > 0 and len(samples) > 1:
        in_val = {min(hashes, key=hashes.__getitem__)}
    chosen = [sample for sample in samples if (sample.id in in_val) == (split == "val")]
    if samples and not chosen:
        raise InputError(f"none of {len(samples)} images of {root} is in {split!r}: change val_fraction")
    return chosen


def multi_hot(samples: Sequence[Sample], classes: Sequence[str]) -> NDArray[np.float32]:
    """Return the labels of N samples, float32 (N, C); unknown tags give zeros."""
    columns = {name: column for column, name in enumerate(classes)}
    labels = np.zeros((len(samples), len(classes)), np.float32)
    for row, sample in zip(labels, samples, strict=True):
        row[[columns[tag] for tag in sample.tags or () if tag in columns]] = 1
    return labels


def file_samples(paths: Sequence[str | AnyPath], ids: Mapping[str, str] | None = None) -> list[Sample]:
    """Return samples of single image files without tags or masks.

    Files named by URI are not looked up: missing ones are found when they are read.

    Args:
        paths: the files.
        ids: ids by path; of the others the id is the file's name without its suffix.

    Raises:
        InputError: a file does not exist, two files have the same id, or an id is no relative path.
    """
    samples: dict[str, Sample] = {}
    for path in map(UPath, paths):
        if not is_uri(path) and not path.is_file():
            raise InputError(f"there is no image {path}")
        name = (ids or {}).get(str(path), path.stem)
        if not is_valid_id(name):
            raise InputError(f"the id {name!r} of {path} is {INVALID_ID}")
        if name in samples:
            if samples[name].image == str(path):
                raise InputError(f"{path} is given twice")
            raise InputError(f"{samples[name].image} and {path} have the same id {name!r}: rename one file")
        samples[name] = Sample(name, str(path))
    return list(samples.values())


def any_tagged(samples: Sequence[Sample], classes: Sequence[str]) -> bool:
    """Return whether a sample has a tag of ``classes``."""
    return not all(sample.tags is None or sample.tags.isdisjoint(classes) for sample in samples)


def require_tags(samples: Sequence[Sample], classes: Sequence[str], source: str) -> None:
    """Raise an InputError unless a sample has a tag of ``classes``; ``source`` names the origin of the tags."""
    if not any_tagged(samples, classes):
        zero = f"the labels of all {len(samples)} images are zero"
        raise InputError(f"{zero}: {source} gives no image any of the classes {', '.join(classes)}")


def require_masks(samples: Sequence[Sample], purpose: str) -> list[str | RleMask]:
    """Return the masks of all samples.

    Raises:
        InputError: a sample has no mask; the message names ``purpose``, which needs the masks.
    """
    masks = [sample.mask for sample in samples if sample.mask is not None]
    missing = [sample.id for sample in samples if sample.mask is None]
    if missing:
        problem = f"{len(missing)} of {len(samples)} masks are missing, first that of {missing[0]}"
        raise InputError(f"{problem}; {purpose} needs a mask of every image")
    return masks


class SplitSamples(dict[str, Sample]):
    """Samples of a split by id.

    Attributes:
        title: name of the split in messages.
        other_ids: ids of the data set's images in other splits, where ids are paths.
    """

    def __init__(self, samples: Sequence[Sample], title: str, other_ids: Container[str] = frozenset()) -> None:
        super().__init__((sample.id, sample) for sample in samples)
        self.title, self.other_ids = title, other_ids

    def find_id(self, name: str) -> str | None:
        """Return the id that is the longest end of a path, with its accents in any form; None where there is none.

        It may be that of an image of another split.
        """
        matches = (match_id(form, self, self.other_ids) for form in unicode_forms(name))
        return next((each for each in matches if each in self or each in self.other_ids), None)

    def match_ids(self, names: Sequence[str], locations: Sequence[str], path: AnyPath) -> list[str]:
        """Return the ids of the images that a file lists.

        The longest end of a path that is an id counts, see `find_id`. A message reports how many images are not among
        the samples.

        Args:
            names: ids or paths without suffixes, as in the file.
            locations: their locations in the file, for messages.
            path: the file, for messages.

        Returns:
            An id for each name, which may be that of an image of another split; the name itself where no end of it is
            an id.

        Raises:
            InputError: two names are the same image, or none is one of the samples.
        """
        found = [self.find_id(name) or name for name in names]
        counts = Counter(found)
        for name, listed, location in zip(found, names, locations, strict=True):
            if counts[name] > 1:
                raise InputError(f"{location}: {path} contains the image {listed} {counts[name]} times")
        matched = sum(name in self for name in found)
        if not matched:
            first = f"its first is {names[0]}" if names else "it is empty"
            raise InputError(f"{path} contains no image of {self.title}: {first}, and that of the split is {min(self)}")
        if matched < len(names):
            print_message(f"{path}: {matched} of {len(names)} images are in {self.title}; the others are left out")
        return found


def require_recorded_size(size: tuple[Any, Any], sample: Sample, location: str) -> None:
    """Raise an InputError where a file of annotations records another size of a sample's image.

    An unreadable image has none: `unreadable_images.readable` leaves it out.

    Args:
        size: height and width in the file; None where it records none.
        sample: the image; one named by URI is not looked at, which would be a request for each.
        location: location in the file, for the message.
    """
    if None in size or is_uri(sample.image):
        return
    with suppress(UnreadableError):
        require_same_size(location, size, f"its image {sample.image}", image_size(sample.image))
