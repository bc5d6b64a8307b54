"""Affinities of pairs of near positions: the boundary on the path between them.

Ahn, Cho & Kwak, *Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations*, CVPR 2019, and the
authors' code (irn, ``misc/indexing.py``). Two positions have the same class unless a boundary lies between them.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Offset = tuple[int, int]


@cache
def pair_offsets(radius: int) -> tuple[Offset, ...]:
    """Return the offsets (down, right) nearer than ``radius``, one of each pair: down, or horizontally to the right."""
    rectangle = [(down, right) for down in range(radius) for right in range(1 - radius, radius)]
    return tuple((y, x) for y, x in rectangle if y * y + x * x < radius * radius and (y, x) > (0, 0))


@cache
def path_between(offset: Offset) -> tuple[Offset, ...]:
    """Return the positions from (0, 0) to an offset: those nearer than 1 to the straight line, within its rectangle."""
    down, right = offset
    length = down * down + right * right
    rows, columns = range(down + 1), range(min(0, right), max(0, right) + 1)
    return tuple((y, x) for y in rows for x in columns if (down * x - right * y) ** 2 < length)


def affinities(boundary: Tensor, radius: int) -> Tensor:
    """Return the affinity of each pair of positions: 1 - the highest boundary on the path between them.

    Args:
        boundary: (B, h, w), 0..1.
        radius: pairs nearer than this, at least 2.

    Returns:
        (B, P, h, w) for the P offsets of `pair_offsets`, at the position where the offset starts; 0 if it ends
        outside the map.
    """
    h, w = boundary.shape[-2:]
    side = radius - 1
    padded = functional.pad(boundary, (side, side, 0, side), value=1.0)
    highest = [
        torch.stack([padded[:, y : y + h, side + x : side + x + w] for y, x in path_between(offset)]).max(dim=0).values
        for offset in pair_offsets(radius)
    ]
    return 1 - torch.stack(highest, dim=1)
