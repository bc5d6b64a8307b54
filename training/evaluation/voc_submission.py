"""The archive that PASCAL VOC's evaluation server takes."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodules.class_names import VOC_CLASSES
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.masks import mask_png

__all__ = ["check_voc_classes", "write_submission"]

ARCHIVE = "submission.tar"


def check_voc_classes(classes: Sequence[str]) -> None:
    """Raises an InputError unless ``classes`` are VOC's twenty in its order, which is all that the server takes."""
    if tuple(classes) != VOC_CLASSES:
        raise InputError(
            f"a submission needs VOC's 20 classes in its order, and these are {len(classes)}: {', '.join(classes)}"
        )


def write_submission(output: Path, split: str, masks: Mapping[str, NDArray[np.uint8]]) -> Path:
    """Write ``submission.tar``, and the same files as a folder ``results`` to look at.

    Both hold ``results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png``, a palette PNG of the image's own size;
    comp6 is the server's name for training with data other than VOC's own, such as ImageNet weights. The archive is
    read back before it gets its name.

    Args:
        output: folder, there already.
        split: name of the list, ``test`` for the server.
        masks: label map (H, W) of each image by its id.

    Returns:
        The archive's path.

    Raises:
        InputError: what was read back is not what was to be written.
    """
    folder = Path("results") / "VOC2012" / "Segmentation" / f"comp6_{split}_cls"
    files = {str(folder / f"{name}.png"): mask_png(mask, f"the mask of {name}") for name, mask in masks.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(content))
    _check(buffer, {str(folder / f"{name}.png"): mask for name, mask in masks.items()})
    (output / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content)
    write_atomically(output / ARCHIVE, buffer.getvalue())
    return output / ARCHIVE


def _check(archive: io.BytesIO, masks: Mapping[str, NDArray[np.uint8]]) -> None:
    """Every member is a palette PNG that holds its mask, and there is no other."""
    archive.seek(0)
    with tarfile.open(fileobj=archive) as opened:
        members = opened.getmembers()
        if [member.name for member in members] != list(masks):
            raise InputError(f"the archive holds {len(members)} files in place of {len(masks)} masks")
        for member in members:
            file = opened.extractfile(member)
            with Image.open(io.BytesIO(file.read() if file else b"")) as image:
                mode, found = image.mode, np.array(image)
            if mode != "P" or not np.array_equal(found, masks[member.name]):
                raise InputError(f"{member.name} was not read back from the archive as it was written")
