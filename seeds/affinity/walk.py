"""The random walk that spreads maps along affinities (irn, ``misc/indexing.py``)."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from seeds.affinity.pairs import affinities, pair_offsets

__all__ = ["random_walk", "transitions"]

Floats = NDArray[np.float32]


def random_walk(maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Floats:
    """Let the values of maps walk to neighbouring cells, rarely across a boundary.

    irn squares the matrix of transitions eight times; here it is applied ``steps`` = 2^8 times, which gives the same
    and takes a thousandth of the memory.

    Args:
        maps: (k, h, w), not negative.
        boundary: (h, w), 0..1; what lies on it does not set out.
        radius: a step leads to cells nearer than this.
        beta: exponent of the affinities: the higher, the rarer are steps over a weak boundary.
        steps: how many.

    Returns:
        float32 (k, h, w).
    """
    k, h, w = maps.shape
    step = transitions(boundary, radius=radius, beta=beta)
    values = np.ascontiguousarray((maps * (1 - boundary)).reshape(k, h * w).T, dtype=np.float32)  # (n, k)
    for _ in range(steps):
        values = step @ values
    return np.ascontiguousarray(values.T).reshape(k, h, w)


def transitions(boundary: Floats, *, radius: int, beta: float) -> sparse.csr_array:
    """The matrix of a step (n, n), n = h · w: each cell takes the mean of its neighbours, weighted by affinity^beta.

    A cell is its own neighbour with affinity 1.

    Args:
        boundary: (h, w), 0..1.
        radius: a step leads to cells nearer than this.
        beta: exponent of the affinities.
    """
    h, w = boundary.shape
    weights = affinities(torch.from_numpy(boundary.astype(np.float32))[None], radius)[0].numpy() ** beta  # (P, h, w)
    places = np.arange(h * w, dtype=np.int32).reshape(h, w)
    ends = places + np.array([down * w + right for down, right in pair_offsets(radius)], np.int32)[:, None, None]
    used = weights > 0  # none leads out of the map
    first, last, weight = np.broadcast_to(places, ends.shape)[used], ends[used], weights[used]
    half = sparse.coo_array((weight, (first, last)), shape=(h * w, h * w)).tocsr()
    whole = half + half.T + sparse.eye_array(h * w, dtype=np.float32, format="csr")
    share = sparse.diags_array(1 / np.asarray(whole.sum(axis=1)).ravel())
    return sparse.csr_array(share @ whole, dtype=np.float32)
