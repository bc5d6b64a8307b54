"""Mean field on the CPU: compiled lattices, images or parts of an image in parallel."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from seeds.crf import build, labels, mean_field
from seeds.crf.kernels import Kernels
from seeds.crf.mean_field import Field
from seeds.crf.threads import scratch, spread

Array = np.ndarray[Any, Any]
State = tuple[Array, Array, Field, Field, float, Array]
WIDTH = mean_field.WIDTH
SPLIT_POINTS = 16384
"""An image of so many points is shared out among threads; with fewer the hand-over costs more than it gains."""
NEGLIGIBLE = 3e-4
"""A label that is nowhere more probable than this sends no messages, if leaving such labels out saves a block."""
COLOR_DIMS = (0,) * 5
PLACE_DIMS = (0,) * 2


@dataclass(frozen=True)
class Lattice:
    """A lattice of `count` vertices: each point's vertices int32 and weights float32 (N, d + 1), flat; its chains."""

    vertices: Array
    weights: Array
    order: Array
    bounds: Array
    count: int


def compiled_mean_field(image: Tensor, logits: Tensor, kernels: Kernels, iterations: int) -> Tensor:
    """Mean field with both kernels as lattices, on as many threads as torch uses.

    Args:
        image: uint8 (B, 3, H, W), on the CPU.
        logits: float32 (B, K, H, W), on the CPU.
        kernels: the two kernels.
        iterations: number of mean-field updates.

    Returns:
        Probabilities, float32 (B, K, H, W).

    Raises:
        InputError: logits are not finite, or a kernel is so narrow, beside the size of the image, that vertices do
            not fit their keys.
    """
    probs = torch.empty(logits.shape, dtype=torch.float32)
    threads = torch.get_num_threads()
    pictures, h, w = len(logits), *logits.shape[2:]
    smooth = _smooth_lattice(h, w, kernels.gaussian_sxy, kernels.gaussian_weight)
    arrays = [t.contiguous().numpy().reshape(pictures, -1) for t in (image, logits, probs)]

    def infer(i: int, parts: int = 1) -> bool:
        images, scores, results = arrays
        return _infer(images[i], scores[i], results[i], w, smooth, kernels, iterations, parts)

    if pictures < threads and h * w >= SPLIT_POINTS:
        finite = [infer(i, threads) for i in range(pictures)]
    else:
        finite = spread(infer, range(pictures), threads)
    if not all(finite):
        raise InputError(f"the CRF's logits hold NaN or infinity, got {tuple(logits.shape)}")
    return probs


