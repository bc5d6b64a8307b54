"""Every stage of a recipe on a GPU: the results are those of the processor, but for the order of sums."""

import csv

import numpy as np
import pytest
import torch

from datamodules.seed_cache import SeedCache
from seeds.classifier import ClassifierTask
from tests.seed_caches import generate
from tests.training.conftest import data_of, trainer_of
from tests.training.fits import fit
from training.cli import main

ON_GPU = pytest.param("gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
WORDS = ("--num_workers=0", "--precision=32-true")


def both(run, accelerator, tmp_path):
    """Return the caches that a stage writes on the processor and on an accelerator."""
    caches = []
    for device in ("cpu", accelerator):
        run(device, tmp_path / device)
        caches.append(SeedCache(tmp_path / device))
    return caches


def assert_alike(one, other):
    """Equal maps up to a hundredth of their maximum, and equal labels at nearly all positions."""
    assert one.ids == other.ids
    equal = []
    for name in one.ids:
        (classes, maps), (other_classes, other_maps) = one.maps(name), other.maps(name)
        np.testing.assert_array_equal(classes, other_classes)
        np.testing.assert_allclose(maps, other_maps, atol=0.01 * max(maps.max(initial=0), 1e-6))
        equal.append((one.cues(name) == other.cues(name)).mean())
    assert np.mean(equal) > 0.98


@pytest.mark.parametrize("accelerator", [ON_GPU])
def test_seeds(voc, tmp_path, accelerator):
    data = data_of(voc)
    torch.manual_seed(0)
    task = ClassifierTask(list(data.classes), backbone="resnet18", weights="none", lr=1e-3)
    trainer = trainer_of(tmp_path / "run")
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "classifier.ckpt")

    def run(device, output):
        options = {"accelerator": device, "num_workers": 0, "flip": True, "refine": "crf", "precision": "32-true"}
        generate(tmp_path / "classifier.ckpt", output, **options)

    assert_alike(*both(run, accelerator, tmp_path))


@pytest.mark.parametrize("accelerator", [ON_GPU])
def test_the_walk(cues, boundaries, tmp_path, accelerator):
    def run(device, output):
        words = ["--cache", str(cues), "--checkpoint", str(boundaries), "--output", str(output), "--steps", "16"]
        assert main(["seeds", "refine", *words, f"--accelerator={device}", *WORDS]) == 0

    assert_alike(*both(run, accelerator, tmp_path))


@pytest.mark.parametrize("accelerator", [ON_GPU])
def test_pseudo_labels(checkpoint, tmp_path, accelerator):
    def run(device, output):
        words = ["--checkpoint", str(checkpoint), "--output", str(output), f"--accelerator={device}"]
        assert main(["pseudo-label", *words, *WORDS]) == 0

    assert_alike(*both(run, accelerator, tmp_path))


@pytest.mark.parametrize("accelerator", [ON_GPU])
def test_a_training(voc, cues, tmp_path, accelerator):
    """Three steps of SEC, with its CRF: the losses of the first step are equal, and no weight is far away."""
    states, losses = [], []
    for device in ("cpu", accelerator):
        words = [f"--trainer.accelerator={device}", "--trainer.precision=32-true"]
        assert fit(voc, cues, tmp_path / device, *words) == 0
        states.append(torch.load(tmp_path / device / "last.ckpt", weights_only=True)["state_dict"])
        with (tmp_path / device / "metrics.csv").open() as file:
            losses.append(next(float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-2, rtol=1e-2)
