"""Grad-CAM (Selvaraju et al., ICCV 2017): maps of an image's labels at little more than the cost of a forward pass.

The weights of a class are the spatial means of d(score)/d(activation); its map is ReLU(sum of weight · activation).
"""

import torch
from torch import Tensor

from seeds.cam_methods.base import LayerMethod, score_gradients
from seeds.cam_methods.linear_head import linear_head
from seeds.cam_methods.targets import TargetScores, label_scores


class GradCAM(LayerMethod):
    """Grad-CAM maps at one layer: rectified, not normalised.

    The part of the network up to the layer runs once, without a graph. Only the part behind the layer is
    differentiated: once for the first label of all images together, once for the second, and so on. Where that part is
    global average pooling and a linear layer, no backward pass is needed.
    """

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as :meth:`seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(targets, activation, name).relu_()


class Counterfactual(LayerMethod):
    """Grad-CAM with negated gradients: the evidence against a class, rectified, not normalised.

    The paper's counterfactual explanations (section 3.3): regions whose removal would raise the score.
    """

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as :meth:`seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(targets, activation, name).neg_().relu_()


def gradcam_maps(
    scores: Tensor, activation: Tensor, labels: Tensor, name: str = "", *, keep_graph: bool = False
) -> Tensor:
    """Return Grad-CAM maps float32 (B, C, h, w) from a forward pass made within ``record_activations``.

    Args:
        scores: (B, C), with a graph back to ``activation``.
        activation: (B, K, h, w).
        labels: (B, C), not 0 for the classes to explain.
        name: the layer's name, for errors.
        keep_graph: whether the graph is needed again.

    Raises:
        InputError: the scores do not depend on the activation.
    """
    return weighted_maps(label_scores(scores, labels), activation, name, keep_graph=keep_graph).relu_()


def weighted_maps(targets: TargetScores, activation: Tensor, name: str, *, keep_graph: bool = False) -> Tensor:
    """Return Grad-CAM's sum of weight · activation before the ReLU, float32 (B, C, h, w)."""
    grid, depth = activation.shape[2:], targets.depth
    maps = torch.zeros(*targets.selected.shape, *grid, device=activation.device)
    if not depth:
        return maps
    with torch.autocast(activation.device.type, enabled=False):
        image, column = targets.selected.nonzero(as_tuple=True)
        order = (targets.selected.cumsum(1) - 1)[image, column]  # of a score among the image's selected ones
        weights = activation.new_zeros(len(maps), depth, activation.shape[1], dtype=torch.float32)
        head = None if targets.output is None else linear_head(targets.output, activation)
        if head is not None and targets.classes is not None:
            weights[image, order] = head.float()[targets.classes[image, column]] / (grid[0] * grid[1])
        else:
            for r, (_, _, gradients) in enumerate(score_gradients(targets, activation, name, keep_graph=keep_graph)):
                weights[:, r] = gradients.mean(dim=(2, 3))
        sums = torch.bmm(weights, activation.detach().float().flatten(2))  # (B, depth, h * w)
        maps[image, column] = sums[image, order].view(-1, *grid)
    return maps
