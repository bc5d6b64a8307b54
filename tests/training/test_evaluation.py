"""Figures and the page of `evaluate`, masks of `predict`."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import dataset
from datamodules.class_names import voc_palette
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.images import read_image
from datamodules.masks import read_class_mask, read_mask
from datamodules.unreadable import UnreadableImages
from seeds.checkpoints import load_task
from seeds.crf import dense_crf
from tests.training.conftest import data_of, trainer_of
from training.cli import main
from training.evaluation.evaluate import evaluate
from training.inference import crf_label_map, data_module, load_trained, predictions
from training.predict import predict
from training.segmentation_task import SegmentationTask

READING = {"batch_size": 3, "num_workers": 0, "unreadable": UnreadableImages(0.0)}


@pytest.fixture(scope="session")
def evaluated(checkpoint, tmp_path_factory):
    """(folder, what `evaluate` returned), with the CRF."""
    folder = tmp_path_factory.mktemp("evaluated") / "new" / "folder"
    return folder, evaluate(checkpoint, output=folder, num_images=3, num_workers=0)


def numpy_iou(predicted, truths, classes):
    """One confusion matrix over the set, 255 left out; counted here by hand."""
    counts = np.zeros((classes, classes), np.int64)
    for guess, truth in zip(predicted, truths, strict=True):
        keep = truth != 255
        np.add.at(counts, (truth[keep], guess[keep]), 1)
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    return {i: hits[i] / union[i] for i in range(classes) if union[i]}


def test_figures_agree_with_a_count_by_hand(checkpoint, evaluated):
    folder, metrics = evaluated
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    trained = load_trained(checkpoint)
    data = data_module(trained, num_workers=0)
    photos = data.photos("val", labels=False)
    found = list(predictions(trained, photos, **READING, size=data.hparams["eval_size"], crf=True))
    truths = [read_class_mask(path, photos.lut) for path in photos.masks]
    names = ("background", *photos.classes)
    for maps, figures in (("final", metrics), ("plain", metrics["without_crf"])):
        iou = numpy_iou([getattr(p, maps).numpy() for p in found], truths, len(names))
        assert figures["iou"] == pytest.approx({names[i]: value for i, value in iou.items()}, rel=1e-12)
        assert figures["miou"] == pytest.approx(np.mean(list(iou.values())), rel=1e-12)
        assert figures["background_iou"] == figures["iou"]["background"]
    assert metrics["images"] == len(truths) == 4
    assert metrics["split"] == "val"
    assert metrics["checkpoint"]["sha256"] == file_sha256(checkpoint)


def test_test_agrees_with_evaluate_without_crf(voc, checkpoint, evaluated, tmp_path):
    alone = evaluate(checkpoint, output=tmp_path, crf=False, num_workers=0, num_images=0)
    task = load_task(checkpoint, SegmentationTask)
    tested = trainer_of(tmp_path).test(task, data_of(voc), verbose=False)[0]
    assert tested["test/miou"] == pytest.approx(alone["miou"], rel=1e-6)
    for name, value in alone["iou"].items():
        assert tested[f"test/iou/{name}"] == pytest.approx(value, abs=1e-6)
    assert evaluated[1]["without_crf"] == {key: alone[key] for key in evaluated[1]["without_crf"]}
    assert alone["crf"] is None
    assert "without_crf" not in alone


def test_the_crf_at_test_time_is_the_papers():
    """Softmax, bilinear, floor 1e-5, logarithm, scale 1, ten iterations."""
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(3, 5, 6, generator=generator)
    image = torch.randint(0, 256, (23, 31, 3), generator=generator).to(torch.uint8)
    probs = torch.nn.functional.interpolate(scores.softmax(0)[None], (23, 31), mode="bilinear", align_corners=False)
    unary = torch.log(torch.clamp(probs, min=1e-5))
    expected = dense_crf(image.permute(2, 0, 1)[None].contiguous(), unary, iterations=10, scale=1.0)[0].argmax(0)
    assert torch.equal(crf_label_map(scores, image.numpy()), expected)


def test_large_photos_come_out_at_their_own_size():
    image = np.zeros((1100, 1300, 3), np.uint8)
    image[:, 650:] = 255
    scores = torch.tensor([[[3.0, -3.0]], [[-3.0, 3.0]]])
    labels = crf_label_map(scores, image)
    assert labels.shape == (1100, 1300)
    assert (labels[:, :600] == 0).all()
    assert (labels[:, 700:] == 1).all()


def test_the_page_holds_everything(evaluated):
    page = (evaluated[0] / "index.html").read_text()
    assert page.count("<article") == 3 + 8  # of val, and training images with cues (8 of 9)
    assert page.count("<img class='layer prediction'") == 11
    assert page.count("<img class='layer cues'") == 8
    assert page.count("<img class='layer truth'") == 11
    for title in ("Best images", "Worst images", "Images drawn by chance", "What it learned from"):
        assert title in page
    interval = evaluated[1]["miou_interval"]
    assert f"95 % interval {100 * interval['low']:.1f} to {100 * interval['high']:.1f}" in page


def test_training_pictures_are_shown_where_some_have_no_mask(voc, checkpoint, cues, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    next(iter(sorted((some / "SegmentationClass").glob("train*.png")))).unlink()
    evaluate(checkpoint, output=tmp_path / "out", root=str(some), cues=cues, num_workers=0, crf=False, num_images=0)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<img class='layer cues'") == 8
    assert page.count("<img class='layer truth'") == 7


def test_pictures_without_masks_get_a_page_and_no_figures(voc, checkpoint, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(voc, bare)
    shutil.rmtree(bare / "SegmentationClass")
    metrics = evaluate(checkpoint, output=tmp_path / "out", root=str(bare), num_workers=0, crf=False)
    assert metrics["miou"] is None
    assert metrics["images"] == 4
    page = (tmp_path / "out" / "index.html").read_text()
    assert "layer truth" not in page
    assert "Best images" not in page
    assert page.count("<article") >= 4


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"split": "nosuch"}, "nosuch"),
        ({"root": "/no/such/folder"}, "/no/such/folder"),
        ({"masks": "NoMasks"}, "NoMasks"),
        ({"cues": "nocache"}, "nocache"),
    ],
)
def test_bad_input_writes_nothing(checkpoint, tmp_path, settings, says):
    with pytest.raises(InputError, match=says):
        evaluate(checkpoint, output=tmp_path / "out", num_workers=0, crf=False, **settings)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}, "tag2mask": {"task": "classifier", "version": 1}}, tmp_path / "c.ckpt")
    with pytest.raises(InputError, match="classifier"):
        evaluate(tmp_path / "c.ckpt", output=tmp_path / "out")


def test_a_checkpoint_from_before_eval_size_is_read(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    size = content["datamodule_hyper_parameters"].pop("eval_size")
    torch.save(content, tmp_path / "old.ckpt")
    trained = load_trained(tmp_path / "old.ckpt")
    assert trained.size == size
    assert data_module(trained).hparams["eval_size"] == size


# --- predict


@pytest.fixture
def photos(voc, tmp_path):
    """A folder with two photos, one of them turned by its EXIF orientation, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted((voc / "JPEGImages").iterdir())[:2]
    Image.open(files[0]).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[1]).resize((80, 50)).save(folder / "b.jpeg", exif=exif)
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.mark.parametrize("crf", [False, True])
def test_predict_writes_palette_masks_of_the_photos_size(checkpoint, photos, tmp_path, crf):
    out = tmp_path / "out"
    written = predict(checkpoint, [photos], out, crf=crf, overlay=True, num_workers=0)
    assert [path.name for path in written] == ["a.png", "b.png"]
    assert {path.name for path in out.iterdir()} == {"a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg", "classes.txt"}
    for name, photo in (("a", "a.jpg"), ("b", "b.jpeg")):
        with Image.open(out / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:63] == voc_palette()[:63]
        assert read_mask(out / f"{name}.png").shape == read_image(photos / photo).shape[:2]
    assert read_mask(out / "b.png").shape == (80, 50)  # upright


