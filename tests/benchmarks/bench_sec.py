"""SEC's losses beside the bare network step: ``python -m tests.benchmarks.bench_sec [--quick] [--device cuda]``.

The networks, batches and precisions are those of the configurations. A *bare step* is the network forward, backward
from a fixed gradient at its scores, and the optimizer. The *losses* are the three together from scores to the gradient
at the scores, the CRF's output given; the *CRF* is the small images and the dense CRF. A *SEC step* is a training
step with all of it. They run in turn, and each ratio is the median over the turns; *of minima* is losses to bare step,
each at its fastest.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from datamodules.class_names import VOC_CLASSES
from datamodules.images import normalize, to_uint8
from seeds.crf import dense_crf
from seeds.precision import resolve_precision
from seeds.score_maps import resize_images, resize_maps
from tests.benchmarks.bench_crf import example_batch
from tests.benchmarks.measure import read_config, seconds
from training.losses import constrain_loss, expand_loss, sec_probabilities, seed_loss
from training.segmentation_task import SegmentationTask

CASES = (("sec_voc12_vgg16", 3), ("sec_voc_animals", 15))  # configuration, turns
GRID = -8  # stride of the cues, as a divisor that rounds up


def batch_of(data: dict[str, Any], classes: int, count: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """A batch like the data module's, and scores like a network's in mid-training."""
    side = data["size"]
    h = -(side // GRID)
    images, scores = example_batch(count, classes + 1, side, side)
    scores = functional.interpolate(scores, (h, h), mode="bilinear")
    images = torch.cat([images] * -(-count // len(images)))[:count]
    scores = torch.cat([scores] * -(-count // len(scores)))[:count]
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(count, classes).scatter_(1, torch.randint(classes, (count, 2), generator=generator), 1.0)
    cued = torch.rand(count, 1, h, h, generator=generator) < 0.24  # as in the cues of SEC's authors
    cues = functional.one_hot(scores.argmax(1), classes + 1).permute(0, 3, 1, 2).bool() & cued
    batch = {"image": normalize(images), "labels": labels, "cues": cues}
    return {key: value.to(device) for key, value in batch.items()}, scores.to(device)


def finish(part: Callable[[], Any], device: torch.device) -> None:
    """Call a function, and wait until the device has computed its result."""
    part()
    if device.type == "cuda":
        torch.cuda.synchronize()


class Case:
    """A configuration's network, batch and optimizer, and the functions to time."""

    def __init__(self, name: str, count: int | None, device: torch.device) -> None:
        config = read_config(name)
        data = config["data"]["init_args"]
        classes = data.get("classes", list(VOC_CLASSES))
        settings = config["model"]["init_args"] | {"weights": "none"}  # their values do not change the time
        self.task = SegmentationTask(classes, **settings).to(device).train()
        self.task.trainer = SimpleNamespace(estimated_stepping_batches=8000)
        self.optimizer = self.task.configure_optimizers()["optimizer"]
        self.count = count or data["batch_size"]
        self.batch, self.scores = batch_of(data, len(classes), self.count, device)
        precision = resolve_precision(config["trainer"]["precision"], device.type)
        self.bf16, self.device = precision == "bf16-mixed", device
        self.grid = tuple(self.scores.shape[-2:])
        self.given = torch.randn_like(self.scores) * 1e-4
        self.crf_probs = self.crf()

    def autocast(self) -> AbstractContextManager[Any]:
        """The configuration's precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def bare(self) -> None:
        """A step of the network by itself."""
        with self.autocast():
            logits = resize_maps(self.task(self.batch["image"]).float(), self.grid)
        logits.backward(self.given)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def sec(self) -> None:
        """A training step."""
        with self.autocast():
            loss = torch.stack(list(self.task.losses(self.batch).values())).sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def losses(self) -> None:
        """The three losses and their gradient at the scores."""
        logits = self.scores.detach().requires_grad_()
        probs = sec_probabilities(logits)
        loss = seed_loss(probs, self.batch["cues"]) + expand_loss(probs, self.batch["labels"])
        (loss + constrain_loss(probs, self.crf_probs)).backward()

    def crf(self) -> Tensor:
        """The CRF's output."""
        return dense_crf(resize_images(to_uint8(self.batch["image"]), self.grid), self.scores, **self.task.crf)


def compare(name: str, turns: int, count: int | None, device: torch.device) -> list[str]:
    """One row of the table."""
    case = Case(name, count, device)
    parts = [partial(finish, part, device) for part in (case.bare, case.losses, case.crf, case.sec)]
    times = np.array([[seconds(part) for part in parts] for _ in range(turns + 1)])[1:]  # the first turn warms up
    bare, losses, crf, sec = times.T
    return [
        f"{name}, batch {case.count}, {case.grid[0]}x{case.grid[1]}",
        *(f"{np.median(part) * 1e3:.1f}" for part in (bare, losses, crf)),
        *(f"{np.median(part / bare):.2%}" for part in (losses, losses + crf)),
        f"{losses.min() / bare.min():.2%}",
        f"{np.median(sec / bare):.3f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three images to a batch, and fewer turns")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    table = Table(title=f"SEC's losses beside the network's step, {where}; milliseconds, medians")
    for column in ("", "bare step", "losses", "CRF", "losses / step", "with CRF", "of minima", "SEC / bare step"):
        table.add_column(column, justify="right" if column else "left")
    for name, turns in CASES:
        table.add_row(*compare(name, 3 if options.quick else turns, 3 if options.quick else None, device))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
