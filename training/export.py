"""A trained network in a form that needs none of this project's code."""

import io
import json
import logging
import math
import tempfile
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
from training.exported import KEY, SIDECAR, onnx_run, onnx_session, read_smp, restore_smp
from training.inference import Trained, load_trained
from training.networks import SmpNetwork

__all__ = ["export"]

OPSET = 17  # of ONNX; onnxruntime has it since 1.12
TOLERANCE = 1e-4  # absolute and relative, between the network's scores and the exported one's
OTHER_SIZE = 64  # pixels by which the second shape that is tried differs

Run = Callable[[Tensor], Tensor]


def export(
    checkpoint: Path,
    output: Path,
    format: Literal["torchscript", "onnx", "smp"] = "onnx",  # noqa: A002  the option's name
) -> None:
    """Write a trained segmentation network for use without this project.

    All forms take ``image`` float32 (B, 3, H, W) and hold what is needed to use them as JSON: classes, size, mean and
    standard deviation of the normalisation. The scores of what was written are compared with the network's own, for
    batches and shapes other than the one it was made with, before the file gets its name.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task.
        output: the file to write (for ``smp`` the folder, which must not hold anything yet).
        format: ``torchscript``: one file for ``torch.jit.load``, JSON as its extra file ``tag2mask.json``. ``onnx``:
            one file of opset 17, JSON in its metadata under ``tag2mask``; needs ``pip install 'tag2mask[export]'``.
            ``smp``: a folder for ``smp.from_pretrained``, ``tag2mask.json`` beside the weights; not for ``LargeFOV``,
            which is none of segmentation_models_pytorch's architectures.

    Raises:
        InputError: the checkpoint is not usable, the network cannot be had in that form, or the output is taken.
    """
    trained = load_trained(checkpoint)
    if output.is_dir() and (format != "smp" or any(output.iterdir())):
        raise InputError(f"{output} is a folder{' that holds something' if format == 'smp' else ''}: name another")
    said = _said(trained, checkpoint)
    output.parent.mkdir(parents=True, exist_ok=True)
    note = {"torchscript": _write_script, "onnx": _write_onnx, "smp": _write_smp}[format](trained, said, output)
    Console().print(f"{output}: {format}, {note}", highlight=False, markup=False, soft_wrap=True)


def _said(trained: Trained, checkpoint: Path) -> dict[str, Any]:
    """What stands in ``tag2mask.json``."""
    return {
        "made_by": f"tag2mask {version('tag2mask')}",
        "checkpoint_sha256": file_sha256(checkpoint),
        "classes": list(trained.classes),
        "size": trained.size,
        "multiple": trained.task.network.multiple,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "input": "image float32 (B, 3, size, size), RGB: warped to size x size, / 255, minus mean, / std",
        "output": "scores float32 (B, 1 + classes, h, w), background first: resize bilinearly to the image, argmax",
    }


def _write_script(trained: Trained, said: dict[str, Any], output: Path) -> str:
    network = trained.task.network.cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each shape read; what comes out is checked below
        traced = torch.jit.trace(_bare(network), _pictures(trained, 1), check_trace=False)  # type: ignore[no-untyped-call]
    said["any_size"] = _check(traced, trained, "TorchScript")
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript the old way
        torch.jit.save(traced, buffer, _extra_files={SIDECAR: json.dumps(said)})
    write_atomically(output, buffer.getvalue())
    return _sizes(said)


def _write_onnx(trained: Trained, said: dict[str, Any], output: Path) -> str:
    try:
        import onnx
    except ImportError as error:
        raise InputError("ONNX needs the packages onnx and onnxruntime: pip install 'tag2mask[export]'") from error
    for any_size in (True, False):  # a network that bakes a shape in is written for its own size alone
        model = onnx.load_from_string(_onnx_bytes(trained, any_size=any_size))
        said["any_size"] = any_size
        onnx.helper.set_model_props(model, {KEY: json.dumps(said)})
        content = model.SerializeToString()
        if _check(onnx_run(onnx_session(content)), trained, "ONNX") >= any_size:
            break
    write_atomically(output, content)
    return f"opset {OPSET}, {_sizes(said)}"


