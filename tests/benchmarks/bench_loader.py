"""What the loader gives beside what training takes: ``python -m tests.benchmarks.bench_loader [--quick]``.

The images, changes and cues are those of the SEC configuration (see `bench_step`). The loader by itself and the bare
network step run in turn, and each ratio is the median over the turns: *feeds* is the images a second that a loader of
so many workers gives, to those that the network takes on all cores; *by CPU time* is what the network uses for a
image to what the loader uses for it. Then where the loader's time for an image goes, and other ways to decode one.
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

from datamodules.datamodule import TagDataModule
from datamodules.dataset import TagDataset, collate
from datamodules.images import read_image
from datamodules.sampling import Draw
from tests.benchmarks.bench_sec import Case
from tests.benchmarks.bench_step import available_data, read_config
from tests.benchmarks.stopwatch import workers_seconds

CONFIG = "sec_voc_animals"
WORKERS = (0, 1, 2)


def clocks() -> np.ndarray:
    """The wall's clock, and CPU seconds of this process and its workers."""
    return np.array([time.perf_counter(), time.process_time() + workers_seconds()])


def spent(function: Callable[[], int]) -> np.ndarray:
    """Wall and CPU seconds an image, of a function that tells how many it saw."""
    start = clocks()
    count = function()
    return (clocks() - start) / count


def epoch(loader: Iterable[dict]) -> int:
    """Take all batches; the number of images."""
    return sum(len(batch["id"]) for batch in loader)


def feeding(settings: dict, turns: int, batch: int) -> Table:
    """The loader beside the network."""
    case = Case(CONFIG, batch, torch.device("cpu"))
    loaders = []
    for workers in WORKERS:
        data = TagDataModule(**settings | {"batch_size": batch, "num_workers": workers})
        data.setup("fit")
        loaders.append(data.train_dataloader())

    def step() -> int:
        case.bare()
        return batch

    parts = [step, *(lambda loader=loader: epoch(loader) for loader in loaders)]
    seconds = np.array([[spent(part) for part in parts] for _ in range(turns + 1)])[1:]  # the first starts workers
    table = Table(title=f"images a second, {torch.get_num_threads()} threads, medians of {turns}")
    for column in ("", "pictures/s", "CPU, ms an image", "feeds", "by CPU time"):
        table.add_column(column, justify="right" if column else "left")
    network = seconds[:, 0]
    for number, name in enumerate(["the network's step", *(f"loader, {workers} workers" for workers in WORKERS)]):
        wall, cpu = np.median(seconds[:, number], 0)
        ratios = [f"{value:.1f}" for value in np.median(network / seconds[:, number], 0)] if number else ["", ""]
        table.add_row(name, f"{1 / wall:.0f}", f"{cpu * 1e3:.2f}", *ratios)
    return table


def items(data: TagDataset, count: int) -> list[dict]:
    """The first images, changed at random."""
    return [data[Draw(number, number)] for number in range(count)]


def inside(settings: dict, turns: int, count: int) -> Table:
    """An image's way through the loader, in one process: CPU time of each part."""
    data = TagDataModule(**settings)
    data.setup("fit")
    train = data.train_dataloader().dataset
    count = min(count, len(train))
    files, names = train.photos.images[:count], train.photos.ids[:count]
    pictures, cues, done = [read_image(file) for file in files], [train.cues.cues(name) for name in names], {}
    parts = {
        "read and decode": lambda: [read_image(file) for file in files],
        "cues": lambda: [train.cues.cues(name) for name in names],
        "crop, resize, flip, jitter": lambda: [
            train.transform(picture, seed=seed, cues=cue)
            for seed, (picture, cue) in enumerate(zip(pictures, cues, strict=True))
        ],
        "all of an item": lambda: done.update(items=items(train, count)),
        "batch, normalised": lambda: collate(done["items"]),
    }
    return costs("the loader, CPU time of an image", parts, turns, count)


def decoders(settings: dict, turns: int, count: int) -> Table:
    """Ways to decode, and whether the pixels are ours."""
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
        same = sum(np.array_equal(way(content), picture) for content, picture in zip(contents, ours, strict=True))
        parts[f"{name} (same pixels: {same} of {len(files)})"] = lambda way=way: [way(content) for content in contents]
    return costs("decoding, CPU time of an image", parts, turns, len(files))


def costs(title: str, parts: dict[str, Callable[[], object]], turns: int, count: int) -> Table:
    """Milliseconds an image of functions that do their thing to so many, run in turn."""
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
    pictures, turns, batch, count = (32, 2, 4, 16) if quick else (752, 3, 16, 96)
    config = read_config(CONFIG)
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as temporary:
        settings = config["data"] | available_data(config, Path(temporary), pictures, embedded=quick)
        console.print(feeding(settings, turns, batch))
        cv2.setNumThreads(0)  # as in a worker
        torch.set_num_threads(1)
        console.print(inside(settings, turns + 1, count))
        console.print(decoders(settings, turns + 1, count))


if __name__ == "__main__":
    main()
