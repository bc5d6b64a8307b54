"""The training task of a segmentation network: from cues, pseudo-masks or masks."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.class_names import IGNORE
from datamodules.errors import InputError, require_choice
from datamodules.images import to_uint8
from seeds.base_task import BaseTask
from seeds.crf import dense_crf
from seeds.distributed import mean_over_processes
from seeds.evaluation.confusion_matrix import ConfusionMatrix
from seeds.score_maps import cue_labels, label_map, resize_images, resize_labels, resize_maps
from training.losses import (
    balanced_cross_entropy,
    box_loss,
    constrain_loss,
    expand_loss,
    lovasz_loss,
    partial_cross_entropy,
    sec_probabilities,
    seed_loss,
)
from training.networks import build_network

Batch = Mapping[str, Any]
Loss = Literal["sec", "cross_entropy"]


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
        weights: initial weights: ``none``, ``imagenet`` (of the encoder, downloaded), or a file: a state dict of the
            encoder with torchvision's keys, a checkpoint of the classifier, or one of a segmentation network, with
            its head.
        output_stride: pixels between positions of the encoder's map, if the architecture gives a choice.
        network_args: further arguments of the architecture's class.
        freeze_stride: freeze the encoder's stages up to and including this stride, batch-norm statistics too; 0: none.
        loss: ``sec``: seed, expand and constrain losses on ``cues`` and ``labels``; ``cross_entropy``: on ``mask``, or
            on pseudo-masks in ``cues``, foreground and background balanced. Where people have drawn into an image with
            cues, the cross-entropy at the drawn pixels takes the place of the loss there.
        seed_weight: weight of the seed loss; a loss of weight 0 is not computed.
        expand_weight: weight of the expand loss.
        constrain_weight: weight of the constrain loss.
        min_drawn_weight: least weight of the pixels that people have drawn into an image with cues, 0..1; otherwise
            their share of the image, see `training.losses.partial_cross_entropy`.
        lovasz_weight: weight of the Lovász-softmax loss of masks, cues and drawn pixels beside the others, see
            `training.losses.lovasz_loss`.
        box_weight: weight of the loss of boxes, see `training.losses.box_loss`.
        decay_fg: rank decay of present classes in the expand loss, on a grid of 1681 positions.
        decay_bg: rank decay of the background.
        crf: numbers of the CRF in the constrain loss that differ from SEC's.
        **kwargs: solver options, see `seeds.base_task.BaseTask`.

    Raises:
        InputError: a number out of range, no such loss, or an error of `build_network` or `freeze`.
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
        loss: Loss = "sec",
        seed_weight: float = 1.0,
        expand_weight: float = 1.0,
        constrain_weight: float = 1.0,
        min_drawn_weight: float = 0.0,
        lovasz_weight: float = 0.0,
        box_weight: float = 1.0,
        decay_fg: float = 0.996,
        decay_bg: float = 0.999,
        crf: CrfSettings | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_arguments(locals())
        require_choice("loss", loss, get_args(Loss))
        self.classes = tuple(classes)
        self.loss_weights = {"seed": seed_weight, "expand": expand_weight, "constrain": constrain_weight}
        self.loss_weights |= {"lovasz": lovasz_weight, "box": box_weight}
        fractions = {"min_drawn_weight": min_drawn_weight, "decay_fg": decay_fg, "decay_bg": decay_bg}
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise InputError(f"{name} {value} is outside 0..1")
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name}_weight {weight} is not a weight from 0 up")
        if loss == "sec" and not (seed_weight or expand_weight or constrain_weight):
            raise InputError("the weights of the seed, expand and constrain losses are all 0: loss 'sec' needs one")
        self.crf: CrfSettings = {**TRAINING_CRF, **(crf or {})}
        channels = len(self.classes) + 1
        self.network = build_network(
            architecture, channels, encoder, output_stride, weights, network_args, self.hparams["in_channels"],
            self.classes,
        )  # fmt: skip
        self.network.freeze(freeze_stride)
        self.confusion = ConfusionMatrix(channels)

    def network_and_head(self) -> tuple[nn.Module, list[nn.Module]]:
        """Return the network, and its decoder and head."""
        return self.network, self.network.head_layers

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """Return the loss of a batch; it and each of its terms are logged."""
        size, losses = len(batch["image"]), self.losses(batch)
        loss = torch.stack([self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        terms = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(terms, batch_size=size, sync_dist=True)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the terms of the loss.

        With ``cues``, SEC's losses or the balanced cross-entropy count on their grid. If the batch has a ``mask``, too,
        they count at positions whose central pixel is not drawn, and an image's part has the weight of its share of
        pixels that are not drawn; the cross-entropy at its drawn pixels has the weight of their share, or
        ``min_drawn_weight``. The loss of an image without a drawn pixel is thus that of its cues, and the loss of an
        image with drawn pixels only is that of its mask. Without cues, it is the cross-entropy at ``mask``. The
        Lovász-softmax loss of a batch is that of its drawn pixels, and of its cues elsewhere.

        Args:
            batch: ``image`` (B, in_channels, H, W), ``labels`` (B, C) for SEC's losses, ``cues`` bool (B, C+1, h, w)
                or ``mask`` int64 (B, H, W) or both, and perhaps ``boxes``, B of float (n, 5).

        Returns:
            Scalars by name, not weighted; terms of weight 0 are left out.
        """
        if "cues" not in batch:
            return self._losses_of_masks(batch)
        is_sec, images, mask = self.hparams["loss"] == "sec", batch["image"], batch.get("mask")
        scores, cues = self(images).float(), batch["cues"]
        logits, undrawn = resize_maps(scores, cues.shape[-2:]), None  # (B, C+1, h, w)
        if mask is not None:
            known = mask != IGNORE
            undrawn = 1 - known.float().mean(dim=(1, 2))  # (B,)
            cues = cues & (resize_labels(mask, cues.shape[-2:]) == IGNORE)[:, None]
        probs, losses = sec_probabilities(logits), dict[str, Tensor]()
        if not is_sec:
            losses["cross_entropy"] = balanced_cross_entropy(probs, cues, image_weights=undrawn)
        if is_sec and self.loss_weights["seed"]:
            losses["seed"] = seed_loss(probs, cues, image_weights=undrawn)
        if is_sec and self.loss_weights["expand"]:
            decays = {name: self.hparams[name] for name in ("decay_fg", "decay_bg")}
            losses["expand"] = expand_loss(probs, batch["labels"], **decays, image_weights=undrawn)
        if is_sec and self.loss_weights["constrain"]:
            crf_probs = dense_crf(resize_images(to_uint8(images), cues.shape[-2:]), logits.detach(), **self.crf)
            losses["constrain"] = constrain_loss(probs, crf_probs, image_weights=undrawn)
        if self.loss_weights["lovasz"]:
            losses["lovasz"] = lovasz_loss(scores, _drawn_or_cues(mask, cues))
        if mask is not None:
            drawn = known.any(dim=(1, 2))  # (B,); the scores of the other images need not be resized
            losses["mask"] = scores.sum() * 0
            if drawn.any():
                logits, weight = resize_maps(scores[drawn], mask.shape[-2:]), self.hparams["min_drawn_weight"]
                losses["mask"] = partial_cross_entropy(logits, mask[drawn], weight) * drawn.float().mean()
        if "boxes" in batch and self.loss_weights["box"]:
            losses["box"] = box_loss(probs, batch["boxes"])
        return losses

    def check_targets(self, targets: str) -> None:
        """Raise an InputError where the loss cannot be computed from the ``targets`` of the data module."""
        if self.hparams["loss"] == "sec" and targets != "cues":
            raise InputError("loss 'sec' needs cues: give the data module targets: cues and the cues' folder")
        if targets == "tags":
            needed = "give the data module targets: masks, or targets: cues"
            raise InputError(f"loss 'cross_entropy' needs masks: {needed}")

    def _losses_of_masks(self, batch: Batch) -> dict[str, Tensor]:
        self.check_targets("masks" if "mask" in batch else "tags")
        scores, mask = self(batch["image"]).float(), batch["mask"]
        losses = {"cross_entropy": self.cross_entropy(scores, mask)}
        if self.loss_weights["lovasz"]:
            losses["lovasz"] = lovasz_loss(scores, mask)
        if "boxes" in batch and self.loss_weights["box"]:
            losses["box"] = box_loss(sec_probabilities(scores), batch["boxes"])
        return losses

    def cross_entropy(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Return the mean cross-entropy over all pixels of all processes, except 255.

        A process with few pixels thus has a low weight.

        Args:
            scores: (B, C+1, h, w).
            mask: int64 (B, H, W).
        """
        total = functional.cross_entropy(
            resize_maps(scores, mask.shape[-2:]), mask, ignore_index=IGNORE, reduction="sum"
        )
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
        confusion = self.confusion
        with torch.inference_mode(False):  # the next epoch may run outside of inference mode
            self.confusion = ConfusionMatrix(len(self.classes) + 1)
        confusion.matrix = self.trainer.strategy.reduce(confusion.matrix.to(self.device), reduce_op="sum").cpu()
        if not confusion.matrix.any():
            return
        for name, iou in zip(("background", *self.classes), confusion.iou().tolist(), strict=True):
            if not math.isnan(iou):  # nan: absent from both truth and prediction
                self.log(f"{self.stage}/iou/{name}", iou, sync_dist=True)
        self.log(f"{self.stage}/miou", confusion.miou(), prog_bar=True, sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end


def _drawn_or_cues(mask: Tensor | None, cues: Tensor) -> Tensor:
    """Return the classes int64 of drawn pixels, and elsewhere of the cues (B, C+1, h, w); 255 where neither is."""
    labels = cue_labels(cues)
    return labels if mask is None else mask.where(mask != IGNORE, resize_labels(labels, mask.shape[-2:]))
