"""A VOC folder of six small images, and a classifier's checkpoint trained on it for one step."""

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules.masks import write_mask
from datamodules.voc import VOCDataModule
from seeds.classifier import ClassifierTask

IDS = [f"p{i}" for i in range(6)]


@pytest.fixture(scope="session")
def voc(tmp_path_factory) -> Path:
    """Classes ``red`` and ``blue``: rectangles of that colour on gray; masks; lists ``train`` (6) and ``val`` (2)."""
    root = tmp_path_factory.mktemp("voc") / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)
    present = np.array([[1, 0], [0, 1], [1, 1], [1, 0], [0, 1], [1, 1]])
    for name, labels in zip(IDS, present, strict=True):
        height, width = generator.integers(48, 72, 2)
        image = generator.integers(90, 160, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        for c in np.flatnonzero(labels):
            place = (slice(8, 30), slice(4 + 24 * c, 24 + 24 * c))
            image[place] = (200, 30, 30) if c == 0 else (30, 30, 200)
            mask[place] = c + 1
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95)
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    (root / "classes.txt").write_text("red\nblue\n")
    for split, chosen in {"train": range(6), "val": range(2)}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"{IDS[i]}\n" for i in chosen))
        for c, label in enumerate(("red", "blue")):
            lines = [f"{IDS[i]} {1 if present[i, c] else -1}\n" for i in chosen]
            (root / f"ImageSets/Main/{label}_{split}.txt").write_text("".join(lines))
    return root


def data_of(voc: Path, **settings) -> VOCDataModule:
    return VOCDataModule(str(voc), size=64, batch_size=4, num_workers=0, **settings)


@pytest.fixture(scope="session")
def checkpoint(voc: Path, tmp_path_factory) -> Path:
    """A ResNet-18 classifier of output stride 16."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.ckpt"
    task = ClassifierTask(["red", "blue"], backbone="resnet18")
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, data_of(voc))
    trainer.save_checkpoint(path)
    return path
