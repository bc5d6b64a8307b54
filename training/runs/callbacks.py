"""Callbacks of every training: checkpoints, reproducible randomness, a stop at a bad loss, batch size, progress."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor
from upath import UPath

from datamodules.errors import InputError, first_line
from datamodules.files import is_uri, open_atomically
from datamodules.progress import Progress, print_message
from datamodules.samplers import run_seed
from seeds.distributed import gather_objects
from seeds.lost_classes import report_classes_found_everywhere, report_lost_background, report_lost_classes

BEST_BY = {"classifier": "val/map", "segmentation": "val/miou"}  # by task; other tasks have no best.ckpt


class StepSeed(pl.Callback):
    """Seeds torch before every training batch from the run's seed, the epoch, the batch's number and the rank.

    Dropout is then the same whether the run was interrupted or not. (`datamodules.samplers` does the same for the
    augmentation of images.)
    """

    def on_train_batch_start(self, trainer: pl.Trainer, *hook: Any) -> None:
        """Seed torch on all devices."""
        entropy = [run_seed(), trainer.current_epoch, hook[-1], trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class LossGuard(pl.Callback):
    """Stops a training at the first loss that is NaN or infinite, before it changes a weight.

    The update before it may have spoiled the weights already. A checkpoint that was written in between, at the end of
    an epoch, is then spoiled, too. All processes stop together.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []

    def on_train_batch_start(self, *hook: Any) -> None:
        """Remember the images of the batch."""
        self._ids = [str(name) for name in hook[2]["id"]]

    def on_before_backward(self, trainer: pl.Trainer, _task: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss.

        Raises:
            InputError: it is NaN or infinite; the message names the step and its images.
        """
        bad = not torch.isfinite(loss)
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            found = [each for each in gather_objects((loss.item(), self._ids) if bad else None) if each]
            images = ", ".join(name for _, ids in found for name in ids)
            where = f"the loss of step {trainer.global_step} (epoch {trainer.current_epoch}) is {found[0][0]}"
            raise InputError(f"{where}; its images: {images}. The run ends here; a new one with a lower lr often helps")


class TrainingSize(pl.Callback):
    """Prints the number of parameters, the effective batch size and the number of updates before a training starts.

    Several processes and accumulated batches enlarge the effective batch; at a fixed number of epochs the network is
    then updated less often.
    """

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Print the numbers and, where the effective batch is larger, how it is made up."""
        parameters = list(task.parameters())
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        count = sum(each.numel() for each in parameters)
        print_message(f"the network has {count:,} parameters, and {trained:,} of them are trained")
        loader: Any = trainer.train_dataloader
        images, batch_size = len(loader.dataset), loader.batch_size
        processes, batches = trainer.world_size, trainer.accumulate_grad_batches
        effective, total = batch_size * processes * batches, trainer.estimated_stepping_batches
        print_message(f"training on {images} images, effective batch size {effective}: {total} updates of the weights")
        if effective > batch_size:
            product = f"{batch_size} (batch_size) x {processes} (processes) x {batches} (accumulate_grad_batches)"
            print_message(f"a step sees {product} images; the learning rate stays as it is")


class FoundTags(pl.Callback):
    """Reports classes that the network finds in fewer than half of the training images tagged with them.

    The background counts as a class with which an image is tagged whose cues or mask contain it. A classifier's classes
    are reported, too, that it finds in at least half of the images without that tag. The last steps of the training
    count, as many as an epoch has. A classifier finds a class whose probability exceeds 0.5, a segmentation network one
    that has the highest score at any position of the training crop.
    """

    def __init__(self) -> None:
        self._hook: Any = None
        self._scores: Tensor | None = None
        # images with each tag and those in which the class is found; the same without the tag: (2, 2, C or C+1)
        self._counts: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, *_hook: Any) -> None:
        """Start to look at the network's scores when as many steps are left as an epoch has."""
        batches = (trainer.estimated_stepping_batches - trainer.global_step) * trainer.accumulate_grad_batches
        if self._hook is None and batches <= trainer.num_training_batches:
            self._hook, self._counts = task.register_forward_hook(self._remember), None

    def _remember(self, _task: Any, _inputs: Any, output: Any) -> None:
        """Keep scores (B, C) or (B, C+1, h, w): boundaries have no classes, and DDP calls the task once more."""
        if isinstance(output, Tensor) and output.ndim in (2, 4):
            self._scores = output.detach()

    def on_train_batch_end(self, _trainer: pl.Trainer, _task: pl.LightningModule, *hook: Any) -> None:
        """Count tags and found tags of a batch."""
        _outputs, batch, _index = hook
        scores, labels = self._scores, batch.get("labels")
        self._scores = None
        if scores is None or labels is None:
            return
        found, tagged = scores > 0, labels > 0  # (B, C)
        if scores.ndim == 4:  # (B, C+1), background first
            found = torch.zeros_like(scores[:, :, 0, 0], dtype=torch.bool)
            found = found.scatter(1, scores.argmax(dim=1).flatten(1), value=True)
            tagged = torch.cat([_have_background(batch)[:, None], tagged], dim=1)
        counts = torch.stack([torch.stack([images, images & found]) for images in (tagged, ~tagged)]).sum(dim=2)
        self._counts = counts if self._counts is None else self._counts + counts  # stays on the device

    def on_train_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """Report."""
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        own = None if self._counts is None else self._counts.cpu()
        counts = [each for each in gather_objects(own) if each is not None]
        if counts and trainer.is_global_zero:
            tagged, untagged = torch.stack(counts).sum(dim=0).numpy()
            classes = task.hparams["classes"]
            advice = "Later stages cannot make up for it: check the tags (tag2mask check), or train longer."
            what = "the network finds, in its training images,"
            report_lost_classes(tagged[:, -len(classes) :], classes, what=what, advice=advice)
            if tagged.shape[1] == len(classes):
                report_classes_found_everywhere(untagged, classes, what=what, advice=advice)
            else:
                where = "in the network's predictions of its training images"
                report_lost_background(*tagged[:, 0].tolist(), where=where, advice=advice)


