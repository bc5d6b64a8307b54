"""Grad-CAM (Selvaraju et al., ICCV 2017) of an image's own labels, for little more than the forward pass.

The weights of a class are the spatial mean of d(score)/d(activation); its map is ReLU(sum of weight · activation).
"""

import torch
from torch import Tensor

from seeds.cam_methods.base import LayerMethod, slopes
from seeds.cam_methods.linear_head import linear_head
from seeds.cam_targets import Asked, of_labels


class GradCAM(LayerMethod):
    """Grad-CAM maps at one layer: rectified, not normalised.

    The part up to the layer runs once, without a graph; only the part behind it is differentiated, once for the
    first label of every image together, once for the second, …: as often as the image of most labels has labels;
    and not at all where it is global average pooling and a linear layer.
    """

    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """As :meth:`seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(asked, activation, name).relu_()


class Counterfactual(LayerMethod):
    """Grad-CAM with negated gradients: what speaks against a class, rectified, not normalised.

    The paper's counterfactual explanations (section 3.3): regions whose removal would raise the score.
    """

    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """As :meth:`seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(asked, activation, name).neg_().relu_()


def class_maps(scores: Tensor, activation: Tensor, labels: Tensor, name: str = "", *, keep: bool = False) -> Tensor:
    """Grad-CAM maps float32 (B, C, h, w) from a forward pass made within :func:`seeds.activations.probing`.

    Args:
        scores: (B, C), with a graph back to ``activation``.
        activation: (B, K, h, w).
        labels: (B, C), not 0 where a map is wanted.
        name: the layer's, for errors.
        keep: whether the graph is needed once more afterwards.

    Raises:
        InputError: the scores do not depend on the activation.
    """
    return weighted_maps(of_labels(scores, labels), activation, name, keep=keep).relu_()


def weighted_maps(asked: Asked, activation: Tensor, name: str, *, keep: bool = False) -> Tensor:
    """Grad-CAM's sum of weight · activation before it is rectified, float32 (B, C, h, w); arguments as above."""
    maps = torch.zeros(*asked.wanted.shape, *activation.shape[2:], device=activation.device)
    if not asked.depth:
        return maps
    with torch.autocast(activation.device.type, enabled=False):
        weights, order = _weights(asked, activation, name, keep=keep), asked.wanted.cumsum(1) - 1
        found = torch.bmm(weights, activation.detach().float().flatten(2))  # (B, ranks, hw)
        image, column = asked.wanted.nonzero(as_tuple=True)
        maps[image, column] = found[image, order[image, column]].view(-1, *activation.shape[2:])
    return maps


def _weights(asked: Asked, activation: Tensor, name: str, *, keep: bool) -> Tensor:
    """The spatial means of the gradients, float32 (B, ranks, K): of each image's first number, second, …."""
    weights = activation.new_zeros(len(asked.wanted), asked.depth, activation.shape[1], dtype=torch.float32)
    head = None if asked.output is None else linear_head(asked.output, activation)
    if head is not None and asked.classes is not None:
        cells = activation.shape[2] * activation.shape[3]
        image, column = asked.wanted.nonzero(as_tuple=True)
        order = asked.wanted.cumsum(1) - 1
        weights[image, order[image, column]] = head.float()[asked.classes[image, column]] / cells
        return weights
    for r, slope in enumerate(slopes(asked, activation, name, keep=keep)):
        weights[:, r] = slope.value.mean(dim=(2, 3))
    return weights
