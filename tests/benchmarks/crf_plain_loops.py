"""Plain numba loops for the two functions of the dense CRF that use vector instructions, to measure the difference.

The loops are the fastest plain ones that were found: the compiler knows the number of labels, indices are unsigned (numba
then omits the test for negative ones), additions may be reordered, and pixels are processed in groups.
"""

from typing import Any

import numba
import numpy as np

from seeds.crf import lattice_mean_field

Array = np.ndarray[Any, Any]
F, U = np.float32, np.uint64
GROUP = 16
plain = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "nnan", "nsz", "reassoc"})


@plain
def update(  # noqa: C901, PLR0912 - the same single pass as the function it replaces
    registers: tuple[int, ...],
    first: bool,
    final: bool,
    start: int,
    stop: int,
    scores: Array,
    vertices: Array,
    weights: Array,
    gaussian_vertices: Array,
    gaussian_weights: Array,
    nodes: Array,
    gaussian_nodes: Array,
    sums: Array,
    gaussian_sums: Array,
) -> None:
    """Do the same as `seeds.crf.lattice_mean_field.update`."""
    lanes, corners = 8 * len(registers), gaussian_vertices.shape[1]
    buffer, tops = np.empty((GROUP, lanes), np.float32), np.empty(GROUP, np.float32)
    exponents = np.empty((GROUP, lanes), np.int32)
    powers = exponents.view(np.float32)
    for begin in range(U(start), U(stop), U(GROUP)):
        count = min(U(GROUP), U(stop) - begin)
        for g in range(count):
            i = begin + g
            for lane in range(lanes):
                buffer[g, lane] = scores[i, lane]
            if not first:
                v0, v1, v2 = U(vertices[i, 0]), U(vertices[i, 1]), U(vertices[i, 2])
                v3, v4, v5 = U(vertices[i, 3]), U(vertices[i, 4]), U(vertices[i, 5])
                w0, w1, w2, w3, w4, w5 = weights[i]
                for lane in range(lanes):
                    buffer[g, lane] += (
                        w0 * nodes[v0, lane]
                        + w1 * nodes[v1, lane]
                        + w2 * nodes[v2, lane]
                        + w3 * nodes[v3, lane]
                        + w4 * nodes[v4, lane]
                        + w5 * nodes[v5, lane]
                    )
                for j in range(corners):
                    vertex, weight = U(gaussian_vertices[i, j]), gaussian_weights[i, j]
                    for lane in range(lanes):
                        buffer[g, lane] += weight * gaussian_nodes[vertex, lane]
            top = buffer[g, 0]
            for lane in range(lanes):
                top = max(top, buffer[g, lane])
            tops[g] = top
        for g in range(count):
            for lane in range(lanes):
                x = max(buffer[g, lane] - tops[g], F(-50))
                exponent = np.int32(x * F(1.4426950408889634) - F(0.5))
                rest = x - F(exponent) * F(0.6931471805599453)
                value = F(1.3981999507e-3) * rest + F(8.3334519073e-3)
                value = value * rest + F(4.1665795894e-2)
                value = value * rest + F(1.6666665459e-1)
                value = value * rest + F(0.5)
                value = value * rest + F(1.0)
                buffer[g, lane] = value * rest + F(1.0)
                exponents[g, lane] = (exponent + np.int32(127)) << np.int32(23)
        for g in range(count):
            i, total = begin + g, F(0)
            for lane in range(lanes):
                buffer[g, lane] *= powers[g, lane]
                total += buffer[g, lane]
            share = F(1) / total
            if final:
                for lane in range(lanes):
                    scores[i, lane] = share * buffer[g, lane]
                continue
            for j in range(6):
                vertex, weight = U(vertices[i, j]), share * weights[i, j]
                for lane in range(lanes):
                    sums[vertex, lane] += weight * buffer[g, lane]
            for j in range(corners):
                vertex, weight = U(gaussian_vertices[i, j]), share * gaussian_weights[i, j]
                for lane in range(lanes):
                    gaussian_sums[vertex, lane] += weight * buffer[g, lane]


@plain
def blur(registers: tuple[int, ...], sums: Array, neighbors: Array, nodes: Array, spare: Array) -> None:
    """Do the same as `seeds.crf.lattice_mean_field.blur`."""
    lanes = 8 * len(registers)
    axes, m = neighbors.shape[:2]
    source, target = (nodes, spare) if axes % 2 == 0 else (spare, nodes)
    for vertex in range(U(m)):
        for lane in range(lanes):
            source[vertex, lane] = sums[0, vertex, lane]
            sums[0, vertex, lane] = 0
        for part in range(1, len(sums)):
            for lane in range(lanes):
                source[vertex, lane] += sums[part, vertex, lane]
                sums[part, vertex, lane] = 0
    for axis in range(axes):
        for vertex in range(U(m)):
            up, down = U(neighbors[axis, vertex, 0]), U(neighbors[axis, vertex, 1])
            for lane in range(lanes):
                target[vertex, lane] = source[vertex, lane] + F(0.5) * (source[up, lane] + source[down, lane])
        source, target = target, source


def use_plain_loops(plain_loops: bool) -> None:
    """Make `dense_crf` use the plain loops, or the vector instructions again."""
    functions = (update, blur) if plain_loops else VECTOR_FUNCTIONS
    lattice_mean_field.update, lattice_mean_field.blur = functions


VECTOR_FUNCTIONS = lattice_mean_field.update, lattice_mean_field.blur
