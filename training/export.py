"""`tag2mask export`: write a trained network as TorchScript, as ONNX, or for segmentation_models_pytorch (SMP)."""

import io
import json
import logging
import math
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.files import file_sha256, new_folder, write_atomically
from datamodules.images import IMAGENET_MEAN, IMAGENET_STD
from training.exported import KEY, SIDECAR, load_smp, onnx_network, restore_smp
from training.inference import Trained, load_trained
from training.networks import SmpNetwork

__all__ = ["export"]

OPSET = 17  # of ONNX; onnxruntime supports it since 1.12
TOLERANCE = 1e-4  # absolute and relative, between the network's scores and those of the exported network
OTHER_HEIGHT = 64  # pixels by which the second tested shape is higher

MODEL_CARD = """

## Use
Classes after the background: {classes}. Input: {input}, size {size}, mean
{mean}, std {std}. The scores have the input's size. The same as JSON: `{sidecar}`.
"""
CONVOLUTIONS_CARD = """
SMP dilates this encoder differently than in training. After loading, correct it:
```python
import json
for name, settings in json.load(open("{sidecar}"))["convolutions"].items():
    for key, value in settings.items():
        setattr(model.get_submodule(name), key, tuple(value))
```
"""


def export(
    checkpoint: Path,
    output: Path,
    format: Literal["torchscript", "onnx", "smp"] = "onnx",  # noqa: A002  the option's name
) -> None:
    """Write a trained segmentation network for use without this project.

    Every format takes ``image`` float32 (B, 3, H, W) and contains metadata as JSON: classes, size, mean and std of
    the normalisation. Before the file is written, its scores are compared with those of the network for
    a second batch size and a second shape.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``.
        output: the file to write; for ``smp`` a new or empty folder.
        format: ``torchscript``: one file for ``torch.jit.load``, the JSON as its extra file ``tag2mask.json``.
            ``onnx``: one file of opset 17, the JSON in its metadata under ``tag2mask``; needs ``pip install
            'tag2mask[export]'``. ``smp``: a folder for ``smp.from_pretrained``, ``tag2mask.json`` beside the weights;
            not for ``LargeFOV``, which is not an architecture of segmentation_models_pytorch.

    Raises:
        InputError: the checkpoint is not usable, the network does not exist in that format, or the output is taken.
    """
    trained = load_trained(checkpoint)
    network = trained.task.network.cpu()
    if output.is_dir() and (format != "smp" or any(output.iterdir())):
        raise InputError(f"{output} is a folder{' that holds something' if format == 'smp' else ''}: name another")
    metadata = {
        "producer": f"tag2mask {version('tag2mask')}",
        "checkpoint_sha256": file_sha256(checkpoint),
        "classes": list(trained.classes),
        "size": trained.size,
        "multiple": network.multiple,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "input": "image float32 (B, 3, size, size), RGB: resized to size x size, / 255, minus mean, / std",
        "output": "scores float32 (B, 1 + classes, h, w), background first: resize bilinearly to the image, argmax",
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    write = {"torchscript": _write_torchscript, "onnx": _write_onnx, "smp": _write_smp}[format]
    details = write(trained, metadata, output)
    sides = f"any size in multiples of {network.multiple}" if metadata["any_size"] else f"{trained.size} pixels"
    Console().print(f"{output}: {format}, images of {sides}{details}", highlight=False, markup=False, soft_wrap=True)


def _write_torchscript(trained: Trained, metadata: dict[str, Any], output: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each shape that is read; `_verify` checks the result
        traced = torch.jit.trace(_inner_network(trained), _noise(trained, 1), check_trace=False)  # type: ignore[no-untyped-call]
        metadata["any_size"] = _verify(traced, trained, "TorchScript")
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={SIDECAR: json.dumps(metadata)})
    write_atomically(output, buffer.getvalue())
    return ""


def _write_onnx(trained: Trained, metadata: dict[str, Any], output: Path) -> str:
    try:
        import onnx
    except ImportError as error:
        raise InputError("ONNX needs the packages onnx and onnxruntime: pip install 'tag2mask[export]'") from error
    for any_size in (True, False):  # if the network works at its own size only, the file has that fixed size
        axes = {2: "height", 3: "width"} if any_size else {}
        image_axes = {0: "batch", **axes}
        scores_axes = {0: "batch", **{axis: f"scores_{name}" for axis, name in axes.items()}}
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _inner_network(trained), (_noise(trained, 1),), f=file,  # type: ignore[arg-type]  # tracing takes it
                input_names=["image"], output_names=["scores"], opset_version=OPSET,
                dynamic_axes={"image": image_axes, "scores": scores_axes},
                dynamo=False,  # the newer exporter takes a minute, needs one more package and writes a second file
            )  # fmt: skip
        model = onnx.load_from_string(file.getvalue())
        metadata["any_size"] = any_size
        onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
        content = model.SerializeToString()
        if _verify(onnx_network(content)[1], trained, "ONNX") >= any_size:
            break
    write_atomically(output, content)
    return f", opset {OPSET}"


