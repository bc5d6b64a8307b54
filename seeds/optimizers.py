"""Parameter groups with their learning rates and weight decays, and learning rate schedules."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "poly", "cosine", "constant"]
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # noqa: SLF001  every batch and instance norm
POLY_POWER = 0.9  # DeepLab's


def parameter_groups(
    network: nn.Module,
    head: Iterable[nn.Module],
    *,
    lr: float,
    weight_decay: float,
    head_lr_scale: float,
    bias_lr_scale: float,
) -> list[dict[str, Any]]:
    """Split the trained parameters into groups by learning rate and weight decay.

    SEC's solver file, after DeepLab's: rate x1 for weights and x2 for biases, x10 and x20 in the last layer, no decay
    of biases. Scales and offsets of normalisation layers have no decay either.

    Args:
        network: the network; parameters without ``requires_grad`` are left out.
        head: its newly initialised layers.
        lr: learning rate of the weights outside the head.
        weight_decay: decay of weights (convolutions and matrices).
        head_lr_scale: factor on the rate in the head.
        bias_lr_scale: factor on the rate of biases.

    Returns:
        Non-empty groups for an optimizer, each with ``name``: body or head, and weight, norm or bias.
    """
    in_head = {id(parameter) for module in head for parameter in module.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            part = "head" if id(parameter) in in_head else "body"
            is_norm = isinstance(module, NORMS)
            is_bias = name == "bias" and not is_norm
            kind = "bias" if is_bias else "weight" if parameter.ndim > 1 and not is_norm else "norm"
            group = {
                "name": f"{part}.{kind}",
                "params": [],
                "lr": lr * (head_lr_scale if part == "head" else 1.0) * (bias_lr_scale if is_bias else 1.0),
                "weight_decay": weight_decay if kind == "weight" else 0.0,
            }
            groups.setdefault(f"{part}.{kind}", group)["params"].append(parameter)
    return list(groups.values())


def rate_factor(
    iteration: int,
    schedule: Schedule,
    *,
    total: float,
    step_size: float = 2000,
    step_gamma: float = 0.1,
    warmup_steps: float = 0,
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
        return rise * step_gamma ** math.floor(iteration / step_size)
    if schedule == "constant":
        return rise
    done = min(1.0, iteration / total)
    return rise * ((1 - done) ** POLY_POWER if schedule == "poly" else (1 + math.cos(math.pi * done)) / 2)
