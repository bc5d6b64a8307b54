"""Exported networks: the same scores, the same masks, what is needed to use them, and what is refused."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.images import normalize
from datamodules.transforms import Transform
from tests.tars import tar_bytes
from tests.training.conftest import data_of, trainer_of
from tests.training.fits import run
from training.export import export
from training.exported_network import SIDECAR, load_exported
from training.inference import load_trained
from training.predict import predict
from training.runs.provenance_record import PROVENANCE_KEY
from training.segmentation_task import SegmentationTask

EXPORT_PAGE = Path(__file__).parents[2] / "docs/pages/how-to/export.md"
FORMATS = {"torchscript": "net.pt", "onnx": "net.onnx", "smp": "net"}


def blank_checkpoint(folder, voc, **settings):
    """A checkpoint of a network of random weights, unlike a trained one with an image's content in its scores."""
    torch.manual_seed(0)
    data = data_of(voc, targets="masks")
    task = SegmentationTask(list(data.classes), loss="cross_entropy", **settings)
    trainer = trainer_of(folder, max_steps=0)
    trainer.fit(task, data)
    trainer.save_checkpoint(folder / "blank.ckpt")
    return folder / "blank.ckpt"


@pytest.fixture(scope="module")
def network(voc, tmp_path_factory):
    """A checkpoint whose encoder is dilated, with statistics that differ between its normalisation layers."""
    folder = tmp_path_factory.mktemp("network")
    path = blank_checkpoint(
        folder, voc, architecture="DeepLabV3Plus", output_stride=16, network_args={"decoder_channels": 16}
    )
    content = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for key, value in content["state_dict"].items():
        if key.endswith("running_mean"):
            value.add_(0.1 * torch.randn(value.shape, generator=generator))
        elif key.endswith("running_var"):
            value.mul_(0.05 if re.search(r"features\.1[4-8]\.", key) else 1)  # or the deepest hardly count
        elif key.endswith("segmentation_head.0.weight"):
            value.mul_(30)  # scores far enough apart for masks of several classes
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    """The network in each format, written by the command."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    for form, name in FORMATS.items():
        assert run("export", "--checkpoint", network, "--format", form, "--output", folder / name) == 0
    assert {path.name for path in folder.iterdir()} == set(FORMATS.values())
    return folder


@pytest.mark.parametrize("form", FORMATS)
def test_scores_are_the_networks(network, written, form):
    trained, exported = load_trained(network), load_exported(written / FORMATS[form])
    assert exported.classes == trained.classes
    assert exported.size == 64
    for shape in ((1, 64, 64), (3, 64, 64), (2, 96, 160)):
        images = torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(5))
        expected = trained.scores(images)
        torch.testing.assert_close(exported.scores(images), expected, rtol=0, atol=1e-4)
        assert expected.std() > 0.01


@pytest.mark.parametrize("form", FORMATS)
def test_predict_writes_the_same_masks(voc, network, written, tmp_path, form):
    photos = sorted((voc / "JPEGImages").iterdir())[:3]
    first = predict(network, list(photos), tmp_path / "a", crf=False, num_workers=0)
    listed = json.dumps([str(photo) for photo in photos])
    words = ("--images", listed, "--output", tmp_path / "b", "--crf", "false", "--num_workers", 0)
    assert run("predict", "--checkpoint", written / FORMATS[form], *words) == 0
    for path in first:
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes()
    assert len(set(np.concatenate([np.frombuffer(path.read_bytes(), np.uint8) for path in first]))) > 1
    assert (tmp_path / "b/classes.txt").read_text() == (tmp_path / "a/classes.txt").read_text()
    (tmp_path / "x.tar").write_bytes(tar_bytes({photo.name: photo.read_bytes() for photo in photos}))
    words = ("--images", tmp_path / "x.tar", "--output", tmp_path / "tars", "--crf", "false", "--num_workers", 0)
    assert run("predict", "--checkpoint", written / FORMATS[form], *words) == 0
    with tarfile.open(tmp_path / "tars/x.tar") as archive:
        assert (
            archive.extractfile(f"{photos[0].stem}.png").read() == (tmp_path / f"b/{photos[0].stem}.png").read_bytes()
        )


@pytest.mark.parametrize("size", [(400, 300), (40, 50)])
def test_the_onnx_example_of_the_docs_computes_the_same_scores(network, written, tmp_path, monkeypatch, size):
    """Noise, larger or smaller than the network's images: another interpolation would change the scores."""
    monkeypatch.chdir(tmp_path)
    photo = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(photo).save("photo.jpg", "PNG")  # without loss: decoders of JPEG differ
    shutil.copy(written / "net.onnx", "net.onnx")
    names: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", EXPORT_PAGE.read_text(), re.DOTALL)[1], names)
    trained = load_trained(network)
    image = torch.from_numpy(Transform(trained.size)(photo)["image"]).permute(2, 0, 1)[None]
    expected = trained.scores(normalize(image))
    np.testing.assert_allclose(names["scores"], expected.numpy(), atol=1e-3)
    assert names["mask"].shape == size[::-1]


