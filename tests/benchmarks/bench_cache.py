"""The seed cache: ``python -m tests.benchmarks.bench_cache [--quick]``.

How fast the generator is beside the bare network, which part is the bottleneck, how much memory it takes, how fast cues
are read, how long a cache of a million images takes to open, and what an image takes on disk beside irn's files.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from datamodules.cache.writer import write_manifest
from datamodules.datamodule import TagDataModule
from rich.console import Console
from rich.table import Table
from seeds.making.asking import CamSettings, Seed, extract_cams
from seeds.making.batches import Batches, BatchLoader
from seeds.making.resize import ResizePolicy
from seeds.making.shards import ShardWriter

from datamodules.seed_cache import SeedCache
from datamodules.synthetic import write_synthetic_voc
from seeds.classifier import ClassifierTask
from seeds.generate import generate_seeds, thresholded
from tests.seed_caches import CacheWriter

VOC, MILLION = 10_582, 1_000_000
SIZE, BATCH, SHARD = 320, 16, 64
FEW = 32  # images
BACKBONE, CHECKPOINT = "mobilenet_v2", "classifier.ckpt"  # quick: of others the network takes a greater part yet
PARTS = ("bare, in memory", "decoding", "cues, writing")


def checkpoint_of(folder: Path, data: TagDataModule) -> tuple[Path, ClassifierTask]:
    """An untrained classifier: the work is the same as a trained one's."""
    task = ClassifierTask(list(data.classes), backbone=BACKBONE)
    content = {"state_dict": task.state_dict(), "hyper_parameters": dict(task.hparams)}
    content["datamodule_hyper_parameters"] = dict(data.hparams)
    task.on_save_checkpoint(content)
    torch.save(content, folder / CHECKPOINT)
    return folder / CHECKPOINT, task.eval()


def bare(task: ClassifierTask, read: list, cams: CamSettings) -> float:
    """Seconds of forward pass and Grad-CAM of images in memory."""
    start = time.perf_counter()
    for batch in read:
        extract_cams(task.model, batch, cams)
    return time.perf_counter() - start


def decoding(batches: Batches) -> float:
    """Seconds of one worker that reads and warps the images."""
    start = time.perf_counter()
    list(BatchLoader(batches, 1, lambda: False))
    return time.perf_counter() - start


def writing(folder: Path, seeds: list[Seed], classes: list[str]) -> float:
    """Seconds of making cues and writing shards."""
    start = time.perf_counter()
    with CacheWriter(folder, classes, {}, overwrite=True) as writer:
        for seed in seeds:
            cues = thresholded(seed, fg_threshold=0.2, bg_fraction=0.1)
            writer.add(seed.name, cues, map_classes=seed.classes, maps=seed.maps, saliency=seed.saliency)
    return time.perf_counter() - start


def generator(checkpoint: Path, output: Path, workers: int) -> float:
    """Seconds of the generator from the first image asked for to the last shard on disk; not its start."""
    moments = {}
    iterate, close = BatchLoader.__iter__, ShardWriter.close

    def first(loader: BatchLoader):
        moments["start"] = time.perf_counter()
        return iterate(loader)

    def last(writer: ShardWriter, trainer) -> None:
        close(writer, trainer)
        moments["end"] = time.perf_counter()

    with mock.patch.object(BatchLoader, "__iter__", first), mock.patch.object(ShardWriter, "close", last):
        generate_seeds(checkpoint, output, overwrite=True, num_workers=workers, accelerator="cpu", shard_size=SHARD)
    return moments["end"] - moments["start"]


