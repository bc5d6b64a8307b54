"""Checkpoints: read without running anything they carry, and told apart by what they were trained for."""

import inspect
import pickle
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from datamodules.errors import InputError

HEADER = "tag2mask"  # the key under which every task of this project signs its checkpoints
VERSION = 1

Task = TypeVar("Task", bound=pl.LightningModule)


def sign(checkpoint: dict[str, Any], task: str) -> None:
    """Write into a checkpoint what it is; called by each task's ``on_save_checkpoint``."""
    checkpoint[HEADER] = {"task": task, "version": VERSION}


def read_file(path: str | Path) -> dict[str, Any]:
    """Load a dictionary saved by ``torch.save``, onto the CPU, refusing any file that would run code.

    Raises:
        InputError: there is no such file, it is cut short or not such a file, or it holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is refused: it is not a checkpoint of plain tensors and settings (it carries code, or is damaged)"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_checkpoint(path: str | Path, task: str) -> dict[str, Any]:
    """Read a checkpoint of this project, checking that it is one of ``task`` ("classifier" or "segmentation").

    Raises:
        InputError: as :func:`read_file`, or the checkpoint is of something else, or of a newer version.
    """
    checkpoint = read_file(path)
    header = checkpoint.get(HEADER)
    if not isinstance(header, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} was not written by tag2mask; a checkpoint of a {task} is needed here")
    if header.get("task") != task:
        raise InputError(f"{path} is a checkpoint of a {header.get('task')}; one of a {task} is needed here")
    if header.get("version") != VERSION:
        raise InputError(f"{path} is of checkpoint version {header.get('version')}; this program reads {VERSION}")
    return checkpoint


def load_task(path: str | Path, cls: type[Task]) -> Task:
    """Build the task a checkpoint was saved from, on the CPU and in eval mode.

    Only the arguments that ``cls`` takes are read from the checkpoint: Lightning's own loader would import and call
    whatever the file names as its "instantiator". Initial weights are not fetched again (``weights="none"``).
    The class says which checkpoints are its own by an attribute ``task_name``.

    Raises:
        InputError: as :func:`read_checkpoint`, or the weights do not fit the settings saved beside them.
    """
    checkpoint = read_checkpoint(path, str(getattr(cls, "task_name", "")))
    known = inspect.signature(cls).parameters
    settings = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key in known}
    if "weights" in known:
        settings["weights"] = "none"
    try:
        task = cls(**settings)
        task.load_state_dict(checkpoint["state_dict"])
    except InputError:
        raise
    except (RuntimeError, TypeError) as error:
        raise InputError(f"{path} does not fit the network its own settings describe: {_first_line(error)}") from error
    return task.eval()
