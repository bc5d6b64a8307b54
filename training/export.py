"""`tag2mask export`: write a trained network as TorchScript, ONNX or for segmentation_models_pytorch (SMP)."""

import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCardData
from safetensors import SafetensorError
from torch import Tensor, nn
from upath import UPath

from datamodules.errors import InputError, first_line, import_extra
from datamodules.files import file_sha256, new_folder, read_json_or_empty, write_atomically, write_json
from datamodules.images import channel_statistics
from datamodules.progress import print_result
from training.exported_network import KEY, SIDECAR, load_smp, onnx_network, restore_smp
from training.inference import TrainedNetwork, load_trained
from training.networks import SmpNetwork
from training.reports.pages import render

TRAINING = "training.yaml"  # in SMP's folder: the options of the training
OPSET = 17  # of ONNX; onnxruntime supports it since 1.12
TOLERANCE = 1e-4  # absolute and relative, between the network's scores and those of the exported network
OTHER_HEIGHT = 64  # pixels by which the second tested shape is higher


def export(
    checkpoint: UPath,
    output: Path,
    format: Literal["torchscript", "onnx", "smp"] = "onnx",  # noqa: A002  the option's name
    *,
    evaluation: Path | None = None,
    license: str | None = None,  # noqa: A002  the option's name
    repository: str | None = None,
) -> None:
    """Write a trained segmentation network for use without this project.

    Every format takes ``image`` float32 (B, in_channels, H, W) and contains metadata as JSON: classes, size, mean and
    std of the normalisation. Before the file is written, its scores are compared with those of the network for
    a second batch size and a second shape.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``.
        output: the file to write, which is replaced if it exists; for ``smp`` a new or empty folder.
        format: ``torchscript``: one file for ``torch.jit.load``, the metadata in its extra file ``tag2mask.json``.
            ``onnx``: one file of opset 17, the same JSON in its metadata under ``tag2mask``; needs ``pip install
            -c constraints.txt '.[export]'``. ``smp``: a folder for ``smp.from_pretrained`` and Hugging Face: weights,
            ``tag2mask.json``, and a model card, ``README.md``; not for ``LargeFOV``, which is not an architecture of
            segmentation_models_pytorch.
        evaluation: for ``smp``: folder of ``tag2mask evaluate``, whose figures the card lists.
        license: for ``smp``: the licence that the card states, such as ``cc-by-4.0``.
        repository: for ``smp``: USER/NAME on Hugging Face, to which the folder is uploaded as well. A new repository
            is private. The token is that of ``HF_TOKEN`` or of ``hf auth login``.

    Raises:
        InputError: the checkpoint is not usable, the network does not exist in that format, the output is a folder
            that is not empty or the name of a checkpoint, the evaluation is of another checkpoint, or the upload
            failed; then the folder is complete.
    """
    trained = load_trained(checkpoint)
    given = {"evaluation": evaluation, "license": license, "repository": repository}
    if format != "smp" and (option := next((name for name, value in given.items() if value is not None), None)):
        raise InputError(f"{option} is for the format smp")
    network: Any = trained.task.network.cpu()
    if format == "smp" and not isinstance(network, SmpNetwork):
        kind = type(network).__name__
        raise InputError(f"{kind} is none of segmentation_models_pytorch's architectures: use torchscript or onnx")
    if format != "smp" and output.is_dir():
        raise InputError(f"{output} is a folder: name a file")
    if format != "smp" and (output.suffix == ".onnx") != (format == "onnx"):
        needed = "needs" if format == "onnx" else "must not have"
        raise InputError(f"{output}: the format {format} {needed} a name that ends in .onnx")
    if output.suffix == ".ckpt" or UPath(output).resolve() == UPath(checkpoint).resolve():
        raise InputError(f"{output} is the name of a checkpoint: choose another output")
    mean, std = channel_statistics(trained.in_channels)
    metadata = {
        "producer": f"tag2mask {version('tag2mask')}", "checkpoint_sha256": file_sha256(checkpoint),
        "classes": list(trained.classes), "size": trained.size, "multiple": network.multiple,
        "mean": mean, "std": std,
        "input": f"image float32 (B, {len(mean)}, size, size){', RGB' * (len(mean) == 3)}: "
        "resized to size x size, / 255, minus mean, / std",
        "output": "scores float32 (B, 1 + classes, h, w), background first: resize bilinearly to the image, argmax",
    }  # fmt: skip
    if format == "smp":
        _write_smp(network, metadata, output, model_card(trained, metadata, evaluation, license))
    else:
        write = {"torchscript": _write_torchscript, "onnx": _write_onnx}[format]
        write(network, metadata, output)
    details = "; after smp.from_pretrained run the lines of its README.md" if metadata.get("convolutions") else ""
    sides = f"any size in multiples of {network.multiple}" if metadata["any_size"] else f"{trained.size} pixels"
    print_result(f"{output}: {format}, images of {sides}{details}")
    if repository is not None:
        upload(output, repository)


