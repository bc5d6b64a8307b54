"""What the methods share: running a network for a target, and differentiating what was asked rank by rank."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.activations import Model, answer, check_images, gradient, layer_name, probing
from seeds.cam_targets import Asked, Rank, Target, ask, check_target
from seeds.default_layer import default_layer

MANY_RANKS = 4  # from here on several ranks share a backward pass: a large head's weights are then read once for all
MOST_NUMBERS = 2**25  # of all gradients at the layer that are held at once (128 MB)


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
                :func:`seeds.default_layer.default_layer`.
            grid: height and width of that map, where the output's shape does not tell.
        """
        self.model, self.layer, self.grid = model, layer, grid

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """Maps float32 (B, C, h, w) on the layer's grid, not normalised, 0 where nothing was asked.

        The model runs in eval mode and is afterwards exactly as it was; see :func:`seeds.activations.probing`.

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
        """Maps float32 (B, C, h, w) from a forward pass made within :func:`seeds.activations.probing`.

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


def slopes(
    asked: Asked, activation: Tensor, name: str, *, keep: bool = False, together: bool = True
) -> Iterator[Slope]:
    """The derivatives of what was asked: a backward pass a rank, or where there are many ranks one for several.

    Args:
        asked: what is to be explained.
        activation: with respect to what, (B, K, h, w).
        name: the layer's, for the error.
        keep: whether the graph is needed once more afterwards.
        together: whether ranks may share a backward pass.

    Raises:
        InputError: nothing that was asked depends on the activation.
    """
    # a power of two near the number of cells keeps half-precision gradients, which are means, out of the denormals
    scale = 2.0 ** round(math.log2(max(1, activation.shape[2] * activation.shape[3])))
    ranks = list(asked.ranks())
    room = MOST_NUMBERS // max(1, activation.numel()) if together and len(ranks) >= MANY_RANKS else 1
    parts = [ranks[start : start + max(1, room)] for start in range(0, len(ranks), max(1, room))]
    for p, part in enumerate(parts, start=1):
        again = keep or p < len(parts)
        if len(part) == 1:
            found = [gradient(part[0].score.float().sum() * scale, activation, name, keep=again)]
        else:
            found = list(_gradients(asked.scores, part, activation, name, scale=scale, keep=again))
        for (image, column, _), slope in zip(part, found, strict=True):
            yield Slope(image, column, slope.detach().float() / scale)


def _gradients(
    scores: Tensor, ranks: Sequence[Rank], activation: Tensor, name: str, *, scale: float, keep: bool
) -> Tensor:
    """d(each rank's scores)/d(activation), (ranks, B, K, h, w), from one backward pass over all of them."""
    weights = scores.new_zeros(len(ranks), *scores.shape)
    for r, rank in enumerate(ranks):
        weights[r, rank.image, rank.column] = scale
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(
            scores, activation, weights, retain_graph=keep, allow_unused=True, is_grads_batched=True
        )
    if found is None:
        raise InputError(f"no score of the model depends on layer {name}")
    return found


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
