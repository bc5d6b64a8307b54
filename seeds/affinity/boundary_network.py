"""A network that sees boundaries between classes: all stages of a frozen backbone, and a few 1x1 convolutions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.backbones import MAP_DIMS, PROBE_SIZE, Backbone

__all__ = ["STRIDE", "BoundaryNetwork"]

STRIDE = 4  # pixels a cell of the boundary map, as in irn
WIDTH = 32  # irn's channels of a stage
GROUPS = 4  # irn's, of the group normalisation


class BoundaryNetwork(nn.Module):
    """Boundary scores from the maps at the end of each stage of a backbone, which stays as it is (irn's ``net``).

    Attributes:
        features: the backbone.
        looks: a 1x1 convolution with group normalisation for each stage.
        head: what makes one map of theirs.
    """

    def __init__(self, features: Backbone) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)
        self.stages = stage_ends(features)
        self.looks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH), nn.ReLU())
            for channels in _channels(features, self.stages)
        )
        self.head = nn.Conv2d(WIDTH * len(self.stages), 1, 1)
        self.train(self.training)

    def train(self, mode: bool = True) -> "BoundaryNetwork":
        """As ``nn.Module.train``, but the backbone stays in eval mode."""
        super().train(mode)
        self.features.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Boundary scores before the sigmoid, float32 (B, h, w) of cells of 4 pixels, of images (B, 3, H, W)."""
        with torch.no_grad(), _noted(self.features, self.stages) as maps:
            self.features(images)
        grid = tuple(-(-side // STRIDE) for side in images.shape[-2:])
        seen = [
            functional.interpolate(look(maps[stage]), grid, mode="bilinear")
            for stage, look in zip(self.stages, self.looks, strict=True)
        ]
        scores: Tensor = self.head(torch.cat(seen, dim=1))
        return scores[:, 0].float()


def stage_ends(features: Backbone) -> tuple[str, ...]:
    """Names, within a backbone's encoder, of the last block of each stage from stride 4 on."""
    last = {stride: name for name, stride in features.strides.items()}
    return tuple(name for stride, name in sorted(last.items()) if stride >= STRIDE) or (list(features.strides)[-1],)


@contextmanager
def _noted(features: Backbone, stages: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """What blocks of a backbone give while it runs, by their names."""
    seen: dict[str, Tensor] = {}
    handles = [
        features.encoder.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in stages
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _channels(features: Backbone, stages: tuple[str, ...]) -> list[int]:
    features.eval()
    with torch.no_grad(), _noted(features, stages) as maps:
        features(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
    if any(maps[name].dim() != MAP_DIMS for name in stages):
        raise InputError("a boundary network needs a backbone of convolutions, whose stages give maps")
    return [maps[name].shape[1] for name in stages]
