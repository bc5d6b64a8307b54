"""Measure the dense CRF against pydensecrf2: ``python -m tests.benchmarks.bench_crf [--quick]``.

On a machine with a GPU, the time of the CRF there is in another column. All run alternately, kernels included, and each
ratio is the median over the turns, so that the load of other programs affects all alike. Images are VOC's if the folder
named by TAG2MASK_DATA contains them, and synthetic otherwise.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from seeds.crf import dense_crf
from tests.benchmarks.measure import VOC_ROOT, peak_memory, seconds

LARGE = (21, 375, 500)  # labels, height and width where memory is measured
CASES = (  # images, labels, height, width, scale, turns
    (1, 21, 41, 41, 12.0, 41),
    (15, 21, 41, 41, 12.0, 21),
    (15, 7, 41, 41, 12.0, 21),
    (1, 2, 8, 8, 1.0, 41),
    (1, 21, 321, 321, 1.0, 9),
    (15, 21, 321, 321, 1.0, 3),
    (1, 21, 375, 500, 1.0, 9),
    (15, 21, 375, 500, 1.0, 3),
)


def example_batch(count: int, labels: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return images, and logits like a network's in mid-training: the blurred mask plus smooth noise in every label."""
    generator = torch.Generator().manual_seed(0)
    pairs = [_voc(name, labels, h, w) for name in _names()[:count]]
    images = [image for image, _ in pairs] or [_synthetic(h, w, generator) for _ in range(count)]
    masks = [mask for _, mask in pairs] or [image[0].long() * labels // 256 for image in images]
    logits = []
    for mask in masks:
        margin = max(1, h // 24)
        score = 3.0 * functional.one_hot(mask, labels).permute(2, 0, 1)[None]
        score = functional.avg_pool2d(score, 2 * margin + 1, 1, margin, count_include_pad=False)
        noise = torch.randn(1, labels, max(2, h // 8), max(2, w // 8), generator=generator)
        logits.append(score[0] + functional.interpolate(noise, (h, w), mode="bilinear")[0])
    return torch.stack(images), torch.stack(logits)


def _names() -> list[str]:
    ids = VOC_ROOT / "ImageSets" / "Segmentation" / "val.txt"
    return ids.read_text().split() if ids.is_file() else []


def _voc(name: str, labels: int, h: int, w: int) -> tuple[Tensor, Tensor]:
    image = Image.open(VOC_ROOT / "JPEGImages" / f"{name}.jpg").convert("RGB").resize((w, h), Image.Resampling.BILINEAR)
    palette = Image.open(VOC_ROOT / "SegmentationClassAug" / f"{name}.png").resize((w, h), Image.Resampling.NEAREST)
    mask = torch.from_numpy(np.array(palette)).long()
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), mask.where(mask < 255, 0) % labels


def _synthetic(h: int, w: int, generator: torch.Generator) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=generator)
    smooth = functional.interpolate(coarse, (h, w), mode="bilinear")[0]
    return ((smooth + 0.04 * torch.randn(3, h, w, generator=generator)).clamp(0, 1) * 255).to(torch.uint8)


def pydensecrf(image: Tensor, logits: Tensor, scale: float) -> Tensor:
    """Run pydensecrf2 on one image after the other."""
    import pydensecrf.densecrf as library

    kind = {"kernel": library.DIAG_KERNEL, "normalization": library.NORMALIZE_SYMMETRIC}
    probs = []
    for pixels, scores in zip(image.numpy(), logits.numpy(), strict=True):
        k, h, w = scores.shape
        crf = library.DenseCRF2D(w, h, k)
        crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(k, -1)))
        crf.addPairwiseGaussian(sxy=3 / scale, compat=3, **kind)
        rgb = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        crf.addPairwiseBilateral(sxy=80 / scale, srgb=13, rgbim=rgb, compat=10, **kind)
        probs.append(np.array(crf.inference(10)).reshape(k, h, w))
    return torch.from_numpy(np.stack(probs))


def on_gpu(image: Tensor, logits: Tensor, scale: float) -> None:
    """Run our CRF on tensors on a GPU, and wait for the result."""
    dense_crf(image, logits, scale=scale)
    torch.cuda.synchronize()


def compare(count: int, labels: int, h: int, w: int, scale: float, turns: int) -> list[str]:
    """Return one row of the table."""
    image, logits = example_batch(count, labels, h, w)
    ways = [partial(pydensecrf, image, logits, scale), partial(dense_crf, image, logits, scale=scale)]
    if torch.cuda.is_available():
        ways.append(partial(on_gpu, image.cuda(), logits.cuda(), scale))
    expected, probs, *_ = [way() for way in ways]  # the first calls are not measured
    theirs, ours, *gpu = np.array([[seconds(way) for way in ways] for _ in range(turns)]).T
    same = (probs.argmax(1) == expected.argmax(1)).double().mean().item()
    return [
        f"{count} x {h}x{w}x{labels}",
        f"{np.median(theirs) * 1e3:.2f}",
        f"{np.median(ours) * 1e3:.2f}",
        *(f"{np.median(each) * 1e3:.2f}" for each in gpu),
        f"{np.median(theirs / ours):.1f}",
        f"{theirs.min() / ours.min():.1f}",
        f"{same:.3%}",
        f"{(probs - expected).abs().mean().item():.1e}",
    ]


def child(*arguments: str, **environment: str) -> str:
    """Return what this script prints in another process."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_crf", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout


def first_call() -> None:
    """Print how long the first call of a process takes."""
    image, logits = example_batch(1, 21, 41, 41)
    print(seconds(partial(dense_crf, image, logits, scale=12.0)))  # noqa: T201


def added_memory(engine: str) -> None:
    """Print by how many megabytes a call with one image of size LARGE raises the peak memory (Linux)."""
    run = pydensecrf if engine == "pydensecrf" else lambda image, logits, scale: dense_crf(image, logits, scale=scale)
    run(*example_batch(1, 21, 41, 41), 12.0)
    image, logits = example_batch(1, *LARGE)
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but not returned would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again
    before = peak_memory()
    run(image, logits, 1.0)
    print(peak_memory() - before)  # noqa: T201


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out batches of large images")
    parser.add_argument("--child", choices=["first", "ours", "pydensecrf"], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child == "first":
        first_call()
        return
    if options.child:
        added_memory(options.child)
        return
    table = Table(title=f"dense CRF, 10 iterations, {torch.get_num_threads()} threads; milliseconds, medians")
    gpu = ["tag2mask, GPU"] if torch.cuda.is_available() else []
    for column in ("images", "pydensecrf2", "tag2mask", *gpu, "ratio", "of minima", "equal labels", "mean |dp|"):
        table.add_column(column, justify="right")
    for case in CASES:
        if not (options.quick and case[0] > 1 and case[2] > 100):
            table.add_row(*compare(*case))
    console = Console(width=100)
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        compiling, loading = (float(child("--child", "first", NUMBA_CACHE_DIR=folder)) for _ in range(2))
    console.print(f"first call at 41x41x21: {compiling:.1f} s compiling, {loading:.2f} s from the cache on disk")
    ours, theirs = (float(child("--child", engine)) for engine in ("ours", "pydensecrf"))
    labels, h, w = LARGE
    console.print(f"peak memory at {h}x{w}x{labels}, inputs apart: {ours:.0f} MB; pydensecrf2 {theirs:.0f} MB")


if __name__ == "__main__":
    main()
