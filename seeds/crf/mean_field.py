"""The mean-field updates on the CPU: slice, softmax and splat in one pass over the points, then the blur.

Labels lie in blocks of eight lanes, one block a vector register: scores and probabilities of points are (N, blocks, 8),
values at lattice vertices (M, blocks, 8). All arrays are flat, and float32 unless said otherwise.
"""

from typing import Any, NamedTuple

import numpy as np

from seeds.crf.simd import at, compiled, exponential, fill, largest, load, store, total

Array = np.ndarray[Any, Any]
Blocks = tuple[int, ...]
WIDTH = 8
GROUP = 8  # points worked on together: the arithmetic of one fills the waiting of another


class Field(NamedTuple):
    """A lattice, and values at its vertices.

    Attributes:
        vertices: int32 (N, d + 1), the vertices of each point's simplex.
        weights: (N, d + 1), its weights there; normalisation and the kernel's weight are in them.
        order: int32, the vertices in chains along each axis (see `seeds.crf.build.chains`).
        bounds: int64 (d + 2,), where each axis begins in `order`.
        nodes: (M, blocks, 8), blurred values.
        sums: (parts, M, blocks, 8), values being added up, by each part of the points apart.
    """

    vertices: Array
    weights: Array
    order: Array
    bounds: Array
    nodes: Array
    sums: Array


@compiled
def update(
    blocks: Blocks,
    first: bool,
    final: bool,
    start: int,
    stop: int,
    scores: Array,
    heard: Array,
    near: Field,
    smooth: Field,
    identity: float,
    beliefs: Array,
) -> None:
    """One pass over the points start..stop: messages from the nodes, softmax, probabilities onto the sums.

    Args:
        blocks: as many zeros as there are blocks of eight lanes.
        first: there are no messages yet.
        final: store the probabilities over the scores, and splat nothing.
        start: the first point.
        stop: the point after the last.
        scores: (N, blocks, 8).
        heard: (blocks, 8), 1 for lanes that hear messages, 0 for others.
        near: the bilateral lattice; its sums are those of this part.
        smooth: the Gaussian lattice, likewise; empty where `identity` is not 0.
        identity: weight of a Gaussian kernel too narrow to reach another point: the message is the belief itself.
        beliefs: (N, blocks, 8), probabilities of the pass before and then of this; only used with `identity`.
    """
    row = len(blocks) * WIDTH
    own = fill(np.float32(identity), blocks)
    buffer = np.empty(GROUP * row, np.float32)
    for begin in range(start, stop, GROUP):
        group = range(min(GROUP, stop - begin))
        for g in group:
            i = begin + g
            score = load(scores, i * row, blocks)
            if not first:
                message = fill(np.float32(0), blocks)
                for j in range(6):
                    weight = fill(at(near.weights, i * 6 + j), blocks)
                    message = message + weight * load(near.nodes, at(near.vertices, i * 6 + j) * row, blocks)
                if identity != 0:
                    message = message + own * load(beliefs, i * row, blocks)
                else:
                    for j in range(3):
                        weight = fill(at(smooth.weights, i * 3 + j), blocks)
                        place = at(smooth.vertices, i * 3 + j) * row
                        message = message + weight * load(smooth.nodes, place, blocks)
                score = score + load(heard, 0, blocks) * message
            store(buffer, g * row, score)
        for g in group:
            score = load(buffer, g * row, blocks)
            belief = exponential(score - fill(largest(score), blocks))
            store(buffer, g * row, belief * fill(np.float32(1) / total(belief), blocks))
        for g in group:
            i = begin + g
            belief = load(buffer, g * row, blocks)
            if final:
                store(scores, i * row, belief)
                continue
            for j in range(6):
                place = at(near.vertices, i * 6 + j) * row
                share = fill(at(near.weights, i * 6 + j), blocks) * belief
                store(near.sums, place, load(near.sums, place, blocks) + share)
            if identity != 0:
                store(beliefs, i * row, belief)
                continue
            for j in range(3):
                place = at(smooth.vertices, i * 3 + j) * row
                share = fill(at(smooth.weights, i * 3 + j), blocks) * belief
                store(smooth.sums, place, load(smooth.sums, place, blocks) + share)


@compiled
def blur(blocks: Blocks, field: Field) -> None:
    """Add up all parts' sums, which become zero, into the nodes, and blur these along every axis."""
    row = len(blocks) * WIDTH
    nodes, sums = field.nodes, field.sums
    zero, half = fill(np.float32(0), blocks), fill(np.float32(0.5), blocks)
    for i in range(0, len(nodes), row):
        value = load(sums, i, blocks)
        store(sums, i, zero)
        for other in range(i + len(nodes), len(sums), len(nodes)):
            value = value + load(sums, other, blocks)
            store(sums, other, zero)
        store(nodes, i, value)
    for axis in range(len(field.bounds) - 1):
        before, here, place = zero, zero, -1
        for position in range(field.bounds[axis], field.bounds[axis + 1]):
            entry = at(field.order, position)
            end = entry < 0
            vertex = (~entry if end else entry) * row
            after = load(nodes, vertex, blocks)
            if place >= 0:
                store(nodes, place, here + half * (before + after))
            if end:
                store(nodes, vertex, after + half * here)
                before, here, place = zero, zero, -1
            else:
                before, here, place = here, after, vertex


@compiled
def iterate(
    blocks: Blocks,
    iterations: int,
    scores: Array,
    heard: Array,
    near: Field,
    smooth: Field,
    identity: float,
    beliefs: Array,
) -> None:
    """All passes of an image on one core; arguments as for `update`."""
    near.sums[:] = 0
    smooth.sums[:] = 0
    points = len(scores) // (len(blocks) * WIDTH)
    for turn in range(iterations + 1):
        if turn > 0:
            blur(blocks, near)
            blur(blocks, smooth)
        update(blocks, turn == 0, turn == iterations, 0, points, scores, heard, near, smooth, identity, beliefs)
