"""Download of PASCAL VOC 2012 and of the Semantic Boundaries Dataset (SBD), for the split trainaug."""

import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision.datasets import SBDataset
from torchvision.datasets.utils import download_and_extract_archive
from torchvision.datasets.voc import DATASET_YEAR_DICT

from datamodules.errors import InputError
from datamodules.files import new_folder, write_atomically
from datamodules.image_ids import read_ids
from datamodules.masks import write_mask
from datamodules.progress import track


def download_voc(root: Path) -> None:
    """Download VOC 2012 (2 GB) and SBD (1.4 GB) with torchvision; add SegmentationClassAug and ``trainaug.txt``.

    Nothing is downloaded or written if ``trainaug.txt`` is there. SBD is stored beside ``VOCdevkit`` in ``sbd``.
    ``Annotations`` has the tags of all images (``labels: xml``). In SegmentationClassAug an image with a mask in VOC
    keeps it, the others get the mask of SBD; ``trainaug`` has 10,582 images. A complete SegmentationClassAug is kept.

    Args:
        root: folder of VOC; ends in ``VOCdevkit/VOC2012``, as in VOC's archive.

    Raises:
        InputError: ``root`` ends differently, a download fails, a list or mask is missing, or there is an incomplete
            SegmentationClassAug.
    """
    lists = root / "ImageSets" / "Segmentation"
    if (lists / "trainaug.txt").is_file():
        return
    if root.parts[-2:] != ("VOCdevkit", "VOC2012"):
        raise InputError(f"VOC is downloaded into a folder ending in VOCdevkit/VOC2012: root cannot be {root}")
    base, sbd = root.parents[1], root.parents[1] / "sbd"
    voc = DATASET_YEAR_DICT["2012"]
    try:
        if not (lists / "val.txt").is_file():
            _download(root, "ImageSets/Segmentation/val.txt", base, voc["base_dir"], voc)
        if not (sbd / "val.txt").is_file():
            _download(sbd, "val.txt", base, "benchmark_RELEASE/dataset", vars(SBDataset))
    except (OSError, RuntimeError) as error:
        problem = f"VOC 2012 and SBD cannot be downloaded into {base} ({error})"
        raise InputError(f"{problem}: check the connection and the disk") from error
    train, val = (set(read_ids(lists / f"{split}.txt")) for split in ("train", "val"))
    sbd_ids = {name for split in ("train", "val") for name in read_ids(sbd / f"{split}.txt")}
    trainaug = sorted((train | sbd_ids) - val)
    target, masks = root / "SegmentationClassAug", [f"{name}.png" for name in sorted(val | set(trainaug))]
    lacking = [name for name in masks if not (target / name).is_file()]
    if target.is_dir() and any(target.iterdir()):
        if lacking:
            raise InputError(f"{target} exists already, and lacks {lacking[0]}: remove or rename it, and it is written")
    else:
        _write_masks(target, masks, train | val, sbd)
    # the list comes last: it marks the folder as complete
    write_atomically(lists / "trainaug.txt", "".join(f"{name}\n" for name in trainaug).encode())


def _write_masks(target: Path, masks: Sequence[str], of_voc: Container[str], sbd: Path) -> None:
    """Write SegmentationClassAug; the folder appears when it is complete.

    Args:
        target: the folder.
        masks: names of its files.
        of_voc: ids of the images whose masks are in SegmentationClass beside it; the others are in SBD.
        sbd: folder of SBD.
    """
    with new_folder(target) as folder:
        for file in track(masks, "writing SegmentationClassAug", unit="masks"):
            name = file.removesuffix(".png")
            if name in of_voc:
                shutil.copyfile(target.with_name("SegmentationClass") / file, folder / file)
                continue
            path = sbd / "cls" / f"{name}.mat"
            try:
                mask = loadmat(path)["GTcls"][0]["Segmentation"][0]  # uint8 (H, W)
            except (OSError, ValueError, KeyError, TypeError, IndexError, MatReadError) as error:
                raise InputError(f"the SBD mask {path} cannot be read ({error})") from error
            write_mask(folder / file, mask)


def _download(folder: Path, lacking: str, base: Path, inside: str, archive: Mapping[str, Any]) -> None:
    """Make a folder from an archive; it appears when the whole archive is extracted.

    Args:
        folder: the new folder.
        lacking: file that the folder lacks if it exists, for the message.
        base: folder of the archive, which stays there.
        inside: path of the folder in the archive.
        archive: ``url``, ``filename`` and ``md5``.

    Raises:
        InputError: the folder exists and is not empty.
        OSError: the archive cannot be downloaded or extracted.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} exists already, and lacks {lacking}: remove or rename it, and it is downloaded")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".extracting-", dir=base) as extracted:
        download_and_extract_archive(archive["url"], str(base), extracted, archive["filename"], archive["md5"])
        (Path(extracted) / inside).replace(folder)
