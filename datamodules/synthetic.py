"""The embedded data set: `SyntheticDataModule`, and `write_synthetic_voc`, which writes it as a VOC folder."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datamodules import synthetic_scenes
from datamodules.class_names import class_list
from datamodules.errors import InputError
from datamodules.files import file_sha256, new_folder, read_json
from datamodules.masks import write_mask
from datamodules.progress import track
from datamodules.synthetic_scenes import CLASSES, draw_scene
from datamodules.voc import VOCDataModule

RECORD = "synthetic.json"
"""File in the folder with the numbers and the digest of the code that made it."""


class SyntheticDataModule(VOCDataModule):
    """The embedded data set: textured cut-outs of five classes, see `datamodules.synthetic_scenes`.

    Args:
        root: folder of VOC's layout; `prepare_data` writes it if it is not there.
        train: images in the split ``train``.
        val: images in the split ``val``.
        image_size: longer side of the images in pixels.
        data_seed: number of the data set.
        **common: arguments of `VOCDataModule` and `datamodules.base_datamodule.BaseDataModule`.
    """

    def __init__(
        self, root: str = "data/synthetic", *, train: int = 600, val: int = 150, image_size: int = 128,
        data_seed: int = 0, **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(root, download=False, **common)
        self.save_hyperparameters({"train": train, "val": val, "image_size": image_size, "data_seed": data_seed})

    def known_classes(self) -> tuple[str, ...]:
        """Return the five classes."""
        return CLASSES

    def prepare_data(self) -> None:
        """Write the data set if it is not there.

        Raises:
            InputError: the folder contains a data set of other numbers, or written by another version of the code.
        """
        hp = self.hparams
        numbers = {"train": hp["train"], "val": hp["val"], "size": hp["image_size"], "seed": hp["data_seed"]}
        record = self.root / RECORD
        if not record.is_file():
            if not isinstance(self.root, Path):
                raise InputError(f"{self.root} contains no embedded data set, which is written to local folders alone")
            write_synthetic_voc(self.root, **numbers)
        elif read_json(record) != _record(numbers):
            raise InputError(f"{self.root} contains an embedded data set of other numbers or other code: remove it")


def write_synthetic_voc(output: Path, *, train: int = 600, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Write a small data set of textured cut-outs as a VOC folder.

    The folder contains ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation/{train,val}.txt``,
    ``ImageSets/Main/<class>_<split>.txt`` (tags: the classes in the masks) and ``classes.txt``. The same numbers give
    the same bytes (with the same versions of NumPy, OpenCV and Pillow), and a larger set begins with the images of a
    smaller one.

    Args:
        output: the folder, which must not exist or must be empty. It appears as a whole or not at all.
        train: images in the split ``train``.
        val: images in the split ``val``.
        size: longer side of the images in pixels.
        seed: number of the data set.

    Raises:
        InputError: the folder is not empty or cannot be written, or a number is out of range.
    """
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise InputError("train and val must be at least 1, size must be at least 32, and seed at least 0")
    with new_folder(Path(output)) as folder:
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        record = _record({"train": train, "val": val, "size": size, "seed": seed})
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
        (folder / "classes.txt").write_bytes(class_list(CLASSES))
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            ids = [f"{split}_{i:05d}" for i in range(count)]
            indices = []  # of each mask
            for i, name in enumerate(track(ids, f"drawing {split}")):
                image, mask = draw_scene((seed, number, i), size)
                jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 92))[1]
                (folder / "JPEGImages" / f"{name}.jpg").write_bytes(jpeg.tobytes())
                write_mask(folder / "SegmentationClass" / f"{name}.png", mask)
                indices.append(set(np.unique(mask).tolist()))
            lists = folder / "ImageSets"
            (lists / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
            for index, label in enumerate(CLASSES, start=1):
                lines = (f"{name} {1 if index in found else -1:2d}\n" for name, found in zip(ids, indices, strict=True))
                (lists / "Main" / f"{label}_{split}.txt").write_text("".join(lines), encoding="utf-8")


def _record(numbers: dict[str, int]) -> dict[str, Any]:
    """Return what determines the images: the numbers of the data set and the code that draws it."""
    return numbers | {"source": [file_sha256(module) for module in (__file__, synthetic_scenes.__file__)]}
