"""Grad-CAM (Selvaraju et al., ICCV 2017) of a picture's own labels, for little more than the forward pass.

The weights of a class are the spatial mean of d(score)/d(activation); its map is ReLU(sum of weight · activation).
"""

import math

import torch
from torch import Tensor, nn

from seeds.probe import gradient, probing, scores_of


class GradCAM:
    """Grad-CAM maps at one layer of a model that gives class scores.

    The part up to the layer runs once, without a graph; only the part behind it is differentiated, once for the
    first label of every image together, once for the second, …: as often as the image of most labels has labels.
    """

    def __init__(self, model: nn.Module, layer: str | nn.Module) -> None:
        """Bind a model to a layer.

        Args:
            model: takes images (B, 3, H, W), gives scores (B, C).
            layer: a submodule's name or the submodule itself; its output is a map (B, K, h, w).
        """
        self.model, self.layer = model, layer

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Maps float32 (B, C, h, w) on the layer's grid: rectified, not normalised, 0 where ``labels`` is 0.

        The model runs in eval mode and is afterwards exactly as it was; see :func:`seeds.probe.probing`.

        Args:
            images: (B, 3, H, W).
            labels: (B, C), not 0 for the classes whose maps are wanted.

        Raises:
            InputError: no such layer, a layer that gives no map or on which no score depends, or a wrong shape.
        """
        with probing(self.model, [self.layer]) as taps:
            scores = scores_of(self.model, images, labels)
            name = self.layer if isinstance(self.layer, str) else type(self.layer).__name__
            return class_maps(scores, taps[0], labels, name)


def class_maps(scores: Tensor, activation: Tensor, labels: Tensor, name: str = "", *, keep: bool = False) -> Tensor:
    """Grad-CAM maps float32 (B, C, h, w) from a forward pass made within :func:`seeds.probe.probing`.

    Args:
        scores: (B, C), with a graph back to ``activation``.
        activation: (B, K, h, w).
        labels: (B, C), not 0 where a map is wanted.
        name: the layer's, for errors.
        keep: whether the graph is needed once more afterwards.

    Raises:
        InputError: the scores do not depend on the activation.
    """
    wanted = labels.to(scores.device) != 0
    maps = torch.zeros(*wanted.shape, *activation.shape[2:], device=scores.device)  # (B, C, h, w)
    passes = int(wanted.sum(1).max()) if len(wanted) else 0
    if not passes:
        return maps
    features = activation.detach().float().flatten(2)  # (B, K, hw)
    # a power of two near the number of cells keeps half-precision gradients, which are means, out of the denormals
    scale = 2.0 ** round(math.log2(features.shape[2]))
    rank = wanted.cumsum(1)  # (B, C): a label that is an image's r-th has rank r
    for r in range(1, passes + 1):
        image, label = (wanted & (rank == r)).nonzero(as_tuple=True)  # (n,), (n,): at most one label an image
        score = scores[image, label].float().sum() * scale
        slope = gradient(score, activation, name, keep=keep or r < passes)
        with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
            weights = slope.float().mean(dim=(2, 3)) / scale  # (B, K); rows of other images are 0
            found = torch.bmm(weights.unsqueeze(1), features).relu_()  # (B, 1, hw)
            maps[image, label] = found[image, 0].view(-1, *activation.shape[2:])
    return maps
