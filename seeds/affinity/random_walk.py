"""The random walk that spreads maps along affinities (irn, ``misc/indexing.py``)."""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom

from seeds.affinity.pair_affinities import affinities, pair_offsets
from seeds.numba_compile import compiled

Floats = NDArray[np.float32]
Array = np.ndarray[Any, Any]

TOLERANCE = 1e-6
"""Largest error of the series of a walk's power before rounding, on its eigenvalues, which are between -1 and 1."""


def random_walk(
    maps: Floats, boundary: Floats, *, radius: int = 5, beta: float = 10.0, steps: int = 256,
    fixed: NDArray[np.bool_] | None = None,
) -> Floats:  # fmt: skip
    """Spread the values of maps to near positions by a random walk that rarely crosses a boundary.

    A step replaces each value by the mean of the position and its neighbours, weighted by affinity^beta. irn squares
    the matrix of these weights eight times, for 2^8 = 256 steps. Here that power is a series of Chebyshev polynomials,
    which after 78 products with the sparse matrix differs from it by less than 1e-4 of the maps' maximum (measured:
    2e-5, the rounding of float32), and there is no matrix of all positions by all positions.

    Args:
        maps: (k, h, w), not negative.
        boundary: (h, w), 0..1; boundary positions start with zero mass.
        radius: a step leads to positions nearer than this, at least 2.
        beta: exponent of the affinities: the higher it is, the rarer are steps over a weak boundary.
        steps: number of steps.
        fixed: positions (h, w) that keep their values, as in the random walker of Grady (*Random walks for image
            segmentation*, PAMI 2006).

    Returns:
        float32 (k, h, w).
    """
    if not len(maps):
        return maps
    h, w = boundary.shape
    kept = np.argwhere(np.zeros((h, w), bool) if fixed is None else fixed)  # (m, 2)
    offsets, side = np.array(pair_offsets(radius), np.int64), radius - 1
    ahead = affinities(torch.from_numpy(boundary.astype(np.float32))[None], radius)[0].numpy()  # (P, h, w)
    ahead = ahead.clip(min=0) ** beta  # a resized boundary may exceed 1 by its rounding
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
    walked = walk(values, shares, own.astype(np.float32), neighbours, kept + side, side, chebyshev_of_power(steps))
    result: Floats = walked[:, side : side + h, side : side + w].clip(min=0)  # the series may be below 0 by its error
    result[:, kept[:, 0], kept[:, 1]] = maps[:, kept[:, 0], kept[:, 1]]
    return result


@cache
def chebyshev_of_power(steps: int) -> Floats:
    """Return the Chebyshev coefficients of x^steps without a tail whose sum is below `TOLERANCE`.

    x^n is the sum over k of c_k T_k(x), with c_k = 2^(1-n) n over (n-k)/2 for k of the parity of n, and half of that
    for k = 0: twice the probabilities of the binomial distribution.

    Returns:
        float32 (d,), d of about sqrt(2 n ln(2 / TOLERANCE)); their sum is 1, so that a constant map stays constant.
    """
    degrees = np.arange(steps % 2, steps + 1, 2)
    terms = np.zeros(steps + 1)
    terms[degrees] = 2 * binom.pmf((steps - degrees) / 2, steps, 0.5)
    terms[0] /= 2
    terms = terms[: np.flatnonzero(terms[::-1].cumsum()[::-1] >= TOLERANCE)[-1] + 1]
    coefficients: Floats = (terms / terms.sum()).astype(np.float32)
    return coefficients


@compiled
def walk(
    values: Array, shares: Array, own: Array, offsets: Array, kept: Array, side: int, coefficients: Array
) -> Array:
    """Return the values after many steps: a polynomial of the matrix of one step, as a series of Chebyshev's.

    The eigenvalues of that matrix are real and between -1 and 1, because it is a symmetric one whose rows are divided
    by their sums.

    Args:
        values: (k, h + 2 side, w + 2 side), 0 around the map.
        shares: the neighbours' shares, (h, n, w).
        own: the share of the position itself, (h, w).
        offsets: of the neighbours, (n, 2).
        kept: row and column in ``values`` of the positions that keep their values, (m, 2).
        side: positions around the map.
        coefficients: of the series, (d,).
    """
    h, n, w = shares.shape
    earlier, source, target = values.copy(), values.copy(), np.zeros_like(values)
    result: Array = coefficients[0] * values
    for degree in range(1, len(coefficients)):
        scale, coefficient = np.float32(1 if degree == 1 else 2), coefficients[degree]
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
                before = earlier[k, y + side, side : side + w]
                for x in range(w):  # T_1 = x, and T_n+1 = 2 x T_n - T_n-1
                    row[x] = scale * row[x] - (scale - 1) * before[x]
            for i in range(len(kept)):
                target[k, kept[i, 0], kept[i, 1]] = values[k, kept[i, 0], kept[i, 1]]
        earlier, source, target = source, target, earlier
        if coefficient != 0:
            result += coefficient * source
    return result
