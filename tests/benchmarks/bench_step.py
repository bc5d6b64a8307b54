"""Where a training step's time goes: ``python -m tests.benchmarks.bench_step [--quick]``.

The VOC animals configurations of the classifier and of SEC are trained for some steps by ``tag2mask fit`` itself, on
the embedded pictures drawn as large as VOC's, with weights and cues that mean nothing: their values do not change the
time. *data* is what the step waits for its batch; *network* forward, backward and optimizer; *losses* what is between
the network's scores and the one number; *CRF* the small pictures and the dense CRF; *rest* is logging, callbacks, and
Lightning. Medians over steps, the first ones left out.

Then the loader by itself: pictures a second with 0, 1 and 2 workers, beside what the network alone eats.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import training.task
from datamodules.cache import CacheWriter
from datamodules.datamodule import TagDataModule
from datamodules.scenes import CLASSES
from datamodules.synthesize import synthesize
from seeds.classifier import Classifier, ClassifierTask
from tests.benchmarks.stopwatch import NEXT, Stopwatch, watched
from training.cli import main as tag2mask
from training.task import SegmentationTask

SIDE, CELLS, CUED = 500, 40, 0.24  # VOC's longer side; the cues' grid; the share of cells with a cue in SEC's own
PARTS = ("data", "network", "losses", "CRF", "rest")
WARM_UP = 4  # steps


def prepare(folder: Path, pictures: int) -> None:
    """Draw the pictures, and make up cues."""
    synthesize(folder / "data", train=pictures, val=1, size=SIDE)
    names = (folder / "data/ImageSets/Segmentation/train.txt").read_text().split()
    generator = np.random.default_rng(0)
    with CacheWriter(folder / "cues", CLASSES, {}) as cache:
        for name in names:
            cues = generator.integers(0, len(CLASSES) + 1, (CELLS, CELLS)).astype(np.uint8)
            cache.add(name, np.where(generator.random(cues.shape) < CUED, cues, 255).astype(np.uint8))


def fit(folder: Path, config: str, steps: int) -> list[dict[str, float]]:
    """Train, and say where the time of each step went, in seconds."""
    classes = "[" + ",".join(CLASSES) + "]"
    words = [
        "fit", "--config", f"configs/{config}.yaml", "--output", str(folder / config), "--model.init_args.weights",
        "none", "--data.root", str(folder / "data"), "--data.classes", classes, "--data.train_split", "train",
        "--trainer.max_steps", str(steps), "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0",
        "--trainer.num_sanity_val_steps", "0", "--trainer.profiler", "tests.benchmarks.stopwatch.Stopwatch",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    if config.startswith("sec"):
        words += ["--data.cues", str(folder / "cues"), "--data.cues_made_by", "null"]
    places = {
        "CRF": (training.task, "dense_crf"), "small": (training.task, "small_pictures"),
        "forward": (SegmentationTask, "forward"), "sec": (SegmentationTask, "training_step"),
        "classify": (Classifier, "forward"), "train": (ClassifierTask, "training_step"),
    }  # fmt: skip
    with watched(**places):
        if tag2mask(words):
            raise SystemExit(f"{config} could not be trained")
    return [parts_of(step) for step in Stopwatch.latest.steps[WARM_UP:]]


def parts_of(step: dict[str, float]) -> dict[str, float]:
    """A step's seconds by :data:`PARTS`, and the whole ``step``."""

    def total(*ends: str) -> float:
        return sum(seconds for name, seconds in step.items() if name.endswith(ends))

    forward, crf = total("forward", "classify"), total("CRF", "small")
    inside = total("optimizer_step")  # calls forward, losses and backward
    logged = total("log_dict")
    losses = total("sec", "train") - forward - crf - logged
    found = {
        "data": step.get(NEXT, 0.0) + total("batch_to_device"),
        "network": inside - losses - crf - logged,
        "losses": losses,
        "CRF": crf,
    }
    return found | {"rest": step["step"] - sum(found.values()), "step": step["step"]}


def loader_speed(folder: Path, workers: int, epochs: int) -> float:
    """Pictures a second that the SEC configuration's loader gives to whoever does nothing with them."""
    data = TagDataModule(
        str(folder / "data"), classes=list(CLASSES), train_split="train", targets="cues", cues=str(folder / "cues"),
        size=320, augment={"crop": (0.4, 1.0), "flip": True, "color": 0.3}, batch_size=16, num_workers=workers,
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader()
    sum(1 for _ in loader)  # starts the workers
    start, count = time.perf_counter(), 0
    for _ in range(epochs):
        count += sum(len(batch["id"]) for batch in loader)
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps")
    quick = parser.parse_args().quick
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, 32 if quick else 128)
        table = Table(title="a training step, batch of 16, milliseconds (median over steps)")
        for column in ("", *PARTS, "step", "all but the network"):
            table.add_column(column, justify="right" if column else "left")
        eaten = 0.0
        for config in ("classifier_voc_animals", "sec_voc_animals"):
            steps = fit(folder, config, WARM_UP + (3 if quick else 25))
            median = {part: float(np.median([step[part] for step in steps])) for part in (*PARTS, "step")}
            share = float(np.median([1 - step["network"] / step["step"] for step in steps]))
            table.add_row(config, *(f"{1e3 * seconds:.1f}" for seconds in median.values()), f"{share:.1%}")
            eaten = 16 / median["network"]
        console.print(table)
        table = Table(title=f"the loader of SEC; its network alone eats {eaten:.1f} pictures/s")
        for column in ("workers", "pictures/s", "loader / network"):
            table.add_column(column, justify="right")
        for workers in (0, 1, 2):
            speed = loader_speed(folder, workers, 1 if quick else 3)
            table.add_row(str(workers), f"{speed:.1f}", f"{speed / eaten:.1f}")
        console.print(table)


if __name__ == "__main__":
    main()
