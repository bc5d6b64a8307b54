"""What a training run says of itself: in its folder, in each of its checkpoints, at Weights & Biases."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger

from datamodules.files import file_sha256, write_atomically
from datamodules.sampling import run_seed
from datamodules.source_revision import ALL_PACKAGES, source_revision
from seeds.provenance import ids_sha256, provenance

__all__ = ["RunRecord", "provenance_lines", "read_provenance", "read_record"]

FILE, KEY = "provenance.json", "provenance"
PACKAGES = ("pytorch-lightning", "opencv-python-headless")  # beside those that seeds depend on
SHOWN = 12  # digits of a checksum, where people read it


class RunRecord(pl.Callback):
    """Keeps what made a run: ``provenance.json`` in its folder, and the same under ``provenance`` in each checkpoint.

    ``attempts`` is a list: one entry for each time the run was started whose work is in the weights, with the step it
    began from, the whole configuration, seed, command, day, git revision (from a checkout), packages, torch's threads
    and device, precision, and checksums of the project's code, the images' list, their labels, the seed cache and
    the file of initial weights. ``figures`` are those of the last validation. ``finished``, in the folder alone, tells
    that training reached its end.

    Args:
        folder: the run's.
        config: the run's whole configuration, in plain JSON values.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = folder / FILE, dict(config)
        self.attempts: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Take over the record of earlier attempts; checkpoints of before there was a record have none."""
        known = read_provenance(checkpoint) or {}
        self.attempts, self.figures = known.get("attempts", []), known.get("figures", {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add this attempt, whose images are known by now."""
        self.attempts.append(this_attempt(trainer, pl_module) | {"config": self.config})
        self._write(trainer, finished=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": self.config, KEY: {"attempts": self.attempts}})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Keep the figures."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if not trainer.sanity_checking:
            self.figures = {name: value for name, value in found.items() if math.isfinite(value)}

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Put the record in, as plain values."""
        checkpoint[KEY] = {"attempts": self.attempts, "figures": self.figures}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Say that the run is finished; not reached where it was stopped, in whatever way."""
        self._write(trainer, finished=True)

    def _write(self, trainer: pl.Trainer, *, finished: bool) -> None:
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            content = {"attempts": self.attempts, "figures": self.figures, "finished": finished}
            write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())


def this_attempt(trainer: pl.Trainer, task: pl.LightningModule) -> dict[str, Any]:
    """What there is to say of a training that begins now, its configuration apart."""
    loader: Any = trainer.train_dataloader
    data = loader.dataset  # an ImageDataset
    device = trainer.strategy.root_device
    weights = Path(str(task.hparams.get("weights")))
    found = provenance(*PACKAGES) | {
        "source": source_revision(ALL_PACKAGES),
        "precision": str(trainer.precision),
        "from_step": trainer.global_step,
        "seed": run_seed(),
        "torch": {
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        },
        "data": {
            "pictures": len(data),
            "images_sha256": ids_sha256([sample.id for sample in data.samples]),
            "labels_sha256": hashlib.sha256(data.labels.tobytes()).hexdigest(),
        },
    }
    if data.cues is not None:
        found["cache"] = {
            "path": str(data.cues.path),
            "fingerprint": data.cues.fingerprint,
            "classifier_sha256": data.cues.settings.get("checkpoint_sha256"),  # None: imported
        }
    if weights.is_file():
        found["weights"] = {"path": str(weights), "sha256": file_sha256(weights)}
    return found


def read_provenance(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """A checkpoint's record; None for one of before there was a record, or whose record is none."""
    found = checkpoint.get(KEY)
    try:
        plain = json.loads(json.dumps(found, allow_nan=False))
        sound = [dict(attempt) for attempt in plain["attempts"]]
    except (TypeError, ValueError, KeyError):
        return None
    return dict(plain) if sound else None


def read_record(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it (``attempts``, ``figures``, ``finished``); empty where it says nothing."""
    try:
        found = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def provenance_lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A record as people read it: a few facts, each with its name; several attempts are named where they differ."""
    attempts: Sequence[Mapping[str, Any]] = record["attempts"]
    last = attempts[-1]
    begun = ", ".join(f"{attempt.get('date')} from step {attempt.get('from_step')}" for attempt in attempts)
    yield "trained", f"seed {last.get('seed')}, {begun}"
    used = {**last.get("torch", {}), "precision": last.get("precision", "not recorded")}
    yield "on", ", ".join(f"{name} {value}" for name, value in used.items())
    yield "code", ", then ".join(dict.fromkeys(str(attempt.get("git", "no git revision")) for attempt in attempts))
    yield "packages", ", ".join(f"{name} {value}" for name, value in last.get("packages", {}).items())
    data = last.get("data", {})
    yield "pictures", f"{data.get('pictures')} (list {short(data.get('images_sha256'))})"
    if cache := last.get("cache"):
        classifier = short(cache.get("classifier_sha256"))
        yield "seed cache", f"{cache.get('path')} (fingerprint {short(cache.get('fingerprint'))}, by {classifier})"


def short(checksum: object) -> str:
    """The beginning of a checksum."""
    return f"{str(checksum)[:SHOWN]}…" if checksum else "none"
