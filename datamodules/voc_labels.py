"""Image-level labels of a VOC folder, from whichever source the user has.

Objects that VOC marks as difficult count: they are in the image and in its mask.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import numpy as np

from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from datamodules.masks import read_class_mask
from datamodules.photos import one_hot
from datamodules.safe_pickle import load_npy_dict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def xml_labels(root: Path, ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Labels from the objects in ``Annotations/<id>.xml``.

    Returns:
        float32 (N, C).

    Raises:
        InputError: A file is missing or is no XML.
    """
    return one_hot([_xml_tags(root / "Annotations" / f"{name}.xml") for name in ids], classes)


def _xml_tags(path: Path) -> set[str]:
    return {name.text.strip() for name in read_annotation(path).findall("object/name") if name.text}


def read_annotation(path: Path) -> ET.Element:
    """An annotation's XML tree.

    Args:
        path: ``Annotations/<id>.xml``.

    Raises:
        InputError: The file is missing, is no XML, or declares entities.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"there are no labels for image {path.stem}: {path} is missing.") from error
    if b"<!ENTITY" in text:  # VOC needs none, and a few lines of them can fill the memory
        raise InputError(f"{path} declares entities, which an annotation never does.")
    try:
        return ET.fromstring(text)  # noqa: S314
    except ET.ParseError as error:
        raise InputError(f"{path} is not XML ({error}).") from error


def list_labels(root: Path, split: str, ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Labels from ``ImageSets/Main/<class>_<split>.txt``, or ``<class>_trainval.txt`` where that is missing.

    A line holds an id and 1 (there), 0 (there, difficult) or -1 (not there).

    Returns:
        float32 (N, C).

    Raises:
        InputError: A list is missing, malformed, or does not name one of the images.
    """
    folder = root / "ImageSets" / "Main"
    columns = []
    for name in classes:
        path = next((p for s in (split, "trainval") if (p := folder / f"{name}_{s}.txt").is_file()), None)
        if path is None:
            raise InputError(
                f"there are no labels of {name!r}: {folder / f'{name}_{split}.txt'} is missing; "
                "the labels can also come from xml, masks or a .npy file."
            )
        states = _read_states(path)
        lacking = [i for i in ids if i not in states]
        if lacking:
            raise InputError(
                f"{path} lacks {len(lacking)} of the {len(ids)} images of {split}, first {lacking[0]}; "
                "labels: xml knows those that VOC never listed there."
            )
        columns.append([states[i] >= 0 for i in ids])
    return np.array(columns, np.float32).T.copy()


def _read_states(path: Path) -> dict[str, int]:
    states = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match line.split():
            case []:
                continue
            case [name, "1" | "0" | "-1" as state]:
                states[name] = int(state)
            case _:
                raise InputError(f"{path}, line {number}: expected an id and 1, 0 or -1, found {line!r}.")
    return states


def mask_labels(masks: Sequence[Path], lut: np.ndarray, num_classes: int) -> np.ndarray:
    """Labels from the masks: a class is there if a pixel of it is.

    Args:
        masks: N files.
        lut: See `datamodules.class_names.mask_lut`.
        num_classes: C.

    Returns:
        float32 (N, C).
    """
    labels = np.zeros((len(masks), IGNORE + 1), np.float32)
    with ThreadPoolExecutor() as pool:
        for row, mask in zip(labels, pool.map(partial(read_class_mask, lut=lut), masks), strict=True):
            row[np.bincount(mask.ravel(), minlength=IGNORE + 1) > 0] = 1
    return labels[:, 1 : num_classes + 1].copy()


def npy_labels(path: Path, ids: Sequence[str], classes: Sequence[str], source: Sequence[str]) -> np.ndarray:
    """Labels from the community's ``cls_labels.npy``: a dictionary from id to a row of 0 and 1.

    Ids are strings, or the integers 2007000032 for 2007_000032. The file is a pickle; it is read with nothing
    allowed but arrays, dictionaries, numbers and strings, so that it cannot run code.

    Args:
        path: The file.
        ids: N images.
        classes: C classes asked for, each in ``source``.
        source: The classes of a row, in order.

    Returns:
        float32 (N, C).

    Raises:
        InputError: The file is missing, of another kind, lacks an image, or has rows of another length or kind.
    """
    table = load_npy_dict(path)
    rows = {
        (f"{k:010d}"[:4] + "_" + f"{k:010d}"[4:] if isinstance(k, int | np.integer) else str(k)): v
        for k, v in table.items()
    }
    lacking = [name for name in ids if name not in rows]
    if lacking:
        raise InputError(f"{path} lacks {len(lacking)} of {len(ids)} images, first {lacking[0]}.")
    columns = [list(source).index(name) for name in classes]
    labels = np.zeros((len(ids), len(classes)), np.float32)
    for row, name in zip(labels, ids, strict=True):
        found = rows[name]
        plain = isinstance(found, list | tuple) and all(isinstance(each, int | float) for each in found)
        if not (plain or isinstance(found, np.ndarray)):  # nested sequences of a hostile file can fill the memory
            raise InputError(f"{path} holds no row of numbers for {name}.")
        values = np.asarray(found)
        if values.shape != (len(source),):
            raise InputError(f"{path} holds {values.shape} labels for {name}, and there are {len(source)} classes.")
        row[:] = values[columns] > 0
    return labels
