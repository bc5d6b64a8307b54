"""Networks as `tag2mask export` writes them, read back: TorchScript, ONNX, or a folder of SMP's."""

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
from training.inference import Views, view_scores

__all__ = [
    "KEY",
    "SIDECAR",
    "Exported",
    "is_exported",
    "load_exported",
    "onnx_run",
    "onnx_session",
    "read_smp",
    "restore_smp",
]

KEY = "tag2mask"  # of what is said of a network, in ONNX's metadata
SIDECAR = "tag2mask.json"  # the same as a file, inside TorchScript's archive and in SMP's folder


@dataclass(frozen=True)
class Exported:
    """A network that needs none of the code that trained it.

    Attributes:
        classes: its classes, without background.
        size: side in pixels of the images it was trained on.
        run: class scores float32 (B, C+1, h, w) of normalised images (B, 3, size, size).
    """

    classes: tuple[str, ...]
    size: int
    run: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def scores(self, images: Tensor, views: Views = Views()) -> Tensor:  # noqa: B008  it is frozen
        """Class scores float32 (B, C+1, h, w), on the network's grid, of normalised images (B, 3, S, S)."""
        return view_scores(lambda seen: self.run(seen).float(), images, views)


def is_exported(path: Path) -> bool:
    """Whether a path looks like something that `tag2mask export` wrote, rather than a checkpoint."""
    return path.is_dir() or path.suffix == ".onnx" or _is_script(path)


def load_exported(path: Path) -> Exported:
    """Read an exported network, onto the CPU.

    Raises:
        InputError: it is damaged, was not written by ``tag2mask export``, or a package to run it is missing.
    """
    reader = _read_smp if path.is_dir() else _read_onnx if path.suffix == ".onnx" else _read_script
    if not path.exists():
        raise InputError(f"there is no exported network {path}")
    try:
        text, run = reader(path)
        said = json.loads(text)
        return Exported(tuple(said["classes"]), int(said["size"]), run)
    except InputError:
        raise
    except Exception as error:  # each runtime has its own; whatever it is, the file is of no use
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} cannot be read as a network of 'tag2mask export': {reason}") from error


def onnx_session(source: Path | bytes) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch.

    Raises:
        InputError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX needs the packages onnx and onnxruntime: pip install 'tag2mask[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    content = source if isinstance(source, bytes) else source.read_bytes()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def onnx_run(session: Any) -> Callable[[Tensor], Tensor]:
    """A session as a function of normalised images (B, 3, H, W) to scores (B, C+1, h, w)."""
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def read_smp(folder: Path) -> nn.Module:
    """The network that ``smp.from_pretrained`` makes of a folder, without what that prints."""
    with redirect_stdout(io.StringIO()):
        model: nn.Module = from_pretrained(str(folder))
    return model


def restore_smp(model: nn.Module, convolutions: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """An SMP network as it was trained here: its convolutions' settings, and scores on its own grid.

    Args:
        model: as ``smp.from_pretrained`` gives it; changed in place.
        convolutions: settings by name, ``convolutions`` of ``tag2mask.json``.
    """
    for name, settings in convolutions.items():
        for key, value in settings.items():
            setattr(model.get_submodule(name), key, tuple(value))
    head: Any = model.segmentation_head
    if isinstance(head, SegmentationHead):
        head[1] = nn.Identity()  # the upsampling
    return model.eval()


def _is_script(path: Path) -> bool:
    """Whether a file is an archive of TorchScript; checkpoints are archives, too, but hold no constants."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    files = {SIDECAR: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript the old way
        model = torch.jit.load(str(path), map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
    if not files[SIDECAR]:
        raise InputError(f"{path} was not written by 'tag2mask export': it does not say what its classes are")
    return files[SIDECAR], model


def _read_onnx(path: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    session = onnx_session(path)
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise InputError(f"{path} was not written by 'tag2mask export': it does not say what its classes are")
    return text, onnx_run(session)


def _read_smp(path: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    sidecar = path / SIDECAR
    if not sidecar.is_file():
        raise InputError(f"the folder {path} holds no {SIDECAR}: it was not written by 'tag2mask export --format smp'")
    text = sidecar.read_text(encoding="utf-8")
    return text, restore_smp(read_smp(path), json.loads(text).get("convolutions", {}))
