"""The embedded data set, written as a VOC folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from datamodules.errors import InputError
from datamodules.files import new_folder
from datamodules.masks import write_mask
from datamodules.progress import track
from datamodules.synthetic_scenes import CLASSES, draw_scene

_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 92)


def synthesize(output: Path, *, train: int = 600, val: int = 150, size: int = 128, seed: int = 0) -> None:
    """Writes a small data set of textured cut-outs as a VOC folder.

    `datamodules.synthetic_scenes` describes the images. The folder holds ``JPEGImages``, ``SegmentationClass``,
    ``ImageSets/Segmentation/{train,val}.txt``, ``ImageSets/Main/<class>_<split>.txt`` (tags: what the masks show)
    and ``classes.txt``. The same numbers give the same bytes (with the same versions of NumPy, OpenCV and Pillow),
    and a larger set begins with the images of a smaller one.

    Args:
        output: Where; must not exist or be empty. Appears whole or not at all.
        train: Images to train on.
        val: Images to validate on.
        size: Their longer side in pixels.
        seed: Number of the data set.

    Raises:
        InputError: The folder is not empty or cannot be written; a number is out of range.
    """
    if train < 1 or val < 1 or size < 32 or seed < 0:
        raise InputError(
            f"train {train} and val {val} must be at least 1, size {size} at least 32, seed {seed} at least 0."
        )
    with new_folder(Path(output)) as folder:
        for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "ImageSets/Main"):
            (folder / name).mkdir(parents=True)
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), encoding="utf-8")
        for number, (split, count) in enumerate((("train", train), ("val", val))):
            _write_split(folder, split, [(seed, number, i) for i in range(count)], size)


def _write_split(folder: Path, split: str, seeds: list[tuple[int, ...]], size: int) -> None:
    ids = [f"{split}_{seed[-1]:05d}" for seed in seeds]
    pool = ThreadPoolExecutor()
    try:
        drawn = pool.map(partial(_write_image, folder, size=size), ids, seeds)
        shown = list(track(drawn, f"drawing {split}", len(ids)))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too
    lists = folder / "ImageSets"
    (lists / "Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids), encoding="utf-8")
    for index, label in enumerate(CLASSES, start=1):
        lines = [f"{name} {1 if index in classes else -1:2d}\n" for name, classes in zip(ids, shown, strict=True)]
        (lists / "Main" / f"{label}_{split}.txt").write_text("".join(lines), encoding="utf-8")


def _write_image(folder: Path, name: str, seed: tuple[int, ...], size: int) -> set[int]:
    """Write one image and its mask; return the mask's indices."""
    scene = draw_scene(seed, size)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), _QUALITY)[1]
    (folder / "JPEGImages" / f"{name}.jpg").write_bytes(encoded.tobytes())
    write_mask(folder / "SegmentationClass" / f"{name}.png", scene.mask)
    return set(np.unique(scene.mask).tolist())