def test_torchscript_needs_nothing_of_this_project(network, written, tmp_path):
    """In another process, from another folder, torch alone: scores of an image of ones, and the JSON."""
    code = """
import json, sys, torch
files = {"tag2mask.json": ""}
model = torch.jit.load(sys.argv[1], _extra_files=files)
with torch.inference_mode():
    scores = model(torch.ones(2, 3, 64, 64))
assert not {"training", "seeds", "datamodules", "segmentation_models_pytorch", "timm"} & set(sys.modules)
print(json.dumps([json.loads(files["tag2mask.json"]), scores[1].flatten()[:50].tolist()]))
"""
    words = [sys.executable, "-c", code, str(written / "net.pt")]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    metadata, scores = json.loads(done.stdout)
    expected = load_trained(network).scores(torch.ones(2, 3, 64, 64))[1].flatten()[:50]
    assert scores == pytest.approx(expected.tolist(), abs=1e-4)
    assert metadata["checkpoint_sha256"] == file_sha256(network)
    assert (metadata["mean"], metadata["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (metadata["size"], metadata["multiple"], metadata["any_size"]) == (64, 16, True)


def test_onnx_contains_its_metadata(network, written):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(written / "net.onnx")
    onnx.checker.check_model(model)
    assert [opset.version for opset in model.opset_import if not opset.domain] == [17]
    metadata = json.loads({entry.key: entry.value for entry in model.metadata_props}["tag2mask"])
    assert metadata["classes"] == list(load_trained(network).classes)
    shape = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["batch", 3, "height", "width"]


def test_smp_loads_with_its_own_function(network, written):
    """Dilated encoders need the lines of the README, which are run here."""
    folder = written / "net"
    metadata = json.loads((folder / SIDECAR).read_text())
    assert list(metadata["convolutions"]) == ["encoder.features.14.conv.1.0"]  # the strided one of the dilated stage
    model = smp.from_pretrained(str(folder)).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = load_trained(network).scores(images)
    up = torch.nn.UpsamplingBilinear2d(scale_factor=4)(expected)
    with torch.inference_mode():
        assert not torch.allclose(model(images), up, atol=1e-2)
        card = (folder / "README.md").read_text()
        lines = card[card.rindex("```python") : card.rindex("```")].removeprefix("```python\n")
        exec(lines.replace("FOLDER", str(folder)), names := {})
        torch.testing.assert_close(names["model"](images), up, rtol=0, atol=1e-4)


def test_smp_of_an_undilated_network_loads_as_it_is(voc, tmp_path, capsys):
    checkpoint = blank_checkpoint(tmp_path, voc, architecture="FPN", network_args={"decoder_pyramid_channels": 32})
    export(checkpoint, tmp_path / "fpn", "smp")
    assert "README" not in capsys.readouterr().out
    assert json.loads((tmp_path / "fpn" / SIDECAR).read_text())["convolutions"] == {}
    model = smp.from_pretrained(str(tmp_path / "fpn")).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    up = torch.nn.UpsamplingBilinear2d(scale_factor=4)(load_trained(checkpoint).scores(images))
    with torch.inference_mode():
        torch.testing.assert_close(model(images), up, rtol=0, atol=1e-4)


def test_a_model_card_has_the_options_of_the_training(network, tmp_path):
    """They lie beside it, as a YAML of ``fit``."""
    options = {"model": {"class_path": "SegmentationTask"}, "data": {"init_args": {"root": "photos/grün"}}}
    content = torch.load(network, weights_only=True)
    torch.save(
        {**content, PROVENANCE_KEY: {"attempts": [{"config": options, "date": "2026-11-28"}]}}, tmp_path / "last.ckpt"
    )
    for checkpoint, folder in ((tmp_path / "last.ckpt", "with"), (network, "without")):
        assert run("export", "--checkpoint", checkpoint, "--format", "smp", "--output", tmp_path / folder) == 0
    assert yaml.safe_load((tmp_path / "with/training.yaml").read_text()) == options
    card = (tmp_path / "with/README.md").read_text()
    assert "2026-11-28, with the options in `training.yaml`:\n\n```sh\ntag2mask fit --config training.yaml\n" in card
    assert not (tmp_path / "without/training.yaml").exists()
    assert "No training is recorded." in (tmp_path / "without/README.md").read_text()


def test_a_model_card_names_annotations(network, tmp_path):
    content = torch.load(network, weights_only=True)
    content["datamodule_hyper_parameters"] |= {"targets": "cues", "annotations": ["few.txt"]}
    torch.save(content, tmp_path / "last.ckpt")
    for checkpoint, folder in ((tmp_path / "last.ckpt", "with"), (network, "without")):
        assert run("export", "--checkpoint", checkpoint, "--format", "smp", "--output", tmp_path / folder) == 0
    sentence = "with pseudo-masks, and with masks, points, scribbles or boxes of some of them."
    assert sentence in (tmp_path / "with/README.md").read_text()
    assert "of some of them" not in (tmp_path / "without/README.md").read_text()


def test_a_model_card(network, voc, tmp_path, capsys):
    """Figures of the evaluation, licence, classes and command; the front matter is what Hugging Face reads."""
    assert run("evaluate", "--checkpoint", network, "--output", tmp_path / "val", "--num_workers", 0) == 0
    words = ["export", "--checkpoint", network, "--format", "smp", "--evaluation", tmp_path / "val"]
    assert run(*words, "--license", "cc-by-4.0", "--output", tmp_path / "net") == 0
    card = ModelCard.load(tmp_path / "net" / "README.md")
    figures = json.loads((tmp_path / "val/metrics.json").read_text())
    (result,) = card.data.eval_results
    assert (card.data.license, result.metric_type, result.metric_value) == ("cc-by-4.0", "mean_iou", figures["miou"])
    for name, value in figures["iou"].items():
        plain = figures["without_crf"]["iou"][name]
        assert f"| {name} | {100 * value:.1f} | {100 * plain:.1f} |\n" in card.text
    assert f"| mean | {100 * figures['miou']:.1f} | {100 * figures['without_crf']['miou']:.1f} |\n" in card.text
    assert ", ".join(f"{index} is {name}" for index, name in enumerate(figures["classes"], 1)) in card.text
    assert "Licence: cc-by-4.0." in card.text
    assert "with masks." in card.text
    assert "after the dense CRF and without it.\n" in card.text
    assert result.metric_name == "mean IoU with the dense CRF"
    assert "weakly-supervised" not in card.data.tags

    assert run(*words[:-2], "--output", tmp_path / "plain") == 0
    card = ModelCard.load(tmp_path / "plain" / "README.md")
    assert card.data.license is None
    assert card.data.eval_results is None
    assert "No licence is given" in card.text
    assert "No evaluation is recorded" in card.text
    capsys.readouterr()
    (tmp_path / "val/metrics.json").write_text(json.dumps(figures | {"miou": None}))
    assert run(*words, "--output", tmp_path / "other") == 1
    assert "metrics.json has no figures: no image of the evaluation has a mask" in capsys.readouterr().err
    figures |= {"scales": [0.5, 1.0], "flip": True}
    del figures["without_crf"]["iou"][figures["classes"][0]]  # neither true nor predicted without the CRF
    (tmp_path / "val/metrics.json").write_text(json.dumps(figures))
    assert run(*words, "--output", tmp_path / "lacking") == 0
    card = ModelCard.load(tmp_path / "lacking" / "README.md")
    assert "without it; scores averaged over the sizes 0.5, 1.0 and mirrored images.\n" in card.text
    assert f"| {figures['classes'][0]} | {100 * figures['iou'][figures['classes'][0]]:.1f} |  |\n" in card.text
    capsys.readouterr()
    figures["checkpoint"]["sha256"] = "0"
    (tmp_path / "val/metrics.json").write_text(json.dumps(figures))
    assert run(*words, "--output", tmp_path / "other") == 1
    assert "metrics.json does not exist, or is not an evaluation of this checkpoint" in capsys.readouterr().err
    assert run("export", "--checkpoint", network, "--license", "mit", "--output", tmp_path / "net.onnx") == 1
    assert "license is for the format smp" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_hugging_face(network, written, tmp_path, monkeypatch, capsys):
    """Uploads to a private repository; reads the network of a repository, at a revision."""
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))

    monkeypatch.setattr("training.export.HfApi", Api)
    words = ["export", "--checkpoint", network, "--format", "smp", "--repository", "net-v1.0"]
    assert run(*words, "--output", tmp_path / "net") == 0
    files = ["README.md", "config.json", "model.safetensors", SIDECAR]
    assert calls == [("net-v1.0", {"private": True, "exist_ok": True}), ("me/net-v1.0", files)]
    assert "https://huggingface.co/me/net-v1.0" in capsys.readouterr().out

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(Api, "upload_folder", offline)
    assert run(*words, "--output", tmp_path / "kept") == 1
    message = "kept is complete, but cannot be uploaded to me/net-v1.0 (no connection): try hf upload me/net-v1.0"
    assert message in capsys.readouterr().err
    assert (tmp_path / "kept" / "model.safetensors").is_file()

    requested = []
    monkeypatch.setattr(
        "training.exported_network.snapshot_download",
        lambda name, revision: requested.append((name, revision)) or written / "net",
    )
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    found = load_exported(UPath("hf://me/net-v1.0@abc"))
    torch.testing.assert_close(found.scores(images), load_trained(network).scores(images), rtol=0, atol=1e-4)
    load_exported(UPath("hf://me/net"))
    assert requested == [("me/net-v1.0", "abc"), ("me/net", None)]
    monkeypatch.setattr("training.exported_network.snapshot_download", offline)
    with pytest.raises(InputError, match="hf://me/net cannot be downloaded: no connection"):
        load_exported(UPath("hf://me/net"))


