"""A VOC folder of eight small images of several sizes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.masks import write_mask

CLASSES = ("ant", "bat", "cow")
IDS = tuple(f"p{i}" for i in range(8))
PRESENT = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0]])
COLOURS = np.array([(128, 128, 128), (220, 20, 20), (20, 220, 20), (20, 20, 220)], np.uint8)


def write_voc(root: Path) -> None:
    """Classes in COLOURS on gray, each 16 pixels wide; splits train (0..5) and val (6, 7); every kind of labels."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation", "Annotations"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(IDS):
        mask = np.zeros((48 + 4 * i, 64), np.uint8)
        for c in np.flatnonzero(PRESENT[i]):
            mask[8:40, 16 * c : 16 * c + 16] = c + 1
        mask[44:46, :8] = 255
        Image.fromarray(COLOURS[mask % 255]).save(root / f"JPEGImages/{name}.jpg", quality=95, subsampling=0)
        write_mask(root / f"SegmentationClass/{name}.png", mask)
        objects = "".join(f"<object><name>{CLASSES[c]}</name></object>" for c in np.flatnonzero(PRESENT[i]))
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for split, chosen in {"train": range(6), "val": (6, 7)}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{IDS[i]}\n" for i in chosen))
        for c, label in enumerate(CLASSES):
            lines = [f"{IDS[i]} {1 if PRESENT[i, c] else -1:2d}\n" for i in chosen]
            (root / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(lines))


@pytest.fixture(scope="session")
def voc_source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source") / "VOC"
    write_voc(root)
    return root


@pytest.fixture
def voc(voc_source: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(voc_source, tmp_path / "VOC"))
