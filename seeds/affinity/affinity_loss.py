"""The loss that teaches affinities: autograd's on any device, and on the CPU a compiled one that gives its gradient.

Ahn, Cho & Kwak, CVPR 2019, as `seeds.affinity.pair_affinities`.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from datamodules.class_names import IGNORE
from seeds.affinity.pair_affinities import affinities, pair_offsets, path_between
from seeds.numba_compile import compiled
from seeds.threads import map_on_threads

EPSILON = 1e-5  # irn's, within the logarithm
WEIGHTS = np.array([0.5, 0.5, 1.0])
"""Weights of the pairs within the background, within a class, and of different labels: twice irn's."""

Array = np.ndarray[Any, Any]


def affinity_loss(boundary: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Return the cross-entropy of affinities against pairs of labels: equal, or different.

    Pairs within the background, pairs within one class and pairs of different labels are three means over the batch,
    with weights ½, ½ and 1 (twice those of irn's code, in the same proportion); a mean over no pair is 0.

    Args:
        boundary: (B, h, w), 0..1; the affinities are those of `seeds.affinity.pair_affinities.affinities`.
        labels: int64 (B, h, w): 0 = background, 1..C = class, 255 = unknown, which forms no pair.
        radius: pairs nearer than this, at least 2.

    Returns:
        Scalar tensor; on the CPU it can be differentiated once.

    Raises:
        ValueError: shapes that do not fit.
    """
    if boundary.shape != labels.shape:
        raise ValueError(f"affinity_loss: labels {tuple(labels.shape)} must be as boundary {tuple(boundary.shape)}")
    if boundary.device.type == "cpu" and boundary.isfinite().all():  # the compiled loss finds no maximum among nan
        loss: Tensor = _CompiledLoss.apply(boundary, labels, radius)
        return loss
    return tensor_loss(boundary, labels, radius)


def tensor_loss(boundary: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Return `affinity_loss` by operations on tensors, on any device."""
    affinity = affinities(boundary, radius)
    (h, w), side = labels.shape[1:], radius - 1
    padded = functional.pad(labels, (side, side, 0, side), value=IGNORE)
    other = torch.stack([padded[:, y : y + h, side + x : side + x + w] for y, x in pair_offsets(radius)], dim=1)
    own = labels[:, None].expand_as(other)
    known = (own != IGNORE) & (other != IGNORE)
    equal = known & (own == other)
    equal_loss, different_loss = -(affinity + EPSILON).log(), -(1 - affinity + EPSILON).log()

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum() / where.sum().clamp_min(1)

    background, within = mean(equal_loss, equal & (own == 0)), mean(equal_loss, equal & (own > 0))
    means = torch.stack([background, within, mean(different_loss, known & (own != other))])
    return (means * torch.from_numpy(WEIGHTS).to(means)).sum()  # in float32: autocast would round a product by @


class _CompiledLoss(Function):
    """`affinity_loss` on the CPU: one pass over the pairs gives the loss and its gradient, and keeps nothing else."""

    @staticmethod
    def forward(ctx: Any, boundary: Tensor, labels: Tensor, radius: int) -> Tensor:
        """Compute the loss and its gradient, images on threads."""
        side, (h, w) = radius - 1, labels.shape[1:]
        frame = (side, side, 0, side)
        edges = functional.pad(boundary.detach().float(), frame, value=1.0).numpy()
        classes = functional.pad(labels, frame, value=IGNORE).to(torch.uint8).numpy()
        paths = [path_between(offset) for offset in pair_offsets(radius)]
        ends = np.cumsum([0, *map(len, paths)])
        positions, offsets = np.array([each for path in paths for each in path]), np.array(pair_offsets(radius))
        sums, gradients = np.zeros((len(edges), 3)), np.zeros((len(edges), 3, *edges.shape[1:]), np.float32)
        counts = np.zeros((len(edges), 3), np.int64)

        def add(image: int) -> None:
            pairs = edges[image], classes[image], offsets, positions, ends, side
            add_pairs(*pairs, sums[image], counts[image], gradients[image])

        map_on_threads(add, range(len(edges)), torch.get_num_threads())
        weights = WEIGHTS / counts.sum(axis=0).clip(min=1)
        gradient = np.einsum("k,bkyx->byx", weights.astype(np.float32), gradients[..., :h, side : side + w])
        ctx.save_for_backward(torch.from_numpy(gradient))
        return boundary.new_tensor(float(weights @ sums.sum(axis=0)), dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient by the boundary."""
        (gradient,) = ctx.saved_tensors
        return scale * gradient, None, None


@compiled
def add_pairs(
    edges: Array, classes: Array, offsets: Array, positions: Array, ends: Array, side: int, sums: Array, counts: Array,
    gradients: Array,
) -> None:  # fmt: skip
    """Add the pairs of one image to the sums, numbers and gradients of the three kinds of pairs, see `WEIGHTS`.

    The gradient of a pair is that of the first position with the highest boundary on its path.

    Args:
        edges: the boundary, float32 (h + side, w + 2 side), with ``side`` columns on both sides and rows below.
        classes: uint8, the labels of the same positions, 255 outside the image.
        offsets: of the pairs, (P, 2).
        positions: those on the paths of all pairs, one pair after the other, (n, 2).
        ends: the positions of pair p are ``ends[p]`` to ``ends[p + 1]``.
        side: see ``edges``.
        sums: float64 (3,), changed.
        counts: int64 (3,), changed.
        gradients: float32 (3, h + side, w + 2 side), changed.
    """
    h, w = edges.shape[0] - side, edges.shape[1] - 2 * side
    highest, where = np.empty(w, np.float32), np.empty(w, np.int32)
    products = np.ones(3)  # of probabilities: a logarithm for each pair would take most of the time
    for p in range(len(offsets)):
        down, right = offsets[p]
        for y in range(h - down):
            highest[:] = -1
            for i in range(ends[p], ends[p + 1]):
                row = edges[y + positions[i, 0], side + positions[i, 1] : side + positions[i, 1] + w]
                for x in range(w):
                    higher = row[x] > highest[x]
                    where[x] = i if higher else where[x]
                    highest[x] = row[x] if higher else highest[x]
            for x in range(max(0, -right), w - max(0, right)):  # the offset ends within the image
                own, other = classes[y, side + x], classes[y + down, side + x + right]
                if IGNORE in (own, other):
                    continue
                kind = 2 if own != other else 1 if own > 0 else 0
                probability = (highest[x] if kind == 2 else 1 - highest[x]) + EPSILON
                counts[kind] += 1
                products[kind] *= probability
                if products[kind] < 1e-290:  # one more factor of 1e-5 is still a normal float64
                    sums[kind] -= math.log(products[kind])
                    products[kind] = 1
                slope = 1 / probability
                i = where[x]
                gradients[kind, y + positions[i, 0], side + x + positions[i, 1]] += -slope if kind == 2 else slope
    for kind in range(3):
        sums[kind] -= math.log(products[kind])
