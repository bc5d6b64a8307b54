"""Several processes: partitions of work, how many processes were launched, and values they exchange."""

import os
import re
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import, and the command line checks processes before any command
    import pytorch_lightning as pl
    from torch import Tensor

# For each launcher, a variable that it always sets and the variable that holds its number of processes.
_LAUNCHERS = {"TORCHELASTIC_RUN_ID": "WORLD_SIZE", "SLURM_STEP_ID": "SLURM_STEP_NUM_TASKS"}


def read_partition(partition: str) -> tuple[int, int]:
    """Return i and N of a partition ``i/N``: the i-th of N independent jobs, counted from 0.

    Raises:
        InputError: the text is no partition.
    """
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", partition)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"partition must be i/N with i from 0 to N-1, such as 2/10, not {partition!r}")
    return int(match[1]), int(match[2])


def is_independent(partition: str, devices: Any) -> bool:
    """Return whether this process, one of several that torchrun or srun launched, computes a partition on its own.

    With ``devices`` above 1 the launched processes share the partition instead.
    """
    return read_partition(partition)[1] > 1 and devices in ("auto", 1, "1") and _launched_processes()[0] > 1


def exit_reason(leave: SystemExit) -> BaseException:
    """Return what an exit that Lightning raises stands for, after it has stopped the other processes.

    Returns:
        KeyboardInterrupt for Ctrl-C; for SIGTERM, whose exception has no status and would end a process with 0, an
        exit with 143; otherwise the exit itself.
    """
    if type(leave) is not SystemExit:  # Lightning's SIGTERMException
        return SystemExit(128 + signal.SIGTERM)
    return KeyboardInterrupt() if leave.code == 1 else leave


def local_rank() -> int:
    """Return the number of this process among those that torchrun or srun launched on this machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def launched_devices(devices: Any, num_nodes: int) -> tuple[Any, int]:
    """Return Lightning's ``devices`` and ``num_nodes``, taken from torchrun where it launched this process.

    torchrun's numbers replace ``devices`` of ``auto`` or 1 (the value in every YAML) only.

    Args:
        devices: the option: a number, a list or ``auto``.
        num_nodes: the option.
    """
    if devices in ("auto", 1, "1") and "LOCAL_WORLD_SIZE" in os.environ and "TORCHELASTIC_RUN_ID" in os.environ:
        each = int(os.environ["LOCAL_WORLD_SIZE"])
        return each, int(os.environ["WORLD_SIZE"]) // each
    return devices, num_nodes


def check_process_count(trainer: "pl.Trainer") -> None:
    """Check that as many processes were launched, or will be, as ``devices`` and ``num_nodes`` demand.

    Otherwise each process would do all of the work and overwrite the files of the others; or fewer devices than
    demanded would compute, with fewer images in each step.

    Args:
        trainer: a trainer that has not started processes yet.

    Raises:
        InputError: torchrun or srun launched another number of processes; or a job of SLURM that srun did not start
            expects as many as it has tasks.
    """
    count, variable = _launched_processes()
    demanded = trainer.num_devices * trainer.num_nodes
    if count not in (1, demanded):
        raise InputError(f"{count} processes were started ({variable}), but devices x num_nodes is {demanded}")
    if trainer.world_size != demanded:  # Lightning leaves it to SLURM to start them
        problem = f"devices x num_nodes is {demanded}, and SLURM's job has {trainer.world_size} tasks (SLURM_NTASKS)"
        raise InputError(f"{problem}: start the command with srun, or set SLURM_JOB_NAME=bash")


def require_one_process(command: str) -> None:
    """Check that a command that runs in one process was launched once.

    Args:
        command: its name, for the message.

    Raises:
        InputError: torchrun or srun launched several processes.
    """
    count, variable = _launched_processes()
    if count > 1:
        started = f"{count} were started ({variable}={count})"
        raise InputError(f"{command} works in one process, and {started}: start it once, without torchrun or srun")


def mean_over_processes(value: "Tensor") -> "Tensor":
    """Return the mean of a scalar over all processes. All processes must call it.

    Args:
        value: tensor of shape ().

    Returns:
        float32, shape (), without gradient.
    """
    from torch import distributed

    mean = value.detach().float().clone()
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean


def wait_for_slower_processes() -> None:
    """Let processes wait for each other for a year from now on: some may have hours of work when others have finished.

    Lightning's limit of 30 minutes stays for the start, at which a process may be missing.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.distributed_c10d._set_pg_timeout(timedelta(days=365))  # noqa: SLF001  torch has no public name


def gather_objects(value: Any) -> list[Any]:
    """Return the values of all processes. All processes must call it.

    Args:
        value: the value of this process, which can be pickled.

    Returns:
        The values in order of rank.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _launched_processes() -> tuple[int, str]:
    """Return how many processes torchrun or srun launched, 1 without them, and the variable that holds the number."""
    for mark, variable in _LAUNCHERS.items():
        if mark in os.environ and variable in os.environ:
            return int(os.environ[variable]), variable
    return 1, ""
