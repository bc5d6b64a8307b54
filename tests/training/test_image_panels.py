"""Images for loggers while a network is trained."""

import numpy as np
import torch
from pytorch_lightning.loggers import CSVLogger

from datamodules.images import normalize
from tests.training.conftest import TINY, data_of, trainer_of
from training.image_overlays import class_colour
from training.runs.image_panels import ImagePanels, batch_panel
from training.segmentation_task import SegmentationTask


class ImageLogger(CSVLogger):
    """A logger that takes images as wandb's does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.shown, self.steps = {}, []

    def log_image(self, key, images, step, caption):
        self.steps.append(step)
        self.shown.setdefault(key, []).append((images, caption))


def test_panels_of_training_and_validation(voc, cues, tmp_path, monkeypatch):
    logger = ImageLogger(tmp_path)
    data = data_of(voc, targets="cues", cues=str(cues))
    task = SegmentationTask(list(data.classes), **TINY, lr=1e-4, freeze_stride=2)
    modes, kept = [], []

    class Modes(ImagePanels):
        def on_train_batch_end(self, trainer, pl_module, *args):
            before = {name: module.training for name, module in pl_module.named_modules()}
            state = {name: value.clone() for name, value in pl_module.state_dict().items()}
            super().on_train_batch_end(trainer, pl_module, *args)
            modes.append(before == {name: module.training for name, module in pl_module.named_modules()})
            kept.append(all(torch.equal(value, state[name]) for name, value in pl_module.state_dict().items()))

    monkeypatch.setattr("training.runs.image_panels.IMAGES", 2)
    trainer_of(tmp_path, max_steps=-1, max_epochs=1, logger=logger, callbacks=[Modes()]).fit(task, data)
    assert set(logger.shown) == {"train/images", "val/images"}
    (images, captions), *more = logger.shown["train/images"]
    assert not more
    assert len(images) == len(captions) == 2
    assert all(image.shape == (64, 3 * 64 + 2 * 4, 3) for image in images)  # image, cues, prediction
    assert logger.shown["val/images"][0][0][0].shape == (64, 3 * 64 + 2 * 4, 3)  # image, prediction, truth
    few = {name: value[:2] for name, value in next(iter(data.val_dataloader())).items()}
    with torch.no_grad():
        scores = task.eval()(few["image"])
    for index, shown in enumerate(logger.shown["val/images"][0][0]):
        np.testing.assert_array_equal(shown, batch_panel(few, scores, index))
    assert modes == [True] * 3
    assert kept == [True] * 3  # the statistics of batch norms, too
    assert logger.steps == [0, 2]  # of the first batch, and of the last, after which validation is


def test_other_loggers_get_no_images(voc, tmp_path, monkeypatch):
    monkeypatch.setattr("training.runs.image_panels.batch_panel", None)
    data = data_of(voc, targets="masks")
    task = SegmentationTask(list(data.classes), **TINY, loss="cross_entropy")
    logger = CSVLogger(tmp_path)
    trainer_of(tmp_path, max_steps=1, logger=logger, callbacks=[ImagePanels()], limit_val_batches=1).fit(task, data)


def test_a_panel_shows_prediction_and_truth_at_their_places():
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    mask = torch.full((1, 20, 50), 255)
    mask[0, :10, :40] = 0
    mask[0, :10, 20:40] = 1  # an image of 10x40: the right half is of class 1; the rest is padding
    batch = {"image": normalize(pixels), "mask": mask, "size": torch.tensor([[10, 40]])}
    scores = torch.zeros(1, 2, 4, 4)
    scores[:, 1, :, :2], scores[:, 1, :, 2:] = 1, -1  # the left half is of class 1
    shown = batch_panel(batch, scores, 0)
    predicted, truth = shown[:, 36:68], shown[:, -32:]
    assert predicted[16, 4].tolist() == [round(0.62 * c) for c in class_colour(1)]
    assert predicted[16, 28].tolist() == [0, 0, 0]
    assert truth[16, 4].tolist() == [0, 0, 0]
    assert truth[16, 28].tolist() == [round(0.62 * c) for c in class_colour(1)]
