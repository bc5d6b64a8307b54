"""Two processes that train together: same gradients as one, same validation, and a common stop."""

import copy
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from datamodules.masks import read_mask, write_mask
from datamodules.synthetic import write_synthetic_voc
from seeds.classifier import ClassifierTask
from tests.training.conftest import TINY, data_of, trainer_of
from tests.training.fits import fit_arguments
from training.runs.callbacks import LossGuard
from training.segmentation_task import SegmentationTask

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without its processes")
TWO = {"devices": 2, "strategy": "ddp_fork"}
# neither batch norm nor dropout: a batch is then the mean of its images
PLAIN = {
    "architecture": "Unet",
    "encoder": "vgg11",
    "network_args": {"encoder_depth": 3, "decoder_channels": [16, 16, 8], "decoder_use_norm": False},
}
SOLVER = {"optimizer": "sgd", "lr": 1e-2, "schedule": "constant"}
AUGMENT = {"crop": [0.5, 1.0], "flip": True, "color": 0.2}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The images of ``voc`` to train on, five to validate on."""
    root = tmp_path_factory.mktemp("five") / "voc"
    write_synthetic_voc(root, train=9, val=5, size=96)
    return root


@pytest.fixture(scope="module")
def part_labelled(voc, tmp_path_factory):
    """The images of ``voc``: some have labels on a third of their pixels, some on two thirds, some on all."""
    root = tmp_path_factory.mktemp("part") / "voc"
    shutil.copytree(voc, root)
    for number, path in enumerate(sorted((root / "SegmentationClass").iterdir())):
        mask = read_mask(path)
        mask[:, : mask.shape[1] * (number % 3) // 3] = 255
        write_mask(path, mask)
    return root


def trained(voc, folder, batch_size, **settings):
    """How far each weight went in two steps, from masks."""
    pl.seed_everything(0)
    data = data_of(voc, targets="masks", augment=AUGMENT, batch_size=batch_size)
    task = SegmentationTask(list(data.classes), **PLAIN, **SOLVER, loss="cross_entropy")
    before = copy.deepcopy(task.state_dict())
    # in float32, batches of 2 and 4 round differently, and on some processors a ReLU near 0 is off in one of them alone
    trainer_of(folder, limit_val_batches=0, precision="64-true", **settings).fit(task, data)
    after = {name: value.float() for name, value in task.state_dict().items() if value.is_floating_point()}
    return {name: value - before[name] for name, value in after.items()}


def assert_alike(these, those):
    """To 1e-4 of the longest way a weight of the tensor went (weights themselves are rounded at some 1e-9)."""
    moved = 0
    for name, way in those.items():
        torch.testing.assert_close(these[name], way, rtol=0, atol=1e-4 * way.abs().max().item() + 1e-8, msg=name)
        moved += bool(way.any())
    assert moved > 10


def test_masks_teach_two_processes_what_they_teach_one(part_labelled, tmp_path, monkeypatch):
    """Though the images of one process have more labelled pixels than those of the other."""
    one = trained(part_labelled, tmp_path, 4)
    assert_alike(trained(part_labelled, tmp_path, 2, **TWO), one)
    monkeypatch.setattr("training.segmentation_task.mean_over_processes", lambda pixels: pixels)
    with pytest.raises(AssertionError):
        assert_alike(trained(part_labelled, tmp_path, 2, **TWO), one)


@pytest.mark.parametrize("kind", ["sec", "classifier"])
def test_a_training_validates_with_the_network_that_it_saves(five, cues, tmp_path, kind):
    """Also where one process has fewer images and batches to validate, and its own batch-norm statistics."""
    data = data_of(five, targets="cues", cues=str(cues), batch_size=2)
    pl.seed_everything(0)
    make = (
        partial(SegmentationTask, **TINY)
        if kind == "sec"
        else partial(ClassifierTask, backbone="resnet18", depth=3, output_stride=8)
    )
    task = make(list(data.classes), **SOLVER)
    trainer = trainer_of(tmp_path, **TWO)
    trainer.fit(task, data)
    seen = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    one = trainer_of(tmp_path).validate(task, data, verbose=False)[0]
    assert seen.pop("val/loss", 0) == pytest.approx(one.pop("val/loss", 0), rel=1e-6)  # a sum in another order
    assert seen == one


class Spoiled(SegmentationTask):
    """The second process's loss is no number."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("nan") if self.global_rank else 1)


def test_a_loss_that_is_no_number_stops_all_processes(voc, cues, tmp_path):
    data = data_of(voc, targets="cues", cues=str(cues), batch_size=2)
    task = Spoiled(list(data.classes), **PLAIN, **SOLVER)
    with pytest.raises(Exception, match=r"the loss of step 0 \(epoch 0\) is nan; its images: \w+, \w+\. The run"):
        trainer_of(tmp_path, limit_val_batches=0, callbacks=[LossGuard()], **TWO).fit(task, data)


def test_a_process_without_a_readable_image(tmp_path):
    """It waits for the others' metrics, and its images do not count."""
    write_synthetic_voc(tmp_path / "voc", train=9, val=2, size=96)
    data = data_of(tmp_path / "voc", batch_size=2, max_unreadable=0.6)
    image = tmp_path / f"voc/JPEGImages/{data.samples('val')[1].id}.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    task = ClassifierTask(list(data.classes), backbone="resnet18", depth=3, output_stride=8, **SOLVER)
    trainer = trainer_of(tmp_path, **TWO)
    trainer.fit(task, data)
    one = trainer_of(tmp_path).validate(task, data, verbose=False)[0]
    assert {name: trainer.callback_metrics[name].item() for name in one} == pytest.approx(one, rel=1e-6, nan_ok=True)
    assert one["val/loss"] > 0


def test_weights_without_a_gradient(voc, cues, tmp_path):
    """PSPNet reads a map from the middle of its encoder."""
    words = ("--model.architecture=PSPNet", "--model.encoder=mobilenet_v2", "--model.output_stride=null")
    words += ("--model.network_args=null", "--trainer.devices=2", "--trainer.max_epochs=2")
    program = Path(sys.executable).with_name("tag2mask")  # each process is started by the words of the first
    done = subprocess.run(
        [program, *fit_arguments(voc, cues, tmp_path / "run"), *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    advice = "train in one process, or give --trainer.strategy ddp_find_unused_parameters_true"
    assert f"tag2mask: the scores of this network do not depend on all of its weights: {advice}\n" in done.stderr
    assert "Traceback" not in done.stderr
