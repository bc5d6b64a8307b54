"""Networks that `tag2mask export` has written: loading and running them."""

import io
import json
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from huggingface_hub import snapshot_download
from segmentation_models_pytorch import from_pretrained
from segmentation_models_pytorch.base import SegmentationHead
from torch import Tensor, nn

from datamodules.errors import InputError, first_line, import_extra
from datamodules.files import AnyPath, read_bytes
from seeds.precision import ResolvedPrecision

KEY = "tag2mask"  # of the JSON in ONNX's metadata
SIDECAR = "tag2mask.json"  # the JSON as a file, in TorchScript's archive and in SMP's folder
_REPOSITORY = re.compile(r"hf://[^/]+/[^/]+")


@dataclass(frozen=True)
class ExportedNetwork:
    """A network that runs without the code that trained it.

    Attributes:
        classes: its classes, without background.
        size: side in pixels to which whole images are resized.
        in_channels: channels of the images.
        checkpoint_sha256: SHA-256 of the checkpoint that was exported.
        run: class scores float32 (B, C+1, h, w) of normalised images (B, in_channels, size, size).
        precision: in which it computes.
    """

    precision: ClassVar[ResolvedPrecision] = "32-true"
    classes: tuple[str, ...]
    size: int
    in_channels: int
    checkpoint_sha256: str
    run: Callable[[Tensor], Tensor]

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Tensor:
        """Return class scores float32 (B, C+1, h, w), not upsampled, of normalised images (B, in_channels, S, S)."""
        return self.run(images).float()


def load_exported(path: AnyPath) -> ExportedNetwork:
    """Load an exported network onto the CPU: a folder of SMP, a file ``.onnx``, or else TorchScript.

    ``hf://USER/NAME`` is such a folder on Hugging Face, which is downloaded into its cache.

    Raises:
        InputError: the file is missing or damaged, was not written by `export`, or a package to run it is missing.
    """
    try:
        if _REPOSITORY.fullmatch(str(path)):
            name, _, revision = str(path).removeprefix("hf://").partition("@")
            try:
                path = Path(snapshot_download(name, revision=revision or None))
            except Exception as error:  # errors of HTTP, of tokens and of names have no common class
                raise InputError(f"{path} cannot be downloaded: {first_line(error)}") from error
        if isinstance(path, Path) and path.is_dir():  # segmentation_models_pytorch reads local folders alone
            metadata = json.loads((path / SIDECAR).read_bytes())
            run: Any = restore_smp(load_smp(path), metadata["convolutions"])
        elif path.suffix == ".onnx":
            text, run = onnx_network(read_bytes(path))
            metadata = json.loads(text)
        else:
            files = {SIDECAR: ""}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch calls its deprecated functions itself
                file = io.BytesIO(read_bytes(path))
                run = torch.jit.load(file, map_location="cpu", _extra_files=files)  # type: ignore[no-untyped-call]
            metadata = json.loads(files[SIDECAR])
        size, channels, digest = int(metadata["size"]), len(metadata["mean"]), str(metadata["checkpoint_sha256"])
        return ExportedNetwork(tuple(metadata["classes"]), size, channels, digest, run)
    except InputError:
        raise
    except Exception as error:  # each runtime has its own errors; the file is not usable in any case
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path} is no intact 'tag2mask export', nor a *.ckpt: {reason}") from error


def onnx_network(content: bytes) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Return the JSON metadata (empty if missing) of an ONNX file, and its network, on as many threads as torch."""
    onnxruntime = import_extra("onnxruntime", "export", "ONNX")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(KEY, "")
    return text, lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


def load_smp(folder: AnyPath) -> nn.Module:
    """Load the network of a folder of SMP, with SMP's convolutions, see `restore_smp`."""
    with redirect_stdout(io.StringIO()):  # SMP prints where it loads weights from
        model: nn.Module = from_pretrained(str(folder))
    return model


def restore_smp(model: nn.Module, convolutions: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Change an SMP network in place to its form in training: settings of convolutions, scores on its own grid."""
    for name, settings in convolutions.items():
        for key, value in settings.items():
            setattr(model.get_submodule(name), key, tuple(value))
    head: Any = model.segmentation_head
    if isinstance(head, SegmentationHead):
        head[1] = nn.Identity()  # the upsampling
    return model.eval()
