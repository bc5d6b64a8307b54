"""The random walk that spreads maps along affinities (irn, ``misc/indexing.py``)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seeds.affinity.pair_affinities import affinities, pair_offsets
from seeds.numba_compile import compiled

Floats = NDArray[np.float32]
Array = np.ndarray[Any, Any]


def random_walk(
    maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10.0, steps: int = 256,
    fixed: NDArray[np.bool_] | None = None,
) -> Floats:  # fmt: skip
    """Spread the values of maps to near positions by a random walk that rarely crosses a boundary.

    A step replaces each value by the mean of the position and its neighbours, weighted by affinity^beta. irn squares
    the matrix of these weights eight times; here a step is taken ``steps`` = 2^8 times, with the same result
    and without a matrix of all positions by all positions.

    Args:
        maps: (k, h, w), not negative.
        boundary: (h, w), 0..1; boundary positions start with zero mass.
        radius: a step leads to positions nearer than this.
        beta: exponent of the affinities: the higher it is, the rarer are steps over a weak boundary.
        steps: number of steps.
        fixed: positions (h, w) that keep their values, as in the random walker of Grady (*Random walks for image
            segmentation*, PAMI 2006).

    Returns:
        float32 (k, h, w).
    """
    h, w = boundary.shape
    kept = np.argwhere(np.zeros((h, w), bool) if fixed is None else fixed)  # (m, 2)
    offsets, side = np.array(pair_offsets(radius), np.int64), radius - 1
    ahead = affinities(torch.from_numpy(boundary.astype(np.float32))[None], radius)[0].numpy() ** beta  # (P, h, w)
    behind = np.zeros_like(ahead)  # the same at the position where the offset ends
    for offset, (down, right) in enumerate(offsets):
        if down < h and abs(right) < w:  # otherwise the offset ends outside the map everywhere
            left, end = max(0, -right), w - max(0, right)
            behind[offset, down:, left + right : end + right] = ahead[offset, : h - down, left:end]
    both = np.concatenate([ahead, behind]).transpose(1, 0, 2)  # (h, 2 P, w)
    own = 1 / (1 + both.sum(axis=1))  # a position's affinity with itself is 1
    shares = np.ascontiguousarray(both * own[:, None], dtype=np.float32)
    start = (maps * (1 - boundary)).astype(np.float32)
    start[:, kept[:, 0], kept[:, 1]] = maps[:, kept[:, 0], kept[:, 1]]
    values = np.pad(start, ((0, 0), (side, side), (side, side)))
    neighbours = np.concatenate([offsets, -offsets])
    walk(values, np.zeros_like(values), shares, own.astype(np.float32), neighbours, kept + side, side, steps)
    return np.ascontiguousarray(values[:, side : side + h, side : side + w])


@compiled
def walk(
    values: Array, buffer: Array, shares: Array, own: Array, offsets: Array, kept: Array, side: int, steps: int
) -> None:
    """Take the steps of a walk in place.

    Args:
        values: (k, h + 2 side, w + 2 side), 0 around the map; changed.
        buffer: zeros of the same shape; changed.
        shares: the neighbours' shares, (h, n, w).
        own: the share of the position itself, (h, w).
        offsets: of the neighbours, (n, 2).
        kept: row and column in ``values`` of the positions that keep their values, (m, 2).
        side: positions around the map.
        steps: number of steps.
    """
    h, n, w = shares.shape
    for step in range(steps):
        source, target = (values, buffer) if step % 2 == 0 else (buffer, values)
        for k in range(len(source)):
            for y in range(h):
                row = target[k, y + side, side : side + w]
                here = source[k, y + side, side : side + w]
                for x in range(w):
                    row[x] = own[y, x] * here[x]
                for i in range(n):
                    first = side + offsets[i, 1]
                    here = source[k, y + side + offsets[i, 0], first : first + w]
                    share = shares[y, i]
                    for x in range(w):
                        row[x] += share[x] * here[x]
            for i in range(len(kept)):
                target[k, kept[i, 0], kept[i, 1]] = source[k, kept[i, 0], kept[i, 1]]
    if steps % 2 == 1:
        values[:] = buffer
