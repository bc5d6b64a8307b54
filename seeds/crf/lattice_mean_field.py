"""Mean field on the CPU with both kernels as lattices; images, or parts of one image, run on threads.

The labels of a pixel lie side by side in rows padded to a multiple of eight, one vector register after the other.
"""

import functools
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seeds.crf import vector_instructions as vec
from seeds.crf.gaussian_kernels import Kernels
from seeds.crf.lattice_build import Lattice, build_lattice
from seeds.numba_compile import compiled
from seeds.threads import map_on_threads

Array = np.ndarray[Any, Any]
Field = tuple[Array, Array, Array, Array]
SPLIT_PIXELS = 16384
"""An image of so many pixels is divided among threads; with fewer the synchronisation costs more than it gains."""
NO_LABEL = np.float32(-1e30)  # score of the padding
GROUP = 8  # pixels worked on together: the processor computes for one while it waits for another's data
TILE = 128  # pixels transposed together, so that both layouts stay in the cache


def lattice_mean_field(image: Tensor, logits: Tensor, kernels: Kernels, iterations: int) -> Tensor:
    """Run mean field with both kernels as lattices, on as many threads as torch uses.

    Args:
        image: uint8 (B, 3, H, W), on the CPU.
        logits: float32 (B, K, H, W), finite, on the CPU.
        kernels: the two kernels.
        iterations: number of mean-field updates.

    Returns:
        Probabilities, float32 (B, K, H, W).

    Raises:
        InputError: a kernel is so narrow, beside the size of the image, that vertices do not fit their keys.
    """
    probs = torch.empty(logits.shape, dtype=torch.float32)
    threads = torch.get_num_threads()
    b, _, h, w = logits.shape
    gaussian = _gaussian_lattice(h, w, kernels.gaussian_sxy, kernels.gaussian_weight)
    widths = kernels.bilateral_sxy, kernels.bilateral_srgb
    images, unary, results = (t.contiguous().numpy().reshape(b, -1, h * w) for t in (image, logits, probs))

    def infer(i: int, parts: int = 1) -> None:
        edges = [h * w * part // parts // 16 * 16 for part in range(parts)] + [h * w]  # whole cache lines apart
        ranges = list(itertools.pairwise(edges))
        bilateral = build_lattice(images[i], w, *widths, kernels.bilateral_weight, ranges)
        _infer_image(unary[i], results[i], bilateral, gaussian, iterations, ranges)

    if b < threads and h * w >= SPLIT_PIXELS:
        for i in range(b):
            infer(i, threads)
    else:
        map_on_threads(infer, range(b), threads)
    return probs


@functools.lru_cache(maxsize=8)
def _gaussian_lattice(h: int, w: int, sxy: float, weight: float) -> Lattice:
    """Build the lattice of the Gaussian kernel, the same for all images of a size.

    A kernel too narrow to reach another pixel, as in training, is the identity after normalisation. Its lattice has
    one vertex for each pixel and no axes.
    """
    n = h * w
    lattice = build_lattice(np.empty((0, n), np.uint8), w, sxy, 1.0, weight, [(0, n)])
    m = lattice.neighbors.shape[1]
    pixel = np.append(np.arange(m) // 3, -1)  # of each vertex, where no two pixels share one
    linked = (lattice.neighbors < m) & (pixel[lattice.neighbors] != pixel[:m, None])
    if m < 3 * n or linked.any():
        return lattice
    own_vertices = np.arange(n, dtype=np.int32)[:, None]
    return Lattice(own_vertices, np.full((n, 1), weight**0.5, np.float32), np.empty((0, n, 2), np.int32))


def _infer_image(
    logits: Array, probs: Array, bilateral: Lattice, gaussian: Lattice, iterations: int, ranges: list[tuple[int, int]]
) -> None:
    """Run mean field on one image: logits and probabilities (K, N)."""
    parts, lattices = len(ranges), (bilateral, gaussian)
    registers = (0,) * -(-len(logits) // vec.WIDTH)
    lanes = len(registers) * vec.WIDTH
    scores = np.empty((logits.shape[1], lanes), np.float32)
    shapes = [(lattice.neighbors.shape[1] + 1, lanes) for lattice in lattices]  # the last row stays 0
    nodes = [np.zeros(shape, np.float32) for shape in shapes]
    sums = [[np.zeros(shape, np.float32) for _ in range(parts)] for shape in shapes]

    def update_part(part: int, first: bool, final: bool) -> None:
        fields = [(lattice.vertices, lattice.weights, nodes[i], sums[i][part]) for i, lattice in enumerate(lattices)]
        update(registers, first, final, *ranges[part], scores, tuple(fields))

    def blur_sums(i: int) -> None:
        for other in sums[i][1:]:
            sums[i][0] += other
            other.fill(0)
        blur(registers, lattices[i].neighbors, sums[i][0], nodes[i])
        if len(lattices[i].neighbors) % 2 == 0:
            nodes[i], sums[i][0] = sums[i][0], nodes[i]
        sums[i][0].fill(0)

    map_on_threads(lambda pixels: to_rows(logits, scores, *pixels), ranges, parts)
    for iteration in range(iterations + 1):
        first, final = iteration == 0, iteration == iterations
        map_on_threads(functools.partial(update_part, first=first, final=final), range(parts), parts)
        if not final:
            map_on_threads(blur_sums, range(2), parts)
    map_on_threads(lambda pixels: to_planes(scores, probs, *pixels), ranges, parts)


@compiled
def to_rows(logits: Array, scores: Array, start: int, stop: int) -> None:
    """Transpose logits (K, N) to scores (N, lanes) for the pixels start..stop; the largest score of a pixel is 0."""
    labels, lanes = len(logits), scores.shape[1]
    largest = np.empty(TILE, np.float32)
    for tile in range(start, stop, TILE):
        pixels = min(TILE, stop - tile)
        largest[:pixels] = logits[0, tile : tile + pixels]
        for label in range(1, labels):
            for p in range(pixels):
                largest[p] = max(largest[p], logits[label, tile + p])
        for label in range(labels):
            for p in range(pixels):
                scores[tile + p, label] = logits[label, tile + p] - largest[p]
        for p in range(pixels):
            scores[tile + p, labels:lanes] = NO_LABEL


@compiled
def to_planes(scores: Array, probs: Array, start: int, stop: int) -> None:
    """Transpose probabilities (N, lanes) to (K, N) for the pixels start..stop."""
    for tile in range(start, stop, TILE):
        for label in range(len(probs)):
            for i in range(tile, min(tile + TILE, stop)):
                probs[label, i] = scores[i, label]


@compiled
def update(
    registers: vec.Registers, first: bool, final: bool, start: int, stop: int, scores: Array, fields: tuple[Field, ...]
) -> None:
    """Update the pixels start..stop in one pass: slice the messages, take the softmax, splat the probabilities.

    Args:
        registers: as many zeros as a row has registers.
        first: there are no messages yet.
        final: write the probabilities over the scores, and splat nothing.
        start: the first pixel.
        stop: the pixel after the last.
        scores: (N, lanes), the unary scores.
        fields: for the bilateral and the Gaussian lattice each: vertices int32 (N, 6), and (N, 3) or, for the
            identity, (N, 1); weights of the same shape; the blurred values at the vertices (m + 1, lanes); and an
            array (m + 1, lanes) that receives the sums of probabilities there.
    """
    (vertices, weights, nodes, sums), (gaussian_vertices, gaussian_weights, gaussian_nodes, gaussian_sums) = fields
    lanes, corners = scores.shape[1], gaussian_vertices.shape[1]
    buffer = np.empty((GROUP, lanes), np.float32)
    for begin in range(start, stop, GROUP):
        count = min(GROUP, stop - begin)
        for g in range(count):
            i = begin + g
            score = vec.load(scores, i * lanes, registers)
            if not first:
                for j in range(i * 6, i * 6 + 6):
                    values = vec.load(nodes, vec.element(vertices, j) * lanes, registers)
                    score = vec.multiply_add(vec.fill(vec.element(weights, j), registers), values, score)
                for j in range(i * corners, i * corners + corners):
                    values = vec.load(gaussian_nodes, vec.element(gaussian_vertices, j) * lanes, registers)
                    score = vec.multiply_add(vec.fill(vec.element(gaussian_weights, j), registers), values, score)
            vec.store(buffer, g * lanes, score)
        for g in range(count):
            score = vec.load(buffer, g * lanes, registers)
            vec.store(buffer, g * lanes, vec.exp_of_difference(score, vec.fill(vec.largest_lane(score), registers)))
        for g in range(count):
            i = begin + g
            belief = vec.load(buffer, g * lanes, registers)
            share = np.float32(1) / vec.sum_of_lanes(belief)
            if final:
                for lane in range(lanes):
                    scores[i, lane] = share * buffer[g, lane]
                continue
            for j in range(i * 6, i * 6 + 6):
                weight = vec.fill(share * vec.element(weights, j), registers)
                place = vec.element(vertices, j) * lanes
                total = vec.load(sums, place, registers)
                vec.store(sums, place, vec.multiply_add(weight, belief, total))
            for j in range(i * corners, i * corners + corners):
                weight = vec.fill(share * vec.element(gaussian_weights, j), registers)
                place = vec.element(gaussian_vertices, j) * lanes
                total = vec.load(gaussian_sums, place, registers)
                vec.store(gaussian_sums, place, vec.multiply_add(weight, belief, total))


@compiled
def blur(registers: vec.Registers, neighbors: Array, source: Array, target: Array) -> None:
    """Blur values (m + 1, lanes) at the vertices along every axis, alternately from one array into the other.

    The result is in `source` after an even number of axes, and in `target` after an odd number.
    """
    axes, m = neighbors.shape[:2]
    lanes = source.shape[1]
    half = vec.fill(np.float32(0.5), registers)
    for axis in range(axes):
        for vertex in range(m):
            link = 2 * (axis * m + vertex)
            up = vec.load(source, vec.element(neighbors, link) * lanes, registers)
            down = vec.load(source, vec.element(neighbors, link + 1) * lanes, registers)
            here = vec.load(source, vertex * lanes, registers)
            vec.store(target, vertex * lanes, vec.multiply_add(half, vec.add(up, down), here))
        source, target = target, source
