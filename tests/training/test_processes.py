"""Two processes on the CPU: the gradients of one with the doubled batch, and its figures."""

import copy

import pytest
import pytorch_lightning as pl
import torch

from datamodules.synthesize import synthesize
from seeds.classifier import ClassifierTask
from tests.training.conftest import TINY, data_of, trainer_of
from training.guard import LossGuard
from training.task import SegmentationTask

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without its processes")
TWO = {"devices": 2, "strategy": "ddp_fork"}
# neither batch norm nor dropout: a batch is then the mean of its pictures
PLAIN = {
    "architecture": "Unet",
    "encoder": "vgg11",
    "network_args": {"encoder_depth": 3, "decoder_channels": [16, 16, 8], "decoder_use_norm": False},
}
SOLVER = {"optimizer": "sgd", "lr": 1e-2, "schedule": "constant"}
AUGMENT = {"crop": [0.5, 1.0], "flip": True, "color": 0.2}


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """The pictures of ``voc`` to train on, five to validate on, one to test on."""
    root = tmp_path_factory.mktemp("five") / "voc"
    synthesize(root, train=9, val=5, size=96)
    for path in root.glob("ImageSets/*/*val.txt"):
        path.with_name(path.name.replace("val", "one")).write_text(path.read_text().splitlines()[0] + "\n")
    return root


def task_of(kind, classes):
    pl.seed_everything(0)
    if kind == "classifier":
        return ClassifierTask(classes, backbone="vgg11", **SOLVER)
    return SegmentationTask(classes, **PLAIN, **SOLVER, supervision=kind)


def data_for(kind, voc, cues, **settings):
    targets = {"classifier": {"targets": "tags"}, "masks": {"targets": "masks"}}
    return data_of(voc, augment=AUGMENT, **targets.get(kind, {"targets": "cues", "cues": str(cues)}), **settings)


def trained(kind, voc, cues, folder, batch_size, **settings):
    """How far each weight went in two steps."""
    data = data_for(kind, voc, cues, batch_size=batch_size)
    task = task_of(kind, list(data.classes))
    before = copy.deepcopy(task.state_dict())
    trainer = trainer_of(folder, max_steps=2, limit_val_batches=0, **settings)
    trainer.fit(task, data)
    return {name: value - before[name] for name, value in task.state_dict().items() if value.is_floating_point()}


def assert_alike(these, those):
    """To 1e-5 of the longest way a weight of the tensor went (sums in another order differ by some 1e-7)."""
    moved = 0
    for name, way in those.items():
        torch.testing.assert_close(these[name], way, rtol=0, atol=1e-5 * way.abs().max().item(), msg=name)
        moved += bool(way.any())
    assert moved > 10


@pytest.mark.parametrize("kind", ["sec", "masks", "classifier"])
def test_two_processes_learn_as_one_with_the_doubled_batch(kind, voc, cues, tmp_path):
    one = trained(kind, voc, cues, tmp_path, 4)
    assert_alike(trained(kind, voc, cues, tmp_path, 2, **TWO), one)
    half = trained(kind, voc, cues, tmp_path, 2)
    with pytest.raises(AssertionError):  # the comparison sees a difference where there is one
        assert_alike(half, one)


@pytest.mark.parametrize("kind", ["sec", "classifier"])
def test_five_pictures_give_two_processes_the_figures_of_one(kind, five, tmp_path):
    """Three pictures in two batches for the one, two in one for the other."""
    data = data_of(five, batch_size=2)
    task = task_of(kind, list(data.classes))
    one = trainer_of(tmp_path).validate(task, data, verbose=False)[0]
    two = trainer_of(tmp_path, **TWO).validate(task, data, verbose=False)[0]
    assert {"val/loss", "val/map"} <= set(one) if kind == "classifier" else "val/miou" in one
    assert two.pop("val/loss", 0) == pytest.approx(one.pop("val/loss", 0), rel=1e-6)  # a sum in another order
    assert two == one


def test_a_training_validates_with_the_network_that_it_saves(five, cues, tmp_path):
    """Also where one process has fewer batches to validate, and batch-norm statistics of its own."""
    data = data_of(five, targets="cues", cues=str(cues), batch_size=1)
    task = SegmentationTask(list(data.classes), **TINY, **SOLVER)
    trainer = trainer_of(tmp_path, max_steps=4, **TWO)  # an epoch
    trainer.fit(task, data)
    seen = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    assert seen == trainer_of(tmp_path).validate(task, data, verbose=False)[0]


class Spoiled(SegmentationTask):
    """The second process's loss is no number."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("nan") if self.global_rank else 1)


def test_a_loss_that_is_no_number_stops_all_processes(voc, cues, tmp_path):
    data = data_for("sec", voc, cues, batch_size=2)
    task = Spoiled(list(data.classes), **PLAIN, **SOLVER)
    with pytest.raises(Exception, match=r"the loss of step 0 \(epoch 0\) is nan; its pictures: \w+, \w+\. The run"):
        trainer_of(tmp_path, limit_val_batches=0, callbacks=[LossGuard()], **TWO).fit(task, data)


def test_fewer_pictures_than_processes(five, tmp_path):
    data = data_of(five, val_split="one")
    with pytest.raises(Exception, match="1 pictures cannot be shared out among 2 processes"):
        trainer_of(tmp_path, **TWO).validate(task_of("classifier", list(data.classes)), data, verbose=False)
