"""Plain numba loops for the two functions of the dense CRF that use vector instructions, to measure the difference.

The loops are the fastest plain ones that were found: arrays are flat, indices are unsigned (numba then omits the test
for negative ones), additions may be reordered, and pixels are processed in groups.
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
    registers: tuple[int, ...], first: bool, final: bool, start: int, stop: int, scores: Array,
    fields: tuple[tuple[Array, ...], ...],
) -> None:  # fmt: skip
    """Do the same as `seeds.crf.lattice_mean_field.update`."""
    (vertices, weights, nodes, sums), (gaussian_vertices, gaussian_weights, gaussian_nodes, gaussian_sums) = fields
    row, corners = U(scores.shape[1]), U(gaussian_vertices.shape[1])
    scores, nodes, gaussian_nodes = scores.reshape(-1), nodes.reshape(-1), gaussian_nodes.reshape(-1)
    sums, gaussian_sums = sums.reshape(-1), gaussian_sums.reshape(-1)
    v6, w6 = vertices.reshape(-1), weights.reshape(-1)
    v3, w3 = gaussian_vertices.reshape(-1), gaussian_weights.reshape(-1)
    buffer, tops = np.empty(U(GROUP) * row, np.float32), np.empty(GROUP, np.float32)
    exponents = np.empty(U(GROUP) * row, np.int32)
    powers = exponents.view(np.float32)
    for begin in range(U(start), U(stop), U(GROUP)):
        count = min(U(GROUP), U(stop) - begin)
        for g in range(count):
            i, b = begin + g, g * row
            for lane in range(row):
                buffer[b + lane] = scores[i * row + lane]
            if not first:
                x = i * U(6)
                a0, a1, a2 = U(v6[x]) * row, U(v6[x + U(1)]) * row, U(v6[x + U(2)]) * row
                a3, a4, a5 = U(v6[x + U(3)]) * row, U(v6[x + U(4)]) * row, U(v6[x + U(5)]) * row
                b0, b1, b2, b3, b4, b5 = w6[x], w6[x + U(1)], w6[x + U(2)], w6[x + U(3)], w6[x + U(4)], w6[x + U(5)]
                for lane in range(row):
                    near = b0 * nodes[a0 + lane] + b1 * nodes[a1 + lane] + b2 * nodes[a2 + lane]
                    buffer[b + lane] += near + b3 * nodes[a3 + lane] + b4 * nodes[a4 + lane] + b5 * nodes[a5 + lane]
                for j in range(i * corners, (i + U(1)) * corners):
                    place, weight = U(v3[j]) * row, w3[j]
                    for lane in range(row):
                        buffer[b + lane] += weight * gaussian_nodes[place + lane]
            top = buffer[b]
            for lane in range(row):
                top = max(top, buffer[b + lane])
            tops[g] = top
        for g in range(count):
            top, b = tops[g], g * row
            for lane in range(row):
                difference = max(buffer[b + lane] - top, F(-50))
                exponent = np.int32(difference * F(1.4426950408889634) - F(0.5))
                rest = difference - F(exponent) * F(0.6931471805599453)
                value = F(1.3981999507e-3) * rest + F(8.3334519073e-3)
                value = value * rest + F(4.1665795894e-2)
                value = value * rest + F(1.6666665459e-1)
                value = value * rest + F(0.5)
                value = value * rest + F(1.0)
                buffer[b + lane] = value * rest + F(1.0)
                exponents[b + lane] = (exponent + np.int32(127)) << np.int32(23)
        for g in range(count):
            i, b, total = begin + g, g * row, F(0)
            for lane in range(row):
                belief = buffer[b + lane] * powers[b + lane]
                buffer[b + lane] = belief
                total += belief
            share = F(1) / total
            if final:
                for lane in range(row):
                    scores[i * row + lane] = share * buffer[b + lane]
                continue
            for j in range(i * U(6), i * U(6) + U(6)):
                place, weight = U(v6[j]) * row, share * w6[j]
                for lane in range(row):
                    sums[place + lane] += weight * buffer[b + lane]
            for j in range(i * corners, (i + U(1)) * corners):
                place, weight = U(v3[j]) * row, share * w3[j]
                for lane in range(row):
                    gaussian_sums[place + lane] += weight * buffer[b + lane]


@plain
def blur(registers: tuple[int, ...], neighbors: Array, source: Array, target: Array) -> None:
    """Do the same as `seeds.crf.lattice_mean_field.blur`."""
    row, m = U(source.shape[1]), U(neighbors.shape[1])
    links, x = neighbors.reshape(-1), U(0)
    source, target = source.reshape(-1), target.reshape(-1)
    for _ in range(neighbors.shape[0]):
        for here in range(U(0), m * row, row):
            up, down = U(links[x]) * row, U(links[x + U(1)]) * row
            x += U(2)
            for lane in range(row):
                target[here + lane] = source[here + lane] + F(0.5) * (source[up + lane] + source[down + lane])
        source, target = target, source


def use_plain_loops(plain_loops: bool) -> None:
    """Make `dense_crf` use the plain loops, or the vector instructions again."""
    functions = (update, blur) if plain_loops else VECTOR_FUNCTIONS
    lattice_mean_field.update, lattice_mean_field.blur = functions


VECTOR_FUNCTIONS = lattice_mean_field.update, lattice_mean_field.blur
