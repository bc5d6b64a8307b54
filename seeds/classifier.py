"""The multi-label classifier that Grad-CAM explains, and its training task."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from datamodules.errors import InputError
from seeds.backbones import FULL_DEPTH, Backbone, build_backbone
from seeds.base_task import BaseTask
from seeds.pretrained_weights import timm_config


class TextHead(nn.Module):
    """Scores of images by comparison with texts, as in CLIP (Radford et al., ICML 2021).

    The logit of a text is the cosine of its angle to the projected feature, times CLIP's scale. The score of a class is
    its logit minus the log-sum-exp of those of the background: the sigmoid of the score is the softmax over the class
    and the background.

    Attributes:
        out_features: number of classes C.
        projection: from features into the space of texts.
        texts: a vector for each class, then for each text of the background, (C + K, E): of length 1, times the scale.
    """

    def __init__(self, in_features: int, embedding_size: int, num_classes: int, num_background: int) -> None:
        super().__init__()
        self.out_features = num_classes
        self.projection = nn.Linear(in_features, embedding_size, bias=False)
        self.texts = nn.Parameter(torch.randn(num_classes + num_background, embedding_size))

    def forward(self, features: Tensor) -> Tensor:
        """Return scores (B, C) of features (B, K)."""
        logits = functional.normalize(self.projection(features), dim=1) @ self.texts.T
        classes, background = logits.tensor_split([self.out_features], dim=1)
        return classes - background.logsumexp(dim=1, keepdim=True)


class Classifier(nn.Module):
    """Backbone ``features``, global average pooling, and a ``head``, linear by default: then Grad-CAM equals CAM.

    Attributes:
        default_layer: name of the layer whose maps localize best: the last one; with a `TextHead` the first norm of the
            last block, as CLIP-ES takes it (Lin et al., CVPR 2023).
        saliency_layer: name of the layer at which background saliency is computed by default.
    """

    def __init__(self, features: Backbone, num_classes: int, head: TextHead | None = None) -> None:
        super().__init__()
        self.features = features
        self.head = head or nn.Linear(features.out_channels, num_classes)
        self.default_layer = f"features.{list(features.strides)[-1]}.norm1" if head else "features"
        self.saliency_layer = f"features.{features.saliency_layer}"

    def forward(self, image: Tensor) -> Tensor:
        """Return scores (B, C), before the sigmoid, of images (B, in_channels, H, W); float32 also under autocast."""
        maps = self.features(image).float()  # (B, K, h, w)
        if self.training and maps.requires_grad and not torch.compiler.is_compiling():
            # the mean's gradient has channels first, and a batch norm is slow on a CPU where the layouts differ
            maps.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
        pooled = maps.mean(dim=(2, 3))  # (B, K)
        with torch.autocast(pooled.device.type, enabled=False):
            scores: Tensor = self.head(pooled)
        return scores


class AveragePrecision(MultilabelAveragePrecision):
    """Average precision (area under the precision-recall steps) of each class.

    torchmetrics' counts a class without a positive image as 0.
    """

    def compute(self) -> Tensor:  # type: ignore[override]  # torchmetrics inherits a curve's signature
        """Return fractions (C,); nan of a class without a positive image."""
        positives = dim_zero_cat(self.target).sum(0)
        return super().compute().where(positives > 0, torch.nan) if positives.any() else positives * torch.nan


class ClassifierTask(BaseTask):
    """Trains a `Classifier` on image-level labels with a multi-label binary cross-entropy.

    Logs ``train/loss``, ``val/loss``, ``val/ap/CLASS`` (average precision, a fraction in 0..1) and ``val/map``, their
    mean over the classes that have an image.

    Args:
        classes: names of the labels' columns, without background.
        backbone: see `seeds.backbones`.
        weights: initial weights of the backbone: ``none``, ``imagenet`` (download) or a file.
        output_stride: 8, 16 or 32: pixels between positions of the last feature map, at most.
        depth: number of the backbone's stages; 5 is the whole backbone, 3 ends at stride 8.
        freeze_stride: freeze the stages up to and including this stride, batch-norm statistics too; 0: none.
        texts: set by ``tag2mask zero-shot``: what CLIP compares images with, a text for each class, then those of the
            background. Such a classifier is not trained. None: a linear layer, newly initialised.
        **kwargs: solver options, see `seeds.base_task.BaseTask`.

    Raises:
        InputError: no classes, a name that occurs twice, or an error of `seeds.backbones.build_backbone` or ``freeze``.
    """

    task_name = "classifier"

    def __init__(
        self,
        classes: list[str],
        backbone: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int = 16,
        depth: int = FULL_DEPTH,
        freeze_stride: int = 0,
        texts: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_arguments(locals())
        if not classes or len(set(classes)) != len(classes):
            raise InputError(f"classes must be different names, at least one; got {classes}")
        self.classes = tuple(classes)
        features = build_backbone(backbone, output_stride, weights, depth, self.hparams["in_channels"])
        features.freeze(freeze_stride)
        head = None
        if texts is not None and (config := timm_config(backbone)) is not None:
            # timm's class scores of CLIP are the dimensions of the space of images and texts
            head = TextHead(features.out_channels, config.num_classes, len(classes), len(texts) - len(classes))
        self.model = Classifier(features, len(classes), head)
        self.val_ap = AveragePrecision(len(classes), average="none", validate_args=False)
        # Lightning's own mean over several processes rounds the number of images
        self.val_loss = MeanMetric()

    def setup(self, stage: str) -> None:
        """Prepare a training; an InputError for a classifier of texts, see `seeds.zero_shot`."""
        if stage == "fit" and self.hparams["texts"] is not None:
            raise InputError("a classifier of texts is not trained: it is written by tag2mask zero-shot")
        super().setup(stage)

    def network_and_head(self) -> tuple[nn.Module, list[nn.Module]]:
        """Return the classifier and its head."""
        return self.model, [self.model.head]

    def loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross-entropy of scores (B, C), before the sigmoid, and labels (B, C).

        Raises:
            InputError: the shapes differ.
        """
        if scores.shape != labels.shape:
            raise InputError(
                f"labels {tuple(labels.shape)} of other classes than the {len(self.classes)} of the classifier"
            )
        return functional.binary_cross_entropy_with_logits(scores, labels.float())

    def training_step(self, batch: Mapping[str, Any], _batch_index: int) -> Tensor:
        """Return and log the loss, ``train/loss``, of a batch: ``image`` (B, in_channels, H, W), ``labels`` (B, C)."""
        loss = self.loss(self(batch["image"]), batch["labels"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["image"]), sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the loss here: a metric reset in inference mode cannot be updated outside of it."""
        self.val_loss.reset()

    def validation_step(self, batch: Mapping[str, Any], _batch_index: int) -> None:
        """Update the metrics with a batch."""
        if len(batch["image"]):
            scores, labels = self(batch["image"]), batch["labels"]
            self.val_loss.update(self.loss(scores, labels), weight=len(scores))
        else:  # no image of the batch can be read; the other processes wait for the metrics
            scores = labels = torch.zeros(0, len(self.classes), device=self.device)
        # the order of the scores counts alone; a sigmoid in float32 would make all above 17 equal
        self.val_ap.update((1 + functional.softsign(scores.float())) / 2, labels.long())
        self.log(f"{self.stage}/loss", self.val_loss, prog_bar=True, on_epoch=True, batch_size=len(scores))

    def on_validation_epoch_end(self) -> None:
        """Log ``map`` and each class's ``ap/CLASS``, over all images of all processes, as ``val/…`` or ``test/…``."""
        each = self.val_ap.compute().reshape(-1)  # of one class, a number
        self.val_ap.reset()
        self.log(f"{self.stage}/map", each.nanmean(), prog_bar=True, sync_dist=True)
        for name, value in zip(self.classes, each.tolist(), strict=True):
            if not math.isnan(value):
                self.log(f"{self.stage}/ap/{name}", value, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
