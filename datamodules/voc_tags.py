"""Image-level tags of a VOC folder, from XML annotations, VOC's lists, masks or a ``cls_labels.npy``.

Objects that VOC marks as difficult count: they are in the image and in its mask.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree as ET

import numpy as np

from datamodules.class_names import IGNORE, class_name
from datamodules.errors import InputError
from datamodules.files import AnyPath, read_bytes, read_lines
from datamodules.image_ids import unicode_forms
from datamodules.masks import RleMask, read_class_mask
from datamodules.safe_pickle import load_dict


def xml_tags(root: AnyPath, ids: Sequence[str], known: Sequence[str]) -> list[frozenset[str]]:
    """Return the tags of images: the objects in ``Annotations/<id>.xml``.

    Args:
        root: folder of the data set.
        ids: ids of the images.
        known: classes of the data set, as it writes them; objects of others keep their names.

    Raises:
        InputError: a file is missing or is not XML.
    """
    with ThreadPoolExecutor() as pool:  # the annotations of an object store are a request each
        trees = list(pool.map(lambda name: read_annotation(root / "Annotations" / f"{name}.xml"), ids))
    names = ((each.text for each in tree.findall("object/name") if each.text) for tree in trees)
    return [frozenset(class_name(name.strip(), known) for name in own) for own in names]


def read_annotation(path: AnyPath) -> ET.Element:
    """Return the XML tree of an annotation.

    Args:
        path: ``Annotations/<id>.xml``.

    Raises:
        InputError: the file is missing, cannot be read, is not XML, or declares entities.
    """
    try:
        text = read_bytes(path)
    except FileNotFoundError as error:
        raise InputError(f"there are no labels for image {path.stem}: {path} is missing") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    if b"<!ENTITY" in text:  # VOC needs none, and a few lines of them can fill the memory
        raise InputError(f"{path} declares entities, which an annotation never does")
    try:
        return ET.fromstring(text)  # noqa: S314
    except (ET.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise InputError(f"{path} is not XML ({error})") from error


def list_tags(root: AnyPath, split: str, ids: Sequence[str], classes: Sequence[str]) -> list[frozenset[str]]:
    """Return tags from ``ImageSets/Main/<class>_<split>.txt``, or ``<class>_trainval.txt`` where that is missing.

    A line contains an id and 1 (present), 0 (present, difficult) or -1 (absent).

    Raises:
        InputError: a list is missing or malformed, or lacks one of the images.
    """
    folder = root / "ImageSets" / "Main"
    tags: dict[str, set[str]] = {image: set() for image in ids}
    for name in classes:
        files = [f"{form}_{part}.txt" for part in (split, "trainval") for form in unicode_forms(name)]
        path = next((folder / file for file in files if (folder / file).is_file()), None)
        if path is None:
            raise InputError(f"there are no labels of {name!r}: {folder / f'{name}_{split}.txt'} is missing")
        states: dict[str, str] = {}
        for number, line in enumerate(read_lines(path), start=1):
            match line.split():
                case [image, "1" | "0" | "-1" as state]:
                    states[image] = state
                case [_, *_]:
                    raise InputError(f"{path}, line {number}: expected an id and 1, 0 or -1, found {line!r}")
        if lacking := [image for image in ids if image not in states]:
            lacks = f"lacks {len(lacking)} of the {len(ids)} images of {split}, first {lacking[0]}"
            raise InputError(f"{path} {lacks}; labels: xml covers images that VOC's lists leave out")
        for image in ids:
            if states[image] != "-1":
                tags[image].add(name)
    return [frozenset(tags[image]) for image in ids]


def mask_tags(
    masks: Sequence[str | AnyPath | RleMask], lut: np.ndarray, classes: Sequence[str]
) -> list[frozenset[str]]:
    """Return tags from masks: a class is present where a pixel of the mask has its index.

    Args:
        masks: N masks.
        lut: uint8 (256,), see `datamodules.class_names.mask_lut`.
        classes: the C classes of ``lut``.

    Raises:
        InputError: a mask cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda path: np.bincount(read_class_mask(path, lut).ravel(), minlength=IGNORE + 1), masks)
        return [frozenset(name for name, pixels in zip(classes, count[1:], strict=False) if pixels) for count in counts]


def npy_tags(path: AnyPath, ids: Sequence[str], row_classes: Sequence[str]) -> list[frozenset[str]]:
    """Return tags from the community's ``cls_labels.npy``: a dictionary from id to a row of 0 and 1.

    Ids are strings, or integers such as 2007000032 for 2007_000032. The file is a pickle; only arrays, dictionaries,
    numbers and strings are read from it, so that it cannot run code.

    Args:
        path: the file.
        ids: N images.
        row_classes: the classes of a row, in order.

    Raises:
        InputError: the file is missing or of another kind, lacks an image, or has rows of another length or kind.
    """
    rows = {}
    for key, row in load_dict(path).items():
        rows[f"{key // 10**6}_{key % 10**6:06d}" if isinstance(key, int | np.integer) else str(key)] = row
    if lacking := [name for name in ids if name not in rows]:
        raise InputError(f"{path} lacks {len(lacking)} of {len(ids)} images, first {lacking[0]}")
    tags = []
    for image in ids:
        row = rows[image]
        plain = isinstance(row, list | tuple) and all(isinstance(each, int | float) for each in row)
        if not (plain or isinstance(row, np.ndarray)):  # nested sequences of a hostile file can fill the memory
            raise InputError(f"{path} has no row of numbers for {image}")
        values = np.asarray(row)
        if values.shape != (len(row_classes),):
            raise InputError(f"{path} has {values.shape} labels for {image}, and there are {len(row_classes)} classes")
        tags.append(frozenset(name for name, value in zip(row_classes, values, strict=True) if value > 0))
    return tags