def model_card(
    trained: TrainedNetwork,
    metadata: Mapping[str, Any],
    evaluation: Path | None,
    license: str | None,  # noqa: A002
) -> dict[str, Any]:
    """Return what ``model_card.md`` needs beside the metadata of the export.

    Args:
        trained: the network.
        metadata: of the export.
        evaluation: folder of ``tag2mask evaluate``.
        license: the licence to state.

    Raises:
        InputError: the evaluation cannot be read, or is of another checkpoint.
    """
    options, results, figures = trained.task.hparams, [], dict[str, Any]()
    if evaluation is not None:
        path = evaluation / "metrics.json"
        figures = read_json_or_empty(path)
        if (figures.get("checkpoint") or {}).get("sha256") != metadata["checkpoint_sha256"]:
            raise InputError(f"{path} does not exist, or is not an evaluation of this checkpoint")
        if figures["miou"] is None:
            raise InputError(f"{path} has no figures: no image of the evaluation has a mask of a known class")
        results = [EvalResult(
            task_type="image-segmentation", dataset_type="image-segmentation", dataset_split=figures["split"],
            dataset_name=str(figures["data"]["class_path"]).rpartition(".")[2].removesuffix("DataModule"),
            metric_name="mean IoU with the dense CRF" if figures["crf"] else "mean IoU",
            metric_type="mean_iou", metric_value=figures["miou"],
        )]  # fmt: skip
    scores = {"IoU": figures} | ({"without CRF": figures["without_crf"]} if figures.get("crf") else {})
    columns = {name: {"mean": each["miou"], **each["iou"]} for name, each in scores.items() if each}
    is_masks, is_sec = trained.data.get("targets") == "masks", options["loss"] == "sec"
    front_matter = ModelCardData(
        library_name="segmentation-models-pytorch", license=license, pipeline_tag="image-segmentation",
        tags=["tag2mask", "semantic-segmentation", *([] if is_masks else ["weakly-supervised"])],
        model_name=f"{options['architecture']} {options['encoder']}", eval_results=results or None,
    )  # fmt: skip
    last = ((trained.provenance or {}).get("attempts") or [{}])[-1]
    return {
        "front_matter": front_matter.to_yaml(), "license": license, "evaluation": figures, "columns": columns,
        "architecture": options["architecture"], "encoder": options["encoder"],
        "targets": "masks" if is_masks else "localization cues and the SEC loss" if is_sec else "pseudo-masks",
        "annotated": bool(trained.data.get("annotations")) and not is_masks,
        "images": (last.get("data") or {}).get("images"), "config": last.get("config"), "date": last.get("date"),
        "git": last.get("git"),
    }  # fmt: skip


def upload(folder: Path, repository: str) -> None:
    """Upload a folder to a repository of models on Hugging Face, which is made, private, if it does not exist.

    Raises:
        InputError: the upload failed; the message contains the reason.
    """
    try:
        api = HfApi()
        repository = api.create_repo(repository, private=True, exist_ok=True).repo_id
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # errors of HTTP, of tokens and of names have no common class
        problem = f"cannot be uploaded to {repository} ({first_line(error)})"
        raise InputError(f"{folder} is complete, but {problem}: try hf upload {repository} {folder}") from error
    print_result(f"https://huggingface.co/{repository}")


