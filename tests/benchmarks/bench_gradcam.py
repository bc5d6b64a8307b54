"""Maps of all of an image's classes: their cost in forward passes, and beside grad-cam, torchcam and captum.

    python -m tests.benchmarks.bench_gradcam [--quick]

Runs are paired: in each turn the forward pass under inference_mode, then ours, then each library, all on the same
batch; a row gives the medians over the turns of the times' ratios. The same maps means: of every image, of each of
its labels, before any normalisation or resizing (their own normalisation is left out where they let it be).
"""

import argparse
import subprocess
import sys
from functools import partial

import numpy as np
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from seeds.cam_methods.registry import METHODS
from seeds.gradcam import GradCAM
from tests.benchmarks.measure import peak_memory, seconds

SIZE, BATCH = 321, 8
CASES = (("resnet50", "layer4"), ("vgg16", "features.29"), ("resnet50", "layer3"), ("mobilenet_v2", "features"))
TURNS = 5


def labels_of(count: int, images: int) -> Tensor:
    """Multi-hot (B, 1000): ``count`` classes an image, others for each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(images, 1000)
    for row in labels:
        row[torch.randperm(1000, generator=generator)[:count]] = 1
    return labels


def forward(model: nn.Module, images: Tensor) -> None:
    """What everything is measured in."""
    with torch.inference_mode():
        model(images)


def by_rank(labels: Tensor) -> list[Tensor]:
    """Class indices (B,): every image's first class, then the second, …; all have equally many here."""
    columns = labels.nonzero()[:, 1].view(len(labels), -1)
    return list(columns.T)


def grad_cam_library(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> None:
    """grad-cam takes one class an image a call."""
    from pytorch_grad_cam import GradCAM as Theirs
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with Theirs(model, [model.get_submodule(layer)]) as peer:
        for classes in by_rank(labels):
            peer(images, [ClassifierOutputTarget(int(c)) for c in classes])


def torchcam_library(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> None:
    """Torchcam keeps the graph and takes one class an image a backward pass."""
    from torchcam.methods import GradCAM as Theirs

    with Theirs(model, layer) as peer:
        scores = model(images)
        ranks = by_rank(labels)
        for r, classes in enumerate(ranks, start=1):
            peer(classes.tolist(), scores, normalized=False, retain_graph=r < len(ranks))


def captum_library(model: nn.Module, layer: str, images: Tensor, labels: Tensor) -> None:
    """Captum takes one class an image a call."""
    from captum.attr import LayerGradCam

    peer = LayerGradCam(model, model.get_submodule(layer))
    for classes in by_rank(labels):
        peer.attribute(images, target=classes, relu_attributions=True)


PEERS = {"grad-cam": grad_cam_library, "torchcam": torchcam_library, "captum": captum_library}


def measure(name: str, layer: str, classes: int, turns: int, *, peers: bool) -> list[str]:
    """One row: forward pass in ms, ours in forward passes, and how many times as long each library takes."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), labels_of(classes, BATCH)
    ours = GradCAM(model, layer)
    runs = {
        "forward": partial(forward, model, images),
        "ours": partial(ours, images, labels),
    }
    if peers:
        runs |= {peer: partial(run, model, layer, images, labels) for peer, run in PEERS.items()}
    for run in (runs["forward"], runs["ours"]):
        run()  # first calls choose algorithms
    times = {key: np.array([]) for key in runs}
    for _ in range(turns):
        for key, run in runs.items():
            times[key] = np.append(times[key], seconds(run))
    cost = np.median(times["ours"] / times["forward"])
    ratios = [f"{np.median(times[peer] / times['ours']):.1f}" if peer in runs else "-" for peer in PEERS]
    return [f"{name} {layer}", str(classes), f"{np.median(times['forward']) * 1e3:.0f}", f"{cost:.2f}", *ratios]


def measure_methods(name: str, layer: str, turns: int) -> list[tuple[str, str]]:
    """Each method's cost in forward passes, 2 classes an image."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), labels_of(2, BATCH)
    rows = []
    for method, make in METHODS.items():
        if method == "clip" or (method == "cam" and name.startswith("vgg")):  # clip is for vision transformers
            continue
        explain = make(model, layer)
        pairs = [
            (seconds(partial(forward, model, images)), seconds(partial(explain, images, labels))) for _ in range(turns)
        ]
        rows.append((method, f"{np.median([own / plain for plain, own in pairs]):.2f}"))
    return rows


def peak(name: str, layer: str, what: str) -> None:
    """Run the forward pass or Grad-CAM once, and print the peak memory of the process in MB."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    images, labels = torch.randn(BATCH, 3, SIZE, SIZE), labels_of(2, BATCH)
    if what == "forward":
        forward(model, images)
    else:
        GradCAM(model, layer)(images, labels)
    print(peak_memory())  # noqa: T201


def memory(name: str, layer: str) -> str:
    """Peak memory of ours over the forward pass's, each in a separate process."""
    sizes = []
    for what in ("forward", "ours"):
        command = [sys.executable, "-m", "tests.benchmarks.bench_gradcam", "--peak", name, layer, what]
        sizes.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return f"{sizes[1] / sizes[0]:.2f}"


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="two turns, without the libraries")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        peak(*options.peak)
        return
    turns = 2 if options.quick else TURNS
    console = Console(width=110)
    table = Table(title=f"Grad-CAM, {BATCH} images of {SIZE}x{SIZE}, {torch.get_num_threads()} threads")
    columns = ("network, layer", "classes", "forward, ms", "ours / forward", *(f"{peer} / ours" for peer in PEERS))
    for column in (*columns, "peak memory / forward's"):
        table.add_column(column, justify="right")
    for name, layer in CASES:
        for classes in (2, 20):
            row = measure(name, layer, classes, turns, peers=classes == 2 and not options.quick)
            table.add_row(*row, memory(name, layer) if classes == 2 else "")
    console.print(table)
    table = Table(title="each method, 2 classes an image, in forward passes")
    table.add_column("method")
    for name, layer in CASES[:2]:
        table.add_column(f"{name} {layer}", justify="right")
    costs = [dict(measure_methods(name, layer, 1 if options.quick else 2)) for name, layer in CASES[:2]]
    for method in METHODS:
        table.add_row(method, *(cost.get(method, "-") for cost in costs))
    console.print(table)


if __name__ == "__main__":
    main()
