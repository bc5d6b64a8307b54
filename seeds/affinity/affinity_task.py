"""The network that predicts boundaries between classes, and its training task."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.activations import MAP_DIMS, forward_hooks
from seeds.affinity.affinity_loss import affinity_loss
from seeds.backbones import BLANK_SIZE, FULL_DEPTH, Backbone, FreezableNetwork, build_backbone
from seeds.base_task import BaseTask
from seeds.score_maps import cue_labels, resize_labels

STRIDE = 4  # pixels between positions of the boundary map, as in irn
WIDTH = 32  # irn's channels of a stage
GROUPS = 4  # irn's groups of the group normalisation


class BoundaryNetwork(FreezableNetwork):
    """Boundary scores from the maps at the end of each stage of a frozen backbone (irn's ``net``).

    Attributes:
        features: the backbone.
        stages: names, within the backbone, of the last block of each stage from stride 4 on.
        looks: a 1x1 convolution with group normalisation for each stage.
        head: combines the stages into one map.

    Raises:
        InputError: a stage of the backbone gives no map, as in vision transformers.
    """

    def __init__(self, features: Backbone) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        self._frozen = ["features"]
        last = {stride: name for name, stride in features.strides.items()}
        self.stages = [name for stride, name in sorted(last.items()) if stride >= STRIDE] or list(features.strides)[-1:]
        self.train()
        is_vit = isinstance(features.encoder, VisionTransformer)  # its patches may not divide the blank image
        maps = [] if is_vit else self._stage_maps(torch.zeros(1, features.in_channels, BLANK_SIZE, BLANK_SIZE))
        if is_vit or any(each.dim() != MAP_DIMS for each in maps):
            raise InputError("a boundary network needs a backbone of convolutions, whose stages give maps")
        self.looks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(each.shape[1], WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH), nn.ReLU())
            for each in maps
        )
        self.head = nn.Conv2d(WIDTH * len(self.stages), 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return boundary scores before sigmoid, float32 (B, h, w) at stride 4, of images (B, in_channels, H, W)."""
        grid = tuple(-(-side // STRIDE) for side in images.shape[-2:])
        stages = zip(self.looks, self._stage_maps(images), strict=True)
        resized = [functional.interpolate(look(maps), grid, mode="bilinear") for look, maps in stages]
        scores: Tensor = self.head(torch.cat(resized, dim=1))
        return scores[:, 0].float()

    @torch.no_grad()
    def _stage_maps(self, images: Tensor) -> list[Tensor]:
        """Return the map (B, K, h, w) at the end of each stage."""
        names = {self.features.get_submodule(name): name for name in self.stages}
        maps: dict[str, Tensor] = {}
        with forward_hooks(names, lambda block, _inputs, output: maps.__setitem__(names[block], output)):
            self.features(images.contiguous(memory_format=torch.channels_last))  # faster on a CPU
        return [maps[name] for name in self.stages]


class AffinityTask(BaseTask):
    """Trains a `BoundaryNetwork` on cues, after irn (with another backbone).

    Logs ``train/loss``. It needs no masks and has no validation.

    Args:
        classes: names of the cues' classes.
        backbone: see `seeds.backbones`; it is not trained.
        weights: the backbone's weights: ``imagenet`` (download), a file, or ``none``.
        output_stride: 8, 16 or 32: pixels between positions of the backbone's last map, at most.
        depth: number of the backbone's stages.
        radius: pairs of positions (at stride 4) nearer than this are compared.
        **kwargs: solver options, see `seeds.base_task.BaseTask`.

    Raises:
        InputError: a radius of less than 2, or an error of `seeds.backbones.build_backbone` or `BoundaryNetwork`.
    """

    task_name = "boundary network"

    def __init__(
        self,
        classes: list[str],
        backbone: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int = 16,
        depth: int = FULL_DEPTH,
        radius: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_arguments(locals())
        if radius < 2:
            raise InputError(f"radius must be at least 2, not {radius}")
        self.classes = tuple(classes)
        self.network = BoundaryNetwork(
            build_backbone(backbone, output_stride, weights, depth, self.hparams["in_channels"])
        )

    def network_and_head(self) -> tuple[nn.Module, list[nn.Module]]:
        """Return the network; all that is trained of it is new, so no part has another rate."""
        return self.network, []

    def forward(self, images: Tensor) -> Tensor:
        """Return boundaries (B, h, w), 0..1, at stride 4, of normalised images (B, in_channels, H, W)."""
        return torch.sigmoid(self.network(images))

    def training_step(self, batch: Mapping[str, Any], _batch_index: int) -> Tensor:
        """Return the loss of a batch with ``image`` (B, in_channels, H, W) and ``cues`` bool (B, C+1, h, w).

        Raises:
            InputError: the batch has no cues.
        """
        if "cues" not in batch:
            raise InputError("affinities are learned from cues: give the data module targets: cues and their folder")
        boundary = self(batch["image"])
        labels = resize_labels(cue_labels(batch["cues"]), boundary.shape[-2:])
        loss = affinity_loss(boundary, labels, self.hparams["radius"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels), sync_dist=True)
        return loss
