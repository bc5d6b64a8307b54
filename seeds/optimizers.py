"""How a network is optimised, classifier or segmentation: rates by layer, solvers, schedules."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "poly", "cosine", "constant"]


def parameter_groups(
    network: nn.Module,
    head: Iterable[nn.Module],
    *,
    lr: float,
    weight_decay: float,
    head_lr_scale: float,
    bias_lr_scale: float,
) -> list[dict[str, Any]]:
    """Split what is trained into groups by rate and decay.

    SEC's solver file, after DeepLab's: rate x1 for weights and x2 for biases, x10 and x20 in the last layer, no decay
    of biases. Scales and offsets of normalisation layers are not decayed either.

    Args:
        network: the network; parameters that need no gradient are left out.
        head: its fresh layers.
        lr: rate of the body's weights.
        weight_decay: decay of weights (convolutions and matrices).
        head_lr_scale: factor on the rate in the head.
        bias_lr_scale: factor on the rate of biases.

    Returns:
        Non-empty groups for an optimizer, each with ``name``: body or head, and weight, norm or bias.
    """
    in_head = {id(p) for module in head for p in module.parameters()}
    groups: dict[str, dict[str, Any]] = {}
    for module, name, parameter in _own_parameters(network):
        if not parameter.requires_grad:
            continue
        is_head, is_norm = id(parameter) in in_head, _is_norm(module)
        is_bias = name == "bias" and not is_norm
        kind = "bias" if is_bias else "weight" if parameter.ndim > 1 and not is_norm else "norm"
        key = f"{'head' if is_head else 'body'}.{kind}"
        rate = lr * (head_lr_scale if is_head else 1.0) * (bias_lr_scale if is_bias else 1.0)
        decay = weight_decay if kind == "weight" else 0.0
        groups.setdefault(key, {"name": key, "params": [], "lr": rate, "weight_decay": decay})["params"].append(
            parameter
        )
    return list(groups.values())


def build_optimizer(groups: list[dict[str, Any]], optimizer: Optimizer, *, momentum: float) -> torch.optim.Optimizer:
    """SGD (with ``momentum``, not Nesterov's) or AdamW over groups that carry their own rates and decays."""
    if optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=momentum)
    return torch.optim.AdamW(groups)


def build_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule, **settings: float) -> LambdaLR:
    """A scheduler, stepped once an iteration, that multiplies every group's rate by `rate_factor`."""
    return LambdaLR(optimizer, lambda iteration: rate_factor(iteration, schedule, **settings))


def rate_factor(
    iteration: int,
    schedule: Schedule,
    *,
    total: float,
    step_size: float = 2000,
    step_gamma: float = 0.1,
    poly_power: float = 0.9,
    warmup: float = 0,
) -> float:
    """The factor on all rates at an iteration, counted from 0.

    Args:
        iteration: number of updates already made.
        schedule: ``step``: times ``step_gamma`` after every ``step_size`` updates (SEC: 0.1, 2000), so never at
            iteration 0; ``poly``: (1 - iteration / total) ^ ``poly_power`` (DeepLab: 0.9); ``cosine``: half a cosine
            wave from 1 to 0; ``constant``.
        total: updates of the whole training, infinite for one without end; ``poly`` and ``cosine`` look at it.
        step_size: see ``step``.
        step_gamma: see ``step``.
        poly_power: see ``poly``.
        warmup: number of first updates over which the rate also rises linearly, from 1 / (warmup + 1).

    Returns:
        The factor, at least 0.
    """
    rise = min(1.0, (iteration + 1) / (warmup + 1))
    if schedule == "step":
        return rise * step_gamma ** math.floor(iteration / step_size)
    if schedule == "constant":
        return rise
    done = min(1.0, iteration / total)
    return rise * ((1 - done) ** poly_power if schedule == "poly" else (1 + math.cos(math.pi * done)) / 2)


def _own_parameters(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    seen: set[int] = set()
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)  # noqa: SLF001
