"""Measure the affinity loss and the random walk against other ways: ``python -m tests.benchmarks.bench_affinity``.

Forward and backward of the loss of ``configs/affinity_voc_animals.yaml`` for 16 boundary maps, compiled and by
autograd; and the walk of two maps of ``configs/refine_voc_animals.yaml``, against 256 products with the same matrix by
SciPy. Both ways run alternately; the ratio is the median over the turns.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from rich.console import Console
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_array, csr_array, diags_array, eye_array
from torch import Tensor

from seeds.affinity.affinity_loss import affinity_loss, tensor_loss
from seeds.affinity.pair_affinities import affinities, pair_offsets
from seeds.affinity.random_walk import random_walk
from tests.benchmarks.measure import seconds

RADIUS, SIDE, TURNS = 10, 80, 5


def ratio(title: str, ways: dict[str, Callable[[], object]]) -> None:
    """Print the times of two ways of a computation, the first one the slower, and their ratio."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            taken = seconds(way)
            if turn:  # the first turn warms up
                times[name].append(taken)
    ratio = median(slow / quick for slow, quick in zip(*times.values(), strict=True))
    shown = ", ".join(f"{name} {1000 * median(measured):.0f} ms" for name, measured in times.items())
    Console().print(f"{title}: {shown}, ratio {ratio:.1f}, {torch.get_num_threads()} threads")


def walk_matrix(boundary: np.ndarray, radius: int, beta: float) -> csr_array:
    """Return the matrix of one step of the random walk, (n, n) for n positions."""
    h, w = boundary.shape
    ahead = affinities(torch.from_numpy(boundary)[None], radius)[0].numpy() ** beta  # (P, h, w)
    index, matrix = np.arange(h * w).reshape(h, w), eye_array(h * w, format="csr")
    for (down, right), share in zip(pair_offsets(radius), ahead, strict=True):
        rows, columns = slice(0, h - down), slice(max(0, -right), w - max(0, right))
        start = index[rows, columns].ravel()
        pairs = coo_array((share[rows, columns].ravel(), (start, start + down * w + right)), matrix.shape)
        matrix = matrix + pairs + pairs.T
    return csr_array(diags_array(1 / matrix.sum(axis=1)) @ matrix)


def main() -> None:
    torch.manual_seed(0)
    boundary = torch.rand(16, SIDE, SIDE, requires_grad=True)
    labels = torch.randint(0, 3, (16, SIDE // 8, SIDE // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[torch.rand(labels.shape) < 0.25] = 255  # positions without a cue
    losses = {"autograd": tensor_loss, "compiled": affinity_loss}
    ratio("loss", {name: partial(loss_and_gradient, loss, boundary, labels) for name, loss in losses.items()})
    edges = gaussian_filter(boundary[0].detach().numpy(), 2)
    edges = ((edges - edges.min()) / np.ptp(edges)).astype(np.float32) ** 3
    maps, matrix = boundary[1:3].detach().numpy(), walk_matrix(edges, 5, 10.0)

    def products() -> np.ndarray:
        values = (maps * (1 - edges)).reshape(2, -1).T
        for _ in range(256):
            values = matrix @ values
        return values.T.reshape(maps.shape)

    np.testing.assert_allclose(random_walk(maps, edges), products(), rtol=0, atol=1e-4)
    ratio("walk", {"256 products": products, "own": partial(random_walk, maps, edges)})


def loss_and_gradient(loss: Callable[..., Tensor], boundary: Tensor, labels: Tensor) -> None:
    loss(boundary, labels, RADIUS).backward()


if __name__ == "__main__":
    main()
