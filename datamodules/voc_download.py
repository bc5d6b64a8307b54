"""Download of PASCAL VOC 2012 and of the Semantic Boundaries Dataset (SBD), for the split trainaug."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import SBDataset, VOCSegmentation

from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.progress import track

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

LAYOUT = ("VOCdevkit", "VOC2012")


def download_voc(root: Path) -> None:
    """Download VOC 2012 (2 GB) and SBD (1.4 GB) with torchvision; add SegmentationClassAug and ``trainaug.txt``.

    Nothing is downloaded or written if ``trainaug.txt`` is there. SBD is stored beside ``VOCdevkit`` in ``sbd``.
    ``Annotations`` has the tags of all images (``labels: xml``).

    Args:
        root: Folder of VOC; ends in ``VOCdevkit/VOC2012``, as in VOC's archive.

    Raises:
        InputError: ``root`` ends differently, or a download fails.
    """
    if root.parts[-2:] != LAYOUT:
        raise InputError(f"VOC is downloaded into a folder ending in {'/'.join(LAYOUT)}: root cannot be {root}.")
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "trainaug.txt").is_file():
        return
    base = root.parent.parent
    try:
        base.mkdir(parents=True, exist_ok=True)
        if not (lists / "val.txt").is_file():
            VOCSegmentation(str(base), year="2012", image_set="train", download=True)
        sbd = base / "sbd"
        if not (sbd / "val.txt").is_file():
            sbd.mkdir(exist_ok=True)
            SBDataset(str(sbd), image_set="train", mode="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"VOC 2012 and SBD cannot be downloaded into {base} ({error}): check the connection and the disk, "
            f"or put VOC into {root} by hand."
        ) from error
    add_sbd(root, sbd)


def add_sbd(root: Path, sbd: Path) -> None:
    """Write SegmentationClassAug and ``trainaug.txt`` into a VOC folder.

    An image with a mask in VOC keeps it; the others get the mask of SBD. ``trainaug`` has 10,582 images.

    Args:
        root: Folder of VOC 2012.
        sbd: Folder of SBD, with ``cls``, ``train.txt`` and ``val.txt``.

    Raises:
        InputError: A list or mask is missing.
    """
    lists = root / "ImageSets" / "Segmentation"
    train, val = (_ids(lists / f"{split}.txt") for split in ("train", "val"))
    trainaug = trainaug_ids(train, val, _ids(sbd / "train.txt") | _ids(sbd / "val.txt"))
    target = root / "SegmentationClassAug"
    with tempfile.TemporaryDirectory(prefix=".aug", dir=root) as temporary:
        folder = root / temporary / target.name
        folder.mkdir()
        for name in track(sorted(val | set(trainaug)), "writing SegmentationClassAug", unit="masks"):
            if name in train or name in val:
                shutil.copyfile(root / "SegmentationClass" / f"{name}.png", folder / f"{name}.png")
            else:
                write_mask(folder / f"{name}.png", _read_sbd(sbd / "cls" / f"{name}.mat"))
        if target.exists():
            shutil.rmtree(target)
        folder.replace(target)
    partial = lists / "trainaug.txt.tmp"
    partial.write_text("".join(f"{name}\n" for name in trainaug), encoding="utf-8")
    partial.replace(lists / "trainaug.txt")  # last: marks the folder as complete


def trainaug_ids(train: set[str], val: set[str], sbd: set[str]) -> list[str]:
    """Return the images of ``trainaug``, sorted: VOC's train and all of SBD, without VOC's val."""
    return sorted((train | sbd) - val)


def _ids(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8").split())
    except OSError as error:
        raise InputError(f"the list {path} cannot be read: {error.strerror}.") from error


def _read_sbd(path: Path) -> np.ndarray:
    try:
        mask: np.ndarray = loadmat(path)["GTcls"][0]["Segmentation"][0]  # uint8 (H, W)
    except (OSError, ValueError, KeyError, TypeError, IndexError, MatReadError) as error:
        raise InputError(f"the SBD mask {path} cannot be read ({error}).") from error
    return mask
