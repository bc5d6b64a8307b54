"""A network made quicker for training, and the same in what it computes and in the names of its weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from datamodules.errors import InputError

__all__ = ["prepare"]


def prepare(network: nn.Module, settings: Mapping[str, Any], device: torch.device) -> None:
    """Prepare a network for training, in place.

    Both settings are of the training alone: what is loaded from its checkpoints (to evaluate, predict, export, or to
    ask for seeds) is plain.

    Args:
        network: the network.
        settings: ``channels_last``: weights, and with them the maps that convolutions give, lie in memory with their
            channels last, whichever way the images lie; ``compile``: torch compiles the network when it is first
            called, and again for another mode or shape of batch.
        device: where it will run.

    Raises:
        InputError: torch cannot compile on this machine.
    """
    if settings["channels_last"]:
        network.to(memory_format=torch.channels_last)
    if settings["compile"]:
        _try_compiler(device)
        network.compile()  # unlike torch.compile(network), which names all weights anew


def _try_compiler(device: torch.device) -> None:
    try:
        # without what an earlier run has compiled, which would hide that there is no compiler any more
        torch.compile(torch.square, options={"force_disable_caches": True})(torch.ones(2, device=device))
    except RuntimeError as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"compile: torch cannot compile for {device.type} on this machine ({line}); it needs a C++ compiler such "
            "as g++, and Triton for GPUs: install them, or leave compile out"
        ) from error
