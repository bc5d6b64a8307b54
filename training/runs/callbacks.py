"""What a logger shows while training: images, cues, predictions, truth."""

from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import Logger

from datamodules.images import to_uint8
from training.image_overlays import cue_overlay, label_overlay, side_by_side
from training.score_maps import label_map
from training.segmentation_task import SegmentationTask

__all__ = ["PicturePanel"]

Image = NDArray[np.uint8]
Batch = Mapping[str, Any]


class PicturePanel(pl.Callback):
    """Logs panels of a few images: image, cues, prediction in training; image, prediction, truth in validation.

    They go to every logger that takes images (Weights & Biases, TensorBoard). With other loggers, or while another
    task than segmentation is trained, it does nothing. A panel shows images of the epoch's first batch.

    Args:
        pictures: images of each kind.
        every_n_epochs: epochs between panels.
    """

    def __init__(self, pictures: int = 4, every_n_epochs: int = 1) -> None:
        self.pictures = pictures
        self.every_n_epochs = max(1, every_n_epochs)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Log the first batch of an epoch."""
        if batch_idx == 0 and self._due(trainer, pl_module):
            self._log(trainer, pl_module, batch, "train/pictures")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the first batch of a validation."""
        if batch_idx == 0 and dataloader_idx == 0 and not trainer.sanity_checking and self._due(trainer, pl_module):
            self._log(trainer, pl_module, batch, "val/pictures")

    def _due(self, trainer: pl.Trainer, task: pl.LightningModule) -> bool:
        return (
            isinstance(task, SegmentationTask)
            and trainer.is_global_zero
            and trainer.current_epoch % self.every_n_epochs == 0
            and any(takes_pictures(logger) for logger in trainer.loggers)
        )

    def _log(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, key: str) -> None:
        if not len(batch["image"]):  # none of the batch can be read
            return
        few = {name: value[: self.pictures] for name, value in batch.items()}
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        with torch.no_grad():
            scores = pl_module(few["image"])
        for module, mode in modes.items():
            module.training = mode
        panels = [batch_panel(few, scores, index) for index in range(len(few["image"]))]
        step = max(trainer.global_step - 1, 0)  # the number under which Lightning logs the figures of this batch
        log_pictures(trainer.loggers, key, panels, [str(name) for name in few["id"]], step)


def batch_panel(batch: Batch, scores: torch.Tensor, index: int) -> Image:
    """Image, cues if there are any, prediction, and the truth if it is known, side by side at the network's size."""
    image = to_uint8(batch["image"][index]).permute(1, 2, 0).cpu().numpy()  # (S, S, 3)
    side = (image.shape[0], image.shape[1])
    shown = [image]
    if "cues" in batch:
        cues = batch["cues"][index]  # (C+1, h, w)
        labels = torch.where(cues.any(dim=0), cues.int().argmax(dim=0), 255)
        shown.append(cue_overlay(image, labels.cpu().numpy()))
    shown.append(label_overlay(image, label_map(scores[index], side).cpu().numpy()))
    if "mask" in batch:
        mask = batch["mask"][index]
        if "size" in batch and tuple(mask.shape) != side:
            height, width = batch["size"][index].tolist()
            mask = mask[:height, :width]
        truth = cv2.resize(mask.cpu().numpy().astype(np.uint8), side[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        shown.append(label_overlay(image, np.asarray(truth)))
    return side_by_side(shown)


def takes_pictures(logger: Logger) -> bool:
    """Whether a logger shows images: it has wandb's ``log_image``, or TensorBoard's ``experiment.add_image``."""
    return hasattr(logger, "log_image") or hasattr(getattr(logger, "experiment", None), "add_image")


def log_pictures(loggers: Iterable[Logger], key: str, pictures: list[Image], captions: list[str], step: int) -> None:
    """Give images uint8 (H, W, 3) to every logger that takes them."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(key=key, images=pictures, step=step, caption=captions)
        elif (board := getattr(logger, "experiment", None)) is not None and hasattr(board, "add_image"):
            for caption, picture in zip(captions, pictures, strict=True):
                board.add_image(f"{key}/{caption}", picture, step, dataformats="HWC")
