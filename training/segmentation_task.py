"""Training a segmentation network: from cues (SEC), or from masks for reference figures."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its customary name

from datamodules.errors import InputError
from seeds.checkpoints import sign
from seeds.crf import dense_crf
from seeds.distributed import mean_over_processes
from seeds.evaluation.confusion_matrix import IGNORE, Confusion
from seeds.optimizers import Optimizer, Schedule, build_optimizer, build_schedule, parameter_groups
from seeds.prepare import prepare
from training.grids import label_map, resize, small_pictures
from training.losses import balanced_seed_loss, constrain_loss, expand_loss, sec_probabilities, seed_loss
from training.networks import build_network

__all__ = ["CrfSettings", "SegmentationTask"]

Batch = Mapping[str, Any]


class CrfSettings(TypedDict, total=False):
    """Numbers of the dense CRF; those left out are SEC's, see `seeds.crf.dense_crf`."""

    iterations: int
    scale: float
    bilateral_weight: float
    bilateral_sxy: float
    bilateral_srgb: float
    gaussian_weight: float
    gaussian_sxy: float


TRAINING_CRF: CrfSettings = {"iterations": 10, "scale": 12.0}  # SEC's, for an output grid of stride 8


class SegmentationTask(pl.LightningModule):
    """A segmentation network and how it is trained; the defaults are SEC's, network apart.

    Args:
        classes: class names without background, in the order of the labels.
        architecture: ``LargeFOV`` (SEC's VGG-16) or a class of segmentation_models_pytorch (``Unet`` …).
        encoder: the architecture's encoder, as segmentation_models_pytorch names it (``LargeFOV`` has its own).
        weights: initial weights of the encoder: ``none``, ``imagenet`` (download), or a file: a state dict with
            torchvision's keys or a checkpoint of the classifier.
        output_stride: pixels a cell of the encoder's map, where the architecture gives a choice.
        network_args: further arguments of the architecture's class.
        freeze_stride: freeze the encoder's stages up to and including this stride, batch-norm statistics too; 0: none.
        supervision: ``sec`` learns from ``cues`` and ``labels``; ``masks`` from ``mask``, with cross-entropy.
        seed_weight: weight of the seed loss; a loss of weight 0 is not computed.
        seed_balance: count the cues of classes and those of background apart in the seed loss, as DSRG does (see
            `training.losses.balanced_seed_loss`); SEC has them in one sum.
        expand_weight: weight of the expand loss.
        constrain_weight: weight of the constrain loss.
        decay_fg: rank decay of present classes, on a grid of 1681 cells.
        decay_bg: rank decay of the background.
        crf: numbers of the CRF in the constrain loss, where they differ from SEC's.
        optimizer: ``sgd`` or ``adamw``.
        lr: learning rate of the encoder's weights.
        momentum: SGD's.
        weight_decay: of weights; biases and normalisation layers have none.
        head_lr_scale: factor on the rate of fresh layers (decoder and head; LargeFOV's last layer).
        bias_lr_scale: factor on the rate of biases.
        schedule: ``step``; ``poly`` or ``cosine`` over the whole training; or ``constant``.
        step_size: iterations between steps.
        step_gamma: factor of a step.
        poly_power: exponent of ``poly``.
        warmup_steps: first iterations over which the rate rises linearly.
        channels_last: train with channels last in memory (see `seeds.prepare`).
        compile: train a network compiled by ``torch.compile``.

    Raises:
        InputError: a weight of a loss out of range, or what `build_network` and `SegmentationNetwork.freeze` refuse.
    """

    task_name = "segmentation"  # how its checkpoints are signed

    def __init__(
        self,
        classes: list[str],
        architecture: str = "DeepLabV3Plus",
        encoder: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int | None = None,
        network_args: dict[str, Any] | None = None,
        freeze_stride: int = 0,
        supervision: Literal["sec", "masks"] = "sec",
        seed_weight: float = 1.0,
        seed_balance: bool = False,
        expand_weight: float = 1.0,
        constrain_weight: float = 1.0,
        decay_fg: float = 0.996,
        decay_bg: float = 0.999,
        crf: CrfSettings | None = None,
        optimizer: Optimizer = "sgd",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        head_lr_scale: float = 10.0,
        bias_lr_scale: float = 2.0,
        schedule: Schedule = "step",
        step_size: int = 2000,
        step_gamma: float = 0.1,
        poly_power: float = 0.9,
        warmup_steps: int = 0,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002  as torch calls it
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # as a dictionary: what the command line gave lacks the classes, which come from the data
        self.save_hyperparameters({**given, "classes": list(classes)})
        self.classes = tuple(classes)
        self.loss_weights = {"seed": seed_weight, "expand": expand_weight, "constrain": constrain_weight}
        for name, weight in self.loss_weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name}_weight {weight} is not a weight from 0 up")
        self.decays = {"decay_fg": decay_fg, "decay_bg": decay_bg}
        self.rates = {
            "lr": lr, "weight_decay": weight_decay, "head_lr_scale": head_lr_scale, "bias_lr_scale": bias_lr_scale
        }  # fmt: skip
        self.optimizer, self.momentum, self.schedule = optimizer, momentum, schedule
        self.schedule_numbers = {
            "step_size": step_size, "step_gamma": step_gamma, "poly_power": poly_power, "warmup": warmup_steps
        }  # fmt: skip
        self.supervision = supervision
        self.seed_loss = balanced_seed_loss if seed_balance else seed_loss
        self.crf: CrfSettings = {**TRAINING_CRF, **(crf or {})}
        self.network = build_network(
            architecture,
            len(self.classes) + 1,
            encoder=encoder,
            output_stride=output_stride,
            weights=weights,
            network_args=network_args,
        )
        self.network.freeze(freeze_stride)
        self.confusion = Confusion(len(self.classes) + 1)

    def setup(self, stage: str) -> None:
        """Make the network ready for training."""
        if stage == "fit":
            prepare(self.network, self.hparams, self.trainer.strategy.root_device)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, C+1, h, w) on the network's own grid, of normalised images (B, 3, H, W)."""
        scores: Tensor = self.network(images)
        return scores

    # --- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:  # noqa: ARG002  Lightning's signature
        """The loss of a batch; each of its parts is logged by itself."""
        losses = self.sec_losses(batch) if self.supervision == "sec" else {"cross_entropy": self.mask_loss(batch)}
        loss = torch.stack([self.loss_weights.get(name, 1.0) * value for name, value in losses.items()]).sum()
        size = len(batch["image"])
        parts = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(parts, batch_size=size, sync_dist=True)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size, sync_dist=True)
        return loss

    def sec_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Seed, expand and constrain losses on the grid of the cues; those of weight 0 are left out.

        Args:
            batch: ``image`` (B, 3, H, W), ``labels`` (B, C), ``cues`` bool (B, C+1, h, w).

        Returns:
            Scalars by name.
        """
        if "cues" not in batch:
            raise InputError("supervision 'sec' needs cues: give the data module targets: cues and the cues' folder")
        images, labels, cues = batch["image"], batch["labels"], batch["cues"]
        logits = resize(self(images).float(), cues.shape[-2:])  # (B, C+1, h, w)
        probs = sec_probabilities(logits)
        losses = {}
        if self.loss_weights["seed"]:
            losses["seed"] = self.seed_loss(probs, cues)
        if self.loss_weights["expand"]:
            losses["expand"] = expand_loss(probs, labels, **self.decays)
        if self.loss_weights["constrain"]:
            smoothed = dense_crf(small_pictures(images, cues.shape[-2:]), logits.detach(), **self.crf)
            losses["constrain"] = constrain_loss(probs, smoothed)
        if not losses:
            raise InputError("the weights of the seed, expand and constrain losses are all 0: nothing would be learned")
        return losses

    def mask_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy against masks (B, H, W), 255 left out; 0 where a batch has no other pixel.

        It is the mean over the pixels of all processes' batches: one with few counts for as much less.
        """
        if "mask" not in batch:
            raise InputError("supervision 'masks' needs masks: give the data module targets: masks")
        mask = batch["mask"]
        logits = resize(self(batch["image"]).float(), mask.shape[-2:])  # (B, C+1, H, W)
        total = F.cross_entropy(logits, mask, ignore_index=IGNORE, reduction="sum")
        pixels = mean_over_processes((mask != IGNORE).sum())  # gradients are averaged over the processes
        mean: Tensor = total / pixels.where(pixels > 0, 1.0)
        return mean

    # --- scoring

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.confusion = Confusion(len(self.classes) + 1)

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.confusion = Confusion(len(self.classes) + 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Count a batch at the masks' own size."""
        self._count(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        """Count a batch at the masks' own size."""
        self._count(batch)

    def on_validation_epoch_end(self) -> None:
        """Log ``val/miou`` and each class's IoU, over the whole set and all processes."""
        self._log_iou("val")

    def on_test_epoch_end(self) -> None:
        """Log ``test/miou`` and each class's IoU, over the whole set and all processes."""
        self._log_iou("test")

    def _count(self, batch: Batch) -> None:
        if "mask" not in batch:  # no image of the batch can be read, or none of the split has a mask
            return
        logits = self(batch["image"]).float()
        for scores, mask, size in zip(logits, batch["mask"], batch["size"].tolist(), strict=True):
            height, width = size
            self.confusion.update(label_map(scores, (height, width)), mask[:height, :width])

    def _log_iou(self, stage: str) -> None:
        counts = self.confusion.matrix.to(self.device)
        if self.trainer.world_size > 1:
            counts = self.trainer.strategy.reduce(counts, reduce_op="sum")
        self.confusion.matrix = counts.cpu()
        if not self.confusion.matrix.any():
            return
        for name, iou in zip(("background", *self.classes), self.confusion.iou().tolist(), strict=True):
            if iou == iou:  # noqa: PLR0124  nan: absent from truth and prediction alike
                self.log(f"{stage}/iou/{name}", iou, sync_dist=True)
        self.log(f"{stage}/miou", self.confusion.miou(), prog_bar=True, sync_dist=True)

    # --- solver

    def configure_optimizers(self) -> Any:
        """The optimizer, its rates by layer, and its schedule by iteration."""
        groups = parameter_groups(self.network, self.network.fresh, **self.rates)
        optimizer = build_optimizer(groups, self.optimizer, momentum=self.momentum)
        total = float(self.trainer.estimated_stepping_batches)
        if self.schedule in ("poly", "cosine") and total == float("inf"):
            raise InputError(
                f"schedule {self.schedule!r} needs an end of training: set the trainer's max_epochs or max_steps"
            )
        scheduler = build_schedule(optimizer, self.schedule, total=total, **self.schedule_numbers)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint."""
        sign(checkpoint, self.task_name)
