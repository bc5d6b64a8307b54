"""The training task of a segmentation network: from cues, pseudo-masks or masks."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from seeds.base_task import BaseTask
from seeds.crf import dense_crf
from seeds.distributed import mean_over_processes
from seeds.evaluation.confusion_matrix import ConfusionMatrix
from seeds.score_maps import label_map, resize_maps, small_images
from training.losses import balanced_cross_entropy, constrain_loss, expand_loss, sec_probabilities, seed_loss
from training.networks import build_network

Batch = Mapping[str, Any]


class CrfSettings(TypedDict, total=False):
    """Numbers of the dense CRF; the defaults are SEC's, see `seeds.crf.dense_crf`."""

    iterations: int
    scale: float
    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    gaussian_weight: float
    gaussian_sxy: float


TRAINING_CRF: CrfSettings = {"iterations": 10, "scale": 12.0}  # SEC's, for an output grid of stride 8


class SegmentationTask(BaseTask):
    """Trains a segmentation network; the losses' defaults are SEC's.

    Logs ``train/loss`` and each of its terms, ``val/miou`` and ``val/iou/CLASS``.

    Args:
        classes: class names without background, in the order of the labels.
        architecture: ``LargeFOV`` (SEC's VGG-16) or a class of segmentation_models_pytorch (``Unet`` …).
        encoder: segmentation_models_pytorch's name of the encoder (not for ``LargeFOV``).
        weights: initial weights of the encoder: ``none``, ``imagenet`` (download), or a file: a state dict with
            torchvision's keys or a checkpoint of the classifier.
        output_stride: pixels between positions of the encoder's map, if the architecture gives a choice.
        network_args: further arguments of the architecture's class.
        freeze_stride: freeze the encoder's stages up to and including this stride, batch-norm statistics too; 0: none.
        loss: ``sec``: seed, expand and constrain losses on ``cues`` and ``labels``; ``cross_entropy``: on ``mask``, or
            on pseudo-masks in ``cues``, foreground and background balanced.
        seed_weight: weight of the seed loss; a loss of weight 0 is not computed.
        expand_weight: weight of the expand loss.
        constrain_weight: weight of the constrain loss.
        decay_fg: rank decay of present classes in the expand loss, on a grid of 1681 positions.
        decay_bg: rank decay of the background.
        crf: numbers of the CRF in the constrain loss that differ from SEC's.
        **kwargs: solver options, see :class:`seeds.base_task.BaseTask`.

    Raises:
        InputError: a weight of a loss out of range, or an error of `build_network` or `freeze`.
    """

    task_name = "segmentation"

    def __init__(
        self,
        classes: list[str],
        architecture: str = "DeepLabV3Plus",
        encoder: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int | None = None,
        network_args: dict[str, Any] | None = None,
        freeze_stride: int = 0,
        loss: Literal["sec", "cross_entropy"] = "sec",
        seed_weight: float = 1.0,
        expand_weight: float = 1.0,
        constrain_weight: float = 1.0,
        decay_fg: float = 0.996,
        decay_bg: float = 0.999,
        crf: CrfSettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_arguments(locals())
        self.classes = tuple(classes)
        self.loss_weights = {"seed": seed_weight, "expand": expand_weight, "constrain": constrain_weight}
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name}_weight {weight} is not a weight from 0 up")
        self.crf: CrfSettings = {**TRAINING_CRF, **(crf or {})}
        channels = len(self.classes) + 1
        self.network = build_network(
            architecture, channels, encoder, output_stride, weights, network_args, self.hparams["in_channels"]
        )
        self.network.freeze(freeze_stride)
        self.confusion = ConfusionMatrix(channels)

    def network_and_head(self) -> tuple[nn.Module, list[nn.Module]]:
        """Return the network, and its decoder and head."""
        return self.network, self.network.head_layers

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Return the loss of a batch; it and each of its terms are logged."""
        is_sec, size = self.hparams["loss"] == "sec", len(batch["image"])
        losses = self.sec_losses(batch) if is_sec else {"cross_entropy": self.cross_entropy(batch)}
        loss = torch.stack([self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        terms = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(terms, batch_size=size, sync_dist=True)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def sec_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of SEC's loss on the grid of the cues; terms of weight 0 are left out.

        Args:
            batch: ``image`` (B, 3, H, W), ``labels`` (B, C), ``cues`` bool (B, C+1, h, w).

        Returns:
            Scalars by name, not weighted.
        """
        if "cues" not in batch:
            raise InputError("loss 'sec' needs cues: give the data module targets: cues and the cues' folder")
        images, labels, cues = batch["image"], batch["labels"], batch["cues"]
        logits = resize_maps(self(images).float(), cues.shape[-2:])  # (B, C+1, h, w)
        probs = sec_probabilities(logits)
        losses = {}
        if self.loss_weights["seed"]:
            losses["seed"] = seed_loss(probs, cues)
        if self.loss_weights["expand"]:
            decays = {name: self.hparams[name] for name in ("decay_fg", "decay_bg")}
            losses["expand"] = expand_loss(probs, labels, **decays)
        if self.loss_weights["constrain"]:
            crf_probs = dense_crf(small_images(images, cues.shape[-2:]), logits.detach(), **self.crf)
            losses["constrain"] = constrain_loss(probs, crf_probs)
        if not losses:
            raise InputError("the weights of the seed, expand and constrain losses are all 0: nothing would be learned")
        return losses

    def cross_entropy(self, batch: Batch) -> Tensor:
        """Compute the cross-entropy against pseudo-masks or masks.

        With ``cues`` bool (B, C+1, h, w) it is `balanced_cross_entropy` on their grid. With ``mask`` (B, H, W) it is
        the mean over all pixels of all processes except 255, so a process with few pixels has a low weight.

        Args:
            batch: ``image`` (B, 3, H, W), and ``cues`` or ``mask``.
        """
        if "cues" in batch:
            logits = resize_maps(self(batch["image"]).float(), batch["cues"].shape[-2:])  # (B, C+1, h, w)
            return balanced_cross_entropy(sec_probabilities(logits), batch["cues"])
        if "mask" not in batch:
            raise InputError("loss 'cross_entropy' needs masks: give the data module targets: masks, or targets: cues")
        mask = batch["mask"]
        logits = resize_maps(self(batch["image"]).float(), mask.shape[-2:])  # (B, C+1, H, W)
        total = functional.cross_entropy(logits, mask, ignore_index=IGNORE, reduction="sum")
        pixels = mean_over_processes((mask != IGNORE).sum())  # gradients are averaged over the processes
        return total / pixels.where(pixels > 0, 1.0)

    def validation_step(self, batch: Batch, _batch_index: int) -> None:
        """Update the confusion matrix with a batch, at the masks' own size."""
        if "mask" not in batch:  # no image of the batch can be read, or none of the split has a mask
            return
        logits = self(batch["image"]).float()
        for scores, mask, (height, width) in zip(logits, batch["mask"], batch["size"].tolist(), strict=True):
            self.confusion.update(label_map(scores, (height, width)), mask[:height, :width])

    def on_validation_epoch_end(self) -> None:
        """Log ``miou`` and each class's IoU, over the whole set and all processes, as ``val/…`` or ``test/…``.

        The next epoch starts with an empty confusion matrix.
        """
        stage = "test" if self.trainer.testing else "val"
        confusion = self.confusion
        with torch.inference_mode(False):  # the next epoch may run outside of inference mode
            self.confusion = ConfusionMatrix(len(self.classes) + 1)
        confusion.matrix = self.trainer.strategy.reduce(confusion.matrix.to(self.device), reduce_op="sum").cpu()
        if not confusion.matrix.any():
            return
        for name, iou in zip(("background", *self.classes), confusion.iou().tolist(), strict=True):
            if not math.isnan(iou):  # nan: absent from both truth and prediction
                self.log(f"{stage}/iou/{name}", iou, sync_dist=True)
        self.log(f"{stage}/miou", confusion.miou(), prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
