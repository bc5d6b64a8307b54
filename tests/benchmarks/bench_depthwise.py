"""Measure dilated depthwise convolutions against torch's own: ``python -m tests.benchmarks.bench_depthwise [--quick]``.

Forward and backward of each layer, and a training step of the network of ``configs/labels_voc_animals.yaml``, run
alternately with both; each ratio is the median over the turns. In the precision that ``precision: auto`` chooses.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from seeds.dilated_depthwise import DilatedDepthwiseConv2d
from seeds.precision import resolve_precision
from tests.benchmarks.measure import seconds
from training.losses import balanced_cross_entropy, sec_probabilities
from training.networks import build_network

LAYERS = ((960, 2), (1280, 12), (1280, 24), (1280, 36))  # of MobileNetV2 and DeepLabV3Plus at output stride 16
IMAGES, SIZE = 16, 320
SIDE = SIZE // 16  # of a map


def compare(console: Table, name: str, run: Callable[[], None], turns: int) -> None:
    """Add a row with the times of ``run`` with torch's convolution and with that of this project."""
    quick = DilatedDepthwiseConv2d.forward
    times: dict[str, list[float]] = {"torch": [], "own": []}
    for turn in range(turns + 1):
        for which, measured in times.items():
            DilatedDepthwiseConv2d.forward = nn.Conv2d.forward if which == "torch" else quick
            taken = seconds(run)
            if turn:  # the first turn warms up
                measured.append(taken)
    ratios = np.array(times["torch"]) / np.array(times["own"])
    medians = (f"{1000 * np.median(measured):.0f} ms" for measured in times.values())
    console.add_row(name, *medians, f"{np.median(ratios):.1f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    turns = 3 if parser.parse_args(arguments).quick else 9
    torch.manual_seed(0)
    precision = resolve_precision("auto", "cpu")
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    table = Table(
        f"{IMAGES} maps or images", "torch.nn.Conv2d", "tag2mask", "ratio", title=f"forward and backward, {precision}"
    )
    for channels, dilation in LAYERS:
        conv = DilatedDepthwiseConv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        maps = torch.randn(IMAGES, channels, SIDE, SIDE, requires_grad=True)

        def layer(conv: nn.Module = conv, maps: torch.Tensor = maps) -> None:
            with autocast:
                conv(maps).float().sum().backward()

        compare(table, f"{channels} channels, dilation {dilation}", layer, turns)
    network = build_network("DeepLabV3Plus", 7, "mobilenet_v2", 16, network_args={"decoder_channels": 128})
    network.freeze(8)
    images, grid = torch.randn(IMAGES, 3, SIZE, SIZE), SIZE // 4
    cues = torch.zeros(IMAGES, 7, grid, grid, dtype=torch.bool)
    cues[:, 0, : grid // 2] = cues[:, 1, grid // 2 :] = True

    def step() -> None:
        with autocast:
            scores = network(images)
        balanced_cross_entropy(sec_probabilities(scores.float()), cues).backward()

    compare(table, "training step of the network", step, turns)
    Console().print(table)


if __name__ == "__main__":
    main()
