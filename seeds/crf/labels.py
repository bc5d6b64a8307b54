"""Labels dealt out into lanes, and back.

Labels are dealt out in blocks of eight lanes, one block a vector register: planes (K, N) become rows (N, blocks, 8).
All arrays are flat, and float32 unless said otherwise.
"""

import math
from typing import Any

import numpy as np

from seeds.crf.simd import compiled, exponential, fill, load, maximum, store, total

Array = np.ndarray[Any, Any]
WIDTH = 8
ONE = (0,)  # a single register (see `seeds.crf.simd`)
TILE = 128  # points worked on together
NEVER = np.float32(-1e30)  # score of a lane without a label
LOWEST = np.float32(-1e4)  # least score of the dropped labels together; keeps their shares of it finite


@compiled
def survey(logits: Array, n: int, start: int, stop: int, shift: Array, peaks: Array) -> bool:
    """Find the largest logit of each point start..stop, and the largest probability of each label at any of them.

    Args:
        logits: (K, N).
        n: the number of points N.
        start: the first point.
        stop: the point after the last.
        shift: (N,), receives the largest logits.
        peaks: (K, 8), receives the largest probabilities, lane by lane.

    Returns:
        Whether all logits are finite.
    """
    labels = len(logits) // n
    peaks[:] = 0
    wrong = fill(np.float32(0), ONE)  # x - x is not 0 but NaN where x is not finite
    finite = True
    whole = start + (stop - start) // WIDTH * WIDTH
    for i in range(start, whole, WIDTH):
        top = load(logits, i, ONE)
        for label in range(1, labels):
            top = maximum(top, load(logits, label * n + i, ONE))
        store(shift, i, top)
        norm = fill(np.float32(0), ONE)
        for label in range(labels):
            logit = load(logits, label * n + i, ONE)
            wrong = wrong + (logit - logit)
            norm = norm + exponential(logit - top)
        share = fill(np.float32(1), ONE) / norm
        for label in range(labels):
            chance = exponential(load(logits, label * n + i, ONE) - top) * share
            store(peaks, label * WIDTH, maximum(chance, load(peaks, label * WIDTH, ONE)))
    for i in range(whole, stop):
        peak = logits[i]
        for label in range(1, labels):
            peak = max(peak, logits[label * n + i])
        shift[i] = peak
        sum_ = np.float32(0)
        for label in range(labels):
            finite = finite and math.isfinite(logits[label * n + i])
            sum_ += math.exp(logits[label * n + i] - peak)
        for label in range(labels):
            chance_ = np.float32(math.exp(logits[label * n + i] - peak) / sum_)
            peaks[label * WIDTH] = max(peaks[label * WIDTH], chance_)
    return finite and total(wrong) == 0


@compiled
def arrange(
    logits: Array, n: int, start: int, stop: int, shift: Array, kept: Array, dropped: Array, blocks: int, scores: Array
) -> None:
    """Turn logits (K, N) into scores (N, blocks, 8): kept labels, then all dropped ones together, then idle lanes.

    What becomes of the dropped labels' common lane: log of the sum of their exponentials.
    """
    row = blocks * WIDTH
    for tile in range(start, stop, TILE):
        end = min(tile + TILE, stop)
        for i in range(tile, end):
            for lane in range(len(kept), row):
                scores[i * row + lane] = NEVER
        for lane in range(len(kept)):
            plane = kept[lane] * n
            for i in range(tile, end):
                scores[i * row + lane] = logits[plane + i] - shift[i]
        if len(dropped) > 0:
            _lump(logits, n, tile, end, shift, dropped, scores, row, len(kept))


@compiled
def _lump(
    logits: Array, n: int, start: int, stop: int, shift: Array, dropped: Array, scores: Array, row: int, lane: int
) -> None:
    sums = np.empty(TILE, np.float32)
    tops = np.empty(TILE, np.float32)
    tops[:] = NEVER
    sums[:] = 0
    for label in dropped:
        for i in range(start, stop):
            tops[i - start] = max(tops[i - start], logits[label * n + i] - shift[i])
    for label in dropped:
        whole = start + (stop - start) // WIDTH * WIDTH
        for i in range(start, whole, WIDTH):
            chance = exponential(load(logits, label * n + i, ONE) - load(shift, i, ONE) - load(tops, i - start, ONE))
            store(sums, i - start, load(sums, i - start, ONE) + chance)
        for i in range(whole, stop):
            sums[i - start] += math.exp(logits[label * n + i] - shift[i] - tops[i - start])
    for i in range(start, stop):
        scores[i * row + lane] = max(tops[i - start] + np.float32(math.log(sums[i - start])), LOWEST)


@compiled
def release(
    logits: Array,
    n: int,
    start: int,
    stop: int,
    shift: Array,
    kept: Array,
    dropped: Array,
    blocks: int,
    scores: Array,
    lump: Array,
    probs: Array,
) -> None:
    """Turn probabilities (N, blocks, 8) in `scores` into planes (K, N); dropped labels share theirs as at first."""
    row = blocks * WIDTH
    joint = np.empty(TILE, np.float32)
    for tile in range(start, stop, TILE):
        end = min(tile + TILE, stop)
        for lane in range(len(kept)):
            plane = kept[lane] * n
            for i in range(tile, end):
                probs[plane + i] = scores[i * row + lane]
        if len(dropped) == 0:
            continue
        for i in range(tile, end):
            joint[i - tile] = scores[i * row + len(kept)]
        whole = tile + (end - tile) // WIDTH * WIDTH
        for label in dropped:
            for i in range(tile, whole, WIDTH):
                share = exponential(load(logits, label * n + i, ONE) - load(shift, i, ONE) - load(lump, i, ONE))
                store(probs, label * n + i, share * load(joint, i - tile, ONE))
            for i in range(whole, end):
                share_ = np.float32(math.exp(logits[label * n + i] - shift[i] - lump[i]))
                probs[label * n + i] = share_ * joint[i - tile]
