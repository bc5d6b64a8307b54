"""A profiler for Lightning that assigns each moment of a training step to one part of the step."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from training import segmentation_task as task

NETWORK = ("forward", "backward", "optimizer")
PARTS = ("data", *NETWORK, "losses", "CRF", "callbacks", "logging", "loop")
FETCH = "train_dataloader_next"  # with this a step begins
# What Lightning calls its actions, and the part they belong to; nested actions count for the action that contains them.
ACTIONS = (
    (FETCH, "data"),
    ("batch_to_device", "data"),
    ("batch_transfer", "data"),
    ("[Callback]", "callbacks"),
    ("training_step", "losses"),  # the network and the CRF are taken out of it again
    (".backward", "losses"),  # until the gradient is at the scores
    ("optimizer_step", "optimizer"),
    ("optimizer_zero_grad", "optimizer"),
    ("lr_scheduler_step", "optimizer"),
)
# Parts that are no actions of Lightning's.
PLACES = (
    (task, "dense_crf", "CRF"),
    (task, "resize_images", "CRF"),
    (pl.LightningModule, "log", "logging"),
    (pl.LightningModule, "log_dict", "logging"),
    (_LoggerConnector, "update_train_step_metrics", "logging"),
)
Seconds = dict[str, list[float]]  # of each part: by the wall's clock, and on all of this process's cores


class Stopwatch(Profiler):
    """Adds up, step by step, the time of each part; of parts within parts, the innermost is at work.

    The backward pass counts as the losses' until the gradient arrives at the network's scores. What is left over of a
    step is Lightning's own ("loop").

    Attributes:
        steps: of each finished step, seconds by part.
        workers: CPU seconds that the loader's processes had used when each of them began, and when the next did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Seconds] = []
        self.workers: list[float] = []
        self._stack = ["loop"]
        self._step: Seconds | None = None
        self._last = (0.0, 0.0)

    def start(self, action_name: str) -> None:
        """Lightning begins something."""
        if FETCH in action_name:
            self._begin_step()
        self._turn()
        self._stack.append(next((part for end, part in ACTIONS if end in action_name), self._stack[-1]))

    def stop(self, action_name: str) -> None:  # noqa: ARG002  Lightning's signature
        """Lightning has ended it."""
        self._turn()
        self._stack.pop()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """While within, time is this part's."""
        self._turn()
        self._stack.append(name)
        yield
        self._turn()
        self._stack.pop()

    def _begin_step(self) -> None:
        self._turn()
        if self._step is not None:
            self.steps.append(self._step)
        self._step = {part: [0.0, 0.0] for part in PARTS}
        self.workers.append(workers_seconds())

    def _turn(self) -> None:
        now = (time.perf_counter(), time.process_time())
        if self._step is not None:
            for i in (0, 1):
                self._step[self._stack[-1]][i] += now[i] - self._last[i]
        self._last = now

    def _arrived(self, _gradient: torch.Tensor) -> None:
        self._turn()
        self._stack[-1] = "backward"

    def _timed(self, part: str, function):
        def timed(*args, **kwargs):
            with self.part(part):
                return function(*args, **kwargs)

        return timed

    def _forward(self, function):
        def forward(*args, **kwargs):
            with self.part("forward"):
                scores = function(*args, **kwargs)
            if scores.requires_grad:
                scores.register_hook(self._arrived)
            return scores

        return forward

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While within, every `Trainer.fit` is watched: a task's network, its CRF and what it logs."""
        fit = pl.Trainer.fit

        def watched(trainer: pl.Trainer, model: pl.LightningModule, *args, **kwargs) -> None:
            trainer.profiler = self
            network = getattr(model, "network", None) or model.model
            network.forward = self._forward(network.forward)
            fit(trainer, model, *args, **kwargs)

        with ExitStack() as changes:
            changes.enter_context(mock.patch.object(pl.Trainer, "fit", watched))
            for owner, name, part in PLACES:
                timed = self._timed(part, getattr(owner, name))
                changes.enter_context(mock.patch.object(owner, name, timed))
            yield


def workers_seconds() -> float:
    """CPU seconds that this process's children have used so far; 0 where the system has no /proc."""
    total = 0.0
    for child in multiprocessing.active_children():
        file = Path(f"/proc/{child.pid}/stat")
        if file.is_file():
            user, system = file.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total