def generation(folder: Path, pictures: int, turns: int) -> Table:
    """The generator beside its parts, images a second; network and generator in turns, each as often the first."""
    data = TagDataModule(str(folder / "data"), train_split="train", size=SIZE, batch_size=BATCH)
    policy = ResizePolicy(SIZE, (1.0,), 8)
    batches = Batches(data.photos("train", masks=False), range(-(-pictures // SHARD)), SHARD, BATCH, policy)
    read = list(BatchLoader(batches, 0, lambda: False))
    table = Table(title=f"generation, 1 thread, 1 worker, {SIZE}x{SIZE}, images/s, medians of {turns} turns")
    for column in ("network", *PARTS, "generator", "of the network's", "least..most", "bottleneck"):
        table.add_column(column, justify="right")
    checkpoint, task = checkpoint_of(folder, data)
    cams = CamSettings(task.model.default_layer, task.model.saliency_layer, flip=False)
    seeds = [seed for batch in read for seed in extract_cams(task.model, batch, cams)]
    measures = {
        PARTS[0]: partial(bare, task, read, cams),
        PARTS[1]: partial(decoding, batches),
        PARTS[2]: partial(writing, folder / "written", seeds, list(data.classes)),
        "generator": partial(generator, checkpoint, folder / "cache", 1),
    }
    runs: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(turns):
        for name in (measures, reversed(measures))[turn % 2]:
            runs[name].append(measures[name]())
    speeds = {name: pictures / np.median(times) for name, times in runs.items()}
    ratios = np.array(runs[PARTS[0]]) / np.array(runs["generator"])
    shown = (f"{np.median(ratios):.2f}", f"{ratios.min():.2f}..{ratios.max():.2f}")
    slowest = min(PARTS, key=speeds.__getitem__)
    table.add_row(BACKBONE, *(f"{speed:.0f}" for speed in speeds.values()), *shown, slowest)
    return table


def in_a_process(code: str, *words: object) -> tuple[list[str], float]:
    """What a program prints, and the most memory that it took, in MB: the whole process, which counts from its start.

    ``resource.getrusage`` would tell the parent's memory, too.
    """
    code += "\nprint(open('/proc/self/status').read())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", code, *map(str, words)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()
    return told, int(told[told.index("VmHWM:") + 1]) / 1024  # kB


def memory(folder: Path, pictures: int) -> str:
    """The most memory of the generator, for a few images and for many; its readers are other processes."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom seeds.generate import generate_seeds\n"
        "generate_seeds(*map(Path, sys.argv[1:3]), root=sys.argv[3], accelerator='cpu', num_workers=1)"
    )
    most = [
        in_a_process(code, folder / CHECKPOINT, folder / f"of-{data}", folder / data)[1] for data in ("few", "data")
    ]
    return f"most memory of the generator, {BACKBONE}: {FEW} images {most[0]:.0f} MB, {pictures} {most[1]:.0f} MB"


def made_up(path: Path, pictures: int) -> list[dict]:
    """A cache of smooth maps on 41x41 cells, one to three classes an image; the last of its entries."""
    generator = np.random.default_rng(0)
    entries = []
    for count in (1, 1, 1, 2, 2, 3):  # VOC's images have 1.5 classes on average
        coarse = torch.from_numpy(generator.random((1, count + 1, 6, 6), np.float32))
        smooth = torch.nn.functional.interpolate(coarse, (41, 41), mode="bicubic")[0].clamp(0).numpy()
        cues = np.where(smooth[0] < 0.2, 0, np.where(smooth[1] > 0.6, 1, 255)).astype(np.uint8)
        entries.append({"cues": cues, "map_classes": np.arange(count), "maps": smooth[1:], "saliency": smooth[0]})
    with CacheWriter(path, [f"class{i}" for i in range(20)], {}) as cache:
        for i in range(pictures):
            cache.add(f"2007_{i:06d}", **entries[i % len(entries)])
    return entries


def reading(path: Path) -> str:
    """Cues and maps a second of a cache's images in random order."""
    cache = SeedCache(path)
    ids = np.random.default_rng(0).permutation(cache.ids).tolist()
    speeds = []
    for read in (cache.cues, cache.maps):
        start = time.perf_counter()
        for name in ids:
            read(name)
        speeds.append(len(ids) / (time.perf_counter() - start))
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


def million(folder: Path) -> str:
    """Open a cache of a million images in a process of its own; opening looks at no shard."""
    names = [f"train/{i % 1000:03d}/{i:012d}" for i in range(MILLION)]
    blocks = [names[first : first + 256] for first in range(0, MILLION, 256)]
    shards = [{"sha256": "0" * 64, "bytes": 1, "pictures": len(block)} for block in blocks]
    folder.mkdir()
    write_manifest(folder, {"classes": ["cat"]}, shards, blocks, {})
    code = (
        "import sys, time\nfrom datamodules.cache import SeedCache\nstart = time.perf_counter()\n"
        "cache = SeedCache(sys.argv[1])\nassert 'train/345/000000012345' in cache and 'train/345/1' not in cache\n"
        "print(time.perf_counter() - start)"
    )
    told, most = in_a_process(code, folder)
    return f"opening {MILLION:,} images: {float(told[0]):.2f} s, {most:.0f} MB at most for the whole process"


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and turns")
    quick = parser.parse_args().quick
    console = Console(width=130)
    torch.set_num_threads(1)  # the generator's default; a core is left for its reader
    pictures, turns = (64, 3) if quick else (192, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_voc(folder / "data", train=pictures, val=2, size=SIZE)
        write_synthetic_voc(folder / "few", train=FEW, val=2, size=SIZE)
        console.print(generation(folder, pictures, turns), memory(folder, pictures), sep="\n", highlight=False)
        entries = made_up(folder / "voc", VOC)
        for line in (reading(folder / "voc"), on_disk(folder / "voc", entries), million(folder / "million")):
            console.print(line, highlight=False)


if __name__ == "__main__":
    main()
