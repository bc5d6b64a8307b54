"""Recognition of a head that is global average pooling and one linear layer, and nothing else."""

from typing import Any

from torch import Tensor

SPATIAL = {2, 3}
# operations that keep the values: (B, K, 1, 1) as (B, K), or another dtype
AFTER_POOLING = {"ViewBackward0", "UnsafeViewBackward0", "SqueezeBackward1", "SqueezeBackward2", "ToCopyBackward0"}
BEFORE_POOLING = {"CloneBackward0", "ToCopyBackward0"}
AFTER_LINEAR = {"ToCopyBackward0"}


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
