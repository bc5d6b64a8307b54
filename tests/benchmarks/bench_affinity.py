"""Measure the compiled affinity loss against autograd's: ``python -m tests.benchmarks.bench_affinity``.

Forward and backward of the loss of ``configs/affinity_voc_animals.yaml`` for 16 boundary maps, run alternately with
both; the ratio is the median over the turns.
"""

import time
from statistics import median

import torch
from rich.console import Console

from seeds.affinity.affinity_loss import affinity_loss, tensor_loss

RADIUS, SIDE, TURNS = 10, 80, 5


def main() -> None:
    torch.manual_seed(0)
    boundary = torch.rand(16, SIDE, SIDE, requires_grad=True)
    labels = torch.randint(0, 3, (16, SIDE // 8, SIDE // 8)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[torch.rand(labels.shape) < 0.25] = 255  # positions without a cue
    times: dict[str, list[float]] = {"autograd": [], "compiled": []}
    for turn in range(TURNS + 1):
        for name, loss in (("autograd", tensor_loss), ("compiled", affinity_loss)):
            start = time.perf_counter()
            loss(boundary, labels, RADIUS).backward()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    ratio = median(slow / quick for slow, quick in zip(*times.values(), strict=True))
    shown = ", ".join(f"{name} {1000 * median(measured):.0f} ms" for name, measured in times.items())
    Console().print(f"{shown}, ratio {ratio:.1f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
