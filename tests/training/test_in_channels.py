"""Images with four channels from the classifier to the exported network, and the checkpoints of earlier versions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.masks import read_mask, write_mask
from datamodules.seed_cache import SeedCache
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from training.cli import main
from training.inference import load_trained
from training.predict import predict
from training.segmentation_task import SegmentationTask

rasterio = pytest.importorskip("rasterio")
QUICK = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
JOB = ("--num_workers=0", "--batch_size=2", "--accelerator=cpu")


def write(path, image):
    """Write an image (H, W, C) as a TIFF of C bands that have no names."""
    settings = {"driver": "GTiff", "count": image.shape[2], "height": image.shape[0], "width": image.shape[1]}
    with rasterio.open(path, "w", **settings, dtype="uint8", photometric="minisblack") as file:
        file.write(image.transpose(2, 0, 1))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six scenes of four bands with masks: a bright square in red, or in the fourth band alone."""
    folder, rng, rows = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0), ["file,tags"]
    (folder / "masks").mkdir()
    for number in range(6):
        image, mask = rng.integers(0, 100, (64, 72, 4), dtype=np.uint8), np.zeros((64, 72), np.uint8)
        kind, (y, x) = number % 2, rng.integers(0, 30, 2)
        image[y : y + 30, x : x + 30, (3, 0)[kind]] = 255
        mask[y : y + 30, x : x + 30] = kind + 1
        write(folder / f"s{number}.tif", image)
        write_mask(folder / "masks" / f"s{number}.png", mask)
        rows.append(f"s{number}.tif,{('crop', 'roof')[kind]}")
    (folder / "tags.csv").write_text("\n".join(rows))
    return folder


def fit(folder, scenes, model, *words):
    """Train for two steps on scenes of four channels, and return the checkpoint."""
    data = {
        "root": str(scenes),
        "size": 64,
        "batch_size": 3,
        "num_workers": 0,
        "val_split": "all",
        "train_split": "all",
    }
    data |= {"in_channels": 4}
    config = {"model": model, "data": {"class_path": "FolderDataModule", "init_args": data}}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    words = [
        f"--config={folder / 'config.json'}",
        f"--output={folder / 'run'}",
        "--trainer.max_steps=2",
        *QUICK,
        *words,
    ]
    assert main(["fit", *words]) == 0
    return folder / "run" / "last.ckpt"


