"""The base class of all training tasks: solver options, optimizer and schedule, memory layout, checkpoint signing."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from datamodules.errors import InputError, first_line, require_choice

SIGNATURE = "tag2mask"  # the key in a checkpoint under which a task signs it
VERSION = 1  # of the checkpoints
UPDATES = "epoch_updates"  # the key in a checkpoint of the updates of an epoch
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "poly", "cosine", "constant"]
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # noqa: SLF001  every batch and instance norm
POLY_POWER = 0.9  # DeepLab's


class BaseTask(pl.LightningModule):
    """A network and how it is trained. The defaults are the numbers of SEC.

    The memory layout and compilation belong to the training alone: a network loaded from a checkpoint has neither.

    Args:
        in_channels: channels of the images; the command line takes it from the data.
        optimizer: ``sgd`` or ``adamw``.
        lr: learning rate of pretrained weights.
        momentum: SGD's momentum; AdamW ignores it.
        weight_decay: decay of weights; biases and normalisation layers have none.
        head_lr_scale: factor on the rate of newly initialised layers (decoder and head).
        bias_lr_scale: factor on the rate of biases; those of normalisation layers have none.
        schedule: ``step``; ``poly`` (power 0.9) or ``cosine``, to 0 over the whole training; or ``constant``.
        step_size: iterations between steps.
        step_gamma: factor of a step.
        warmup_steps: first iterations during which the rate rises linearly.
        compile: train a network compiled by ``torch.compile``.

    Raises:
        InputError: a number is out of range, or there is no such optimizer or schedule.
    """

    task_name: str  # the name of the task in its checkpoints
    classes: tuple[str, ...]  # names of the classes, without background
    epoch_updates: int | None = None  # updates of an epoch; None where max_steps ends the training
    resumed_updates: int | None = None  # the same, of the training that is resumed

    def __init__(
        self,
        *,
        in_channels: int = 3,
        optimizer: Optimizer = "sgd",
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        head_lr_scale: float = 10.0,
        bias_lr_scale: float = 2.0,
        schedule: Schedule = "step",
        step_size: int = 2000,
        step_gamma: float = 0.1,
        warmup_steps: int = 0,
        compile: bool = False,  # noqa: A002  torch's name
    ) -> None:
        super().__init__()
        self.save_arguments(locals())
        require_choice("optimizer", optimizer, get_args(Optimizer))
        require_choice("schedule", schedule, get_args(Schedule))
        numbers = {"lr": lr, "weight_decay": weight_decay, "step_gamma": step_gamma}
        numbers |= {"head_lr_scale": head_lr_scale, "bias_lr_scale": bias_lr_scale}
        if wrong := next((f"{name} {value}" for name, value in numbers.items() if not 0 <= value < math.inf), None):
            raise InputError(f"{wrong} is not a number from 0 up")
        if not 0 <= momentum < 1:
            raise InputError(f"momentum {momentum} is not a number from 0 up to 1")
        if step_size < 1 or warmup_steps < 0:
            raise InputError(f"step_size {step_size} must be positive, and warmup_steps {warmup_steps} not negative")

    def save_arguments(self, arguments: dict[str, Any]) -> None:
        """Save the arguments of ``__init__``, given as its ``locals()``, as hyperparameters.

        They are saved by name: what Lightning would save under the command line lacks the classes, which come from the
        data.
        """
        own = {name: value for name, value in arguments.items() if name not in ("self", "kwargs", "__class__")}
        self.save_hyperparameters(own)

    @abstractmethod
    def network_and_head(self) -> tuple[nn.Module, Sequence[nn.Module]]:
        """Return the network to train and its newly initialised layers."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's scores, before softmax or sigmoid, of normalised images (B, in_channels, H, W)."""
        scores: Tensor = self.network_and_head()[0](images)
        return scores

    def setup(self, stage: str) -> None:
        """Lay out the network's weights with channels last, which is faster, and apply ``compile`` before training.

        Raises:
            InputError: torch cannot compile on this machine.
        """
        network, _ = self.network_and_head()
        if stage != "fit":
            return
        network.to(memory_format=torch.channels_last)
        if self.hparams["compile"]:
            check_compiler(self.trainer.strategy.root_device)
            network.compile()  # torch.compile(network) would rename all weights

    @property
    def stage(self) -> str:
        """The first part of the names of validation metrics: ``val``, or ``test`` while testing."""
        return "test" if self.trainer.testing else "val"

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, which is stepped every iteration.

        Raises:
            InputError: a schedule over the whole training, and a training without end.
        """
        options, is_sgd = self.hparams, self.hparams["optimizer"] == "sgd"
        groups = parameter_groups(*self.network_and_head(), options)
        optimizer = torch.optim.SGD(groups, momentum=options["momentum"]) if is_sgd else torch.optim.AdamW(groups)
        schedule, total = options["schedule"], float(self.trainer.estimated_stepping_batches)
        if schedule in ("poly", "cosine") and total == float("inf"):
            raise InputError(f"schedule {schedule!r} needs the trainer's max_epochs or max_steps: an end of training")
        numbers = {name: options[name] for name in ("step_size", "step_gamma", "warmup_steps")}
        scheduler = LambdaLR(optimizer, lambda iteration: rate_factor(iteration, schedule, total, **numbers))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Count the updates of an epoch.

        Raises:
            InputError: the schedule is one over the whole training, and the epochs of the training that is resumed have
                another number of updates.
        """
        schedule = self.hparams["schedule"]
        if self.trainer.max_steps == -1 and (epochs := self.trainer.max_epochs or -1) > 0:
            self.epoch_updates = round(self.trainer.estimated_stepping_batches / epochs)
        known = None not in (self.epoch_updates, self.resumed_updates)
        if schedule in ("poly", "cosine") and known and self.epoch_updates != self.resumed_updates:
            kept = f"an epoch of the checkpoint has {self.resumed_updates} updates, not {self.epoch_updates}"
            advice = "resume with its images, and its product of devices, batch_size and accumulate_grad_batches"
            raise InputError(f"{kept}, and the {schedule} schedule counts them: {advice}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Sign the checkpoint, as `seeds.checkpoints.read_checkpoint` checks, and store the updates of an epoch."""
        checkpoint[SIGNATURE] = {"task": self.task_name, "version": VERSION}
        checkpoint[UPDATES] = self.epoch_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read the updates of an epoch of the resumed training, which `on_fit_start` compares."""
        self.resumed_updates = checkpoint.get(UPDATES)


def parameter_groups(network: nn.Module, head: Iterable[nn.Module], options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Split the trained parameters into groups by learning rate and weight decay.

    SEC's solver file, after DeepLab's: rate x1 for weights and x2 for biases, x10 and x20 in the last layer, no decay
    of biases. Scales and offsets of normalisation layers have no decay either.

    Args:
        network: the network; parameters without ``requires_grad`` are left out.
        head: its newly initialised layers.
        options: ``lr`` of the weights outside the head, ``weight_decay`` of weights (convolutions and matrices), and
            the factors ``head_lr_scale`` on the rate in the head and ``bias_lr_scale`` on the rate of biases.

    Returns:
        Non-empty groups for an optimizer, each with ``name``: body or head, and weight, norm or bias.
    """
    in_head = {id(parameter) for module in head for parameter in module.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for path, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        owner, _, name = path.rpartition(".")
        is_norm, is_head = isinstance(network.get_submodule(owner), NORMS), id(parameter) in in_head
        is_bias = name == "bias" and not is_norm
        kind = "bias" if is_bias else "weight" if parameter.ndim > 1 and not is_norm else "norm"
        key = f"{'head' if is_head else 'body'}.{kind}"
        scale = (options["head_lr_scale"] if is_head else 1.0) * (options["bias_lr_scale"] if is_bias else 1.0)
        decay = options["weight_decay"] if kind == "weight" else 0.0
        group = {"name": key, "params": [], "lr": options["lr"] * scale, "weight_decay": decay}
        groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


def rate_factor(
    iteration: int, schedule: Schedule, total: float, *, step_size: int, step_gamma: float, warmup_steps: int
) -> float:
    """Return the factor on all learning rates at an iteration, counted from 0.

    Args:
        iteration: number of updates made so far.
        schedule: ``step``: times ``step_gamma`` after every ``step_size`` updates (SEC: 0.1, 2000), so never at
            iteration 0; ``poly``: (1 - iteration / total) ^ 0.9; ``cosine``: half a cosine wave from 1 to 0;
            ``constant``.
        total: updates of the whole training, may be infinite; used by ``poly`` and ``cosine``.
        step_size: see ``step``.
        step_gamma: see ``step``.
        warmup_steps: number of first updates during which the rate rises linearly, from 1 / (warmup_steps + 1).

    Returns:
        The factor, at least 0.
    """
    rise = min(1.0, (iteration + 1) / (warmup_steps + 1))
    if schedule == "step":
        return rise * step_gamma ** (iteration // step_size)
    if schedule == "constant":
        return rise
    done = min(1.0, iteration / total)
    return rise * ((1 - done) ** POLY_POWER if schedule == "poly" else (1 + math.cos(math.pi * done)) / 2)


@contextmanager
def batch_norm_errors() -> Iterator[None]:
    """Turn torch's ValueError about a batch norm of a single value per channel into an InputError."""
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise InputError("a batch norm of this network needs two images in a batch: raise batch_size") from error


def check_compiler(device: torch.device) -> None:
    """Raise an InputError if torch cannot compile for a device on this machine."""
    try:
        # without the results of earlier runs, which would hide that the compiler is missing
        torch.compile(torch.square, options={"force_disable_caches": True})(torch.ones(2, device=device))
    except RuntimeError as error:
        needed = f"torch cannot compile for {device.type} on this machine ({first_line(error)})"
        raise InputError(f"compile: {needed}; it needs a C++ compiler such as g++, and Triton for GPUs") from error