def _have_background(batch: Mapping[str, Any]) -> Tensor:
    """Return whether the cues or the mask of each image contain background, bool (B,)."""
    found = torch.zeros(len(batch["id"]), dtype=torch.bool, device=batch["labels"].device)
    if "cues" in batch:
        found |= batch["cues"][:, 0].flatten(1).any(dim=1)
    return found | (batch["mask"] == 0).flatten(1).any(dim=1) if "mask" in batch else found


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which does nothing where there is no figure (images without masks or tags)."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the epoch if its figure is the best so far."""
        figure = trainer.callback_metrics.get(str(self.monitor))
        if figure is not None and not figure.isnan():
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the best figure also where the run's folder has been moved, and ``best.ckpt`` with it."""
        path, figure = str(Path(str(self.dirpath), "best.ckpt")), state["best_model_score"]
        if figure is not None and Path(path).is_file():
            state = {**state, "dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
            state["best_k_models"] = {path: figure}
        super().load_state_dict(state)


class CheckpointIO(TorchCheckpointIO):
    """Writes and reads checkpoints; errors name the file.

    Lightning writes a local checkpoint to a temporary file in the system's folder for these and moves it, which is no
    single step if that folder is on another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        """Write a checkpoint as a whole or not at all.

        Raises:
            InputError: it cannot be written; an older file of that name is intact.
        """
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with open_atomically(UPath(path)) as file:
                file.write(content.getbuffer())
        except InputError as error:  # FILE cannot be written: REASON
            raise InputError(f"the checkpoint {error}") from error

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            InputError: it is damaged.
        """
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            if is_uri(path) or is_zipfile(path):  # another reason, such as too little memory
                raise
            reason = f"is damaged ({first_line(error)}): remove it to train anew"
            raise InputError(f"the checkpoint {path} {reason}") from error


def checkpoint_callbacks(folder: Path, task_name: str) -> list[ModelCheckpoint]:
    """Return the callbacks that write ``best.ckpt`` and ``last.ckpt``.

    Args:
        folder: folder of the run.
        task_name: ``classifier``, ``boundary network`` or ``segmentation``.
    """
    options: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **options)
    if task_name not in BEST_BY:
        return [last]
    options |= {"monitor": BEST_BY[task_name], "mode": "max", "save_on_train_epoch_end": False}
    return [BestCheckpoint(filename="best", **options), last]


class LogProgress(pl.Callback):
    """Reports epoch, step, loss, steps per second and the time left of the whole training in a log file.

    The time left includes validations, as long as those so far.
    """

    def __init__(self) -> None:
        self._progress = Progress("")
        self._batches = 0  # of this validation or test

    def on_train_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Start to report the training; a resumed one from the step at which it resumes."""
        total, done = trainer.estimated_stepping_batches, trainer.global_step
        self._progress = Progress("training", total, "steps", done=done, status=epoch_of(trainer)).start()

    def on_train_batch_end(self, trainer: pl.Trainer, _task: pl.LightningModule, *hook: Any) -> None:
        """Report a step."""
        outputs, _batch, index = hook
        step = f"step {index + 1}/{trainer.num_training_batches}"
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # by which Lightning has divided it
        status = f"{epoch_of(trainer)}, {step}, loss {loss:.4g}"
        self._progress.update(done=trainer.global_step, status=status)

    def on_validation_start(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Start to report a validation or a test, unless it is part of a training."""
        self._batches = 0
        if trainer.state.fn != TrainerFn.FITTING:
            total = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
            self._progress = Progress("testing" if trainer.testing else "validating", total, "batches").start()

    def on_validation_batch_end(self, trainer: pl.Trainer, *_hook: Any) -> None:
        """Report a batch; within a training as its status."""
        self._batches += 1
        if trainer.state.fn != TrainerFn.FITTING:
            self._progress.update(done=self._batches)
        else:
            total = sum(trainer.num_val_batches)
            self._progress.update(status=f"{epoch_of(trainer)}, validation batch {self._batches}/{total}")

    def on_validation_end(self, trainer: pl.Trainer, _task: pl.LightningModule) -> None:
        """Stop, unless a training continues."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._progress.stop()

    def on_train_end(self, *_hook: Any) -> None:
        """Stop."""
        self._progress.stop()

    on_test_start = on_validation_start  # type: ignore[assignment]
    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_test_end = on_validation_end  # type: ignore[assignment]

    def on_exception(self, *_hook: Any) -> None:
        """Stop where the run does."""
        self._progress.stop(finished=False)


def epoch_of(trainer: pl.Trainer) -> str:
    """Return the number of the epoch, and how many there are if that is known."""
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")
