"""The seed cache: ``python -m tests.benchmarks.bench_cache [--quick] [--index N] [--device cuda]``.

Speed of seed generation beside the bare network, its bottleneck and memory, speed of reading cues, time to open a cache
of many images, its index, and bytes per image on disk beside the files of irn. ``--index 100000000`` measures nothing
but an index of so many images.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from datamodules.dataset import ImageDataset, image_loader
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.index import merge_cache
from datamodules.synthetic import write_synthetic_voc
from datamodules.voc import VOCDataModule
from seeds.cache_job import Seed, ShardWriter
from seeds.classifier import ClassifierTask
from seeds.generate_seeds import CamModule
from tests.benchmarks.measure import ROOT, seconds
from tests.seed_caches import CacheWriter, generate

VOC, MANY, INDEXED = 10_582, 100_000, 1_000_000  # images
SIZE, BATCH, SHARD = 320, 16, 64
FEW, FULL, QUICK = 32, (192, 5), (64, 3)  # images; images and turns of generation
BACKBONE, CHECKPOINT = "mobilenet_v2", "classifier.ckpt"  # quick: of others the network takes a greater part yet
PARTS = ("bare, in memory", "decoding", "cues, writing")


def checkpoint_of(folder: Path, data: VOCDataModule) -> tuple[Path, ClassifierTask]:
    """An untrained classifier: the work is the same as a trained one's."""
    task = ClassifierTask(list(data.classes), backbone=BACKBONE)
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    content["datamodule_hyper_parameters"] = dict(data.hparams)
    task.on_save_checkpoint(content)
    torch.save(content, folder / CHECKPOINT)
    return folder / CHECKPOINT, task.eval()


def write(folder: Path, module: CamModule, seeds: list[Seed], classes: list[str]) -> None:
    """Make cues and write shards."""
    shutil.rmtree(folder, ignore_errors=True)
    with CacheWriter(folder, classes, {}) as writer:
        for seed in seeds:
            writer.add(seed.id, module.cues(seed), map_classes=seed.classes, maps=seed.maps, saliency=seed.saliency)


def generation_time(checkpoint: Path, output: Path, workers: int, device: str) -> float:
    """Seconds of `generate_seeds` from the deal of the shards to the last shard on disk, without its start."""
    moments = {}
    setup, close = ShardWriter.setup, ShardWriter.close

    def first(writer: ShardWriter, *arguments, **options) -> None:
        setup(writer, *arguments, **options)
        moments["start"] = time.perf_counter()

    def last(writer: ShardWriter, *arguments, **options) -> None:
        close(writer, *arguments, **options)
        moments.setdefault("end", time.perf_counter())

    for file in output.glob("shard-*"):
        file.unlink()
    with mock.patch.object(ShardWriter, "setup", first), mock.patch.object(ShardWriter, "close", last):
        generate(checkpoint, output, num_workers=workers, accelerator=device, shard_size=SHARD)
    return moments["end"] - moments["start"]


