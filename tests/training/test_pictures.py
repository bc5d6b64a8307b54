"""Images, the page, and panels for loggers."""

from types import SimpleNamespace

import cv2
import numpy as np
import torch
from pytorch_lightning.loggers import CSVLogger

from datamodules.images import normalize
from tests.training.conftest import TINY, data_of, trainer_of
from training.image_overlays import (
    BACKGROUND_COLOUR,
    class_colour,
    cue_picture,
    jpeg,
    label_layer,
    label_picture,
    layer_png,
    panel,
    shrink,
)  # fmt: skip
from training.runs.callbacks import PicturePanel, batch_panel, takes_pictures
from training.segmentation_task import SegmentationTask

GRAY = np.full((24, 30, 3), 100, np.uint8)


def test_labels_in_colour():
    labels = np.zeros((24, 30), np.uint8)
    labels[8:16, 8:20] = 2
    labels[20:] = 255
    shown = label_picture(GRAY, labels, strength=0.5)
    assert shown[2, 2].tolist() == [50] * 3  # background: darkened
    assert np.allclose(shown[12, 12], [(100 + c) / 2 for c in class_colour(2)], atol=0.5)
    assert shown[22, 3].tolist() == [168] * 3  # not scored: light
    assert shown[8, 12].mean() > shown[12, 12].mean()  # outline
    assert shown[7, 12].tolist() == [50] * 3  # within the object only


def test_cues_in_colour_cell_by_cell():
    cues = np.array([[0, 255], [1, 1]], np.uint8)
    shown = cue_picture(GRAY, cues)
    assert np.allclose(shown[5, 5], 30 + 0.7 * np.array(BACKGROUND_COLOUR), atol=0.5)
    assert np.allclose(shown[18, 20], 30 + 0.7 * np.array(class_colour(1)), atol=0.5)
    assert shown[5, 25].min() > 150  # no cue: pale
    assert (shown[12:, :] == shown[18, 20]).all()


def test_twenty_classes_have_twenty_colours():
    assert len({class_colour(i) for i in range(1, 21)} | {BACKGROUND_COLOUR}) == 21
    assert class_colour(21) == class_colour(1)


def test_a_layer_as_png_over_the_picture_is_the_picture_of_the_labels():
    """What a browser does with the page's layers is what `label_picture` does, but for rounding."""
    labels = np.zeros((24, 30), np.uint8)
    labels[8:16, 8:20], labels[20:] = 2, 255
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    read = cv2.imdecode(np.frombuffer(layer_png(label_layer(labels)), np.uint8), cv2.IMREAD_UNCHANGED).astype(float)
    opacity = read[..., 3:] / 255
    shown = (1 - opacity) * image + opacity * read[..., 2::-1]
    assert np.abs(shown - label_picture(image, labels)).max() < 2


def test_shrink_and_panel():
    assert shrink(GRAY, 15).shape == (12, 15, 3)
    assert shrink(GRAY, 100) is GRAY
    joined = panel([GRAY, GRAY, GRAY], gap=4)
    assert joined.shape == (24, 98, 3)
    assert (joined[:, 30:34] == 255).all()


def test_jpeg_keeps_red_red():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    read = cv2.imdecode(np.frombuffer(jpeg(red, quality=90), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(read[8, 8].astype(int) - [250, 0, 0]).max() < 8


# --- callbacks


class Wall(CSVLogger):
    """A logger that takes images as wandb's does."""

    def __init__(self, folder):
        super().__init__(folder)
        self.shown, self.steps = {}, []

    def log_image(self, key, images, step, caption):
        self.steps.append(step)
        self.shown.setdefault(key, []).append((images, caption))


def test_panels_of_training_and_validation(voc, cues, tmp_path):
    wall = Wall(tmp_path)
    data = data_of(voc, targets="cues", cues=str(cues))
    task = SegmentationTask(list(data.classes), **TINY, lr=1e-4, freeze_stride=2)
    modes = []

    class Modes(PicturePanel):
        def on_train_batch_end(self, trainer, pl_module, *args):
            before = {name: module.training for name, module in pl_module.named_modules()}
            super().on_train_batch_end(trainer, pl_module, *args)
            modes.append(before == {name: module.training for name, module in pl_module.named_modules()})

    callbacks = [Modes(pictures=2)]
    trainer_of(tmp_path, max_steps=-1, max_epochs=1, logger=wall, callbacks=callbacks).fit(task, data)
    assert set(wall.shown) == {"train/pictures", "val/pictures"}
    (images, captions), *more = wall.shown["train/pictures"]
    assert not more
    assert len(images) == len(captions) == 2
    assert all(image.shape == (64, 3 * 64 + 2 * 4, 3) for image in images)  # image, cues, prediction
    assert wall.shown["val/pictures"][0][0][0].shape == (64, 3 * 64 + 2 * 4, 3)  # image, prediction, truth
    assert modes == [True] * 3
    assert wall.steps == [0, 2]  # of the first batch, and of the last, after which validation is


def test_loggers_that_take_no_pictures_are_left_alone(voc, tmp_path, monkeypatch):
    monkeypatch.setattr("training.runs.callbacks.batch_panel", None)
    data = data_of(voc, targets="masks")
    task = SegmentationTask(list(data.classes), **TINY, loss="cross_entropy")
    logger = CSVLogger(tmp_path)
    assert not takes_pictures(logger)
    trainer_of(tmp_path, max_steps=1, logger=logger, callbacks=[PicturePanel()], limit_val_batches=1).fit(task, data)


def test_a_panel_shows_the_truth_at_its_place():
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    mask = torch.full((1, 20, 50), 255)
    mask[0, :10, :40] = 0
    mask[0, :10, 20:40] = 1  # an image of 10x40: the right half is of class 1; the rest is padding
    batch = {"image": normalize(pixels), "mask": mask, "size": torch.tensor([[10, 40]])}
    shown = batch_panel(batch, torch.zeros(1, 2, 4, 4), 0)
    truth = shown[:, -32:]
    assert truth[16, 4].tolist() == [0, 0, 0]
    assert truth[16, 28].tolist() == [round(0.62 * c) for c in class_colour(1)]


def test_tensorboard_takes_pictures():
    assert takes_pictures(SimpleNamespace(experiment=SimpleNamespace(add_image=None)))
