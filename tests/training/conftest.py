"""A small data set with cues, and networks trained on it for a few steps: for segmentation, and for affinities."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from PIL import Image

from datamodules.masks import read_class_mask, write_mask
from datamodules.sample import multi_hot
from datamodules.synthetic import write_synthetic_voc
from datamodules.voc import VOCDataModule
from tests.seed_caches import CacheWriter
from tests.training.fits import CONFIGS
from training.cli import main
from training.segmentation_task import SegmentationTask

SIZE = 64
TINY = {"architecture": "DeepLabV3Plus", "output_stride": 16, "network_args": {"decoder_channels": 16}}


def data_of(root: Path, **settings) -> VOCDataModule:
    settings = {"size": SIZE, "batch_size": 3, "num_workers": 0, **settings}
    return VOCDataModule(str(root), **settings)


def trainer_of(folder: Path, **settings) -> pl.Trainer:
    settings = {"max_steps": 2, "logger": False, "enable_checkpointing": False, **settings}
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )


@torch.no_grad()
def amplify_scores(network: torch.nn.Module, images: torch.Tensor) -> None:
    """Amplify the scores of a hardly trained network, so that it predicts several classes in each image.

    Its predictions then differ between positions, images, sizes and mirror images, so a test sees a mix-up of them.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over all batches; not kept in checkpoints
    network.train()
    network(images)
    network.eval()
    head = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    scores = network(images).transpose(0, 1).flatten(1)  # (K, positions of all images)
    factor = 3 / scores.std(dim=1)
    head.weight *= factor[:, None, None, None]
    head.bias.copy_((head.bias - scores.mean(dim=1)) * factor)


@pytest.fixture(scope="session")
def voc(tmp_path_factory) -> Path:
    """The embedded data set, very small."""
    root = tmp_path_factory.mktemp("data") / "voc"
    write_synthetic_voc(root, train=9, val=4, size=96)
    return root


@pytest.fixture(scope="session")
def cues(voc, tmp_path_factory) -> Path:
    """A seed cache of the training images: eroded masks, and background far from the objects."""
    data = data_of(voc)
    samples = data.samples("train")
    path = tmp_path_factory.mktemp("cues") / "cache"
    with CacheWriter(path, data.classes, {"made": "from masks, for tests"}) as writer:
        for sample, tags in zip(samples, multi_hot(samples, data.classes), strict=True):
            mask = cv2.resize(read_class_mask(sample.mask, data.mask_lut), (8, 8), interpolation=cv2.INTER_NEAREST)
            grid = np.where(mask == 0, np.where(np.arange(64).reshape(8, 8) % 3 == 0, 0, 255), mask).astype(np.uint8)
            classes = np.flatnonzero(tags)
            writer.add(sample.id, grid, map_classes=classes, maps=np.ones((len(classes), 8, 8), np.float32))
    return path


@pytest.fixture(scope="session")
def checkpoint(voc, cues, tmp_path_factory) -> Path:
    """A SEC checkpoint after two steps, whose predictions differ from place to place."""
    folder = tmp_path_factory.mktemp("run")
    pl.seed_everything(0)
    data = data_of(voc, targets="cues", cues=str(cues))
    task = SegmentationTask(list(data.classes), **TINY, optimizer="adamw", lr=1e-3, schedule="poly")
    trainer = trainer_of(folder)
    trainer.fit(task, data)
    seen = torch.cat([batch["image"] for batch in data.eval_loader(data.samples("val"))])
    amplify_scores(task.network, seen)
    trainer.save_checkpoint(folder / "sec.ckpt")
    return folder / "sec.ckpt"


@pytest.fixture(scope="session")
def boundaries(voc, cues, tmp_path_factory) -> Path:
    """The affinity checkpoint after an epoch by the configuration of VOC animals, on nine images."""
    folder = tmp_path_factory.mktemp("affinity")
    config = yaml.safe_load((CONFIGS / "affinity_voc_animals.yaml").read_text())
    del config["data"]["init_args"]["classes"], config["trainer"]["precision"]
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    words = [f"--config={folder / 'small.yaml'}", f"--output={folder / 'run'}", f"--data.root={voc}"]
    words += [f"--data.cues={cues}", "--data.cues_checkpoint=null", "--data.train_split=train", f"--data.size={SIZE}"]
    words += [f"--data.eval_size={SIZE}", "--data.batch_size=3", "--data.num_workers=0"]
    words += ["--model.init_args.backbone=resnet18", "--model.init_args.weights=none", "--trainer.max_epochs=1"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1"]
    assert main(["fit", *words]) == 0
    assert not (folder / "run/best.ckpt").exists()
    assert "train/loss" in (folder / "run/metrics.csv").read_text().splitlines()[0]
    return folder / "run/last.ckpt"


@pytest.fixture
def predicted_masks(voc, tmp_path):
    """Somebody's predictions of the validation images: the masks, moved, the void filled; gray and palette."""
    folder = tmp_path / "predicted_masks"
    folder.mkdir()
    ids = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    for number, name in enumerate(ids):
        mask = np.roll(np.array(Image.open(voc / f"SegmentationClass/{name}.png")), 5, axis=number % 2)
        mask[mask == 255] = 1
        if number % 2:
            Image.fromarray(mask).save(folder / f"{name}.png")
        else:
            write_mask(folder / f"{name}.png", mask)
    return folder, ids
