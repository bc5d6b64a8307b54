"""Speed of the loader compared with training: ``python -m tests.benchmarks.bench_loader [--quick]``.

Images, augmentation and cues are those of the SEC configuration (see `bench_step`). The loader and the network step run
in turn, and each ratio is the median over the turns: *feeds* is the images per second of a loader divided by those of
the network on all cores; *by CPU time* is the network's CPU time per image divided by the loader's. Two further tables
split the loader's time per image, and compare decoders.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torchvision.io import decode_jpeg

from datamodules.dataset import ImageDataset, collate
from datamodules.images import read_image
from datamodules.samplers import Draw
from datamodules.voc import VOCDataModule
from tests.benchmarks.bench_sec import Case
from tests.benchmarks.bench_step import available_data
from tests.benchmarks.measure import read_config
from tests.benchmarks.stopwatch import workers_seconds

CONFIG = "sec_voc_animals"
WORKERS = (0, 1, 2)


def clocks() -> np.ndarray:
    """Return the wall clock, and the CPU seconds of this process and its workers."""
    return np.array([time.perf_counter(), time.process_time() + workers_seconds()])


def spent(function: Callable[[], int]) -> np.ndarray:
    """Return wall and CPU seconds per image of a function that returns its number of images."""
    start = clocks()
    count = function()
    return (clocks() - start) / count


def epoch(loader: Iterable[dict]) -> int:
    """Read all batches; return the number of images."""
    return sum(len(batch["id"]) for batch in loader)


def feeding(settings: dict, turns: int, batch: int) -> Table:
    """Return the table of the loader and the network."""
    case = Case(CONFIG, batch, torch.device("cpu"))
    loaders = []
    for workers in WORKERS:
        data = VOCDataModule(**settings | {"batch_size": batch, "num_workers": workers})
        data.setup("fit")
        loaders.append(data.train_dataloader())

    def step() -> int:
        case.bare()
        return batch

    parts = [step, *(lambda loader=loader: epoch(loader) for loader in loaders)]
    seconds = np.array([[spent(part) for part in parts] for _ in range(turns + 1)])[1:]  # the first starts workers
    table = Table(title=f"images a second, {torch.get_num_threads()} threads, medians of {turns}")
    for column in ("", "images/s", "CPU, ms an image", "feeds", "by CPU time"):
        table.add_column(column, justify="right" if column else "left")
    network = seconds[:, 0]
    for number, name in enumerate(["the network's step", *(f"loader, {workers} workers" for workers in WORKERS)]):
        wall, cpu = np.median(seconds[:, number], 0)
        ratios = [f"{value:.1f}" for value in np.median(network / seconds[:, number], 0)] if number else ["", ""]
        table.add_row(name, f"{1 / wall:.0f}", f"{cpu * 1e3:.2f}", *ratios)
    return table


def items(data: ImageDataset, count: int) -> list[dict]:
    """Return the first images, augmented."""
    return [data[Draw(number, number)] for number in range(count)]


def inside(settings: dict, turns: int, count: int) -> Table:
    """Return the table of the CPU time of each part of the loader, in one process."""
    data = VOCDataModule(**settings)
    data.setup("fit")
    train = data.train_dataloader().dataset
    count = min(count, len(train))
    files, names = ([getattr(each, key) for each in train.samples[:count]] for key in ("image", "id"))
    images, cues, done = [read_image(file) for file in files], [train.cues.cues(name) for name in names], {}
    parts = {
        "read and decode": lambda: [read_image(file) for file in files],
        "cues": lambda: [train.cues.cues(name) for name in names],
        "crop, resize, flip, jitter": lambda: [
            train.transform(image, seed=seed, cues=cue)
            for seed, (image, cue) in enumerate(zip(images, cues, strict=True))
        ],
        "all of an item": lambda: done.update(items=items(train, count)),
        "batch, normalised": lambda: collate(done["items"]),
    }
    return costs("the loader, CPU time of an image", parts, turns, count)


def decoders(settings: dict, turns: int, count: int) -> Table:
    """Return the table of decoders, and whether their pixels equal those of the loader."""
    files = sorted((Path(settings["root"]) / "JPEGImages").glob("*.jpg"))[:count]
    contents = [np.frombuffer(file.read_bytes(), np.uint8) for file in files]
    ways = {
        "OpenCV": lambda content: cv2.imdecode(content, cv2.IMREAD_COLOR_RGB),
        "torchvision": lambda content: decode_jpeg(torch.from_numpy(content.copy())).permute(1, 2, 0).numpy(),
        "Pillow": lambda content: np.array(Image.open(io.BytesIO(content)).convert("RGB")),
        "OpenCV, at half the size": lambda content: cv2.imdecode(content, cv2.IMREAD_REDUCED_COLOR_2),
    }
    ours = [read_image(file) for file in files]
    parts = {}
    for name, way in ways.items():
        same = sum(np.array_equal(way(content), image) for content, image in zip(contents, ours, strict=True))
        parts[f"{name} (same pixels: {same} of {len(files)})"] = lambda way=way: [way(content) for content in contents]
    return costs("decoding, CPU time of an image", parts, turns, len(files))


def costs(title: str, parts: dict[str, Callable[[], object]], turns: int, count: int) -> Table:
    """Return the table of milliseconds per image of functions that run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(turns):
        for name, part in parts.items():
            start = time.process_time()
            part()
            seconds[name].append((time.process_time() - start) / count)
    table = Table(title=title)
    table.add_column("")
    for column in ("median, ms", "fastest, ms"):
        table.add_column(column, justify="right")
    for name, values in seconds.items():
        table.add_row(name, f"{np.median(values) * 1e3:.2f}", f"{min(values) * 1e3:.2f}")
    return table


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few embedded images, in batches of four")
    quick = parser.parse_args(arguments).quick
    images, turns, batch, count = (32, 2, 4, 16) if quick else (752, 3, 16, 96)
    config = read_config(CONFIG)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as temporary:
        settings = config["data"]["init_args"] | available_data(config, Path(temporary), images, embedded=quick)
        console.print(feeding(settings, turns, batch))
        cv2.setNumThreads(0)  # as in a worker
        torch.set_num_threads(1)
        console.print(inside(settings, turns + 1, count))
        console.print(decoders(settings, turns + 1, count))


if __name__ == "__main__":
    main()
