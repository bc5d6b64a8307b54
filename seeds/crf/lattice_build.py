"""Build a permutohedral lattice on the CPU, with compiled loops over the pixels of one image.

`seeds.crf.torch_lattice_mean_field` explains the lattice and the keys of its vertices. d is 5 for the bilateral kernel
(position and colour) and 2 for the Gaussian kernel (position).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from datamodules.errors import InputError
from seeds.crf.torch_lattice_mean_field import EXACT, REMAINDER_SHIFT
from seeds.crf.vector_instructions import element
from seeds.numba_compile import compiled
from seeds.threads import map_on_threads

Array = np.ndarray[Any, Any]
FREE = -1
HASH_FACTOR = 0x1E3779B97F4A7C15  # an odd number without pattern: spreads keys over the table
TILE = 64  # pixels worked on together, so that the compiler finds loops of fixed length


class Lattice(NamedTuple):
    """A filter ``weight · D^-1/2 S' B S D^-1/2`` over n pixels: splat S, blur B, slice S', row sums D.

    Attributes:
        vertices: int32 (n, d + 1), the lattice vertices of each pixel's simplex, 0..m-1.
        weights: float32 (n, d + 1), barycentric weights times the pixel's share of normalisation and kernel weight.
        neighbors: int32 (d + 1, m, 2), the vertices one step up and down each axis; m where there is none.
    """

    vertices: Array
    weights: Array
    neighbors: Array


def build_lattice(
    image: Array, width: int, sxy: float, srgb: float, weight: float, ranges: list[tuple[int, int]]
) -> Lattice:
    """Build the lattice filter of one image.

    Args:
        image: uint8 (3, n) for the bilateral kernel, (0, n) for the Gaussian kernel.
        width: pixels in a row of the image.
        sxy: standard deviation over position, in pixels.
        srgb: standard deviation over colour, in grey levels.
        weight: weight of the kernel.
        ranges: first pixel and end of each part of the image; parts run on threads.

    Raises:
        InputError: the kernel is so narrow that the coordinates of vertices do not fit their keys.
    """
    n, corners = image.shape[1], len(image) + 3
    keys, weights = np.empty((n, corners), np.int64), np.empty((n, corners), np.float32)

    features = image, width, sxy, srgb
    if not all(map_on_threads(lambda pixels: find_simplices(*features, keys, weights, *pixels), ranges, len(ranges))):
        raise InputError(f"the CRF's kernels are too narrow for an image of {n} pixels: raise sxy or srgb")
    vertices, unique, table = number_vertices(keys)
    neighbors = find_neighbors(unique, table, corners - 1)
    norm = filter_ones(vertices, weights, neighbors)
    map_on_threads(lambda pixels: divide_by_norm(vertices, weights, norm, weight, *pixels), ranges, len(ranges))
    return Lattice(vertices, weights, neighbors)


@compiled
def find_simplices(
    image: Array, width: int, sxy: float, srgb: float, keys: Array, weights: Array, start: int, stop: int
) -> bool:
    """Find the simplex around each of the pixels start..stop.

    Args:
        image: uint8 (d - 2, n).
        width: pixels in a row of the image.
        sxy: standard deviation over position.
        srgb: standard deviation over colour.
        keys: int64 (n, d + 1), receives the keys of the simplex's vertices.
        weights: float32 (n, d + 1), receives the barycentric weights.
        start: the first pixel.
        stop: the pixel after the last.

    Returns:
        Whether all coordinates fit the keys.
    """
    d, corners = len(image) + 2, len(image) + 3
    bits = REMAINDER_SHIFT // d
    bias = 1 << (bits - 1)
    feature, elevated = np.zeros((d, TILE), np.float32), np.zeros((corners, TILE), np.float32)
    quotient, rank = np.zeros((corners, TILE), np.int32), np.zeros((corners, TILE), np.int32)
    rest, step = np.zeros(corners, np.float32), np.zeros(corners, np.int64)
    for tile in range(start, stop, TILE):
        pixels = min(TILE, stop - tile)
        for p in range(pixels):
            feature[0, p] = np.float32((tile + p) % width) / np.float32(sxy)
            feature[1, p] = np.float32((tile + p) // width) / np.float32(sxy)
        for channel in range(d - 2):
            for p in range(pixels):
                feature[2 + channel, p] = np.float32(image[channel, tile + p]) / np.float32(srgb)
        if _locate(feature, elevated, quotient, rank) > min(bias - 3, EXACT - 1):
            return False
        # Walk from the nearest vertex with remainder 0 through the simplex, largest coordinate first.
        for p in range(pixels):
            key = 0
            for i in range(corners):
                place = int(d - rank[i, p])
                rest[place] = elevated[i, p]
                step[place] = 0
                if i < d:
                    step[place] = 1 << (bits * i)
                    key += (int(quotient[i, p]) + bias) << (bits * i)
            below = rest[d] - np.float32(1)
            for corner in range(corners):
                weights[tile + p, corner] = rest[corner] - below
                below = rest[corner]
                keys[tile + p, corner] = key
                key += (1 << REMAINDER_SHIFT) - step[corner]
    return True


@compiled
def _locate(feature: Array, elevated: Array, quotient: Array, rank: Array) -> int:
    """Find the nearest vertex with remainder 0 for each point of a tile, and rank the coordinates.

    The compiler turns the loops over a tile, which have a fixed length, into vector instructions.

    Args:
        feature: float32 (d, TILE).
        elevated: float32 (d + 1, TILE), receives the points' coordinates relative to that vertex, over d + 1.
        quotient: int32 (d + 1, TILE), receives the coordinates of that vertex, over d + 1.
        rank: int32 (d + 1, TILE), receives the places of the relative coordinates in descending order.

    Returns:
        The largest absolute quotient.
    """
    d, corners = len(feature), len(elevated)
    excess, above = np.zeros(TILE, np.int32), np.zeros(TILE, np.float32)
    for i in range(d, 0, -1):
        scale = np.float32(math.sqrt(2 / 3) * corners / math.sqrt(i * (i + 1)))
        for p in range(TILE):
            scaled = feature[i - 1, p] * scale
            elevated[i, p] = above[p] - np.float32(i) * scaled
            above[p] += scaled
    elevated[0] = above
    for i in range(corners):
        for p in range(TILE):
            whole = np.rint(elevated[i, p] * np.float32(1 / corners))
            elevated[i, p] -= whole * np.float32(corners)
            quotient[i, p] = np.int32(whole)
            excess[p] += np.int32(whole)
            rank[i, p] = 0
    for i in range(d):
        for j in range(i + 1, corners):
            for p in range(TILE):
                less = np.int32(elevated[i, p] < elevated[j, p])
                rank[i, p] += less
                rank[j, p] += np.int32(1) - less
    largest = np.int32(0)
    for i in range(corners):
        for p in range(TILE):
            moved = rank[i, p] + excess[p]
            shift = np.int32(moved < 0) - np.int32(moved > d)
            rank[i, p] = moved + shift * np.int32(corners)
            quotient[i, p] += shift
            elevated[i, p] = elevated[i, p] * np.float32(1 / corners) - np.float32(shift)
            largest = max(largest, abs(quotient[i, p]))
    return int(largest)


@compiled
def _find_slot(table: Array, key: int) -> int:
    """Return the row of a hash table (key, vertex) that holds a key, or the free row where it belongs."""
    mask = len(table) - 1
    slot = ((key ^ (key >> 32)) * HASH_FACTOR >> 33) & mask
    found = element(table, 2 * slot)
    while found not in (key, FREE):
        slot = (slot + 1) & mask
        found = element(table, 2 * slot)
    return slot


@compiled
def number_vertices(keys: Array) -> tuple[Array, Array, Array]:
    """Number the vertices of a lattice.

    Args:
        keys: int64 (n, d + 1), the vertices of each pixel.

    Returns:
        int32 (n, d + 1), their numbers in order of first appearance; int64 (m,), the m different keys; and a hash
        table of them, int64 (a power of two, 2), for `_find_slot`.
    """
    n, corners = keys.shape
    vertices, unique, count = np.empty((n, corners), np.int32), np.empty(n * corners, np.int64), 0
    table = np.full((8192, 2), FREE, np.int64)
    for i in range(n):
        for j in range(corners):
            key = keys[i, j]
            if i > 0 and key == keys[i - 1, j]:  # the pixel before often has the same vertex
                vertices[i, j] = vertices[i - 1, j]
                continue
            slot = _find_slot(table, key)
            if element(table, 2 * slot) == FREE:
                table[slot, 0], table[slot, 1] = key, count
                unique[count] = key
                count += 1
            vertices[i, j] = element(table, 2 * slot + 1)
        if 4 * count > len(table):
            table = np.full((2 * len(table), 2), FREE, np.int64)
            for vertex in range(count):
                slot = _find_slot(table, unique[vertex])
                table[slot, 0], table[slot, 1] = unique[vertex], vertex
    return vertices, unique[:count].copy(), table


@compiled
def find_neighbors(unique: Array, table: Array, d: int) -> Array:
    """Find the neighbours of the vertices along each axis: int32 (d + 1, m, 2), see `Lattice`.

    Args:
        unique: the keys of the vertices, as `number_vertices` returns them.
        table: their hash table.
        d: number of features.
    """
    m, bits = len(unique), REMAINDER_SHIFT // d
    ones = 0
    for i in range(d):
        ones += 1 << (bits * i)
    neighbors = np.full((d + 1, m, 2), m, np.int32)
    for vertex in range(m):
        # One step down an axis adds 1 to every coordinate and takes d + 1 from the coordinate of the axis.
        onward = unique[vertex]
        onward += (1 << REMAINDER_SHIFT) if onward >> REMAINDER_SHIFT < d else ones - (d << REMAINDER_SHIFT)
        for axis in range(d + 1):
            key = onward - (1 << (bits * axis)) if axis < d else onward
            down = element(table, 2 * _find_slot(table, key) + 1)
            if down != FREE:
                neighbors[axis, vertex, 1] = down
                neighbors[axis, down, 0] = vertex
    return neighbors


@compiled
def filter_ones(vertices: Array, weights: Array, neighbors: Array) -> Array:
    """Splat the value 1 of every pixel and blur: float32 (m,)."""
    axes, m = neighbors.shape[:2]
    nodes, blurred = np.zeros(m + 1, np.float32), np.zeros(m + 1, np.float32)  # the last stands for missing vertices
    for i in range(len(vertices)):
        for j in range(axes):
            nodes[vertices[i, j]] += weights[i, j]
    for axis in range(axes):
        for v in range(m):
            blurred[v] = nodes[v] + np.float32(0.5) * (nodes[neighbors[axis, v, 0]] + nodes[neighbors[axis, v, 1]])
        nodes, blurred = blurred, nodes
    return nodes


@compiled
def divide_by_norm(vertices: Array, weights: Array, norm: Array, weight: float, start: int, stop: int) -> None:
    """Scale the weights of the pixels start..stop so that the filter is ``weight · D^-1/2 F D^-1/2``.

    densecrf's constant alpha = 1 / (1 + 2^-d) of the filter F cancels, except for its 1e-20 against empty sums.
    """
    corners = vertices.shape[1]
    alpha = 1 / (1 + 2.0 ** (1 - corners))
    for i in range(start, stop):
        row_sum = np.float32(0)
        for j in range(corners):
            row_sum += weights[i, j] * norm[vertices[i, j]]
        share = np.float32(math.sqrt(weight * alpha / (row_sum * alpha + 1e-20)))
        for j in range(corners):
            weights[i, j] *= share
