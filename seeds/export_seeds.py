# ruff: noqa: A002  format is the name of an option
"""``seeds export``: convert a seed cache to files of other tools."""

from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from upath import UPath

from datamodules.annotations.exports import AnnotationFormat, LabelledImage, write_annotations
from datamodules.class_names import class_list
from datamodules.errors import InputError
from datamodules.files import new_folder
from datamodules.images import any_size, image_size
from datamodules.masks import write_mask
from datamodules.progress import track
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.irn_maps import write_irn
from datamodules.seed_cache.sec_cues import sec_files
from datamodules.seed_cache.shard import NO_CUE
from seeds.import_seeds import Format


def export_seeds(
    cache: UPath,
    output: Path,
    format: Literal[Format, AnnotationFormat],
    *,
    root: str | None = None,
    split: str | None = None,
) -> None:
    """Convert a seed cache to files of another tool, with a ``classes.txt`` that lists the classes 1..C.

    ``sec`` is the pickle and list that the code of the SEC authors reads (it expects a grid of 41x41 and the 20
    classes of VOC); the labels of an image are the classes of its maps and cues. ``irn`` is a ``.npy`` file per image
    with its maps, as the later steps of irn read them. ``png`` is a palette PNG per image with its label map: 0 =
    background, 1..C = class, 255 = no cue.

    The formats of annotation tools contain the label maps in the images' own sizes, see
    `datamodules.annotations.exports.write_annotations`: between the centres of positions the classes are interpolated,
    and the highest one wins.

    Args:
        cache: a seed cache.
        output: the folder to write, which must be new or empty.
        format: sec, irn, png, coco, yolo, label-studio, cvat or huggingface.
        root: for irn and annotation tools: folder of the images, whose sizes count; by default as in the cache.
        split: for irn and annotation tools: the images; by default as in the cache.

    Raises:
        InputError: there is no such cache, it does not fit the format (cues of several sizes, no maps), images are
            missing, or the folder is not empty. Nothing is left behind then.
    """
    seeds = SeedCache(cache)
    with new_folder(output) as folder, any_size() if "tile" in seeds.settings else nullcontext():
        if format not in ("png", "sec"):
            from datamodules.base_datamodule import covered_samples  # torch, here only
            from datamodules.open_data import datamodule_from_settings

            settings = {"classes": list(seeds.classes), "train_split": split}
            data = datamodule_from_settings(seeds.inputs.get("data"), root=root, **settings)
            every = data.samples(data.hparams["train_split"], tags=False, masks=False)
            samples = track(covered_samples(seeds, every, data.classes), "exporting")
        if format == "irn":
            found = set[int]()
            for sample in samples:
                classes, maps = seeds.maps(sample.id)
                found.update(classes)
                file = folder / f"{sample.id}.npy"
                file.parent.mkdir(parents=True, exist_ok=True)  # an id may be a path
                write_irn(file, classes, maps, image_size(sample.image))
            if not found:
                raise InputError(f"{seeds.path} has cues without maps, and the files of irn contain maps")
        elif format == "png":
            for name in track(seeds.ids, "exporting"):
                write_mask(folder / f"{name}.png", seeds.cues(name))
        elif format == "sec":
            images = []
            for name in track(seeds.ids, "exporting"):
                cues, (classes, _) = seeds.cues(name), seeds.maps(name)
                images.append((name, np.union1d(classes + 1, np.setdiff1d(cues, (0, NO_CUE))), cues))
            sizes = len({cues.shape for _, _, cues in images})
            if sizes != 1:
                raise InputError(f"{seeds.path} has cues of {sizes} different sizes, and a file of SEC has one size")
            for title, content in sec_files(images).items():
                (folder / title).write_bytes(content)
        else:
            labelled = (
                LabelledImage(sample.id, sample.image, enlarge_labels(seeds.cues(sample.id), *image_size(sample.image)))
                for sample in samples
            )
            write_annotations(format, folder, seeds.classes, labelled)
        (folder / "classes.txt").write_bytes(class_list(seeds.classes))


def enlarge_labels(labels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Return a label map at another size: the class whose bilinearly interpolated indicator is highest.

    Args:
        labels: uint8 (h, w).
        height: H.
        width: W.

    Returns:
        uint8 (H, W).
    """
    indices = np.unique(labels)
    highest, enlarged = np.full((height, width), -1, np.float32), np.zeros((height, width), np.uint8)
    for index in indices:
        share = cv2.resize((labels == index).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
        enlarged[share > highest] = index
        np.maximum(highest, share, out=highest)
    return enlarged
