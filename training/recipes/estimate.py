"""What the trainings of a recipe will take: images, steps, hours and memory, before any of them runs."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from datamodules.errors import InputError
from seeds.base_task import BaseTask, batch_norm_errors
from seeds.precision import computes_bfloat16
from training.recipes.input_checks import InputChecks, build_task, open_training_data

GPU_NAMES = ("auto", "gpu", "cuda")  # accelerators that are a GPU where there is one
LIGHTNING_EPOCHS = 1000  # of a training that has no limit
TIMED_STEPS = 2
CPU_IMAGES = 2  # of a timed step on a processor, on which the time is proportional to the images


class TrainingEstimate(NamedTuple):
    """What a training takes.

    Attributes:
        images: number of training images.
        steps: updates of the weights.
        hours: of the network's forward and backward passes in a process on this machine; images are read and augmented
            beside them, and validations are not counted.
        operations: floating-point operations of the same passes in all processes, matrix products and convolutions
            alone.
        memory: bytes of weights, gradients, optimizer and activations at the batch size.
    """

    images: int
    steps: int
    hours: float
    operations: float
    memory: int


def estimate_training(options: Mapping[str, Any], checks: InputChecks | None = None) -> TrainingEstimate:
    """Estimate a training by two steps of its network on random images, and by the list of its training images.

    Args:
        options: options of ``tag2mask fit``; seed caches and other results of earlier stages need not exist.
        checks: checks and timed steps of earlier stages, which are not repeated.

    Raises:
        InputError: the data or the weights do not exist or are refused by the training, or an option is invalid.
    """
    trainer, data = dict(options.get("trainer") or {}), open_training_data(options)
    checks = checks or InputChecks()
    images, task = checks.check_images(data), build_task(options, data)
    batch_size, size = data.hparams["batch_size"], data.hparams["size"]
    accelerator, accumulated = trainer.get("accelerator") or "auto", trainer.get("accumulate_grad_batches") or 1
    processes = process_count(accelerator, trainer.get("devices") or "auto", trainer.get("num_nodes") or 1)
    drawn = max(images, data.hparams["min_images_per_epoch"])  # of an epoch, as `datamodules.samplers.TrainSampler`
    max_steps, max_epochs = trainer.get("max_steps"), trainer.get("max_epochs")
    max_steps = -1 if max_steps is None else max_steps
    if max_epochs is None:
        max_epochs = LIGHTNING_EPOCHS if max_steps < 0 else -1
    batches = max(1, drawn // (batch_size * accumulated * processes)) * accumulated  # of an epoch, in each process
    if (limit := trainer.get("limit_train_batches")) is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    limits = [max_steps, math.ceil(batches / accumulated) * max_epochs]
    steps = min((each for each in limits if each >= 0), default=None)  # -1 is no limit
    if steps is None:
        raise InputError("trainer: max_epochs is -1 and there is no max_steps: the training has no end")
    precision = trainer.get("precision") or "auto"
    trained = sum(each.numel() for each in task.parameters() if each.requires_grad)
    step = f"{task} {trained} {batch_size} {size} {accelerator} {precision}"
    if step not in checks.timed_steps:
        checks.timed_steps[step] = time_step(task, batch_size, size, str(accelerator), str(precision))
    seconds, operations, memory = checks.timed_steps[step]
    passes = steps * accumulated
    return TrainingEstimate(images, steps, passes * seconds / 3600, passes * operations * processes, memory)


def process_count(accelerator: str, devices: Any, num_nodes: int) -> int:
    """Return the number of processes of a training from options of Lightning's Trainer.

    Args:
        accelerator: name of the device.
        devices: a number, a list of devices such as ``[0, 1]`` or ``0,1``, or all: ``auto``, -1.
        num_nodes: number of machines.

    Raises:
        InputError: ``devices`` is something else.
    """
    words = devices if isinstance(devices, list) else [word for word in str(devices).split(",") if word.strip()]
    if isinstance(devices, list) or "," in str(devices):
        return len(words) * num_nodes
    if devices in ("auto", "-1", -1):
        return max(1, torch.cuda.device_count() if accelerator in GPU_NAMES else 1) * num_nodes
    try:
        return int(devices) * num_nodes
    except ValueError as error:
        raise InputError(f"trainer: devices is {devices!r}, and must be a number, a list or auto") from error


def time_step(task: BaseTask, batch_size: int, size: int, accelerator: str, precision: str) -> tuple[float, int, int]:
    """Return seconds, floating-point operations and bytes of a training step.

    A step is a forward and a backward pass of the network on random images.

    On a GPU the whole batch is computed and its memory measured. On a processor a few images are, and all figures are
    scaled to the batch; the bytes are those of the weights, their gradients, two moments, and the saved activations.

    Args:
        task: the task; its weights change.
        batch_size: images per step.
        size: side of the images in pixels.
        accelerator: Lightning's name of the device.
        precision: Lightning's name, or ``auto``.

    Raises:
        InputError: the batch does not fit into the memory of the GPU.
    """
    device = torch.device("cuda" if accelerator in GPU_NAMES and torch.cuda.is_available() else "cpu")
    bfloat16 = computes_bfloat16(accelerator) if precision == "auto" else precision.startswith("bf16")
    count = batch_size if device.type == "cuda" else min(batch_size, CPU_IMAGES)
    network: nn.Module = task.train().to(device)
    network.to(memory_format=torch.channels_last)
    images = torch.randn(count, int(task.hparams["in_channels"]), size, size, device=device)
    saved: dict[int, int] = {}  # bytes of the tensors kept for the backward pass, by address

    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: convolution_backward_operations}
    )

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            scores: Tensor = network(images)
        torch.autograd.backward(scores.float().logsumexp(dim=1).mean())
        network.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()

    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()  # of an earlier network
        with batch_norm_errors(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), counter:
            step()
        start = time.perf_counter()
        for _ in range(TIMED_STEPS):
            step()
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"a batch of {batch_size} images of {size} x {size} pixels does not fit into the GPU"
        ) from error
    seconds = (time.perf_counter() - start) / TIMED_STEPS * batch_size / count
    operations = counter.get_total_flops() * batch_size // count
    trained = sum(each.numel() for each in network.parameters() if each.requires_grad)
    if device.type == "cuda":
        return seconds, operations, torch.cuda.max_memory_allocated() + 8 * trained  # and Adam's two moments
    own = {each.untyped_storage().data_ptr() for each in (*network.parameters(), *network.buffers())}
    activations = sum(size for address, size in saved.items() if address not in own)
    weights = sum(each.numel() for each in network.parameters())
    return seconds, operations, 4 * weights + 12 * trained + activations * batch_size // count


def convolution_backward_operations(
    gradient: Sequence[int], images: Sequence[int], weight: Sequence[int], *options: Any, **_more: Any
) -> int:
    """Return the operations of a convolution's backward pass; torch's own formula counts groups as a full convolution.

    Each of the gradients of images and weights is as many operations as the convolution itself.

    Args:
        gradient: shape of the gradient of the convolution's output.
        images: shape of its input.
        weight: shape of its weights.
        options: the other arguments of ``aten::convolution_backward``.
    """
    *_, transposed, _padding, _groups, wanted = options[:8]
    gradients: int = sum(wanted[:2])  # of the input, and of the weights
    return gradients * conv_flop_count(list(images), list(weight), list(gradient), transposed)
