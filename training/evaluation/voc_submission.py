"""The archive that PASCAL VOC's evaluation server accepts."""

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
    """Raise an InputError unless ``classes`` are VOC's twenty in their order, which the server requires."""
    if tuple(classes) != VOC_CLASSES:
        raise InputError(
            f"a submission needs VOC's 20 classes in their order, and these are {len(classes)}: {', '.join(classes)}"
        )


def write_submission(output: Path, split: str, masks: Mapping[str, NDArray[np.uint8]]) -> Path:
    """Write ``submission.tar``, and the same files as a folder ``results``.

    Both contain ``results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png``, a palette PNG of the image's own size;
    comp6 is the server's name for training with data other than VOC's own, such as ImageNet weights. The archive is
    read back before it is written to disk.

    Args:
        output: an existing folder.
        split: name of the split, ``test`` for the server.
        masks: label map (H, W) of each image by its id.

    Returns:
        The archive's path.

    Raises:
        InputError: the archive does not contain what was to be written.
    """
    folder = f"results/VOC2012/Segmentation/comp6_{split}_cls"
    files = {f"{folder}/{name}.png": mask_png(mask, f"the mask of {name}") for name, mask in masks.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as archive:
        if archive.getnames() != list(files):
            raise InputError(f"the archive contains {len(archive.getnames())} files instead of {len(files)} masks")
        for member, mask in zip(archive.getmembers(), masks.values(), strict=True):
            file = archive.extractfile(member)
            with Image.open(io.BytesIO(file.read() if file else b"")) as image:
                if image.mode != "P" or not np.array_equal(np.array(image), mask):
                    raise InputError(f"{member.name} was not read back from the archive as it was written")
    (output / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content)
    write_atomically(output / ARCHIVE, buffer.getvalue())
    return output / ARCHIVE