def test_a_wrong_export_is_not_written(network, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.torch.jit.trace", lambda *_, **__: lambda images: images)
    with pytest.raises(InputError, match="TorchScript export of this network is wrong"):
        export(network, tmp_path / "net.pt", "torchscript")

    def fail(_images):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("training.export.torch.jit.trace", lambda *_, **__: fail)
    with pytest.raises(InputError, match=r"is wrong: its scores of images \(2, 3, .* cannot be .* \(no kernel\)"):
        export(network, tmp_path / "net.pt", "torchscript")
    monkeypatch.setattr("training.export.restore_smp", lambda model, _: model)
    with pytest.raises(InputError, match="segmentation_models_pytorch export of this network is wrong"):
        export(network, tmp_path / "net", "smp")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(network, tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    assert run("export", "--checkpoint", network, "--format", "smp", "--output", tmp_path / "taken") == 1
    assert "not an empty folder" in capsys.readouterr().err
    assert run("export", "--checkpoint", network, "--format", "onnx", "--output", tmp_path / "taken") == 1
    assert "is a folder" in capsys.readouterr().err
    for form, name, needed in (("onnx", "net.pt", "needs"), ("torchscript", "net.onnx", "must not have")):
        assert run("export", "--checkpoint", network, "--format", form, "--output", tmp_path / name) == 1
        message = f"{name}: the format {form} {needed} a name that ends in .onnx"
        assert message in capsys.readouterr().err
    shutil.copy(network, tmp_path / "net")
    for name in ("net", "other.ckpt"):
        words = ["--checkpoint", tmp_path / "net", "--format", "torchscript", "--output", tmp_path / name]
        assert run("export", *words) == 1
        assert f"{name} is the name of a checkpoint: choose another output" in capsys.readouterr().err
    assert (tmp_path / "net").read_bytes() == network.read_bytes()
    (tmp_path / "net").unlink()
    assert run("export", "--checkpoint", network, "--format", "tflite", "--output", tmp_path / "x") == 2
    assert "onnx" in capsys.readouterr().err
    for missing in ("onnx", "onnxruntime"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, missing, None)
            assert run("export", "--checkpoint", network, "--format", "onnx", "--output", tmp_path / "x.onnx") == 1
        assert "pip install -c constraints.txt '.[export]'" in capsys.readouterr().err
        if missing == "onnx":
            pytest.importorskip("onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"taken"}


@pytest.mark.parametrize("size", [64, 192])
def test_onnx_of_a_network_that_pools_to_a_fixed_grid(voc, tmp_path, capfd, size):
    """ONNX has no such pooling for images of any size: the file has that of the training, if the grid divides it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = blank_checkpoint(tmp_path, voc, architecture="PSPNet", network_args={"psp_out_channels": 8})
    content = torch.load(path, weights_only=True)
    content["datamodule_hyper_parameters"]["eval_size"] = size
    torch.save(content, path)
    capfd.readouterr()
    status = run("export", "--checkpoint", path, "--format", "onnx", "--output", tmp_path / "net.onnx")
    printed = capfd.readouterr()
    assert len(printed.out.splitlines() + printed.err.splitlines()) <= 2  # and no graph of hundreds of lines
    if size == 64:  # 8x8 positions are pooled to 6x6
        assert status == 1
        assert (
            "ONNX cannot express this network (Unsupported: ONNX export of operator adaptive_avg_pool2d" in printed.err
        )
        return
    assert status == 0
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = load_trained(path).scores(images)
    torch.testing.assert_close(load_exported(tmp_path / "net.onnx").scores(images), expected, rtol=0, atol=1e-4)


def test_onnx_that_cannot_be_written(network, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")

    def fail(*_args, **_options):
        raise RuntimeError("no such operator\nand a graph of many lines")

    monkeypatch.setattr("torch.onnx.export", fail)
    assert run("export", "--checkpoint", network, "--format", "onnx", "--output", tmp_path / "net.onnx") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "tag2mask: ONNX cannot express this network (no such operator): use torchscript"


def test_largefov_is_not_exported_as_smp(tmp_path, monkeypatch):
    """Without its 82 MB on disk: the refusal is by the network's kind."""
    task = SegmentationTask(["cat"], architecture="LargeFOV")
    trained = type("T", (), {"task": task, "classes": ("cat",), "size": 64, "in_channels": 3})()
    monkeypatch.setattr("training.export.load_trained", lambda _: trained)
    (tmp_path / "x.ckpt").touch()
    with pytest.raises(InputError, match="LargeFOV is none of segmentation_models_pytorch's"):
        export(tmp_path / "x.ckpt", tmp_path / "net", "smp")
    assert [path.name for path in tmp_path.iterdir()] == ["x.ckpt"]


@pytest.mark.parametrize("name", ["broken.onnx", "folder", "broken.pt", "foreign.pt"])
def test_files_that_are_no_exports(tmp_path, capsys, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    elif name == "foreign.pt":
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), path)
    else:
        path.write_bytes(b"not a network")
    assert run("predict", "--checkpoint", path, "--images", tmp_path, "--output", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert name in message
    assert not (tmp_path / "out").exists()


def test_a_model_card_of_a_network_trained_on_cues(checkpoint, tmp_path):
    """Its figures are those without the CRF where that was left out; everybody may read the files."""
    words = ["--checkpoint", checkpoint, "--output", tmp_path / "val", "--crf", "false", "--num_images", 0]
    assert run("evaluate", *words, "--num_workers", 0) == 0
    words = ["--checkpoint", checkpoint, "--format", "smp", "--evaluation", tmp_path / "val"]
    assert run("export", *words, "--output", tmp_path / "new/net") == 0
    card = ModelCard.load(tmp_path / "new/net/README.md")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_name) == ("VOC", "val", "mean IoU")
    assert "weakly-supervised" in card.data.tags
    assert "with localization cues and the SEC loss." in card.text
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new/net").iterdir()} == {0o644}
