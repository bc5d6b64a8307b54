"""The multi-label classifier whose attention becomes the seeds, and how it is trained."""

from typing import Any, Literal, TypedDict

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from datamodules.errors import InputError
from seeds.backbones import Backbone, build_backbone
from seeds.checkpoints import sign
from seeds.optimizers import Optimizer, build_optimizer, build_schedule, parameter_groups
from seeds.prepare import prepare

DEFAULT_LAYER = "features"


class Batch(TypedDict):
    """What the classifier reads of a batch: images (B, 3, H, W), normalised, and multi-hot labels (B, C)."""

    image: Tensor
    labels: Tensor


class Classifier(nn.Module):
    """Backbone ``features``, global average pooling, linear ``head``: the form for which Grad-CAM equals CAM.

    Attributes:
        default_layer: name of the layer whose maps localize best, the last one.
    """

    default_layer = DEFAULT_LAYER

    def __init__(self, features: Backbone, num_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(features.out_channels, num_classes)

    @property
    def saliency_layer(self) -> str:
        """Name of the layer at which background saliency is read by default."""
        return f"features.{self.features.saliency_layer}"

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, C), before any sigmoid, of images (B, 3, H, W); float32 also under autocast."""
        pooled = self.features(image).float().mean(dim=(2, 3))  # (B, K)
        with torch.autocast(pooled.device.type, enabled=False):
            scores: Tensor = self.head(pooled)
        return scores


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Average precision (area under the precision-recall steps) over the classes that have a positive image.

    torchmetrics' own mean counts a class without any as 0.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__(num_labels=num_labels, average="none", validate_args=False)

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics inherits a curve's signature
        """The mean as a fraction, a scalar; nan where no class has a positive."""
        each = super().compute()
        return each[dim_zero_cat(self.target).sum(0) > 0].mean()


class ClassifierTask(pl.LightningModule):
    """Trains a :class:`Classifier` on image-level labels with a multi-label binary cross-entropy.

    Logs ``train/loss``, ``val/loss`` and ``val/map`` (mean average precision, a fraction in 0..1).
    """

    task_name = "classifier"

    def __init__(
        self,
        classes: list[str],
        backbone: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int = 16,
        depth: int = 5,
        freeze_stride: int = 0,
        optimizer: Optimizer = "adamw",
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        head_lr_scale: float = 10.0,
        schedule: Literal["poly", "cosine", "constant"] = "poly",
        warmup_steps: int = 0,
        channels_last: bool = False,
        compile: bool = False,  # noqa: A002  as torch calls it
    ) -> None:
        """Build the network.

        Args:
            classes: the names of the labels' columns, background not among them.
            backbone: see :mod:`seeds.backbones`.
            weights: the backbone's initial weights: ``none``, ``imagenet`` (download) or a file.
            output_stride: pixels a cell of the last feature map: 8, 16 or 32.
            depth: number of the backbone's stages; 5 is the whole of it, 3 a small one that ends at stride 8.
            freeze_stride: stages up to and including this stride stay as they are, batch-norm statistics too; 0: none.
            optimizer: ``adamw``, or ``sgd`` with ``momentum``.
            lr: learning rate of the backbone.
            weight_decay: for weights; biases and batch norms have none.
            momentum: SGD's; AdamW ignores it.
            head_lr_scale: the head, which starts from nothing, learns this many times faster.
            schedule: how the rate falls to 0 over the run, a step at a time: ``poly`` (power 0.9), ``cosine``, or not.
            warmup_steps: the rate first rises linearly over this many steps.
            channels_last: train with channels last in memory (see :mod:`seeds.prepare`).
            compile: train a network compiled by ``torch.compile``.

        Raises:
            InputError: no classes, or what :func:`seeds.backbones.build_backbone` and ``freeze`` refuse.
        """
        super().__init__()
        if not classes or len(set(classes)) != len(classes):
            raise InputError(f"classes must be different names, at least one; got {classes}")
        self.save_hyperparameters(  # by name: what the command line gave it lacks the classes, which come from the data
            {
                "classes": list(classes), "backbone": backbone, "weights": weights, "output_stride": output_stride,
                "depth": depth, "freeze_stride": freeze_stride, "optimizer": optimizer, "lr": lr,
                "weight_decay": weight_decay, "momentum": momentum, "head_lr_scale": head_lr_scale,
                "schedule": schedule, "warmup_steps": warmup_steps, "channels_last": channels_last,
                "compile": compile,
            }
        )  # fmt: skip
        self.classes = tuple(classes)
        features = build_backbone(backbone, output_stride, weights, depth)
        features.freeze(freeze_stride)
        self.model = Classifier(features, len(classes))
        self.val_map = MeanAveragePrecision(len(classes))
        # Lightning's own mean of several processes halves an odd number of images to a whole number
        self.val_loss = MeanMetric()

    def setup(self, stage: str) -> None:
        """Make the network ready for training."""
        if stage == "fit":
            prepare(self.model, self.hparams, self.trainer.strategy.root_device)

    def forward(self, image: Tensor) -> Tensor:
        """Scores (B, C) of images (B, 3, H, W)."""
        scores: Tensor = self.model(image)
        return scores

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        if scores.shape != labels.shape:
            raise InputError(
                f"labels of shape {tuple(labels.shape)} for a classifier of {len(self.classes)} classes; "
                "the data's classes must be the classifier's"
            )
        return functional.binary_cross_entropy_with_logits(scores, labels.float())

    def training_step(self, batch: Batch, _batch_index: int) -> Tensor:
        """The loss of a batch, logged as ``train/loss``: the mean cross-entropy."""
        loss = self._loss(self(batch["image"]), batch["labels"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting: here, for what is reset in inference mode cannot be added to outside of it."""
        self.val_loss.reset()

    def on_test_epoch_start(self) -> None:
        """Start counting."""
        self.val_loss.reset()

    def validation_step(self, batch: Batch, _batch_index: int) -> None:
        """Gather what ``val/loss`` and ``val/map`` are of: all images of all processes."""
        if not len(batch["image"]):  # no image of the batch can be read
            return
        scores = self(batch["image"])
        loss = self._loss(scores, batch["labels"])
        self.val_map.update(scores.sigmoid(), batch["labels"].long())
        self.val_loss.update(loss, weight=len(scores))
        self.log("val/loss", self.val_loss, prog_bar=True, on_epoch=True, batch_size=len(scores))
        self.log("val/map", self.val_map, prog_bar=True, on_epoch=True, batch_size=len(scores))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        """As validation: the same figures under the same names."""
        self.validation_step(batch, batch_index)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint as a classifier's."""
        sign(checkpoint, self.task_name)

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped once a batch."""
        hp = self.hparams
        groups = parameter_groups(
            self,
            [self.model.head],
            lr=hp["lr"],
            weight_decay=hp["weight_decay"],
            head_lr_scale=hp["head_lr_scale"],
            bias_lr_scale=1.0,
        )
        optimizer = build_optimizer(groups, hp["optimizer"], momentum=hp["momentum"])
        total = float(self.trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, hp["schedule"], total=total, warmup=hp["warmup_steps"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
