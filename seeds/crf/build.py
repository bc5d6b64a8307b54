"""Building a permutohedral lattice on the CPU: which vertices there are, and how they line up along each axis.

The mathematics and the keys are those of `seeds.crf.torch_lattice`; here they are loops, one point after the other.
Arrays are flat; d is 5 for the bilateral kernel, 2 for the Gaussian one.
"""

import math
from typing import Any

import numpy as np

from seeds.crf.simd import at, compiled

Array = np.ndarray[Any, Any]
REMAINDER_SHIFT = 60
FREE = -1
MIX = 0x1E3779B97F4A7C15  # an odd number without pattern: spreads keys over the table
TILE = 64  # points worked on together
FIRST_SIZE = 4096  # places in a new hash table; it grows


@compiled
def _place(table: Array, key: int) -> int:
    """Where a key stands in the hash table (key, vertex, key, vertex, ...), or the free place where it would."""
    mask = len(table) - 1
    place = (((key ^ (key >> 32)) * MIX) >> 32) & mask & ~1
    found = at(table, place)
    while found not in (key, FREE):
        place = (place + 2) & mask
        found = at(table, place)
    return place


@compiled
def _table(keys: Array, count: int, size: int) -> Array:
    """A hash table of `size` places, a power of two, with the first `count` keys."""
    table = np.full(2 * size, FREE, np.int64)
    for vertex in range(count):
        place = _place(table, keys[vertex])
        table[place] = keys[vertex]
        table[place + 1] = vertex
    return table


