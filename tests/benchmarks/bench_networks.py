"""Measure training steps of networks against plain PyTorch: ``python -m tests.benchmarks.bench_networks [--quick]``.

*PyTorch* is the same network with channels first in memory, PyTorch's convolutions, and SMP's sum of FPN's maps. Rows
are forward and backward passes of dilated depthwise convolutions, and of the networks of the recipes. Both are run
alternately; each ratio is the median over the turns. In the precision that ``precision: auto`` chooses.
"""

import argparse
import copy
from collections.abc import Callable

import numpy as np
import segmentation_models_pytorch as smp
import torch
from rich.console import Console
from rich.table import Table
from segmentation_models_pytorch.decoders.fpn.decoder import MergeBlock
from torch import Tensor, nn

from seeds.classifier import ClassifierTask
from seeds.dilated_depthwise import DilatedDepthwiseConv2d
from seeds.precision import resolve_precision
from tests.benchmarks.measure import read_config, seconds
from training.networks import build_network

LAYERS = ((960, 2), (1280, 12), (1280, 24), (1280, 36))  # of MobileNetV2 and DeepLabV3Plus at output stride 16
IMAGES, SIZE = 16, 320
SIDE = SIZE // 16  # of a map


def plain(network: nn.Module) -> nn.Module:
    """Return a copy of a network with the layers of PyTorch and SMP."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, DilatedDepthwiseConv2d):
            module.__class__ = nn.Conv2d
        elif isinstance(module, smp.FPN):
            module.decoder.merge = MergeBlock("add")
    return network


def networks() -> dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]]:
    """Return for each network's name its forward pass by plain PyTorch, and the network as it is trained here."""
    options = read_config("classifier_voc_animals")["model"]["init_args"] | {"weights": "none"}
    classifier = ClassifierTask([*"abcdef"], **options).model
    copied = plain(classifier)
    found = {"classifier: MobileNetV2": (lambda images: copied.head(copied.features(images).mean((2, 3))), classifier)}
    options = read_config("labels_voc_animals")["model"]["init_args"]
    for architecture, stride, arguments in (
        ("FPN", None, options["network_args"]), ("DeepLabV3Plus", 16, {"decoder_channels": 128}),
    ):  # fmt: skip
        network = build_network(architecture, 7, options["encoder"], stride, network_args=arguments)
        network.freeze(options["freeze_stride"])
        found[f"{architecture}, MobileNetV2"] = plain(network), network
    for _, network in found.values():
        network.train().to(memory_format=torch.channels_last)  # as `seeds.base_task.BaseTask` does
    return found


def compare(table: Table, name: str, runs: tuple[Callable[[], object], Callable[[], object]], turns: int) -> None:
    """Add a row with the times of two runs, and their ratio."""
    times = np.array([[seconds(run) for run in runs] for _ in range(turns + 1)])[1:]  # the first turn warms up
    medians = (f"{1000 * median:.0f} ms" for median in np.median(times, axis=0))
    table.add_row(name, *medians, f"{np.median(times[:, 0] / times[:, 1]):.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer turns")
    turns = 3 if parser.parse_args(arguments).quick else 9
    torch.manual_seed(0)
    precision = resolve_precision("auto", "cpu")

    def step(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                scores = forward(inputs)
            scores.float().square().mean().backward()

        return run

    table = Table(
        f"{IMAGES} maps or images", "PyTorch", "tag2mask", "ratio", title=f"forward and backward, {precision}"
    )
    for channels, dilation in LAYERS:
        conv = DilatedDepthwiseConv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
        maps = torch.randn(IMAGES, channels, SIDE, SIDE, requires_grad=True)
        last = maps.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        compare(table, f"{channels} channels, dilation {dilation}", (step(plain(conv), maps), step(conv, last)), turns)
    images = torch.randn(IMAGES, 3, SIZE, SIZE)
    for name, (torchs, own) in networks().items():
        compare(table, name, (step(torchs, images), step(own, images)), turns)
    Console().print(table)


if __name__ == "__main__":
    main()
