"""Grad-CAM (Selvaraju et al., ICCV 2017): maps of an image's labels at little more than the cost of a forward pass.

The weights of a class are the spatial means of d(score)/d(activation); its map is ReLU(sum of weight · activation).
"""

from typing import Any

import torch
from torch import Tensor

from seeds.cam_methods.base import LayerMethod, score_gradients
from seeds.cam_methods.targets import TargetScores

SPATIAL = {2, 3}
# operations that keep the values: (B, K, 1, 1) as (B, K), or another dtype
AFTER_POOLING = {"ViewBackward0", "UnsafeViewBackward0", "SqueezeBackward1", "SqueezeBackward2", "ToCopyBackward0"}
BEFORE_POOLING = {"CloneBackward0", "ToCopyBackward0"}
AFTER_LINEAR = {"ToCopyBackward0"}


class GradCAM(LayerMethod):
    """Grad-CAM maps at one layer: rectified, not normalised.

    The part of the network up to the layer runs once, without a graph. Only the part behind the layer is
    differentiated: once for the first label of all images together, once for the second, and so on. Where that part is
    global average pooling and a linear layer, no backward pass is needed.
    """

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(targets, activation, name).relu_()


class Counterfactual(LayerMethod):
    """Grad-CAM with negated gradients: the evidence against a class, rectified, not normalised.

    The paper's counterfactual explanations (section 3.3): regions whose removal would raise the score.
    """

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.maps`."""
        return weighted_maps(targets, activation, name).neg_().relu_()


def weighted_maps(targets: TargetScores, activation: Tensor, name: str, *, keep_graph: bool = False) -> Tensor:
    """Return Grad-CAM's sum of weight · activation before the ReLU, float32 (B, C, h, w)."""
    grid = activation.shape[2:]
    maps = torch.zeros(*targets.selected.shape, *grid, device=activation.device)
    with torch.autocast(activation.device.type, enabled=False):
        image, column = targets.selected.nonzero(as_tuple=True)
        order = (targets.selected.cumsum(1) - 1)[image, column]  # of a score among the image's selected ones
        depth = int(order.max()) + 1 if len(order) else 0
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


def linear_head(scores: Tensor, activation: Tensor) -> Tensor | None:
    """Return the weights (C, K) of a head whose scores are linear in the activation's spatial mean, else None.

    The head is read off the autograd graph between the two: scores = W · mean(A) + b if the graph is a mean over both
    spatial dimensions and a matrix product, with no operation between them that changes a value. The gradient of such
    a head is W / (h · w) at every position, so no backward pass is needed.

    Args:
        scores: (B, C).
        activation: (B, K, h, w).
    """
    product = _skip(scores.grad_fn, AFTER_LINEAR)
    if product is None or product.name() not in ("AddmmBackward0", "MmBackward0"):
        return None
    weight = getattr(product, "_saved_mat2", None)  # (K, C)
    if weight is None or getattr(product, "_saved_alpha", 1) != 1:
        return None
    node = _skip(single_parent(product), AFTER_POOLING)
    if node is not None and node.name() == "AsStridedBackward1":  # pooling of channels_last: (B, K, 1, 1) in its order
        size, stride = node._saved_size, node._saved_stride  # noqa: SLF001
        if len(size) == 4 and tuple(size[2:]) == (1, 1) and tuple(stride[:2]) == (size[1], 1):
            node = single_parent(node)
    if node is None or node.name() != "MeanBackward1":
        return None
    dims = {dim - 2**64 if dim >= 2**63 else dim for dim in getattr(node, "_saved_dim", None) or ()}
    if {dim % 4 for dim in dims} != SPATIAL or len(weight) != activation.shape[1]:
        return None
    source = _skip(single_parent(node), BEFORE_POOLING)
    is_here = source is not None and (source is activation.grad_fn or getattr(source, "variable", None) is activation)
    return weight.detach().t() if is_here else None


def single_parent(node: Any) -> Any:
    """Return the node that a node's input comes from; None if there are several."""
    parents = [parent for parent, _ in node.next_functions if parent is not None]
    return parents[0] if len(parents) == 1 else None


def _skip(node: Any, names: set[str]) -> Any:
    """Return the first node at or above ``node`` whose name is not among ``names``."""
    while node is not None and node.name() in names:
        node = single_parent(node)
    return node
