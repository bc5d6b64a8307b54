"""How torchrun or srun started this process: one of how many."""

import os
from typing import Any

from datamodules.errors import InputError

__all__ = ["as_started", "check_started", "one_process"]

# what is set where they are at work, and where each says how many processes it started
STARTERS = {"TORCHELASTIC_RUN_ID": "WORLD_SIZE", "SLURM_STEP_ID": "SLURM_STEP_NUM_TASKS"}


def started() -> tuple[int, str]:
    """How many processes were started, this one among them, and the variable that says so."""
    for mark, name in STARTERS.items():
        if mark in os.environ and name in os.environ:
            return int(os.environ[name]), name
    return 1, ""


def as_started(devices: Any, num_nodes: int) -> tuple[Any, int]:
    """Lightning's ``devices`` and ``num_nodes``; where ``devices`` is auto, as torchrun says that it started this.

    So it is where ``devices`` is 1, as in the YAMLs: torchrun was told how many there are to be.
    """
    if devices in ("auto", 1, "1") and "LOCAL_WORLD_SIZE" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    return devices, num_nodes


def check_started(world_size: int) -> None:
    """Raise an InputError unless as many processes were started as will work together.

    Others would each do all of the work, and write over each other's files.
    """
    count, name = started()
    if count not in (1, world_size):
        raise InputError(
            f"{count} processes were started ({name}={count}), and devices and num_nodes make {world_size}: give the "
            "number of processes on each machine as devices, and of machines as num_nodes"
        )


def one_process(command: str) -> None:
    """Raise an InputError if a command that works in one process was started several times."""
    count, name = started()
    if count > 1:
        raise InputError(
            f"{command} works in one process, and {count} were started ({name}={count}): start it once, without "
            "torchrun or srun; fit, validate, test, seeds generate, seeds refine and pseudo-label share their work "
            "among several"
        )