def _write_smp(trained: Trained, metadata: dict[str, Any], output: Path) -> str:
    network = trained.task.network
    if not isinstance(network, SmpNetwork):
        raise InputError(
            f"{type(network).__name__} is none of segmentation_models_pytorch's architectures: "
            "export it as torchscript or onnx"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with new_folder(output) as folder:
        network.model.save_pretrained(folder)
        loaded = load_smp(folder)
        metadata["convolutions"] = _changed_convolutions(network.model, loaded)
        restored = restore_smp(loaded, metadata["convolutions"])
        metadata["any_size"] = _verify(restored, trained, "segmentation_models_pytorch")
        write_atomically(folder / SIDECAR, (json.dumps(metadata, indent=2) + "\n").encode())
        card = MODEL_CARD + (CONVOLUTIONS_CARD if metadata["convolutions"] else "")
        card = card.format_map({**metadata, "classes": ", ".join(metadata["classes"]), "sidecar": SIDECAR})
        with (folder / "README.md").open("a", encoding="utf-8") as readme:
            readme.write(card)
        for path in folder.iterdir():
            path.chmod(0o644)  # SMP makes weights readable for their owner only
    return "; after smp.from_pretrained run the lines of its README.md" if metadata["convolutions"] else ""


def _changed_convolutions(trained: nn.Module, loaded: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Return the trained settings of convolutions that SMP builds differently.

    SMP dilates encoders in a way that does not fit their weights, see `seeds.backbones.dilate`.
    """
    changed = {}
    others = dict(loaded.named_modules())
    for name, module in trained.named_modules():
        other = others.get(name)
        if isinstance(module, nn.Conv2d) and isinstance(other, nn.Conv2d):
            keys = ("stride", "padding") if max(module.kernel_size) == 1 else ("stride", "padding", "dilation")
            settings = {key: list(getattr(module, key)) for key in keys}
            if settings != {key: list(getattr(other, key)) for key in keys}:
                changed[name] = settings
    return changed


def _inner_network(trained: Trained) -> nn.Module:
    """Return the network without this project's check of shapes, which cannot be traced."""
    network = trained.task.network
    return network.model if isinstance(network, SmpNetwork) else network


def _noise(trained: Trained, batch: int, more_rows: int = 0) -> Tensor:
    """Return noise in the shape of normalised images, higher by ``more_rows`` rounded up to the network's multiple."""
    multiple = trained.task.network.multiple
    height = trained.size + math.ceil(more_rows / multiple) * multiple
    return torch.randn(batch, 3, height, trained.size, generator=torch.Generator().manual_seed(0))


def _verify(exported: Callable[[Tensor], Tensor], trained: Trained, form: str) -> bool:
    """Compare scores with those of the network for two images; return whether they are equal for another shape, too.

    Raises:
        InputError: the scores of the two images differ.
    """

    def is_close(images: Tensor) -> bool:
        try:
            with torch.inference_mode():
                scores = exported(images)
                return torch.allclose(scores, trained.task.network(images), rtol=TOLERANCE, atol=TOLERANCE)
        except Exception:  # noqa: BLE001  a shape that one of them does not accept; each runtime has its own errors
            return False

    if not is_close(_noise(trained, 2)):
        raise InputError(f"the {form} export of this network is wrong: its scores differ by more than {TOLERANCE}")
    return is_close(_noise(trained, 1, OTHER_HEIGHT))