@compiled
def number(
    wanted: Array, repeat: int, keys: Array, count: int, table: Array, vertices: Array
) -> tuple[int, Array, Array]:
    """Number keys in order of first appearance, after the `count` known ones; `keys` and `table` grow as needed.

    A key that is the same as that `repeat` places before it is not looked up again.
    """
    for i in range(len(wanted)):
        key = wanted[i]
        if i >= repeat and key == wanted[i - repeat]:
            vertices[i] = vertices[i - repeat]
            continue
        place = _place(table, key)
        if at(table, place) == key:
            vertices[i] = at(table, place + 1)
            continue
        table[place] = key
        table[place + 1] = count
        vertices[i] = count
        keys[count] = key
        count += 1
        if 4 * count >= len(table):
            table = _table(keys, count, 2 * len(table))
            grown = np.empty(len(table) // 4, np.int64)
            grown[:count] = keys[:count]
            keys = grown
    return count, keys, table


@compiled
def _locate(dims: tuple[int, ...], feature: Array, elevated: Array, quotient: Array, rank: Array, excess: Array) -> int:
    """Find a tile's simplices: nearest vertex with remainder 0 (over d + 1) and ranks; the largest quotient.

    On return `elevated` is what is left beside that vertex, over d + 1. Arrays are (d + 1, TILE). Every loop over
    the tile is simple enough for the compiler to turn into vector instructions.
    """
    d, corners = len(dims), len(dims) + 1
    above = feature[d * TILE :]
    for p in range(TILE):
        above[p] = 0
        excess[p] = 0
    for i in range(d, 0, -1):
        scale = np.float32(math.sqrt(2 / 3) * corners / math.sqrt(i * (i + 1)))
        for p in range(TILE):
            scaled = feature[(i - 1) * TILE + p] * scale
            elevated[i * TILE + p] = above[p] - np.float32(i) * scaled
            above[p] += scaled
    elevated[:TILE] = above
    for i in range(corners):
        for p in range(TILE):
            whole = np.rint(elevated[i * TILE + p] * np.float32(1 / corners))
            elevated[i * TILE + p] -= whole * np.float32(corners)
            quotient[i * TILE + p] = np.int32(whole)
            excess[p] += np.int32(whole)
            rank[i * TILE + p] = 0
    for i in range(d):
        for j in range(i + 1, corners):
            for p in range(TILE):
                less = np.int32(elevated[i * TILE + p] < elevated[j * TILE + p])
                rank[i * TILE + p] += less
                rank[j * TILE + p] += np.int32(1) - less
    widest = np.int32(0)
    for i in range(corners):
        for p in range(TILE):
            moved = rank[i * TILE + p] + excess[p]
            shift = np.int32(moved < 0) - np.int32(moved > d)
            rank[i * TILE + p] = moved + shift * np.int32(corners)
            quotient[i * TILE + p] += shift
            elevated[i * TILE + p] = elevated[i * TILE + p] * np.float32(1 / corners) - np.float32(shift)
            widest = max(widest, abs(quotient[i * TILE + p]))
    return int(widest)


@compiled
def simplices(
    dims: tuple[int, ...],
    image: Array,
    width: int,
    sxy: float,
    srgb: float,
    start: int,
    stop: int,
    vertices: Array,
    weights: Array,
) -> Array:
    """Find the simplices of points start..stop.

    Args:
        dims: five zeros with colour, two without: a length known when compiling.
        image: uint8 (3, N).
        width: cells in a row of the image.
        sxy: standard deviation over position.
        srgb: standard deviation over colour.
        start: the first point.
        stop: the point after the last.
        vertices: int32 (N, d + 1), receives the vertices, numbered from 0 in order of appearance.
        weights: (N, d + 1), receives the barycentric weights.

    Returns:
        The keys of the vertices; none where a kernel is so narrow that keys cannot hold them.
    """
    d, corners = len(dims), len(dims) + 1
    bits = REMAINDER_SHIFT // d
    bias = 1 << (bits - 1)
    n = len(image) // 3
    feature, elevated = np.zeros(corners * TILE, np.float32), np.zeros(corners * TILE, np.float32)
    quotient, rank = np.zeros(corners * TILE, np.int32), np.zeros(corners * TILE, np.int32)
    excess = np.zeros(TILE, np.int32)
    rest, step = np.zeros(corners, np.float32), np.zeros(corners, np.int64)
    found = np.empty(corners * TILE, np.int64)
    keys, count = np.empty(FIRST_SIZE // 2, np.int64), 0
    table = _table(keys, 0, FIRST_SIZE)
    for tile in range(start, stop, TILE):
        points = min(TILE, stop - tile)
        y, x = tile // width, tile % width
        for p in range(points):
            feature[p] = np.float32(x) / np.float32(sxy)
            feature[TILE + p] = np.float32(y) / np.float32(sxy)
            x += 1
            if x == width:
                y, x = y + 1, 0
        for channel in range(d - 2):
            for p in range(points):
                color = np.float32(image[channel * n + tile + p])
                feature[(2 + channel) * TILE + p] = color / np.float32(srgb)
        if _locate(dims, feature, elevated, quotient, rank, excess) > bias - 3:
            return keys[:0]
        for p in range(points):
            key = 0
            for i in range(corners):
                place = int(d - rank[i * TILE + p])
                rest[place] = elevated[i * TILE + p]
                step[place] = 0
                if i < d:
                    step[place] = 1 << (bits * i)
                    key += (int(quotient[i * TILE + p]) + bias) << (bits * i)
            below = rest[d] - np.float32(1)
            for corner in range(corners):
                weights[(tile + p) * corners + corner] = rest[corner] - below
                below = rest[corner]
                found[p * corners + corner] = key
                key += (1 << REMAINDER_SHIFT) - step[corner]
        here = vertices[tile * corners : (tile + points) * corners]
        count, keys, table = number(found[: points * corners], corners, keys, count, table, here)
    return keys[:count].copy()


@compiled
def chains(keys: Array, d: int) -> tuple[Array, Array]:
    """Line the vertices up along each of the d + 1 axes.

    Returns:
        The vertices of all chains of two and more, axis after axis, short chains first, the last of each chain as
        its complement; and where each axis begins, (d + 2,).
    """
    m, bits = len(keys), REMAINDER_SHIFT // d
    size = FIRST_SIZE
    while size < 4 * m:
        size *= 2
    table = _table(keys, m, size)
    ones = 0
    for i in range(d):
        ones += 1 << (bits * i)
    order, bounds = np.empty((d + 1) * m, np.int32), np.zeros(d + 2, np.int64)
    onward, first = np.empty(m, np.int32), np.empty(m, np.bool_)
    lengths, places = np.zeros(m, np.int32), np.empty(m + 2, np.int64)
    for axis in range(d + 1):
        first[:] = True
        for vertex in range(m):
            # One step adds 1 to every coordinate and takes d + 1 from that of the axis.
            key = keys[vertex]
            key += (1 << REMAINDER_SHIFT) if key >> REMAINDER_SHIFT < d else ones - (d << REMAINDER_SHIFT)
            if axis < d:
                key -= 1 << (bits * axis)
            after = at(table, _place(table, key) + 1)
            onward[vertex] = after
            if after >= 0:
                first[after] = False
        longest = 0
        for vertex in range(m):  # sorted by length, the end of a chain is foreseen by the processor
            length = 0
            if first[vertex] and onward[vertex] >= 0:
                after = int(vertex)
                while after >= 0:
                    length += 1
                    after = int(onward[after])
                for longer in range(longest + 1, length + 1):
                    places[longer + 1] = 0
                longest = max(longest, length)
                places[length + 1] += length
            lengths[vertex] = length
        places[0] = places[1] = bounds[axis]
        for length in range(2, longest + 2):
            places[length] += places[length - 1]
        for vertex in range(m):
            length = lengths[vertex]
            if length > 0:
                after = int(vertex)
                for place in range(places[length], places[length] + length):
                    order[place] = after
                    after = int(onward[after])
                places[length] += length
                order[places[length] - 1] = ~order[places[length] - 1]
        bounds[axis + 1] = places[longest + 1]
    return order[: bounds[d + 1]].copy(), bounds


@compiled
def splat_ones(vertices: Array, weights: Array, start: int, stop: int, nodes: Array) -> None:
    """Add the weights start..stop to their vertices."""
    for i in range(start, stop):
        nodes[vertices[i]] += weights[i]


@compiled
def blur_ones(nodes: Array, order: Array, bounds: Array) -> None:
    """Blur one number a vertex along every axis, in place."""
    for axis in range(len(bounds) - 1):
        before, here, at = np.float32(0), np.float32(0), -1
        for place in range(bounds[axis], bounds[axis + 1]):
            vertex = int(order[place])
            end = vertex < 0
            if end:
                vertex = ~vertex
            after = nodes[vertex]
            if at >= 0:
                nodes[at] = here + np.float32(0.5) * (before + after)
            if end:
                nodes[vertex] = after + np.float32(0.5) * here
                before, here, at = np.float32(0), np.float32(0), -1
            else:
                before, here, at = here, after, vertex


@compiled
def normalise(vertices: Array, weights: Array, start: int, stop: int, corners: int, nodes: Array, gain: float) -> None:
    """Scale the weights of points start..stop so that splat, blur, slice give gain · D^-1/2 F D^-1/2, D the sums of F.

    densecrf's constant alpha = 1 / (1 + 2^-d) of the filter cancels, but for its 1e-20 against empty sums.
    """
    alpha = 1 / (1 + 2.0 ** (1 - corners))
    for point in range(start, stop):
        norm = np.float32(0)
        for i in range(point * corners, (point + 1) * corners):
            norm += weights[i] * nodes[vertices[i]]
        share = np.float32(math.sqrt(gain * alpha / (norm * alpha + 1e-20)))
        for i in range(point * corners, (point + 1) * corners):
            weights[i] *= share


@compiled
def apart(vertices: Array, corners: int, count: int, order: Array, bounds: Array) -> bool:
    """Whether no two points share a vertex or have neighbouring ones; the normalised filter is then the identity."""
    owner = np.full(count, -1, np.int64)
    for i in range(len(vertices)):
        if owner[vertices[i]] >= 0:
            return False
        owner[vertices[i]] = i // corners
    at = -1
    for place in range(bounds[-1]):
        vertex = int(order[place])
        end = vertex < 0
        if end:
            vertex = ~vertex
        if at >= 0 and owner[at] != owner[vertex]:
            return False
        at = -1 if end else vertex
    return True


@compiled
def renumber(vertices: Array, start: int, stop: int, numbers: Array) -> None:
    """Replace vertices start..stop by their numbers."""
    for i in range(start, stop):
        vertices[i] = numbers[vertices[i]]


def unite(keys: list[Array]) -> tuple[Array, list[Array]]:
    """All parts' keys without repetition, and for each part the place of each of its keys there (int32)."""
    table, union, count = _table(keys[0], 0, FIRST_SIZE), np.empty(FIRST_SIZE // 2, np.int64), 0
    numbers = [np.empty(len(part), np.int32) for part in keys]
    for part, places in zip(keys, numbers, strict=True):
        count, union, table = number(part, len(part), union, count, table, places)
    return union[:count], numbers