def _onnx_bytes(trained: Trained, *, any_size: bool) -> bytes:
    """By tracing: torch's newer exporter takes a minute, one more package, and writes weights into a second file."""
    free = {2: "height", 3: "width"} if any_size else {}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _bare(trained.task.network.cpu()),
            (_pictures(trained, 1),),
            f"{folder}/network.onnx",
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes={"image": {0: "batch", **free}, "scores": {0: "batch", **{k: f"cells_{k}" for k in free}}},
            opset_version=OPSET,
            dynamo=False,
        )
        return Path(folder, "network.onnx").read_bytes()


def _write_smp(trained: Trained, said: dict[str, Any], output: Path) -> str:
    network = trained.task.network.cpu()
    if not isinstance(network, SmpNetwork):
        raise InputError(
            f"{type(network).__name__} is none of segmentation_models_pytorch's architectures: "
            "export it as torchscript or onnx"
        )
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with new_folder(output) as folder:
        network.model.save_pretrained(folder)
        loaded = read_smp(folder)
        said["convolutions"] = _differing(network.model, loaded)
        said["any_size"] = _check(restore_smp(loaded, said["convolutions"]), trained, "segmentation_models_pytorch")
        write_atomically(folder / SIDECAR, (json.dumps(said, indent=2) + "\n").encode())
        card = folder / "README.md"
        write_atomically(card, (card.read_text(encoding="utf-8") + _card(said)).encode())
        for path in folder.iterdir():
            path.chmod(0o644)  # SMP writes weights for their owner alone
    if said["convolutions"]:
        return f"{_sizes(said)}; after smp.from_pretrained run the lines of its README.md, or the dilation is SMP's own"
    return _sizes(said)


def _differing(trained: nn.Module, loaded: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Settings of convolutions that SMP builds otherwise: it dilates encoders in a way their weights are not made for.

    See `seeds.backbones.dilate`.
    """
    found = {}
    others = dict(loaded.named_modules())
    for name, module in trained.named_modules():
        other = others.get(name)
        if isinstance(module, nn.Conv2d) and isinstance(other, nn.Conv2d):
            keys = ("stride", "padding") if max(module.kernel_size) == 1 else ("stride", "padding", "dilation")
            own = {key: list(getattr(module, key)) for key in keys}
            if own != {key: list(getattr(other, key)) for key in own}:
                found[name] = own
    return found


def _card(said: dict[str, Any]) -> str:
    """What is added to SMP's model card."""
    lines = f"""

## Use
Classes after the background: {", ".join(said["classes"])}. Input: {said["input"]}, size {said["size"]}, mean
{said["mean"]}, std {said["std"]}. The scores come at the input's size. The same as JSON: `{SIDECAR}`.
"""
    if not said["convolutions"]:
        return lines
    return f"""{lines}
SMP dilates this encoder otherwise than it was trained. After loading, set it right:
```python
import json
for name, settings in json.load(open("{SIDECAR}"))["convolutions"].items():
    for key, value in settings.items():
        setattr(model.get_submodule(name), key, tuple(value))
```
"""


def _bare(network: nn.Module) -> nn.Module:
    """The network without this project's check of shapes, which tracing cannot hold."""
    return network.model if isinstance(network, SmpNetwork) else network


def _pictures(trained: Trained, count: int, more: int = 0) -> Tensor:
    """Noise in the shape of normalised images; ``more`` pixels higher, up to the network's multiple."""
    multiple = trained.task.network.multiple
    height = trained.size + math.ceil(more / multiple) * multiple
    return torch.randn(count, 3, height, trained.size, generator=torch.Generator().manual_seed(0))


def _check(run: Run, trained: Trained, form: str) -> bool:
    """Compare with the network itself, for two images; whether another shape agrees, too.

    Raises:
        InputError: the scores differ.
    """
    if not _agrees(run, trained, _pictures(trained, 2)):
        raise InputError(
            f"this network does not come out of {form} as it went in: its scores differ by over {TOLERANCE}"
        )
    return _agrees(run, trained, _pictures(trained, 1, OTHER_SIZE))


def _agrees(run: Run, trained: Trained, images: Tensor) -> bool:
    try:
        with torch.inference_mode():
            return torch.allclose(run(images), trained.task.network(images), rtol=TOLERANCE, atol=TOLERANCE)
    except Exception:  # noqa: BLE001  a shape that one of them does not take; each runtime has its own errors
        return False


def _sizes(said: dict[str, Any]) -> str:
    return f"images of {'any size' if said['any_size'] else said['size']}" + (
        f" in multiples of {said['multiple']}" if said["any_size"] and said["multiple"] > 1 else " pixels"
    )
