"""Reading of checkpoints without running code from them, and checks that a checkpoint is of the right task."""

import inspect
import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError

from datamodules.errors import InputError, first_line
from datamodules.files import AnyPath, is_uri, read_bytes
from seeds.base_task import SIGNATURE, VERSION, BaseTask

Task = TypeVar("Task", bound=BaseTask)


def read_file(path: str | AnyPath) -> dict[str, Any]:
    """Load a dictionary saved by ``torch.save`` onto the CPU, or a ``.safetensors``; a file with code is refused.

    Raises:
        InputError: there is no such file, it is truncated or of another kind, or it holds more than plain data.
    """
    refuse_folder_of_run(path)
    try:
        if str(path).endswith(".safetensors"):
            return dict(safetensors.torch.load(read_bytes(path)))
        file = io.BytesIO(read_bytes(path)) if is_uri(path) else str(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(TorchScript archive|pickle protocol)")  # they are refused
            content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}{f': {error.strerror}' if is_uri(path) else ''}") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is refused: it carries code or is damaged, it is no file of plain tensors") from error
    except InputError:
        raise
    except (
        RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError,
    ) as error:  # fmt: skip
        reason = getattr(error, "strerror", None) or first_line(error)
        if isinstance(error, EOFError | LookupError | TypeError | AttributeError):  # their messages do not help
            reason = "it is empty, truncated, or no file of torch.save"
        if "TorchScript" in reason:  # OpenAI's files of CLIP
            reason = "it is a TorchScript archive, which carries code; a state dict is needed, such as a .safetensors"
        raise InputError(f"{path} cannot be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def refuse_folder_of_run(path: str | AnyPath) -> None:
    """Raise an InputError that names the last checkpoint in a local folder, of a run or of a recipe, if it is one."""
    folder = Path(str(path))
    checkpoints = [] if is_uri(path) else [*folder.glob("last.ckpt"), *folder.glob("*/last.ckpt")]
    if checkpoints:
        last = max(checkpoints, key=lambda each: each.stat().st_mtime)
        raise InputError(f"{path} is a folder: its checkpoint is {last}")


def read_checkpoint(path: str | AnyPath, task: str) -> dict[str, Any]:
    """Read a checkpoint and check that it is of ``task``, such as "classifier" or "segmentation".

    Raises:
        InputError: as `read_file`, or the checkpoint is of another task or version.
    """
    return check_checkpoint(read_file(path), path, task)


def check_checkpoint(checkpoint: dict[str, Any], path: str | AnyPath, task: str) -> dict[str, Any]:
    """Return the content of a file that `read_file` has read, if it is a checkpoint of ``task``.

    Raises:
        InputError: it is no checkpoint of this program, of another task or version.
    """
    header = checkpoint.get(SIGNATURE)
    if not isinstance(header, dict) or "state_dict" not in checkpoint:
        raise InputError(f"{path} was not written by tag2mask; a checkpoint of the task {task!r} is needed here")
    if header.get("task") != task:
        raise InputError(f"{path} is a checkpoint of the task {header.get('task')!r}; one of {task!r} is needed here")
    if header.get("version") != VERSION:
        raise InputError(f"{path} is of checkpoint version {header.get('version')}; this program reads {VERSION}")
    return checkpoint


def load_task(path: str | AnyPath, cls: type[Task]) -> tuple[Task, dict[str, Any]]:
    """Return the task that a checkpoint was saved from, on the CPU and in eval mode, and the checkpoint's content.

    Only settings that ``cls`` and its base classes take are read: Lightning's loader would import and call the
    "instantiator" named in the file. Initial weights are not loaded again (``weights="none"``).

    Args:
        path: the checkpoint.
        cls: the task's class; the checkpoint must be signed with its ``task_name``.

    Raises:
        InputError: as `read_checkpoint`, or the weights do not fit the settings saved beside them.
    """
    checkpoint = read_checkpoint(path, cls.task_name)
    known = {name for base in cls.__mro__ if issubclass(base, BaseTask) for name in inspect.signature(base).parameters}
    settings = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key in known}
    try:
        task = cls(**settings | {"weights": "none"})
        task.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, TypeError) as error:
        lines = str(error).splitlines()  # of torch: "Error(s) in loading state_dict for X:", and a line for each key
        reason = lines[1].strip() if len(lines) > 1 and lines[0].startswith("Error(s)") else first_line(error)
        raise InputError(f"{path} does not fit the network its own settings describe: {reason}") from error
    return task.eval(), checkpoint


def require_classes(content: Mapping[str, Any], classes: Sequence[str], subject: str) -> None:
    """Raise an InputError where a checkpoint is of other classes, or of the same in another order, as is its head.

    Args:
        content: the checkpoint.
        classes: names of the classes.
        subject: beginning of the message, such as ``a.ckpt is``.
    """
    names = content.get("hyper_parameters", {}).get("classes")
    if names is not None and tuple(names) != tuple(classes):
        raise InputError(f"{subject} of the classes {', '.join(names)}, not {', '.join(classes)}")
