"""Learning boundaries from confident cues."""

from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from seeds.affinity.boundary_network import BoundaryNetwork
from seeds.affinity.pair_affinities import IGNORE, affinities, affinity_loss
from seeds.backbones import FULL_DEPTH, build_backbone
from seeds.checkpoints import sign
from seeds.optimizers import Optimizer, build_optimizer, build_schedule, parameter_groups

__all__ = ["AffinityTask"]


class AffinityTask(pl.LightningModule):
    """Trains a :class:`BoundaryNetwork` on cues, after irn: its radius, rate and decay, but another backbone.

    Logs ``train/loss``. Masks have no part in it, and there is nothing to validate.

    Args:
        classes: names of the cues' classes.
        backbone: see :mod:`seeds.backbones`; it is not trained.
        weights: the backbone's weights: ``imagenet`` (download), a file, or ``none``.
        output_stride: pixels a cell of the backbone's last map: 8, 16 or 32.
        depth: number of the backbone's stages.
        radius: pairs of cells of 4 pixels nearer than this are compared.
        optimizer: ``sgd`` with ``momentum``, or ``adamw``.
        lr: learning rate.
        weight_decay: of weights.
        momentum: SGD's; irn's 0.9 is its schedule's power, and its momentum 0.
        schedule: how the rate falls to 0 over the run: ``poly`` (power 0.9), ``cosine``, or not.
        warmup_steps: the rate first rises linearly over this many steps.

    Raises:
        InputError: a radius of less than 2, or what :func:`seeds.backbones.build_backbone` refuses.
    """

    task_name = "boundary network"  # how its checkpoints are signed

    def __init__(
        self,
        classes: list[str],
        backbone: str = "mobilenet_v2",
        weights: str = "none",
        output_stride: int = 16,
        depth: int = FULL_DEPTH,
        radius: int = 10,
        optimizer: Optimizer = "sgd",
        lr: float = 0.1,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        schedule: Literal["poly", "cosine", "constant"] = "poly",
        warmup_steps: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if radius < 2:
            raise InputError(f"radius must be at least 2, not {radius}")
        self.save_hyperparameters({**given, "classes": list(classes)})
        self.classes = tuple(classes)
        self.network = BoundaryNetwork(build_backbone(backbone, output_stride, weights, depth))

    def forward(self, images: Tensor) -> Tensor:
        """Boundaries (B, h, w), 0..1, in cells of 4 pixels, of normalised images (B, 3, H, W)."""
        return torch.sigmoid(self.network(images))

    def training_step(self, batch: Mapping[str, Any], _batch_index: int) -> Tensor:
        """The loss of a batch: ``image`` (B, 3, H, W) and ``cues`` bool (B, C+1, h, w)."""
        if "cues" not in batch:
            raise InputError("affinities are learned from cues: give the data module targets: cues and their folder")
        boundary = self(batch["image"])
        labels = labels_at(batch["cues"], boundary.shape[-2:])
        radius = self.hparams["radius"]
        loss = affinity_loss(affinities(boundary, radius), labels, radius)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(labels), sync_dist=True)
        return loss

    def configure_optimizers(self) -> Any:
        """The optimizer and its schedule, stepped once a batch."""
        hp = self.hparams
        groups = parameter_groups(
            self.network, [], lr=hp["lr"], weight_decay=hp["weight_decay"], head_lr_scale=1.0, bias_lr_scale=1.0
        )
        optimizer = build_optimizer(groups, hp["optimizer"], momentum=hp["momentum"])
        total = float(self.trainer.estimated_stepping_batches)
        scheduler = build_schedule(optimizer, hp["schedule"], total=total, warmup=hp["warmup_steps"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint."""
        sign(checkpoint, self.task_name)


def labels_at(cues: Tensor, grid: torch.Size) -> Tensor:
    """Cues bool (B, C+1, h, w) as label maps int64 (B, *grid), by the nearest cell; 255 where there is none."""
    labels = torch.where(cues.any(dim=1), cues.int().argmax(dim=1), IGNORE)
    return functional.interpolate(labels[:, None].float(), tuple(grid), mode="nearest-exact")[:, 0].long()
