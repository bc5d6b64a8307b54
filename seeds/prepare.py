"""A network made ready for training: quicker where that is asked for, and fit for several processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from datamodules.errors import InputError

__all__ = ["prepare"]

PROBE_SIZE = 64  # side of the blank picture that tells which parameters the scores depend on


def prepare(network: nn.Module, settings: Mapping[str, Any], device: torch.device) -> None:
    """Prepare a network for training, in place, keeping the names of its weights and what it computes.

    All of it is of the training alone: what is loaded from checkpoints (to evaluate, predict, export, or to ask for
    seeds) is plain. Parameters that no score depends on, as those of stages beyond an encoder's depth, are frozen:
    several processes would wait for their gradients.

    Args:
        network: the network, still on the CPU.
        settings: ``channels_last``: weights, and with them the maps that convolutions give, lie in memory with their
            channels last, whichever way the pictures lie; ``compile``: torch compiles the network when it is first
            called, and again for another mode or shape of batch.
        device: where it will run.

    Raises:
        InputError: torch cannot compile on this machine.
    """
    _freeze_idle(network)
    if settings["channels_last"]:
        network.to(memory_format=torch.channels_last)
    if settings["compile"]:
        _try_compiler(device)
        network.compile()  # unlike torch.compile(network), which names all weights anew


def _freeze_idle(network: nn.Module) -> None:
    parameters = [each for each in network.parameters() if each.requires_grad]
    modes = [(module, module.training) for module in network.modules()]
    try:
        scores = network.eval()(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE))
        gradients = torch.autograd.grad(scores.sum(), parameters, allow_unused=True)
    except (AssertionError, RuntimeError, ValueError):  # a network of one picture size, which has no idle stages
        return
    finally:
        for module, mode in modes:
            module.training = mode
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _try_compiler(device: torch.device) -> None:
    try:
        torch.compile(torch.square)(torch.ones(2, device=device))
    except RuntimeError as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"compile: torch cannot compile for {device.type} on this machine ({line}); it needs a C++ compiler such "
            "as g++, and Triton for GPUs: install them, or leave compile out"
        ) from error
