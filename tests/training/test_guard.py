"""A loss that is no number ends the run, and the checkpoint before it stays."""

import re

import pytest
import torch

from datamodules.errors import InputError
from tests.training.conftest import TINY, data_of, trainer_of
from training.runs.loss_guard import LossGuard
from training.segmentation_task import SegmentationTask


class Spoiling(SegmentationTask):
    """Its loss turns bad in the third step of the second epoch."""

    def __init__(self, classes, value, **settings):
        super().__init__(classes, **settings)
        self.value = value

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.trainer.global_step == 5 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run(voc, cues, tmp_path, value):
    data = data_of(voc, targets="cues", cues=str(cues))
    task = Spoiling(list(data.classes), value, **TINY)
    trainer = trainer_of(tmp_path, max_steps=9, callbacks=[LossGuard()], num_sanity_val_steps=0, limit_val_batches=0)
    with pytest.raises(InputError) as stopped:
        trainer.fit(task, data)
    said = str(stopped.value)
    assert said.startswith(f"the loss of step 5 (epoch 1) is {value}; its images: ")
    photos = set(data.photos("train", labels=False).ids)
    named = re.search(r"images: (.*?)\. The run", said).group(1).split(", ")
    assert len(named) == 3
    assert set(named) <= photos
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())
