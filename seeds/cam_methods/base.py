"""The base class of the methods that make maps at a layer, and the gradients that they share."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from seeds.activations import Model, gradient, record_activations
from seeds.cam_methods.targets import Target, TargetScores, select_scores

BATCHED_FROM = 4  # groups that share a backward pass: the weights of a large head are then read once for all of them
MAX_GRADIENT_NUMBERS = 2**25  # numbers in all gradients that are held at once (128 MB)


class LayerMethod:
    """A method that makes maps (B, C, h, w) at one layer. A subclass implements `combine` or `maps`.

    Attributes:
        forward_context: makes the context of the forward pass.
        batched: whether several scores may share a backward pass.
        position_power: the maps of an enlarged image fall with this power of the number of positions, by which global
            average pooling divides gradients. `seeds generate` multiplies by it where it averages several scales.
    """

    forward_context: ClassVar[type[AbstractContextManager[Any]]] = nullcontext
    batched: ClassVar[bool] = True
    position_power: ClassVar[int] = 1

    def __init__(self, model: Model, layer: str | nn.Module) -> None:
        """Bind a model to a layer.

        Args:
            model: takes images (B, in_channels, H, W); ``functools.partial`` of the model if it takes more inputs.
            layer: a submodule's name or the submodule; its output is a map (B, K, h, w), (B, h, w, K) or tokens
                (B, N, K).
        """
        self.model, self.layer = model, layer

    def __call__(self, images: Tensor, labels: Target) -> Tensor:
        """Return maps float32 (B, C, h, w) on the layer's grid, not normalised, 0 where no score is selected.

        The model runs in eval mode and is restored afterwards; see `seeds.activations.record_activations`.

        Args:
            images: (B, in_channels, H, W).
            labels: labels (B, C), or class indices (B,) or a function of the output, for which C is 1.

        Raises:
            InputError: no such layer, a layer that gives no map, runs more than once or on which no score depends, a
                wrong shape, an index out of range, a function that does not return one number an image.
        """
        with record_activations(self.model, [self.layer]) as activations:
            with self.forward_context():
                output = activations.run(images)
            return self.maps(select_scores(output, labels, len(images)), activations[0], activations.names[0])

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return maps float32 (B, C, h, w) from a forward pass made within ``record_activations``.

        Args:
            targets: the scores to explain, with a graph back to ``activation``.
            activation: (B, K, h, w).
            name: the layer's name, for errors.
        """
        maps = torch.zeros(*targets.selected.shape, *activation.shape[2:], device=activation.device)
        features = activation.detach().float()
        for image, column, gradients in score_gradients(targets, activation, name, batched=self.batched):
            with torch.autocast(activation.device.type, enabled=False):
                maps[image, column] = self.combine(features[image], gradients[image])
        return maps

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Return maps (n, h, w) from activations and their gradients, both float32 (n, K, h, w)."""
        raise NotImplementedError


def score_gradients(
    targets: TargetScores, activation: Tensor, name: str, *, keep_graph: bool = False, batched: bool = True
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Differentiate the selected scores, one backward pass a group, or one for several groups if there are many.

    Args:
        targets: the scores.
        activation: (B, K, h, w).
        name: the layer's name, for the error.
        keep_graph: whether the graph is needed again.
        batched: whether groups may share a backward pass.

    Yields:
        For each group, image and column int64 (n,), and d(score)/d(activation) float32 (B, K, h, w), which is 0 for
        images that are not in the group.

    Raises:
        InputError: no selected score depends on the activation.
    """
    # a power of two near the number of positions keeps half-precision gradients, which are means, out of the denormals;
    # float16 ends at 2¹⁶, and gradients of later layers are larger
    scale = 2.0 ** min(12, round(math.log2(max(1, activation.shape[2] * activation.shape[3]))))
    groups, at_once = targets.groups(), 1
    if batched and len(groups) >= BATCHED_FROM:
        at_once = max(1, MAX_GRADIENT_NUMBERS // max(1, activation.numel()))
    for start in range(0, len(groups), at_once):
        part = groups[start : start + at_once]
        weights = targets.scores.new_zeros(len(part), *targets.scores.shape)
        for g, (image, column) in enumerate(part):
            weights[g, image, column] = scale
        keep = keep_graph or start + at_once < len(groups)
        per_image = gradient(targets.scores, weights, activation, name, keep)
        for (image, column), gradients in zip(part, per_image, strict=True):
            yield image, column, gradients.detach().float() / scale
