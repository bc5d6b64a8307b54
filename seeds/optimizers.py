"""Parameter groups with their learning rates and weight decays, and learning rate schedules."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["step", "poly", "cosine", "constant"]
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)  # noqa: SLF001  every batch and instance norm
POLY_POWER = 0.9  # DeepLab's


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
        return rise * step_gamma ** math.floor(iteration / step_size)
    if schedule == "constant":
        return rise
    done = min(1.0, iteration / total)
    return rise * ((1 - done) ** POLY_POWER if schedule == "poly" else (1 + math.cos(math.pi * done)) / 2)