@pytest.fixture(scope="module")
def classifier(scenes, tmp_path_factory):
    model = {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18"}}
    color = '--data.augment={"crop": null, "color": 0.3}'
    return fit(tmp_path_factory.mktemp("classifier") / "fit", scenes, model, color)


@pytest.fixture(scope="module")
def seeds(classifier, tmp_path_factory):
    cache = tmp_path_factory.mktemp("seeds") / "cache"
    words = [f"--checkpoint={classifier}", f"--output={cache}", "--split=all", "--refine=crf", *JOB]
    assert main(["seeds", "generate", *words]) == 0
    return cache


@pytest.fixture(scope="module")
def segmentation(scenes, classifier, seeds, tmp_path_factory):
    arguments = {"architecture": "Unet", "encoder": "resnet18", "weights": str(classifier)}
    model = {"class_path": "SegmentationTask", "init_args": arguments}
    words = ["--data.targets=cues", f"--data.cues={seeds}"]
    return fit(tmp_path_factory.mktemp("segmentation") / "fit", scenes, model, *words)


def test_each_stage_follows_the_number_of_the_data(scenes, classifier, seeds, segmentation, tmp_path):
    task = load_task(classifier, ClassifierTask)[0]
    assert task.hparams["in_channels"] == 4
    assert task.model.features.encoder.conv1.weight.shape[1] == 4
    assert len(SeedCache(seeds)) == 6
    trained = load_trained(segmentation)
    assert trained.in_channels == trained.data["in_channels"] == 4
    assert trained.task.network.model.encoder.conv1.weight.shape[1] == 4
    words = [f"--checkpoint={segmentation}", f"--output={tmp_path / 'labels'}", "--split=all", *JOB]
    assert main(["pseudo-label", *words]) == 0
    evaluation = [f"--checkpoint={segmentation}", f"--output={tmp_path / 'evaluation'}", "--split=all"]
    assert main(["evaluate", *evaluation, f"--cues={seeds}", "--num_workers=0"]) == 0
    assert json.loads((tmp_path / "evaluation/metrics.json").read_text())["images"] == 6
    shown = [str(seeds), f"--checkpoint={segmentation}", f"--output={tmp_path / 'page'}", "--split=all"]
    assert main(["seeds", "show", *shown]) == 0
    explained = [f"--checkpoint={classifier}", f"--output={tmp_path / 'figures'}", "--size=64"]
    assert main(["explain", str(scenes / "s0.tif"), *explained, "--methods=gradcam,guided-gradcam"]) == 0


def test_affinities_and_refined_seeds(scenes, seeds, tmp_path):
    model = {"class_path": "AffinityTask", "init_args": {"backbone": "resnet18"}}
    words = ["--data.targets=cues", f"--data.cues={seeds}", "--data.val_split=null"]
    boundaries = fit(tmp_path / "fit", scenes, model, *words)
    words = [f"--cache={seeds}", f"--checkpoint={boundaries}", f"--output={tmp_path / 'refined'}", "--split=all", *JOB]
    assert main(["seeds", "refine", *words]) == 0
    assert len(SeedCache(tmp_path / "refined")) == 6


@pytest.mark.parametrize("form", ["torchscript", "smp"])
def test_an_exported_network_predicts_as_the_checkpoint_does(scenes, segmentation, tmp_path, form):
    exported = tmp_path / "network"
    assert main(["export", f"--checkpoint={segmentation}", f"--output={exported}", f"--format={form}"]) == 0
    for name, network in (("checkpoint", segmentation), ("exported", exported)):
        predict(network, scenes, tmp_path / name, num_workers=0, crf=False, precision="32-true")
    for number in range(6):
        found = [read_mask(tmp_path / name / f"s{number}.png") for name in ("checkpoint", "exported")]
        assert found[0].shape == (64, 72)
        assert (found[0] == found[1]).mean() > 0.999


def test_every_channel_reaches_the_network(scenes, segmentation):
    """A change of the fourth band changes the scores."""
    trained = load_trained(segmentation)
    images = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[:, 3] += 1
    assert not torch.allclose(trained.scores(images), trained.scores(changed))


def test_images_of_another_number_of_bands(scenes, classifier, segmentation, tmp_path, capsys):
    """Each command names the file and both numbers in one sentence."""
    odd = tmp_path / "odd"
    odd.mkdir()
    Image.new("RGB", (64, 64)).save(odd / "rgb.tif")
    write(odd / "five.tif", np.zeros((64, 64, 5), np.uint8))
    assert main(["predict", f"--checkpoint={segmentation}", f"--images={odd}", f"--output={tmp_path / 'out'}"]) == 1
    reasons = (tmp_path / "out/skipped.csv").read_text()
    assert "five.tif has 5 bands" in reasons
    assert "rgb.tif has 3 bands (red, green, blue), and in_channels is 4" in reasons
    (odd / "tags.csv").write_text("file,tags\nrgb.tif,crop\nfive.tif,roof\n")
    words = [f"--checkpoint={classifier}", f"--root={odd}", f"--output={tmp_path / 'cache'}", "--split=all", *JOB]
    assert main(["seeds", "generate", *words]) == 1
    assert main(["fit", "--model=ClassifierTask", "--data=FolderDataModule", f"--data.root={scenes}", *QUICK,
                 "--data.in_channels=0", f"--output={tmp_path / 'run'}"]) != 0  # fmt: skip
    assert "in_channels is 0, and must be at least 1" in capsys.readouterr().err


def test_checkpoints_without_the_number_are_of_rgb_images(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    del content["hyper_parameters"]["in_channels"], content["datamodule_hyper_parameters"]["in_channels"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_trained(tmp_path / "old.ckpt").in_channels == 3
    assert load_task(tmp_path / "old.ckpt", SegmentationTask)[0].hparams["in_channels"] == 3
