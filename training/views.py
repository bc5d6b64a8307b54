"""Several looks at one image: scaled and mirrored, their class probabilities averaged."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.errors import InputError
from training.grids import resize_maps

__all__ = ["Views", "view_scores"]


@dataclass(frozen=True)
class Views:
    """How an image is shown to the network at test time.

    Attributes:
        scales: factors on the side of the images it was trained on.
        flip: show each mirrored as well.

    Raises:
        InputError: there is no scale, or one is not above 0.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise InputError(f"scales are {list(self.scales)}, and must be one or more numbers above 0, such as 0.75")


def view_scores(network: Callable[[Tensor], Tensor], images: Tensor, views: Views, *, multiple: int = 1) -> Tensor:
    """Scores of images, over all views of them.

    With the one plain view these are the network's own. Otherwise the softmax of each view, turned back and resized
    bilinearly to the finest grid of all, is averaged, and the logarithm of that stands for the scores: its softmax is
    the average again.

    Args:
        network: scores (B, K, h, w) of normalised images (B, 3, S, S).
        images: float32 (B, 3, S, S).
        views: how to show them.
        multiple: scaled sides are rounded to multiples of this.

    Returns:
        float32 (B, K, h, w).

    Raises:
        InputError: the network takes no other image size than its own.
    """
    if views == Views():
        return network(images).float()
    maps = []
    for scale in views.scales:
        side = images.shape[-1] if scale == 1 else max(1, round(scale * images.shape[-1] / multiple)) * multiple
        seen = resize_maps(images, (side, side), antialias=True)
        try:
            maps.append(network(seen).float().softmax(dim=1))
            if views.flip:
                maps.append(network(seen.flip(-1)).float().softmax(dim=1).flip(-1))
        except AssertionError as error:  # how timm's transformers refuse
            raise InputError(
                f"this network takes no images of {side}x{side} pixels: leave scale {scale} out"
            ) from error
    finest = max((tuple(probs.shape[-2:]) for probs in maps), key=math.prod)
    mean = torch.stack([resize_maps(probs, finest) for probs in maps]).mean(dim=0)
    return mean.clamp_min(torch.finfo(torch.float32).tiny).log()