def _write_torchscript(network: Any, metadata: dict[str, Any], output: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of each shape that is read; `_verify` checks the result
        example = torch.zeros(1, len(metadata["mean"]), metadata["size"], metadata["size"])
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        metadata["any_size"] = _verify(traced, network, metadata, "TorchScript")
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={SIDECAR: json.dumps(metadata)})
    write_atomically(output, buffer.getvalue())


def _write_onnx(network: Any, metadata: dict[str, Any], output: Path) -> None:
    onnx = import_extra("onnx", "export", "ONNX")
    example = torch.zeros(1, len(metadata["mean"]), metadata["size"], metadata["size"])
    for any_size in (True, False):  # if the network works at its own size only, the file has that fixed size
        axes = {2: "height", 3: "width"} if any_size else {}
        scores_axes = {axis: f"scores_{name}" for axis, name in axes.items()}
        file = io.BytesIO()
        try:
            with warnings.catch_warnings(), _silent_stdout():
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    network, (example,), f=file,  # type: ignore[arg-type]  # tracing takes it
                    input_names=["image"], output_names=["scores"], opset_version=OPSET,
                    dynamic_axes={"image": {0: "batch", **axes}, "scores": {0: "batch", **scores_axes}},
                    dynamo=False,  # the newer exporter takes a minute, needs one more package and writes a second file
                )  # fmt: skip
        except Exception as error:  # of many classes, such as pooling to a fixed grid of an image of any size
            if any_size:
                continue
            raise InputError(f"ONNX cannot express this network ({first_line(error)}): use torchscript") from error
        model = onnx.load_from_string(file.getvalue())
        metadata["any_size"] = any_size
        onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
        content = model.SerializeToString()
        if _verify(onnx_network(content)[1], network, metadata, "ONNX") >= any_size:
            break
    write_atomically(output, content)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what is written to the process's standard output: torch's C++ code prints graphs that it cannot write."""
    sys.stdout.flush()
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _write_smp(network: Any, metadata: dict[str, Any], output: Path, card: Mapping[str, Any]) -> None:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with new_folder(output) as folder:
        try:
            network.model.save_pretrained(folder)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{output} cannot be written: {first_line(error)}") from error
        loaded = load_smp(folder)
        # SMP dilates encoders in a way that does not fit their weights, see `seeds.backbones.dilate`
        convolutions = {}
        for name, module in network.model.named_modules():
            if isinstance(module, nn.Conv2d):
                keys = ("stride", "padding") if max(module.kernel_size) == 1 else ("stride", "padding", "dilation")
                settings = {key: list(getattr(module, key)) for key in keys}
                if settings != {key: list(getattr(loaded.get_submodule(name), key)) for key in keys}:
                    convolutions[name] = settings
        metadata["convolutions"] = convolutions
        restored = restore_smp(loaded, convolutions)
        metadata["any_size"] = _verify(restored, network, metadata, "segmentation_models_pytorch")
        write_json(folder / SIDECAR, metadata)
        if card["config"]:
            (folder / TRAINING).write_text(yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=True), "utf-8")
        (folder / "README.md").write_text(
            render("model_card.md", sidecar=SIDECAR, training=TRAINING, **metadata, **card), "utf-8"
        )
        for path in folder.iterdir():
            path.chmod(0o644)  # SMP makes weights readable for their owner only


def _verify(exported: Callable[[Tensor], Tensor], network: Any, metadata: Mapping[str, Any], form: str) -> bool:
    """Compare scores with those of the network for two images; return whether they are equal for another shape, too.

    Raises:
        InputError: the scores of the two images differ or cannot be compared.
    """
    size, channels = metadata["size"], len(metadata["mean"])
    problems, height = list[str](), size + math.ceil(OTHER_HEIGHT / network.multiple) * network.multiple
    for shape in ((2, channels, size, size), (1, channels, height, size)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        try:
            with torch.inference_mode():
                equal = torch.allclose(exported(images), network(images), rtol=TOLERANCE, atol=TOLERANCE)
            problems.append("" if equal else f"its scores differ by more than {TOLERANCE}")
        except Exception as error:  # noqa: BLE001  a shape that one of them does not accept; each has its own errors
            problems.append(f"its scores of images {shape} cannot be compared ({first_line(error)})")
    if problems[0]:
        raise InputError(f"the {form} export of this network is wrong: {problems[0]}")
    return not problems[1]
