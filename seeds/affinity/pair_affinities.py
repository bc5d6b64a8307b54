"""Pairs of neighbouring cells: the way between them over a boundary map, and what their labels say of them.

Ahn, Cho & Kwak, *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations*, CVPR 2019, and the
authors' code (irn, ``misc/indexing.py``). Two cells are alike unless a boundary lies between them.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["affinities", "affinity_loss", "pair_offsets", "way"]

Offset = tuple[int, int]
IGNORE = 255
LOG_FLOOR = 1e-5  # irn's, within the logarithm


@cache
def pair_offsets(radius: int) -> tuple[Offset, ...]:
    """Steps (down, right) to the cells nearer than ``radius``, one of each pair: down, or straight to the right."""
    reach = range(1 - radius, radius)
    return tuple(
        (down, right)
        for down in range(radius)
        for right in reach
        if down * down + right * right < radius * radius and (down > 0 or right > 0)
    )


@cache
def way(offset: Offset) -> tuple[Offset, ...]:
    """The cells between two cells, both among them: those nearer than 1 to the straight line, within its rectangle."""
    down, right = offset
    length = down * down + right * right
    rows, columns = range(down + 1), range(min(0, right), max(0, right) + 1)
    return tuple((y, x) for y in rows for x in columns if (down * x - right * y) ** 2 < length)


def affinities(boundary: Tensor, radius: int) -> Tensor:
    """How surely pairs of cells are of one thing: 1 - the highest boundary on the way from one to the other.

    Args:
        boundary: (B, h, w), 0..1.
        radius: pairs nearer than this many cells.

    Returns:
        (B, P, h, w) for the P offsets of :func:`pair_offsets`, at the cell that the offset starts from; 0 where it
        leads out of the map.
    """
    h, w = boundary.shape[-2:]
    side = radius - 1
    walled = functional.pad(boundary, (side, side, 0, side), value=1.0)
    highest = [
        torch.stack([walled[:, y : y + h, side + x : side + x + w] for y, x in way(offset)]).max(dim=0).values
        for offset in pair_offsets(radius)
    ]
    return 1 - torch.stack(highest, dim=1)


def affinity_loss(affinity: Tensor, labels: Tensor, radius: int) -> Tensor:
    """Cross-entropy of affinities against pairs of labels: alike, or not.

    Pairs of one class, pairs within the background and pairs that differ are three means over the batch, with weights
    ½, ½ and 1 (twice those of irn's code, relative to each other the same); a mean over no pair is 0.

    Args:
        affinity: (B, P, h, w), from :func:`affinities`.
        labels: (B, h, w): 0 = background, 1..C = class, 255 = not known, which makes no pair.
        radius: as for the affinities.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: shapes that do not fit.
    """
    pairs = len(pair_offsets(radius))
    if affinity.shape != (len(labels), pairs, *labels.shape[1:]):
        wanted = (len(labels), pairs, *labels.shape[1:])
        raise ValueError(f"affinity_loss: affinity {tuple(affinity.shape)} must be {wanted} for radius {radius}")
    affinity = affinity.float()
    other = _neighbours(labels, radius)  # (B, P, h, w)
    own = labels[:, None].expand_as(other)
    known = (own != IGNORE) & (other != IGNORE)
    alike = known & (own == other)
    same, apart = -(affinity + LOG_FLOOR).log(), -(1 - affinity + LOG_FLOOR).log()
    within = _mean(same, alike & (own > 0)) + _mean(same, alike & (own == 0))
    return within / 2 + _mean(apart, known & (own != other))


def _neighbours(labels: Tensor, radius: int) -> Tensor:
    """The label at the other end of each pair, (B, P, h, w); 255 beyond the map."""
    h, w = labels.shape[-2:]
    side = radius - 1
    padded = functional.pad(labels, (side, side, 0, side), value=IGNORE)
    ends = [padded[:, y : y + h, side + x : side + x + w] for y, x in pair_offsets(radius)]
    return torch.stack(ends, dim=1)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    count = where.sum()
    return (values * where).sum() / count.clamp_min(1)