def generation(folder: Path, count: int, turns: int, device: str) -> Table:
    """Return images per second of generation and of its parts, measured in turns."""
    data = VOCDataModule(str(folder / "data"), train_split="train", size=SIZE, batch_size=BATCH)
    images = ImageDataset(data.samples("train", masks=False), data.classes, SIZE)
    loader = image_loader(images, batch_size=BATCH, num_workers=1)
    read = list(image_loader(images, batch_size=BATCH, num_workers=0))
    for batch in read:
        batch |= {key: value.to(device) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    table = Table(title=f"generation, {device}, 1 thread, 1 worker, {SIZE}x{SIZE}, images/s, medians of {turns} turns")
    for column in ("network", *PARTS, "generation", "share of the network's speed", "least..most", "bottleneck"):
        table.add_column(column, justify="right")
    checkpoint, task = checkpoint_of(folder, data)
    layers = (task.model.default_layer, task.model.saliency_layer)
    settings = {
        "method": "gradcam", "layer": layers[0], "saliency_layer": layers[1], "scales": [1.0], "flip": False,
        "size": SIZE, "cue_stride": 8, "fg_threshold": 0.2, "bg_fraction": 0.1, "refinement": None,
    }  # fmt: skip
    module = CamModule(task.model.to(device), settings)
    seeds = [seed for batch in read for seed in module.predict_seeds(batch)]
    measures = {
        PARTS[0]: partial(seconds, lambda: [module.predict_seeds(batch) for batch in read]),
        PARTS[1]: partial(seconds, partial(list, loader)),
        PARTS[2]: partial(seconds, partial(write, folder / "written", module, seeds, list(data.classes))),
        "generation": partial(generation_time, checkpoint, folder / "cache", 1, device),
    }
    runs: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(turns):
        for name in (measures, reversed(measures))[turn % 2]:
            runs[name].append(measures[name]())
    speeds = {name: count / np.median(times) for name, times in runs.items()}
    ratios = np.array(runs[PARTS[0]]) / np.array(runs["generation"])
    shown = (f"{np.median(ratios):.2f}", f"{ratios.min():.2f}..{ratios.max():.2f}")
    slowest = min(PARTS, key=speeds.__getitem__)
    table.add_row(BACKBONE, *(f"{speed:.0f}" for speed in speeds.values()), *shown, slowest)
    return table


def in_a_process(code: str, *words: object) -> list[str]:
    """Return the words that a program prints, run in another process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()


def memory(folder: Path, count: int) -> str:
    """Return the peak memory of generation, for a few images and for many, without the processes that read images."""
    code = """
import sys
from pathlib import Path
from tests.benchmarks.measure import peak_memory
from tests.seed_caches import generate
generate(*map(Path, sys.argv[1:3]), root=sys.argv[3], accelerator="cpu", num_workers=1)
print(peak_memory())"""
    most = [
        float(in_a_process(code, folder / CHECKPOINT, folder / f"of-{data}", folder / data)[-1])
        for data in ("few", "data")
    ]
    return f"peak memory of generation, {BACKBONE}: {FEW} images {most[0]:.0f} MB, {count} images {most[1]:.0f} MB"


def made_up(path: Path, count: int) -> list[dict]:
    """A cache of smooth maps on a 41x41 grid, one to three classes an image; the last of its entries."""
    generator = np.random.default_rng(0)
    entries = []
    for number in (1, 1, 1, 2, 2, 3):  # VOC's images have 1.5 classes on average
        coarse = torch.from_numpy(generator.random((1, number + 1, 6, 6), np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (41, 41), mode="bicubic")[0].clamp(0).numpy()
        cues = np.where(smooth[0] < 0.2, 0, np.where(smooth[1] > 0.6, 1, 255)).astype(np.uint8)
        entries.append({"cues": cues, "map_classes": np.arange(number), "maps": smooth[1:], "saliency": smooth[0]})
    with CacheWriter(path, [f"class{i}" for i in range(20)], {}) as cache:
        for i in range(count):
            cache.add(f"2007_{i:06d}", **entries[i % len(entries)])
    return entries


def reading(path: Path) -> str:
    """Cues and maps a second of a cache's images in random order."""
    cache = SeedCache(path)
    ids = np.random.default_rng(0).permutation(cache.ids).tolist()
    speeds = [len(ids) / seconds(partial(deque, map(read, ids), maxlen=0)) for read in (cache.cues, cache.maps)]
    return f"reading {len(ids)} images in random order: {speeds[0]:.0f} cues/s, {speeds[1]:.0f} images' maps/s"


def on_disk(path: Path, entries: list[dict]) -> str:
    """Kilobytes an image, and what irn's layout takes for the same maps."""
    cache = SeedCache(path)
    ours = sum(file.stat().st_size for file in path.iterdir()) / len(cache)
    sizes = []
    for extra in ({}, {"high_res": (375, 500)}):
        total = 0
        for entry in entries:
            content = {"keys": entry["map_classes"], "cam": entry["maps"]}
            content |= {key: np.zeros((len(entry["maps"]), *shape), np.float32) for key, shape in extra.items()}
            file = path.parent / "irn.npy"
            np.save(file, content)
            total += file.stat().st_size
        sizes.append(total / len(entries))
    return (
        f"on disk, kB an image: {ours / 1e3:.1f} (maps, saliency and cues); irn's .npy of the same maps alone "
        f"{sizes[0] / 1e3:.1f}, with its maps at 375x500 {sizes[1] / 1e3:.0f}"
    )


def opening(folder: Path) -> str:
    """Return the time and memory of opening a cache of many images without its index and with it, and cues a second."""
    with mock.patch("os.fsync"), CacheWriter(folder, ["cat"], {}) as cache:
        for i in range(MANY):
            cache.add(image_id(i), np.full((41, 41), i % 2, np.uint8))
    size = sum(file.stat().st_size for file in folder.iterdir()) / MANY / 1e3
    code = f"""
import sys, time
import numpy as np
from datamodules.seed_cache import SeedCache
from tests.benchmarks.measure import peak_memory
before, start = peak_memory(), time.perf_counter()
cache = SeedCache(sys.argv[1])
names = [f"train/{{i % 1000:03d}}/{{i:012d}}" for i in np.random.default_rng(0).integers(0, {MANY}, 1000).tolist()]
assert all(name in cache for name in names) and "train/345/1" not in cache
print(time.perf_counter() - start)
start = time.perf_counter()
for name in names:
    cache.cues(name)
print(1000 / (time.perf_counter() - start), peak_memory() - before)"""
    figures = [in_a_process(code, folder)]
    merging = seconds(partial(merge_cache, folder))
    figures.append(in_a_process(code, folder))
    lines = [f"cues of {MANY:,} images, {size:.2f} kB an image; seeds merge {merging:.1f} s"]
    for name, printed in zip(("without", "with"), figures, strict=True):
        opened, speed, memory = map(float, printed)
        found = f"opened, and 1,000 images found, in {opened:.3f} s"
        lines.append(f"  {name} index: {found}; {speed:.0f} cues/s at random; {memory:.0f} MB beside the imports")
    return "\n".join(lines)


def image_id(number: int) -> str:
    """An id of 22 characters."""
    return f"train/{number % 1000:03d}/{number:012d}"


def indexing(folder: Path, count: int) -> str:
    """Return time and memory of an index of many images: writing it from made-up headers, and finding images in it."""
    imports = """
import sys, time
import numpy as np
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.index import INDEX, ShardEntry, write_index
from tests.benchmarks.measure import peak_memory
folder, count = sys.argv[1], int(sys.argv[2])
image_id = lambda i: f"train/{i % 1000:03d}/{i:012d}"
before, start = peak_memory(), time.perf_counter()"""
    result = "\nprint(time.perf_counter() - start, peak_memory() - before)"
    writing = """
def shards():
    for number, first in enumerate(range(0, count, 256)):
        names = list(map(image_id, range(first, min(first + 256, count))))
        yield ShardEntry(f"shard-{number:05d}.safetensors", bytes(32), names, {})
with open(f"{folder}/{INDEX}", "wb") as file:
    write_index(file, shards(), {"classes": ["cat"], "settings": {}, "inputs": {}}, folder)"""
    finding = """
cache = SeedCache(folder)
print(time.perf_counter() - start)
for number in np.random.default_rng(0).integers(0, count, 1000).tolist():
    assert cache._index.find(image_id(number)) == number and f"x{number}" not in cache"""
    written, added = map(float, in_a_process(imports + writing + result, folder, count))
    opened, found, memory = map(float, in_a_process(imports + finding + result, folder, count))
    size = (folder / "index.safetensors").stat().st_size
    (folder / "index.safetensors").unlink()
    return (
        f"index of {count:,} images: {size / count:.1f} bytes an image; written in {written:.1f} s with "
        f"{added:.0f} MB beside the imports; opened in {opened * 1e3:.1f} ms; 1,000 images found and 1,000 "
        f"others not in {found - opened:.3f} s; {memory:.0f} MB beside the imports"
    )


def main(arguments: list[str] | None = None) -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    parser.add_argument("--index", type=int, help="measure nothing but an index of this many images")
    parser.add_argument("--device", default="cpu", help="of generation: cpu or cuda")
    options = parser.parse_args(arguments)
    console = Console(width=130)
    if options.index:
        with tempfile.TemporaryDirectory() as name:
            console.print(indexing(Path(name), options.index), highlight=False)
        return
    torch.set_num_threads(1)  # the generator's default; a core is left for its reader
    count, turns = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_voc(folder / "data", train=count, val=2, size=SIZE)
        write_synthetic_voc(folder / "few", train=FEW, val=2, size=SIZE)
        console.print(
            generation(folder, count, turns, options.device), memory(folder, count), sep="\n", highlight=False
        )
        entries = made_up(folder / "voc", VOC)
        for line in (
            reading(folder / "voc"),
            on_disk(folder / "voc", entries),
            opening(folder / "many"),
            indexing(folder, INDEXED),
        ):
            console.print(line, highlight=False)


if __name__ == "__main__":
    main()
