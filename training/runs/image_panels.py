"""Images in a logger while a segmentation network is trained: image, cues, prediction and ground truth side by side."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray

from datamodules.images import to_uint8
from datamodules.transforms import resize_nearest
from seeds.score_maps import cue_labels, label_map
from training.image_overlays import cue_overlay, label_overlay, side_by_side
from training.segmentation_task import SegmentationTask

IMAGES = 4  # of a batch that are shown


class ImagePanels(pl.Callback):
    """Logs a few images of each epoch's first batch: cues and predictions in training, ground truth in validation.

    The panels go to every logger with Lightning's ``log_image``, such as Weights & Biases. Nothing is done without such
    a logger, or while another task than segmentation is trained.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *hook: Any) -> None:
        """Log the first batch of an epoch."""
        _outputs, batch, index = hook
        if index == 0:
            self._log(trainer, task, batch, "train/images")

    def on_validation_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, *hook: Any) -> None:
        """Log the first batch of a validation."""
        _outputs, batch, *indices = hook
        if not any(indices) and not trainer.sanity_checking:
            self._log(trainer, task, batch, "val/images")

    def _log(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Mapping[str, Any], key: str) -> None:
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if not (loggers and isinstance(task, SegmentationTask) and trainer.is_global_zero and len(batch["image"])):
            return
        few = {name: value[:IMAGES] for name, value in batch.items()}
        training = task.training
        task.eval()
        with torch.no_grad():
            scores = task(few["image"])
        task.train(training)  # frozen blocks stay in eval mode
        panels = [batch_panel(few, scores, index) for index in range(len(few["image"]))]
        for logger in loggers:
            # the step under which Lightning logs the figures of this batch
            logger.log_image(key=key, images=panels, step=max(trainer.global_step - 1, 0), caption=list(few["id"]))


def batch_panel(batch: Mapping[str, Any], scores: torch.Tensor, index: int) -> NDArray[np.uint8]:
    """Return image, cues if there are any, prediction, and ground truth if there is a mask, side by side.

    Args:
        batch: a batch of a data module.
        scores: class scores (B, C+1, h, w).
        index: place of the image in the batch.

    Returns:
        uint8 (S, W, 3), with S the side of the network's input.
    """
    image = to_uint8(batch["image"][index]).permute(1, 2, 0).cpu().numpy()  # (S, S, 3)
    side = image.shape[:2]
    shown = [image]
    if "cues" in batch:
        labels = cue_labels(batch["cues"][index][None])[0]
        shown.append(cue_overlay(image, labels.cpu().numpy()))
    shown.append(label_overlay(image, label_map(scores[index], side).cpu().numpy()))
    if "mask" in batch:
        mask = batch["mask"][index]
        if "size" in batch and tuple(mask.shape) != side:
            height, width = batch["size"][index].tolist()
            mask = mask[:height, :width]
        shown.append(label_overlay(image, resize_nearest(mask.cpu().numpy().astype(np.uint8), *side)))
    return side_by_side(shown)
