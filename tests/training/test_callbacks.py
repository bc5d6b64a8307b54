"""A bad loss ends the run before it changes a weight; dropout is reproducible; the effective batch size is printed."""

import re
from types import SimpleNamespace

import pytest
import torch

from datamodules.errors import InputError
from tests.training.conftest import TINY, data_of, trainer_of
from training.runs.callbacks import LossGuard, StepSeed
from training.segmentation_task import SegmentationTask


class Spoiling(SegmentationTask):
    """A task whose loss is bad in the third step of the second epoch."""

    def __init__(self, classes, value, **settings):
        super().__init__(classes, **settings)
        self.value = value

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.trainer.global_step == 5 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(voc, cues, tmp_path, value):
    data = data_of(voc, targets="cues", cues=str(cues))
    task = Spoiling(list(data.classes), value, **TINY)
    trainer = trainer_of(tmp_path, max_steps=9, callbacks=[LossGuard()], num_sanity_val_steps=0, limit_val_batches=0)
    with pytest.raises(InputError) as stopped:
        trainer.fit(task, data)
    message = str(stopped.value)
    assert message.startswith(f"the loss of step 5 (epoch 1) is {value}; its images: ")
    known = {sample.id for sample in data.samples("train")}
    named = re.search(r"images: (.*?)\. The run", message).group(1).split(", ")
    assert len(named) == 3
    assert set(named) <= known
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_dropout_is_a_function_of_seed_epoch_batch_and_process(monkeypatch):
    def drawn(epoch, batch, rank, seed=0):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeed().on_train_batch_start(trainer, None, None, batch)
        return torch.rand(4).tolist()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1)]
    first = [drawn(*place) for place in places]
    assert len({tuple(values) for values in first}) == len(places)
    assert [drawn(*place) for place in places] == first