def test_predict_agrees_with_evaluate(voc, checkpoint, tmp_path):
    trained = load_trained(checkpoint)
    data = data_module(trained, num_workers=0)
    photos = data.photos("val", labels=False)
    for crf in (False, True):
        predict(checkpoint, list(photos.images), tmp_path / str(crf), crf=crf, num_workers=0)
    for found in predictions(trained, photos, **READING, size=data.hparams["eval_size"], crf=True):
        assert (read_mask(tmp_path / f"False/{found.name}.png") == found.plain.numpy()).mean() > 0.999
        assert (read_mask(tmp_path / f"True/{found.name}.png") == found.final.numpy()).mean() > 0.999


@pytest.mark.parametrize("content", ["header", "pixels"])
def test_photos_that_cannot_be_read_are_skipped_and_listed(checkpoint, photos, tmp_path, capsys, content):
    """All others get their masks, the same as without the broken ones; exit status 1; the next run clears the list."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={photos}", "--num_workers=0", "--batch_size=2"]
    assert main([*words, f"--output={whole}"]) == 0
    for name in ("a1", "z"):
        broken = b"not a photo" if content == "header" else (photos / "a.jpg").read_bytes()[:-200]
        (photos / f"{name}.jpg").write_bytes(broken)
    assert main([*words, f"--output={out}"]) == 1
    said = capsys.readouterr().err
    assert "2 of 4 images were skipped" in said.splitlines()[-1]
    assert "left out: z: image" in said
    with (out / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a1.jpg", "z.jpg"]
    assert all("cannot be read" in row["reason"] for row in rows)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()} | {"skipped.csv"}
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    for name in ("a1", "z"):
        (photos / f"{name}.jpg").unlink()
    assert main([*words, f"--output={out}"]) == 0
    assert not (out / "skipped.csv").exists()


def test_each_mask_is_written_as_it_is_done_and_each_photo_read_once(checkpoint, photos, tmp_path, monkeypatch):
    read, out = [], tmp_path / "out"
    read_image = dataset.read_image

    def counted(path):
        read.append((path.name, len(list(out.glob("*.png")))))
        return read_image(path)

    monkeypatch.setattr(dataset, "read_image", counted)
    predict(checkpoint, [photos], out, num_workers=0, batch_size=1, overlay=True)
    assert read == [("a.jpg", 0), ("b.jpeg", 1)]


def test_photos_that_cannot_be_used(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    shutil.copy(photos / "a.jpg", photos / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png"):
        predict(checkpoint, [photos], out)
    with pytest.raises(InputError, match="no photo"):
        predict(checkpoint, [tmp_path / "photos" / ".."], out)
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        predict(checkpoint, [tmp_path / "nowhere.jpg"], out)
    with pytest.raises(InputError, match="batch_size 0"):
        predict(checkpoint, [photos], out, batch_size=0)
    assert not out.exists()


def test_images_of_a_split_that_cannot_be_read(voc, checkpoint, tmp_path):
    """Left out and named, up to the share; the figures are those of the others."""
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    names = (some / "ImageSets/Segmentation/val.txt").read_text().split()
    path = some / f"JPEGImages/{names[1]}.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (some / f"JPEGImages/{names[2]}.jpg").write_bytes(b"no image")
    how = {"root": str(some), "num_workers": 0, "crf": False}
    for settings in ({}, {"max_unreadable": 0.25}, {"max_unreadable": 1.0, "strict": True}):
        with pytest.raises(InputError, match="of 4 images cannot be read"):
            evaluate(checkpoint, output=tmp_path / "out", **how, **settings)
        assert not (tmp_path / "out").exists()
    metrics = evaluate(checkpoint, output=tmp_path / "out", max_unreadable=0.5, **how)
    assert (metrics["images"], metrics["images_with_mask"]) == (2, 2)
    assert sorted(metrics["unreadable"]) == sorted(names[1:3])
    for name in names[1:3]:
        shutil.copy(voc / f"JPEGImages/{name}.jpg", some / "JPEGImages")
    (some / "ImageSets/Segmentation/val.txt").write_text(f"{names[0]}\n{names[3]}\n")
    assert evaluate(checkpoint, output=tmp_path / "out", **how)["miou"] == metrics["miou"]


def test_a_training_image_that_cannot_be_read_is_not_shown(voc, checkpoint, cues, tmp_path):
    """Nothing is lost by it: the page has the other training images, and the figures are the same."""
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    name = (some / "ImageSets/Segmentation/train.txt").read_text().split()[0]
    (some / f"JPEGImages/{name}.jpg").write_bytes(b"no image")
    how = {"num_workers": 0, "crf": False, "num_images": 0, "cues": cues}
    metrics = evaluate(checkpoint, output=tmp_path / "out", root=str(some), **how)
    assert (tmp_path / "out/index.html").read_text().count("<img class='layer cues'") == 7
    assert metrics["miou"] == evaluate(checkpoint, output=tmp_path / "other", root=str(voc), **how)["miou"]


def test_images_without_a_mask_are_shown_and_not_scored(voc, checkpoint, tmp_path, capsys):
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    names = (some / "ImageSets/Segmentation/val.txt").read_text().split()
    (some / f"SegmentationClass/{names[1]}.png").unlink()
    how = {"root": str(some), "num_workers": 0, "crf": False}
    metrics = evaluate(checkpoint, output=tmp_path / "out", **how)
    assert (metrics["images"], metrics["images_with_mask"]) == (4, 3)
    assert "3 of 4 images have a mask" in capsys.readouterr().out
    page = (tmp_path / "out/index.html").read_text()
    assert "<dt>images</dt><dd>3 of 4 have a mask; 0 more cannot be read</dd>" in page
    assert "<dt>computed in</dt><dd>32-true</dd>" in page
    (some / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in names if name != names[1]))
    assert evaluate(checkpoint, output=tmp_path / "other", **how)["confusion"] == metrics["confusion"]


def test_a_photo_is_never_overwritten(checkpoint, photos):
    (photos / "a.jpg").unlink()
    Image.new("RGB", (40, 40)).save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    with pytest.raises(InputError, match="would replace"):
        predict(checkpoint, [photos], photos)
    assert (photos / "a.png").read_bytes() == before
