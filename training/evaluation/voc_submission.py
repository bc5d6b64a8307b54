"""The archive that PASCAL VOC's evaluation server accepts."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.files import write_atomically
from datamodules.masks import mask_png


def write_submission(output: Path, split: str, masks: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write ``submission.tar``, and the same files as a folder ``results``.

    Both contain ``results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png``, a palette PNG of the image's own size;
    comp6 is the server's name for training with data other than VOC's own, such as ImageNet weights.

    Args:
        output: an existing folder.
        split: name of the split, ``test`` for the server.
        masks: label map (H, W) of each image by its id.
    """
    folder = f"results/VOC2012/Segmentation/comp6_{split}_cls"
    files = {f"{folder}/{name}.png": mask_png(mask, f"the mask of {name}") for name, mask in masks.items()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    (output / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(output / name, content)
    write_atomically(output / "submission.tar", buffer.getvalue())
