"""The random walk that spreads maps along affinities (irn, ``misc/indexing.py``)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seeds.affinity.pair_affinities import affinities, pair_offsets
from seeds.crf.simd import compiled

__all__ = ["random_walk", "transitions"]

Floats = NDArray[np.float32]
Array = np.ndarray[Any, Any]


def random_walk(maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Floats:
    """Let the values of maps walk to neighbouring cells, rarely across a boundary.

    irn squares the matrix of transitions eight times; here a step is taken ``steps`` = 2^8 times, which gives the same
    without a matrix of all cells by all cells.

    Args:
        maps: (k, h, w), not negative.
        boundary: (h, w), 0..1; what lies on it does not set out.
        radius: a step leads to cells nearer than this.
        beta: exponent of the affinities: the higher, the rarer are steps over a weak boundary.
        steps: how many.

    Returns:
        float32 (k, h, w).
    """
    shares, own = transitions(boundary, radius=radius, beta=beta)
    side = radius - 1
    here = np.pad((maps * (1 - boundary)).astype(np.float32), ((0, 0), (side, side), (side, side)))
    walk(here, np.zeros_like(here), shares, own, _steps(radius), side, steps)
    inside: Floats = here[:, side : side + boundary.shape[0], side : side + boundary.shape[1]]
    return np.ascontiguousarray(inside)


def transitions(boundary: Floats, *, radius: int, beta: float) -> tuple[Floats, Floats]:
    """A step of the walk: each cell takes the mean of its neighbours and itself, weighted by affinity^beta.

    Args:
        boundary: (h, w), 0..1.
        radius: a step leads to cells nearer than this.
        beta: exponent of the affinities; a cell's affinity with itself is 1.

    Returns:
        The shares of the neighbours (h, 2 P, w), at the P offsets of :func:`pair_offsets` and then those opposite,
        and each cell's own (h, w); at every cell they sum to 1.
    """
    h, w = boundary.shape
    ahead = affinities(torch.from_numpy(boundary.astype(np.float32))[None], radius)[0].numpy() ** beta  # (P, h, w)
    behind = np.zeros_like(ahead)
    for offset, (down, right) in enumerate(pair_offsets(radius)):
        if down >= h or abs(right) >= w:  # it leads out of the map from everywhere
            continue
        left, end = max(0, -right), w - max(0, right)
        behind[offset, down:, left + right : end + right] = ahead[offset, : h - down, left:end]
    both = np.concatenate([ahead, behind]).transpose(1, 0, 2)
    own = 1 / (1 + both.sum(axis=1))
    return np.ascontiguousarray(both * own[:, None], dtype=np.float32), own.astype(np.float32)


def _steps(radius: int) -> NDArray[np.int64]:
    ahead = np.array(pair_offsets(radius), np.int64)
    return np.concatenate([ahead, -ahead])


@compiled
def walk(here: Array, there: Array, shares: Array, own: Array, offsets: Array, side: int, steps: int) -> None:
    """Take steps, from ``here`` to ``there`` and back, so that the last ends in ``here``.

    Args:
        here: (k, h + 2 side, w + 2 side), 0 around the map; changed.
        there: as large, of zeros; changed.
        shares: of the neighbours, (h, n, w).
        own: share of the cell itself, (h, w).
        offsets: of the neighbours, (n, 2).
        side: cells around the map.
        steps: how many.
    """
    h, n, w = shares.shape
    for step in range(steps):
        source, target = (here, there) if step % 2 == 0 else (there, here)
        for k in range(len(source)):
            for y in range(h):
                row = target[k, y + side, side : side + w]
                values = source[k, y + side, side : side + w]
                for x in range(w):
                    row[x] = own[y, x] * values[x]
                for i in range(n):
                    first = side + offsets[i, 1]
                    values = source[k, y + side + offsets[i, 0], first : first + w]
                    share = shares[y, i]
                    for x in range(w):
                        row[x] += share[x] * values[x]
    if steps % 2 == 1:
        here[:] = there
