"""What made a training run, recorded in its folder, in its checkpoints and at Weights & Biases."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import file_sha256, is_uri, write_json
from datamodules.samplers import run_seed
from datamodules.source_revision import ALL_PACKAGES, source_revision
from seeds.provenance import ids_sha256, provenance
from training.folder_lock import lock_folder

if TYPE_CHECKING:
    from filelock import BaseFileLock

PROVENANCE_FILE = "provenance.json"
PROVENANCE_KEY = "provenance"  # of a checkpoint
DISTRIBUTIONS = ("pytorch-lightning", "opencv-python-headless")  # in addition to those of seeds


class RunRecord(pl.Callback):
    """Writes what made a run: ``provenance.json`` in its folder, and ``provenance`` in each checkpoint.

    ``attempts`` is a list with an entry for each start of the run whose work is in the weights: first step, whole
    configuration, seed, command, date, git revision (of a checkout), packages, threads and device of torch, precision,
    and checksums of the project's code, the list of images, their labels, the seed cache and the initial weights.
    ``figures`` are those of the last validation. ``finished``, only in the folder, is whether training reached its end.

    Args:
        folder: folder of the run.
        config: whole configuration of the run, in plain JSON values.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.path, self.config = folder / PROVENANCE_FILE, dict(config)
        self.attempts: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}
        self._lock: BaseFileLock | None = None

    def setup(self, trainer: pl.Trainer, _task: pl.LightningModule, stage: str) -> None:  # noqa: ARG002  given by name
        """Refuse, in all processes, a folder into which another process trains."""
        problem, folder = "", self.path.parent
        if trainer.is_global_zero:
            busy = f"another process trains into {folder}: wait for it, or choose another --output"
            try:
                self._lock = lock_folder(folder / ".lock", busy)
            except InputError as error:
                problem = str(error)
        if problem := trainer.strategy.broadcast(problem):
            raise InputError(problem)

    def teardown(self, _trainer: pl.Trainer, _task: pl.LightningModule, stage: str) -> None:  # noqa: ARG002  given by name
        """Release the lock of the folder."""
        self._release()

    def on_exception(self, _trainer: pl.Trainer, _task: pl.LightningModule, _error: BaseException) -> None:
        """Release the lock of the folder."""
        self._release()

    def on_load_checkpoint(self, _trainer: pl.Trainer, _task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the record of earlier attempts, if the checkpoint has one."""
        known = read_provenance(checkpoint) or {}
        self.attempts, self.figures = known.get("attempts", []), known.get("figures", {})

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Add this attempt, whose images are known by now."""
        loader: Any = trainer.train_dataloader
        data = loader.dataset  # an ImageDataset
        device, weights = trainer.strategy.root_device, UPath(str(task.hparams.get("weights")))
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
        attempt = provenance(*DISTRIBUTIONS) | {
            "source": source_revision(ALL_PACKAGES), "precision": str(trainer.precision),
            "from_step": trainer.global_step, "seed": run_seed(),
            "torch": {"threads": torch.get_num_threads(), "processes": trainer.world_size, "device": name},
            "data": {
                "images": len(data), "images_sha256": ids_sha256([sample.id for sample in data.samples]),
                "labels_sha256": hashlib.sha256(data.labels.tobytes()).hexdigest(),
            },
        }  # fmt: skip
        if data.cues is not None:
            attempt["cache"] = {
                "path": str(data.cues.path),
                "fingerprint": data.cues.fingerprint,
                "checkpoint_sha256": data.cues.settings.get("checkpoint_sha256"),  # None: imported
            }
        if is_uri(weights) or weights.is_file():
            attempt["weights"] = {"path": str(weights), "sha256": file_sha256(weights)}
        self.attempts.append(attempt | {"config": self.config})
        self._write(trainer, finished=False)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams({"config": self.config, PROVENANCE_KEY: {"attempts": self.attempts}})

    def on_validation_end(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Keep the figures."""
        if not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            self.figures = {name: float(value) for name, value in found if name.startswith("val/") and value.isfinite()}

    def on_save_checkpoint(self, _trainer: pl.Trainer, _task: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the record to a checkpoint, in plain values."""
        checkpoint[PROVENANCE_KEY] = {"attempts": self.attempts, "figures": self.figures}

    def on_fit_end(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Record that the run is finished; not called where it was stopped."""
        self._write(trainer, finished=True)

    def _release(self) -> None:
        if self._lock is not None:
            with suppress(OSError):  # Windows does not remove an open file
                Path(self._lock.lock_file).unlink()
            self._lock.release()
            self._lock = None

    def _write(self, trainer: pl.Trainer, *, finished: bool) -> None:
        if trainer.is_global_zero:
            write_json(self.path, {"attempts": self.attempts, "figures": self.figures, "finished": finished})


def forbid_folder_of_run(output: Path) -> None:
    """Raise an InputError where a folder for results is that of a training, whose ``metrics.csv`` would be replaced."""
    if (output / PROVENANCE_FILE).is_file():
        raise InputError(f"{output} is the folder of a training: choose another output, such as {output / 'val'}")


def read_provenance(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a checkpoint's record; None where there is none, or an invalid one."""
    try:
        plain = json.loads(json.dumps(checkpoint.get(PROVENANCE_KEY), allow_nan=False))
        attempts = [dict(attempt) for attempt in plain["attempts"]]
    except (TypeError, ValueError, KeyError):
        return None
    return dict(plain) if attempts else None


def provenance_lines(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values of a record's main facts, for people; several attempts are named where they differ."""
    attempts = record["attempts"]
    last = attempts[-1]
    starts = ", ".join(f"{attempt.get('date')} from step {attempt.get('from_step')}" for attempt in attempts)
    yield "trained", f"seed {last.get('seed')}, {starts}"
    used = {**last.get("torch", {}), "precision": last.get("precision", "not recorded")}
    yield "on", ", ".join(f"{name} {value}" for name, value in used.items())
    yield "code", ", then ".join(dict.fromkeys(str(attempt.get("git", "no git revision")) for attempt in attempts))
    yield "packages", ", ".join(f"{name} {value}" for name, value in last.get("packages", {}).items())
    data = last.get("data", {})
    yield "images", f"{data.get('images')} (list {str(data.get('images_sha256'))[:12]}…)"
    if cache := last.get("cache"):
        digest = cache.get("checkpoint_sha256")
        origin = f"by {digest[:12]}…" if digest else "imported"
        yield "seed cache", f"{cache.get('path')} (fingerprint {str(cache.get('fingerprint'))[:12]}…, {origin})"
