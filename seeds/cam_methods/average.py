"""Maps of several layers and of several sizes of the image, averaged."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.activations import Model, check_images
from seeds.cam_methods.input_gradients import heat
from seeds.cam_targets import Target


class Averaged:
    """The mean of a method's maps over layers, and over sizes of the image.

    Maps of several sizes are averaged as they are. Activations of several layers have no common unit: where there is
    more than one layer, each map is first divided by its own greatest absolute value.
    """

    def __init__(
        self,
        method: Callable[..., Callable[[Tensor, Target], Tensor]],
        model: Model,
        layers: Sequence[str | nn.Module | None] = (None,),
        scales: Sequence[float] = (1.0,),
    ) -> None:
        """Bind a method to a model's layers.

        Args:
            method: ``method(model, layer)(images, targets)`` gives maps, as all in :mod:`seeds.cam_methods.registry`.
            model: the network.
            layers: submodules or their names; None for the default one.
            scales: sizes relative to the images'.

        Raises:
            InputError: no layer, or scales that are not positive.
        """
        if not layers or not scales or min(scales) <= 0:
            raise InputError(f"at least one layer and one positive scale are needed, not {list(scales)}")
        self.methods, self.scales = [method(model, layer) for layer in layers], tuple(scales)

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """Maps float32 (B, C, h, w) on the finest grid among those averaged; arguments and errors as the method's."""
        check_images(images)
        found = [
            self._share(heat(method(_resized(images, scale), targets)))
            for method in self.methods
            for scale in self.scales
        ]
        grid = max((maps.shape[2:] for maps in found), key=lambda grid: grid[0] * grid[1])
        return torch.stack([_resized_to(maps, grid) for maps in found]).mean(dim=0)

    def _share(self, maps: Tensor) -> Tensor:
        if len(self.methods) == 1:
            return maps
        peak = maps.abs().amax(dim=(2, 3), keepdim=True)
        return maps / peak.where(peak > 0, 1)


def _resized(images: Tensor, scale: float) -> Tensor:
    return _resized_to(images, torch.Size(max(1, round(side * scale)) for side in images.shape[2:]))


def _resized_to(maps: Tensor, grid: torch.Size) -> Tensor:
    if maps.shape[2:] == grid:
        return maps
    return functional.interpolate(maps, grid, mode="bilinear", antialias=True)
