"""What the methods share: running a network for a target, and differentiating what was asked rank by rank."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seeds.layers import default_layer
from seeds.probe import Model, answer, check_images, gradient, layer_name, probing
from seeds.targets import Asked, Rank, Target, ask, check_target


class LayerMethod(ABC):
    """A way of making maps (B, C, h, w) on the grid of one layer."""

    def __init__(
        self, model: Model, layer: str | nn.Module | None = None, *, grid: tuple[int, int] | None = None
    ) -> None:
        """Bind a model to a layer.

        Args:
            model: takes images (B, 3, H, W); ``functools.partial`` of it where it takes more.
            layer: a submodule's name or the submodule itself; its output is a map (B, K, h, w), (B, h, w, K) or
                tokens (B, N, K). None for the last layer that gives a map on which the target depends, see
                :func:`seeds.layers.default_layer`.
            grid: height and width of that map, where the output's shape does not tell.
        """
        self.model, self.layer, self.grid = model, layer, grid

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """Maps float32 (B, C, h, w) on the layer's grid, not normalised, 0 where nothing was asked.

        The model runs in eval mode and is afterwards exactly as it was; see :func:`seeds.probe.probing`.

        Args:
            images: (B, 3, H, W).
            targets: labels (B, C), class indices (B,) or a function of the output; C is 1 for the last two.

        Raises:
            InputError: no such layer, a layer that gives no map or on which no score depends, a wrong shape, an
                index out of range, a function that gives no number an image.
        """
        check_images(images)
        check_target(targets, len(images))
        if self.layer is None:
            self.layer = default_layer(self.model, images[:1])
        with probing(self.model, [self.layer], self.grid) as taps:
            with self.rules():
                output = answer(self.model, images)
            return self.maps(ask(output, targets, len(images)), taps[0], layer_name(self.layer))

    def rules(self) -> AbstractContextManager[Any]:
        """What the forward pass runs in; here nothing special."""
        return nullcontext()

    @abstractmethod
    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """Maps float32 (B, C, h, w) from a forward pass made within :func:`seeds.probe.probing`.

        Args:
            asked: what is to be explained, with a graph back to ``activation``.
            activation: (B, K, h, w).
            name: the layer's, for errors.
        """


class Slope(NamedTuple):
    """A rank's derivatives.

    Attributes:
        image: which images, int64 (n,).
        column: where their maps go, int64 (n,).
        value: d(score)/d(activation), float32 (B, K, h, w); 0 for images that are not of this rank.
    """

    image: Tensor
    column: Tensor
    value: Tensor


def slopes(asked: Asked, activation: Tensor, name: str, *, keep: bool = False) -> Iterator[Slope]:
    """The derivatives of what was asked, a backward pass a rank.

    Args:
        asked: what is to be explained.
        activation: with respect to what, (B, K, h, w).
        name: the layer's, for the error.
        keep: whether the graph is needed once more afterwards.

    Raises:
        InputError: nothing that was asked depends on the activation.
    """
    # a power of two near the number of cells keeps half-precision gradients, which are means, out of the denormals
    scale = 2.0 ** round(math.log2(max(1, activation.shape[2] * activation.shape[3])))
    ranks: list[Rank] = list(asked.ranks())
    for r, (image, column, score) in enumerate(ranks, start=1):
        slope = gradient(score.float().sum() * scale, activation, name, keep=keep or r < len(ranks))
        yield Slope(image, column, slope.detach().float() / scale)


class Combined(LayerMethod):
    """Maps that are a function of a layer's activation and its gradient at each cell."""

    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """As :meth:`LayerMethod.maps`, one backward pass a rank."""
        found = torch.zeros(*asked.wanted.shape, *activation.shape[2:], device=activation.device)
        features = activation.detach().float()
        for image, column, slope in slopes(asked, activation, name):
            with torch.autocast(activation.device.type, enabled=False):
                found[image, column] = self.combine(features[image], slope[image])
        return found

    @abstractmethod
    def combine(self, features: Tensor, slope: Tensor) -> Tensor:
        """Maps (n, h, w) from activations and their gradients, float32 (n, K, h, w)."""
