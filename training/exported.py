"""Networks written by `tag2mask export`, loaded again: TorchScript, ONNX, or a folder of SMP."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from segmentation_models_pytorch import from_pretrained
from segmentation_models_pytorch.base import SegmentationHead
from torch import Tensor, nn

from datamodules.errors import InputError
from training.inference import SINGLE_VIEW, Views, view_scores

__all__ = ["KEY", "SIDECAR", "Exported", "is_exported", "load_exported", "load_smp", "onnx_network", "restore_smp"]

KEY = "tag2mask"  # of the JSON in ONNX's metadata
SIDECAR = "tag2mask.json"  # the JSON as a file, in TorchScript's archive and in SMP's folder


@dataclass(frozen=True)
class Exported:
    """A network that runs without the code that trained it.

    Attributes:
        classes: its classes, without background.
        size: side in pixels of the images of its training.
        run: class scores float32 (B, C+1, h, w) of normalised images (B, 3, size, size).
    """

    classes: tuple[str, ...]
    size: int
    run: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def scores(self, images: Tensor, views: Views = SINGLE_VIEW) -> Tensor:
        """Return class scores float32 (B, C+1, h, w), on the network's grid, of normalised images (B, 3, S, S)."""
        return view_scores(lambda view: self.run(view).float(), images, views)


def is_exported(path: Path) -> bool:
    """Return whether a path looks like the output of `tag2mask export`, not like a checkpoint."""
    if path.is_dir() or path.suffix == ".onnx":
        return True
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:  # checkpoints are archives too, but contain no constants
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_exported(path: Path) -> Exported:
    """Load an exported network onto the CPU.

    Raises:
        InputError: the file is damaged, was not written by ``tag2mask export``, or a package to run it is missing.
    """
    if not path.exists():
        raise InputError(f"there is no exported network {path}")
    try:
        if path.is_dir():
            sidecar = path / SIDECAR
            text = sidecar.read_text(encoding="utf-8") if sidecar.is_file() else ""
            run: Any = restore_smp(load_smp(path), json.loads(text).get("convolutions", {})) if text else None
        elif path.suffix == ".onnx":
            text, run = onnx_network(path.read_bytes())
        else:
            files = {SIDECAR: ""}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its deprecated functions itself
                run = torch.jit.load(str(path), map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
            text = files[SIDECAR]
        metadata = json.loads(text) if text else None
        network = metadata and Exported(tuple(metadata["classes"]), int(metadata["size"]), run)
    except InputError:
        raise
    except Exception as error:  # each runtime has its own errors; the file is not usable in any case
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a network of 'tag2mask export': {reason}") from error
    if network is None:
        raise InputError(f"{path} was not written by 'tag2mask export': it contains no {SIDECAR} with its classes")
    return network


def onnx_network(content: bytes) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the JSON metadata (empty if missing) of an ONNX file, and its network as a function of images.

    The network runs on the CPU with as many threads as torch.

    Raises:
        InputError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX needs the packages onnx and onnxruntime: pip install 'tag2mask[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    return text, lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def load_smp(folder: Path) -> nn.Module:
    """Return the network that ``smp.from_pretrained`` loads from a folder, without its messages."""
    with redirect_stdout(io.StringIO()):
        model: nn.Module = from_pretrained(str(folder))
    return model


def restore_smp(model: nn.Module, convolutions: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Change an SMP network to the form in which it was trained: settings of convolutions, scores on its own grid.

    Args:
        model: loaded by ``smp.from_pretrained``; changed in place.
        convolutions: settings by name, ``convolutions`` of ``tag2mask.json``.
    """
    for name, settings in convolutions.items():
        for key, value in settings.items():
            setattr(model.get_submodule(name), key, tuple(value))
    head: Any = model.segmentation_head
    if isinstance(head, SegmentationHead):
        head[1] = nn.Identity()  # the upsampling
    return model.eval()
