"""The parts of a training step by their time: ``python -m tests.benchmarks.bench_step [--quick] [--accelerator gpu]``.

The step is that of a real `fit` of a configuration as it stands, through the command line, on real images where
``data/`` has them (else on the embedded data set, as large); only the cues are made up, and validation is left out.
*Wall* is what passes in the training process; its *CPU* counts all of its threads, and the loader's workers have a
separate row. Shares are of the whole step; what is not the network's is summed up below: on the wall's clock, and by
CPU time with the workers, which on a machine without idle cores is what they cost.

Figures of a machine that does other work at the same time are worth little, shares of CPU time excepted.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from datamodules.sample import multi_hot
from datamodules.synthetic import write_synthetic_voc
from datamodules.voc import VOCDataModule
from tests.benchmarks.measure import CONFIGS, DATA, ROOT, VOC_ROOT, peak_memory, read_config
from tests.benchmarks.stopwatch import NETWORK, PARTS, Stopwatch
from tests.seed_caches import CacheWriter
from training.cli import main as tag2mask

CASES = ("sec_voc_animals", "classifier_voc_animals")
SIDE = 500  # of the embedded images, as of VOC's
WARM = 6  # steps before the clock counts: workers have then filled their queue once


@dataclass(frozen=True)
class Measured:
    """A step of a configuration: seconds of each part (wall, CPU), of the workers (CPU), and what the run took.

    Attributes:
        parts: (parts, 2), the mean over the steps.
        spread: (parts, 2), the standard error of that mean.
        workers: CPU seconds of all workers, a step.
        batch: images a step.
        peak: peak memory of the training process, in MB.
    """

    parts: np.ndarray
    spread: np.ndarray
    workers: float
    batch: int
    peak: float

    @property
    def network(self) -> np.ndarray:
        """The network's seconds, wall and CPU."""
        return self.parts[[PARTS.index(part) for part in NETWORK]].sum(0)

    @property
    def rest(self) -> tuple[float, float]:
        """What is not the network's, as a share of the step: of its wall time, and of all its CPU time."""
        wall, cpu = self.parts.sum(0)
        return 1 - self.network[0] / wall, 1 - self.network[1] / (cpu + self.workers)


def available_data(config: dict, folder: Path, images: int, *, embedded: bool = False) -> dict:
    """Return the data settings of a configuration that differ, so that it finds images and cues.

    Args:
        config: The content of the YAML.
        folder: Folder for generated files.
        images: Training images of the embedded data set, where it is used.
        embedded: Use the embedded data set even where there are real images.
    """
    data = config["data"]["init_args"]
    places = (ROOT / data["root"], VOC_ROOT)
    root = next((place for place in places if (place / "JPEGImages").is_dir()), None)
    settings: dict = {}
    if embedded or root is None:
        root = folder / "data"
        write_synthetic_voc(root, train=images, val=2, size=SIDE)
        settings = {"train_split": "train", "classes": None, "masks": None}
    settings["root"] = str(root)
    if data.get("targets") == "cues":
        data |= settings
        made_up_cues(
            VOCDataModule(str(root), classes=data["classes"], masks=None), data["train_split"], folder / "cues"
        )
        settings |= {"cues": str(folder / "cues"), "cues_checkpoint": None}
    return settings


def words_of(settings: dict) -> list[str]:
    """Settings of the data, and weights for the network where there are any, as options."""
    files = (path for place in (ROOT / "data", DATA) for path in place.glob("imagenet/mobilenet_v2*.pth"))
    given = [f"--data.{key}={json.dumps(value) if value is None else value}" for key, value in settings.items()]
    return [*given, f"--model.init_args.weights={next(files, 'none')}"]


def made_up_cues(data: VOCDataModule, split: str, path: Path) -> None:
    """A seed cache of 40x40 positions: a part for each of an image's classes, a part background, the rest nothing."""
    samples = data.samples(split, masks=False)
    with CacheWriter(path, data.classes, {"made": "for a benchmark"}) as writer:
        for name, labels in zip((sample.id for sample in samples), multi_hot(samples, data.classes), strict=True):
            positions = np.full((40, 40), 255, np.uint8)
            positions[:4] = 0
            for number in np.flatnonzero(labels):
                positions[10 + number % 20 :: 20, 10:30] = number + 1
            writer.add(name, positions)


def measure(name: str, words: list[str], folder: Path, steps: int, warm: int = WARM, on: str = "cpu") -> Measured:
    """Train for some steps and watch.

    Args:
        name: of the configuration.
        words: further options.
        folder: of the run.
        steps: how many are counted.
        warm: how many come before them.
        on: Lightning's name of the accelerator.
    """
    watch = Stopwatch()
    command = ["fit", f"--config={CONFIGS / name}.yaml", f"--output={folder}", *words]
    command += ["--trainer.max_epochs=1", f"--trainer.limit_train_batches={warm + steps + 1}"]
    command += ["--trainer.limit_val_batches=0", "--trainer.enable_model_summary=false", f"--trainer.accelerator={on}"]
    with watch.watching():
        if tag2mask(command):
            sys.exit(1)
    counted = watch.steps[warm:]
    seconds = np.array([[step[part] for part in PARTS] for step in counted])  # (steps, parts, 2)
    return Measured(
        seconds.mean(0),
        seconds.std(0) / len(counted) ** 0.5,
        (watch.workers[-1] - watch.workers[warm]) / len(counted),
        yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]["batch_size"],
        peak_memory(),
    )


def apart(*arguments) -> Measured:
    """Run `measure` in another process, so that the peak memory is the run's alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def split_table(name: str, measured: Measured) -> Table:
    """A step's parts."""
    wall, cpu = measured.parts.sum(0)
    cpu += measured.workers
    table = Table(title=f"{name}: a step of {measured.batch} images, {torch.get_num_threads()} threads")
    for column in ("", "wall, ms", "±", "share", "CPU, ms", "share"):
        table.add_column(column, justify="right" if column else "left")
    for part, (seconds, used), (error, _) in zip(PARTS, measured.parts, measured.spread, strict=True):
        called = {"data": "data (waiting, moving)", "loop": "Lightning's loop"}.get(part, part)
        numbers = (f"{seconds * 1e3:.1f}", f"{error * 1e3:.1f}", f"{seconds / wall:.1%}")
        table.add_row(called, *numbers, f"{used * 1e3:.1f}", f"{used / cpu:.1%}")
    workers = measured.workers
    table.add_row("the loader's workers", "", "", "", f"{workers * 1e3:.1f}", f"{workers / cpu:.1%}", end_section=True)
    table.add_row("step", f"{wall * 1e3:.1f}", "", "", f"{cpu * 1e3:.1f}", "")
    rest = measured.rest
    table.add_row("all but the network", "", "", f"{rest[0]:.1%}", "", f"{rest[1]:.1%}")
    table.caption = f"peak memory of the training process {measured.peak / 1024:.2f} GiB"
    return table


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="twelve steps of four images, on the embedded data set")
    parser.add_argument("--accelerator", default="cpu")
    options = parser.parse_args(arguments)
    quick = options.quick
    steps, images = (12, 76) if quick else (20, 432)  # a multiple of log_every_n_steps
    console = Console(width=110)
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            settings = available_data(read_config(name), folder, images, embedded=quick)
            words = words_of(settings | ({"batch_size": 4} if quick else {}))
            console.print(split_table(name, apart(name, words, folder / "run", steps, WARM, options.accelerator)))


if __name__ == "__main__":
    main()
