"""The averaged teacher: its weights, what it says, and a training with it."""

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.images import normalize, to_uint8
from seeds.checkpoint import load_task
from tests.training.conftest import data_of, trainer_of
from tests.training.fits import fit
from training.grids import small_pictures
from training.task import SegmentationTask
from training.teacher import Teacher, consistency_loss, strongly_changed


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))


def test_weights_are_a_running_mean_and_statistics_too():
    student = small()
    teacher = Teacher(student, momentum=0.75)
    mean = {key: value.double() for key, value in student.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        for value in (*student.parameters(), student[1].running_mean):
            value.data = torch.randn(value.shape, generator=generator)
        student[1].num_batches_tracked += 1
        teacher.follow(student, step)
        old = min(0.75, 1 - 1 / step)  # of the first four steps the plain mean
        mean = {key: old * mean[key] + (1 - old) * value.double() for key, value in student.state_dict().items()}
    found = teacher.network.state_dict()
    assert found.pop("1.num_batches_tracked") == 7
    for key, value in found.items():
        np.testing.assert_allclose(value, mean[key], rtol=1e-5, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.train().network.training


def test_it_knows_the_tags():
    teacher = Teacher(small(), momentum=0.9)
    images, labels = torch.randn(2, 3, 4, 6), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    found = teacher(images, labels, (4, 6))
    scores = teacher.network(images).double()
    np.testing.assert_allclose(found[0, :2], scores[0, :2].softmax(0), rtol=1e-5)
    assert not found[0, 2].any()
    np.testing.assert_allclose(found[1], scores[1].softmax(0), rtol=1e-5)


def test_the_loss_by_hand():
    logits = torch.log(torch.tensor([[[[0.5]], [[0.3]], [[0.2]]]]))
    target = torch.tensor([[[[0.6]], [[0.4]], [[0.0]]]])
    floored = (np.array([0.5, 0.3, 0.2]) + 1e-4) / (1 + 3e-4)
    wanted = -(0.6 * np.log(floored[0]) + 0.4 * np.log(floored[1]))
    assert consistency_loss(logits, target).item() == pytest.approx(wanted, rel=1e-5)


def test_strong_changes_are_the_generators_and_of_each_picture():
    images = normalize(torch.full((4, 3, 16, 16), 120, dtype=torch.uint8) + torch.arange(16, dtype=torch.uint8))
    torch.manual_seed(3)
    first = strongly_changed(images)
    torch.manual_seed(3)
    assert torch.equal(strongly_changed(images), first)
    assert not torch.equal(strongly_changed(images), first)
    assert len({tuple(picture.flatten().tolist()) for picture in to_uint8(first)}) > 1
    assert (to_uint8(first) != to_uint8(images)).any()


def test_a_step_by_hand(voc, cues):
    """The student is shown what is strongly changed, the teacher the pictures themselves."""
    data = data_of(voc, targets="cues", cues=str(cues))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    task = SegmentationTask(list(data.classes), consistency_weight=2.0, expand_weight=0, constrain_weight=0).eval()
    shown = []
    task.network.register_forward_pre_hook(lambda _module, given: shown.append(given[0].clone()))
    task.teacher.network.register_forward_pre_hook(lambda _module, given: shown.append(given[0].clone()))
    torch.manual_seed(1)
    losses = task.sec_losses(batch)
    torch.manual_seed(1)
    assert torch.equal(shown[0], strongly_changed(batch["image"]))
    assert torch.equal(shown[1], batch["image"])
    assert set(losses) == {"seed", "consistency"}
    assert task.loss_weights["consistency"] == 2


def test_the_crf_sees_the_pictures_in_their_own_colours(voc, cues, monkeypatch):
    data = data_of(voc, targets="cues", cues=str(cues))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    task, seen = SegmentationTask(list(data.classes), consistency_weight=1.0).eval(), []

    def spy(pictures, logits, **_numbers):
        seen.append(pictures)
        return logits.softmax(dim=1)

    monkeypatch.setattr("training.task.dense_crf", spy)
    task.sec_losses(batch)
    assert torch.equal(seen[0], small_pictures(batch["image"], batch["cues"].shape[-2:]))


def test_it_follows_steps_not_batches(voc, cues, tmp_path, monkeypatch):
    """Two batches a step, two steps, and a third: once each, also where the training is taken up after two."""
    followed = []
    monkeypatch.setattr(Teacher, "follow", lambda _self, _network, step: followed.append(step))

    def run(steps, ckpt_path=None):
        data = data_of(voc, batch_size=2, targets="cues", cues=str(cues))
        task = SegmentationTask(list(data.classes), consistency_weight=1.0, schedule="constant")
        trainer = trainer_of(tmp_path, max_steps=steps, accumulate_grad_batches=2, limit_val_batches=0)
        trainer.fit(task, data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "run.ckpt")

    run(2)
    assert followed == [1, 2]
    run(3, tmp_path / "run.ckpt")
    assert followed == [1, 2, 3]


def test_by_the_command_line_and_from_its_checkpoint(voc, cues, tmp_path):
    """The teacher is kept to go on with; it and the student come back, and two trainings are the same."""
    words = ["--model.consistency_weight=1", "--model.teacher_momentum=0.5", "--model.schedule=constant"]
    assert fit(voc, cues, tmp_path / "one", *words) == 0
    assert fit(voc, cues, tmp_path / "two", *words, "--trainer.max_epochs=2") == 0
    assert fit(voc, cues, tmp_path / "one", *words, "--trainer.max_epochs=2", "--ckpt_path=last") == 0
    tasks = [load_task(tmp_path / name / "last.ckpt", SegmentationTask) for name in ("one", "two")]
    one, two = (task.state_dict() for task in tasks)
    assert "train/consistency" in (tmp_path / "two/metrics.csv").read_text().splitlines()[0]
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[f"teacher.{key}"], one[key]) for key in one if key.startswith("network."))