def _bounds(n: int, parts: int) -> list[tuple[int, int, int]]:
    """Number, first point and end of each part; whole cache lines of scores apart."""
    edges = [n * part // parts // 16 * 16 for part in range(parts)] + [n]
    return [(part, edges[part], edges[part + 1]) for part in range(parts)]


def _near_lattice(image: Array, w: int, kernels: Kernels, parts: int) -> Lattice:
    n, corners = len(image) // 3, len(COLOR_DIMS) + 1
    vertices, weights = scratch("vertices", n * corners, np.int32), scratch("weights", n * corners)
    split = _bounds(n, parts)

    def find(part: tuple[int, int, int]) -> Array:
        return build.simplices(
            COLOR_DIMS, image, w, kernels.bilateral_sxy, kernels.bilateral_srgb, *part[1:], vertices, weights
        )

    keys = spread(find, split, parts)
    return _finish(vertices, weights, keys, split, len(COLOR_DIMS), kernels.bilateral_weight)


def _finish(
    vertices: Array, weights: Array, keys: list[Array], split: list[tuple[int, int, int]], d: int, gain: float
) -> Lattice:
    """Give the parts' vertices common numbers, line them up, and normalise the weights."""
    if min(len(part) for part in keys) == 0:
        raise InputError(f"the CRF's kernels are too narrow for an image of {split[-1][2]} cells: raise sxy or srgb")
    corners, parts = d + 1, len(split)
    union, numbers = build.unite(keys) if parts > 1 else (keys[0], None)
    order, bounds = build.chains(union, d)
    nodes = np.zeros((parts, len(union)), np.float32)

    def splat(part: tuple[int, int, int]) -> None:
        i, start, stop = part
        if numbers is not None:
            build.renumber(vertices, start * corners, stop * corners, numbers[i])
        build.splat_ones(vertices, weights, start * corners, stop * corners, nodes[i])

    spread(splat, split, parts)
    ones = nodes.sum(0) if parts > 1 else nodes[0]
    build.blur_ones(ones, order, bounds)
    spread(lambda part: build.normalise(vertices, weights, *part[1:], corners, ones, gain), split, parts)
    return Lattice(vertices, weights, order, bounds, len(union))


@functools.lru_cache(maxsize=8)
def _smooth_lattice(h: int, w: int, sxy: float, weight: float) -> Lattice | None:
    """The Gaussian kernel's lattice, the same for all images of a size; none where it reaches no other point."""
    n, corners = h * w, len(PLACE_DIMS) + 1
    vertices, weights = np.empty(n * corners, np.int32), np.empty(n * corners, np.float32)
    keys = build.simplices(PLACE_DIMS, np.empty(3 * n, np.uint8), w, sxy, 1.0, 0, n, vertices, weights)
    lattice = _finish(vertices, weights, [keys], _bounds(n, 1), len(PLACE_DIMS), weight)
    apart = build.apart(vertices, corners, lattice.count, lattice.order, lattice.bounds)
    return None if apart else lattice


def _choose(peaks: Array) -> tuple[Array, Array]:
    """Labels to keep and to drop, by the largest probability of each: dropped only where a whole block is saved."""
    order = np.arange(len(peaks))
    kept, dropped = order[peaks > NEGLIGIBLE], order[peaks <= NEGLIGIBLE]
    if _blocks(len(kept) + 1) < _blocks(len(peaks)):
        return kept, dropped
    return order, order[:0]


def _blocks(lanes: int) -> int:
    return -(-lanes // WIDTH)


def _infer(
    image: Array,
    logits: Array,
    probs: Array,
    w: int,
    smooth: Lattice | None,
    kernels: Kernels,
    iterations: int,
    parts: int,
) -> bool:
    """One image: image (3, N), logits and probs (K, N), all flat; N shared out in so many parts, one a thread.

    False if logits are not finite.
    """
    n = len(image) // 3
    split = _bounds(n, parts)
    shift, peaks = scratch("shift", n), scratch("peaks", parts * len(logits) // n * WIDTH).reshape(parts, -1)
    if not all(spread(lambda part: labels.survey(logits, n, *part[1:], shift, peaks[part[0]]), split, parts)):
        return False
    kept, dropped = _choose(peaks.reshape(parts, -1, WIDTH).max((0, 2)))
    blocks = _blocks(len(kept) + (len(dropped) > 0))
    row = blocks * WIDTH
    scores = scratch("scores", n * row)
    spread(lambda part: labels.arrange(logits, n, *part[1:], shift, kept, dropped, blocks, scores), split, parts)
    lump = scores.reshape(n, row)[:, len(kept)].copy() if len(dropped) else shift[:0]
    heard = np.zeros(row, np.float32)
    heard[: len(kept)] = 1

    near = _field("near", _near_lattice(image, w, kernels, parts), row, parts)
    if smooth is None:  # each point only hears itself
        nothing = Lattice(near.vertices[:0], near.weights[:0], near.order[:0], near.bounds[:1], 0)
        field, identity, beliefs = _field("smooth", nothing, row, parts), kernels.gaussian_weight, n * row
    else:
        field, identity, beliefs = _field("smooth", smooth, row, parts), 0.0, 0
    _iterate(iterations, split, blocks, (scores, heard, near, field, identity, scratch("beliefs", beliefs)))
    spread(
        lambda part: labels.release(logits, n, *part[1:], shift, kept, dropped, blocks, scores, lump, probs),
        split,
        parts,
    )
    return True


def _field(name: str, lattice: Lattice, row: int, parts: int) -> Field:
    size = lattice.count * row
    nodes, sums = scratch(f"{name}_nodes", size), scratch(f"{name}_sums", parts * size)
    return Field(lattice.vertices, lattice.weights, lattice.order, lattice.bounds, nodes, sums)


def _iterate(iterations: int, split: list[tuple[int, int, int]], blocks: int, state: State) -> None:
    """The mean-field updates; between threads, points are shared out for the pass, lattices for the blur."""
    zeros = (0,) * blocks
    if len(split) == 1:
        mean_field.iterate(zeros, iterations, *state)
        return
    scores, heard, near, smooth, identity, beliefs = state
    parts = len(split)
    near.sums[:] = 0
    smooth.sums[:] = 0
    own = [[field._replace(sums=field.sums.reshape(parts, -1)[i]) for field in (near, smooth)] for i in range(parts)]
    for turn in range(iterations + 1):
        if turn > 0:
            spread(lambda field: mean_field.blur(zeros, field), (near, smooth), parts)

        def update(part: tuple[int, int, int], turn: int = turn) -> None:
            i, start, stop = part
            first, final = turn == 0, turn == iterations
            mean_field.update(zeros, first, final, start, stop, scores, heard, own[i][0], own[i][1], identity, beliefs)

        spread(update, split, parts)
