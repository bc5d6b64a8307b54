"""`tag2mask evaluate` of a checkpoint and of a folder of masks: metrics, files, the page, and refused input."""

import csv
import errno
import io
import json
import re
import shutil
import tarfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.class_names import voc_palette
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.masks import read_class_mask, read_mask, write_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.seed_cache import SeedCache
from datamodules.unreadable_images import UnreadableImages
from seeds.checkpoints import load_task
from tests.seed_caches import CacheWriter
from tests.training.conftest import data_of, trainer_of
from tests.training.fits import run
from training.evaluation.evaluate import evaluate
from training.evaluation.evaluation_table import print_metrics
from training.inference import load_trained, predictions, view_scores
from training.predict import predict
from training.segmentation_task import SegmentationTask


@pytest.fixture(scope="session")
def evaluated(checkpoint, tmp_path_factory):
    """Return the folder and the result of `evaluate` with the CRF."""
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


def test_metrics_agree_with_a_count_by_hand(checkpoint, evaluated):
    folder, metrics = evaluated
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    trained = load_trained(checkpoint)
    data = datamodule_from_settings(trained.data, num_workers=0)
    samples = data.samples("val", tags=False)
    loader = data.eval_loader(samples)
    found = list(predictions(trained.scores, loader, UnreadableImages(0.0), crf=True))
    truths = [read_class_mask(sample.mask, data.mask_lut) for sample in samples]
    names = ("background", *data.classes)
    for maps, figures in (("final", metrics), ("plain", metrics["without_crf"])):
        iou = numpy_iou([getattr(p, maps) for p in found], truths, len(names))
        assert figures["iou"] == pytest.approx({names[i]: value for i, value in iou.items()}, rel=1e-12)
        assert figures["miou"] == pytest.approx(np.mean(list(iou.values())), rel=1e-12)
        assert figures["background_iou"] == figures["iou"]["background"]
    assert metrics["images"] == len(truths) == 4
    assert metrics["split"] == "val"
    assert metrics["checkpoint"]["sha256"] == file_sha256(checkpoint)


def test_the_table_has_the_iou_without_the_crf(evaluated, capsys):
    folder, metrics = evaluated
    with (folder / "metrics.csv").open(newline="") as file:
        found = {row["class"]: float(row["iou_without_crf"]) for row in csv.DictReader(file)}
    expected = metrics["without_crf"]["iou"] | {"mean": metrics["without_crf"]["miou"]}
    assert found == expected
    print_metrics(metrics)
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.count("│") == 7]
    assert {row[0].strip(): row[-1].strip() for row in rows} == {k: f"{100 * v:.1f}" for k, v in expected.items()}


def test_the_same_images_as_another_kind_of_data_set(voc, checkpoint, evaluated, tmp_path):
    """A network trained on VOC, scored on a folder of photos with a table of tags and masks."""
    photos, ids = tmp_path / "photos", (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    (photos / "masks").mkdir(parents=True)
    for name in ids:
        shutil.copy(voc / f"JPEGImages/{name}.jpg", photos)
        shutil.copy(voc / f"SegmentationClass/{name}.png", photos / "masks")
    shutil.copy(voc / "classes.txt", photos)
    (photos / "tags.csv").write_text("".join(["file,tags\n", *(f"{name}.jpg,\n" for name in ids)]))
    words = ("--root", photos, "--split", "all", "--output", tmp_path / "out", "--num_workers", 0)
    assert run("evaluate", "--checkpoint", checkpoint, *words) == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["data"]["class_path"] == "datamodules.folder.FolderDataModule"
    assert metrics["data"]["eval_size"] == evaluated[1]["data"]["eval_size"]
    assert metrics["iou"] == pytest.approx(evaluated[1]["iou"])


def test_test_agrees_with_evaluate_without_crf(voc, checkpoint, evaluated, tmp_path):
    alone = evaluate(checkpoint, output=tmp_path, crf=False, num_workers=0, num_images=0)
    task = load_task(checkpoint, SegmentationTask)[0]
    tested = trainer_of(tmp_path).test(task, data_of(voc), verbose=False)[0]
    assert tested["test/miou"] == pytest.approx(alone["miou"], rel=1e-6)
    for name, value in alone["iou"].items():
        assert tested[f"test/iou/{name}"] == pytest.approx(value, abs=1e-6)
    assert evaluated[1]["without_crf"] == {key: alone[key] for key in evaluated[1]["without_crf"]}
    assert alone["crf"] is None
    assert "without_crf" not in alone


def test_the_page_holds_everything(evaluated):
    page = (evaluated[0] / "index.html").read_text()
    assert page.count("<article") == 3 + 8  # of val, and training images with cues (8 of 9)
    assert page.count('<img class="layer prediction"') == 11
    assert page.count('<img class="layer cues"') == 8
    assert page.count('<img class="layer truth"') == 11
    for title in ("Best images", "Worst images", "Random images", "Training images"):
        assert title in page
    interval = evaluated[1]["miou_interval"]
    assert f"95 % interval: {100 * interval['low']:.1f} to {100 * interval['high']:.1f}" in page


def test_the_page_shows_predictions_after_the_crf(checkpoint, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("training.inference.crf_label_map", lambda _, image: torch.ones(image.shape[:2]))
    monkeypatch.setattr("training.evaluation.evaluate.render_page", lambda _, sections: shown.extend(sections) or "")
    evaluate(checkpoint, output=tmp_path, num_images=3, num_workers=0)
    examples = [example for section in shown for example in section.examples]
    assert len(examples) == 3 + 8
    assert all((example.prediction == 1).all() for example in examples)


def test_training_images_are_shown_where_some_have_no_mask(voc, checkpoint, cues, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    next(iter(sorted((some / "SegmentationClass").glob("train*.png")))).unlink()
    evaluate(checkpoint, output=tmp_path / "out", root=str(some), cues=cues, num_workers=0, crf=False, num_images=0)
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count('<img class="layer cues"') == 8
    assert page.count('<img class="layer truth"') == 7


def test_no_page_without_its_metrics(voc, predicted_masks, tmp_path, monkeypatch):
    """Such as on a full disk."""
    monkeypatch.setattr("training.evaluation.evaluate.write_json", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        evaluate(predictions=predicted_masks[0], root=str(voc), output=tmp_path / "out")
    assert not (tmp_path / "out/index.html").exists()


def test_a_negative_number_of_images(voc, predicted_masks, tmp_path):
    with pytest.raises(InputError, match="num_images must be at least 0, not -1"):
        evaluate(predictions=predicted_masks[0], root=str(voc), output=tmp_path / "out", num_images=-1)


def test_images_without_masks_get_a_page_and_no_metrics(voc, checkpoint, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(voc, bare)
    shutil.rmtree(bare / "SegmentationClass")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.csv").write_text("figures of an earlier evaluation")
    metrics = evaluate(checkpoint, output=tmp_path / "out", root=str(bare), num_workers=0, crf=False)
    assert metrics["miou"] is None
    assert not (tmp_path / "out/metrics.csv").exists()
    assert metrics["images"] == 4
    page = (tmp_path / "out" / "index.html").read_text()
    assert "layer truth" not in page
    assert "Best images" not in page
    assert page.count("<article") >= 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "nosuch"}, "nosuch"),
        ({"root": "/no/such/folder"}, "/no/such/folder"),
        ({"masks": "NoMasks"}, "NoMasks"),
        ({"cues": "nocache"}, "nocache"),
    ],
)
def test_bad_input_writes_nothing(checkpoint, tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        evaluate(checkpoint, output=tmp_path / "out", num_workers=0, crf=False, **settings)
    assert not (tmp_path / "out").exists()


def test_cues_of_other_classes_are_not_shown(checkpoint, cues, tmp_path):
    """Those of the training, too, where the folder contains another cache by now: the page is without them."""
    seeds = SeedCache(cues)
    with CacheWriter(tmp_path / "other", seeds.classes[::-1], {}) as writer:
        for name in seeds.ids:
            writer.add(name, seeds.cues(name))
    how = {"num_workers": 0, "crf": False, "num_images": 0}
    with pytest.raises(InputError, match=r"the seed cache .*other"):
        evaluate(checkpoint, output=tmp_path / "out", cues=tmp_path / "other", **how)
    assert not (tmp_path / "out").exists()
    content = torch.load(checkpoint, weights_only=True)
    for folder in (tmp_path / "other", tmp_path / "gone"):
        content["datamodule_hyper_parameters"]["cues"] = str(folder)
        torch.save(content, tmp_path / "a.ckpt")
        evaluate(tmp_path / "a.ckpt", output=tmp_path / "out", **how)
        assert "layer cues" not in (tmp_path / "out/index.html").read_text()


def test_the_folder_of_the_training_is_no_output(checkpoint, tmp_path):
    """Both commands write a ``metrics.csv``."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(checkpoint, run / "last.ckpt")
    (run / "provenance.json").write_text("{}")
    (run / "metrics.csv").write_text("step\n1\n")
    with pytest.raises(InputError, match=rf"^{run} is the folder of a training: .* such as {run / 'val'}$"):
        evaluate(run / "last.ckpt", output=run, num_workers=0, crf=False)
    assert (run / "metrics.csv").read_text() == "step\n1\n"


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    torch.save({"state_dict": {}, "tag2mask": {"task": "classifier", "version": 1}}, tmp_path / "c.ckpt")
    with pytest.raises(InputError, match="classifier"):
        evaluate(tmp_path / "c.ckpt", output=tmp_path / "out")


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
    assert (tmp_path / "out/index.html").read_text().count('<img class="layer cues"') == 7
    assert metrics["miou"] == evaluate(checkpoint, output=tmp_path / "other", root=str(voc), **how)["miou"]


def test_a_bad_mask_of_a_training_image_ends_no_evaluation(voc, checkpoint, tmp_path, capsys):
    """A training on cues does not read it."""
    root = shutil.copytree(voc, tmp_path / "voc")
    for name in (root / "ImageSets/Segmentation/train.txt").read_text().split():
        Image.new("P", (3, 3)).save(root / f"SegmentationClass/{name}.png")
    evaluate(checkpoint, output=tmp_path / "out", root=str(root), num_images=3, num_workers=0)
    assert "Training images" not in (tmp_path / "out/index.html").read_text()
    assert re.search(r"the page shows no training images: .*\.png is 3x3, and its image", capsys.readouterr().err)


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
    assert "<dt>precision</dt><dd>32-true</dd>" in page
    (some / "ImageSets/Segmentation/val.txt").write_text("".join(f"{name}\n" for name in names if name != names[1]))
    assert evaluate(checkpoint, output=tmp_path / "other", **how)["confusion"] == metrics["confusion"]


def count(folder, masks, ids, classes):
    """IoU of each class over two folders of PNGs, counted as sets of pixels."""
    iou = {}
    pairs = [(np.array(Image.open(folder / f"{i}.png")), np.array(Image.open(masks / f"{i}.png"))) for i in ids]
    for c in range(classes):
        hits = sum(int(((pred == c) & (true == c)).sum()) for pred, true in pairs)
        union = sum(int((((pred == c) | (true == c)) & (true != 255)).sum()) for pred, true in pairs)
        if union:
            iou[c] = hits / union
    return iou


def test_a_folder_of_predictions(voc, predicted_masks, tmp_path):
    folder, ids = predicted_masks
    out = tmp_path / "out"
    assert run("evaluate", "--predictions", folder, "--root", voc, "--output", out, "--num_images", 2) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    names = ("background", *metrics["classes"])
    expected = count(folder, voc / "SegmentationClass", ids, len(names))
    assert metrics["iou"] == pytest.approx({names[c]: value for c, value in expected.items()}, abs=1e-9)
    assert metrics["miou"] == pytest.approx(np.mean(list(expected.values())), abs=1e-9)
    assert 0 < metrics["miou"] < 1
    assert metrics["images"] == len(ids)
    assert metrics["predictions"] == {"path": str(folder)}
    assert "checkpoint" not in metrics
    lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    assert lines[0] == ["class", "iou", "precision", "recall", "boundary_iou"]
    assert {line[0]: float(line[1]) for line in lines[1:-1]} == metrics["iou"]
    assert float(lines[-1][1]) == metrics["miou"]
    assert (out / "index.html").read_text().count("<article") == 2
    for name in ids[:2]:  # a GeoTIFF of `predict` counts as the PNG does
        with Image.open(folder / f"{name}.png") as mask:
            mask.save(folder / f"{name}.tif")
        (folder / f"{name}.png").unlink()
    assert run("evaluate", "--predictions", folder, "--root", voc, "--output", tmp_path / "tiff") == 0
    assert json.loads((tmp_path / "tiff/metrics.json").read_text())["iou"] == metrics["iou"]


def test_classes_of_predictions_are_matched_by_name(voc, predicted_masks, tmp_path):
    """With a classes.txt that names them backwards, indices are translated; fewer classes leave pixels out."""
    folder, ids = predicted_masks
    plain = evaluate(predictions=folder, root=str(voc), output=tmp_path / "plain", num_images=0)
    names = plain["classes"]
    (folder / "classes.txt").write_text("\n".join(reversed(names)))
    back = np.array([0, *range(len(names), 0, -1)], np.uint8)
    for name in ids:
        write_mask(folder / f"{name}.png", back[np.array(Image.open(folder / f"{name}.png"))])
    turned = evaluate(predictions=folder, root=str(voc), output=tmp_path / "turned", num_images=0)
    assert turned["iou"] == plain["iou"]
    assert turned["classes"] == names[::-1]
    with pytest.raises(InputError, match=rf"contains class '({'|'.join(names[1:])})', which is not scored"):
        evaluate(predictions=folder, root=str(voc), output=tmp_path / "one", num_images=0, classes=names[:1])
    straight = evaluate(predictions=folder, root=str(voc), output=tmp_path / "s", num_images=0, classes=names)
    assert list(straight["iou"].items()) == list(plain["iou"].items())


def test_indices_of_predictions_without_a_list_are_those_of_the_data(voc, predicted_masks, tmp_path):
    """In their order, also where the classes to score are given in another one."""
    folder, _ = predicted_masks
    plain = evaluate(predictions=folder, root=str(voc), output=tmp_path / "plain", num_images=0)
    classes = plain["classes"][::-1]
    turned = evaluate(predictions=folder, root=str(voc), output=tmp_path / "turned", num_images=0, classes=classes)
    assert turned["classes"] == classes
    assert turned["iou"] == plain["iou"]


def test_predictions_for_a_folder_of_images(voc, predicted_masks, tmp_path):
    """The same images, masks and predictions as a folder with tags.csv have the same figures as in VOC's layout."""
    predictions, ids = predicted_masks
    classes, root = (voc / "classes.txt").read_text().split(), tmp_path / "photos"
    (root / "masks").mkdir(parents=True)
    for name in ids:
        shutil.copy(voc / f"JPEGImages/{name}.jpg", root)
        shutil.copy(voc / f"SegmentationClass/{name}.png", root / "masks")
    (root / "tags.csv").write_text("\n".join(["file,tags", *(f"{name}.jpg,{';'.join(classes)}" for name in ids)]))
    (root / "classes.txt").write_text("\n".join(classes))
    words = ["evaluate", "--predictions", predictions, "--root", root, "--split", "all", "--output", tmp_path / "out"]
    assert run(*words) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = evaluate(predictions=predictions, root=str(voc), output=tmp_path / "voc", num_images=0)
    assert found["confusion"] == expected["confusion"]
    assert found["data"]["class_path"] == "datamodules.folder.FolderDataModule"


def test_masks_of_0_and_255(voc, predicted_masks, tmp_path, capsys):
    """As many tools export them: nothing but background is scored, and a message reports it."""
    predictions, ids = predicted_masks
    shutil.copytree(voc, tmp_path / "voc")
    for name in ids:
        path = tmp_path / f"voc/SegmentationClass/{name}.png"
        write_mask(path, np.where(read_mask(path) > 0, 255, 0).astype(np.uint8))
    assert run("evaluate", "--predictions", predictions, "--root", tmp_path / "voc", "--output", tmp_path / "out") == 0
    assert "no mask shows a class, only background (0) and pixels that do not count (255)" in capsys.readouterr().out


def test_masks_of_predict_score_as_evaluate_does(voc, checkpoint, tmp_path):
    photos = [voc / f"JPEGImages/{name}.jpg" for name in (voc / "ImageSets/Segmentation/val.txt").read_text().split()]
    listed = json.dumps([str(photo) for photo in photos])
    common = ("--checkpoint", checkpoint, "--crf", "false", "--num_workers", 0)
    assert run("predict", *common, "--batch_size", 1, "--images", listed, "--output", tmp_path / "masks") == 0
    assert run("evaluate", *common, "--num_images", 0, "--batch_size", 1, "--output", tmp_path / "a") == 0
    scored = evaluate(predictions=tmp_path / "masks", root=str(voc), output=tmp_path / "b", num_images=0)
    direct = json.loads((tmp_path / "a/metrics.json").read_text())
    assert scored["confusion"] == direct["confusion"]
    assert scored["boundary_iou"] == direct["boundary_iou"]
    assert scored["miou_interval"] == direct["miou_interval"]


def test_predictions_of_images_that_cannot_be_read_are_left_out(voc, predicted_masks, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(voc, some)
    name = (some / "ImageSets/Segmentation/val.txt").read_text().split()[1]
    path = some / f"JPEGImages/{name}.jpg"
    path.write_bytes(path.read_bytes()[:-200])  # the header is whole
    how = {"predictions": predicted_masks[0], "root": str(some), "output": tmp_path / "out"}
    with pytest.raises(InputError, match="1 of 4 images cannot be read"):
        evaluate(**how)
    metrics = evaluate(**how, max_unreadable=0.5)
    assert (metrics["images"], metrics["images_with_mask"]) == (3, 3)
    assert list(metrics["unreadable"]) == [name]


def spoil(folder, ids, how):
    path = folder / f"{ids[1]}.png"
    mask = np.array(Image.open(path))
    if how == "missing":
        path.unlink()
    elif how == "size":
        write_mask(path, mask[:, 1:])
    elif how == "void":
        mask[0, 0] = 255
        write_mask(path, mask)
    elif how == "index":
        mask[0, 0] = 77
        write_mask(path, mask)
    else:
        Image.fromarray(mask).convert("RGB").save(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [("missing", "1 of 4 predictions are missing"), ("size", "is 71x96, and its mask "),
     ("void", "contains pixels of 255, which are no prediction"),
     ("index", "index 77"), ("colours", "RGB")],
)  # fmt: skip
def test_predictions_that_cannot_be_scored(voc, predicted_masks, tmp_path, capsys, how, words):
    folder, ids = predicted_masks
    spoil(folder, ids, how)
    assert run("evaluate", "--predictions", folder, "--root", voc, "--output", tmp_path / "out") == 1
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in printed
    assert f"{ids[1]}.png" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "either"), ({"checkpoint": "x", "predictions": "y"}, "either"), ({"predictions": Path("y")}, "--root"),
     ({"checkpoint": "x", "classes": ["cat"]}, "classes are for")]
)  # fmt: skip
def test_options_that_do_not_go_together(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        evaluate(**given, output=tmp_path / "out")


def test_masks_must_be_there(voc, predicted_masks, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(voc, bare)
    shutil.rmtree(bare / "SegmentationClass")
    with pytest.raises(InputError, match="no masks to score"):
        evaluate(predictions=predicted_masks[0], root=str(bare), output=tmp_path / "out")


def test_scales_and_flip(checkpoint, cues, tmp_path, monkeypatch):
    shown = []

    def spy(network, images, views, **more):
        sides = []
        scores = view_scores(lambda seen: sides.append(seen.shape[-1]) or network(seen), images, views, **more)
        shown.append((sides, scores.shape[-1]))
        return scores

    monkeypatch.setattr("training.inference.view_scores", spy)
    words = ("--checkpoint", checkpoint, "--crf", "false", "--num_workers", 0, "--num_images", 0, "--batch_size", 4)
    assert run("evaluate", *words, "--output", tmp_path / "a", "--scales", "[0.55, 1]", "--flip", "true") == 0
    assert run("evaluate", *words, "--output", tmp_path / "b") == 0
    assert shown[0] == ([32, 32, 64, 64], 16)  # 35.2 to a multiple of 16; its grid is a quarter of the side
    assert shown[-1] == ([64], 16)
    several, plain = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert (several["scales"], several["flip"]) == ([0.55, 1.0], True)
    assert (plain["scales"], plain["flip"]) == ([1.0], False)
    shown.clear()
    assert run("evaluate", *words, "--output", tmp_path / "c", "--flip", "true", "--cues", cues) == 0
    assert [sides for sides, _ in shown] == [[64, 64]] * 3  # a batch of val, and two of training images for the page


@pytest.fixture
def voc_like(predicted_masks, voc, tmp_path):
    """The same images as if of VOC's classes: no classes.txt."""
    root = tmp_path / "VOC2012"
    shutil.copytree(voc, root)
    (root / "classes.txt").unlink()
    return root


def test_images_in_tiles(voc, checkpoint, tmp_path, monkeypatch):
    """Scored by their own masks, as `predict` labels them, of any size; the page and the metrics record the tiles."""
    how = {"num_workers": 0, "num_images": 2, "crf": False, "tile": 64, "overlap": 0.5}
    metrics = evaluate(checkpoint, output=tmp_path / "out", **how)
    assert (metrics["tile"], metrics["overlap"]) == (64, 0.5)
    assert "64 pixels, overlap 0.5" in (tmp_path / "out/index.html").read_text()
    images = [Path(sample.image) for sample in data_of(voc).samples("val")]
    predict(checkpoint, images, tmp_path / "masks", crf=False, tile=64, overlap=0.5, num_workers=0)
    scored = evaluate(predictions=tmp_path / "masks", root=str(voc), output=tmp_path / "b", num_images=0)
    assert scored["confusion"] == metrics["confusion"]
    whole = evaluate(checkpoint, output=tmp_path / "c", num_workers=0, crf=False, num_images=0)
    assert whole["confusion"] != metrics["confusion"]
    assert "tile" not in whole
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2)  # twice that is Pillow's limit
    assert evaluate(checkpoint, output=tmp_path / "d", **how)["confusion"] == metrics["confusion"]
    again = evaluate(predictions=tmp_path / "masks", root=str(voc), output=tmp_path / "e", num_images=2)
    assert again["confusion"] == metrics["confusion"]


def test_the_archive_for_vocs_server(voc_like, predicted_masks, tmp_path):
    folder, ids = predicted_masks
    out = tmp_path / "out"
    words = ("--predictions", folder, "--root", voc_like, "--output", out, "--submission", "true", "--num_images", 0)
    assert run("evaluate", *words) == 0
    with tarfile.open(out / "submission.tar") as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_val_cls/{name}.png" for name in ids]
        for name, member in zip(ids, archive.getmembers(), strict=True):
            content = archive.extractfile(member).read()
            assert (out / member.name).read_bytes() == content
            image = Image.open(io.BytesIO(content))
            assert image.mode == "P"
            assert image.getpalette()[:63] == voc_palette().ravel().tolist()[:63]
            assert np.array_equal(np.array(image), np.array(Image.open(folder / f"{name}.png")))


def test_an_archive_of_an_earlier_evaluation_is_removed(voc_like, predicted_masks, tmp_path):
    folder, ids = predicted_masks
    how = {"predictions": folder, "root": str(voc_like), "output": tmp_path / "out", "num_images": 0}
    (tmp_path / "out/results/VOC2012/Segmentation").mkdir(parents=True)
    own = tmp_path / "out/results/VOC2012/Segmentation/notes.txt"
    own.write_text("no file of an evaluation")
    evaluate(**how)
    assert own.exists()
    evaluate(**how, submission=True)
    evaluate(**how)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "index.html",
        "metrics.json",
        "metrics.csv",
        "results",
    }
    assert not list((tmp_path / "out").rglob(f"{ids[0]}.png"))


def test_the_page_is_not_written_among_the_images(voc, predicted_masks):
    folder = voc / "JPEGImages"
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match="JPEGImages is a folder of the images: choose another output folder"):
        evaluate(predictions=predicted_masks[0], root=str(voc), output=folder)
    assert sorted(folder.iterdir()) == before


def test_an_archive_lacks_no_image(voc_like, predicted_masks, tmp_path):
    folder, ids = predicted_masks
    (voc_like / f"JPEGImages/{ids[0]}.jpg").write_bytes(b"no image")
    how = {"predictions": folder, "root": str(voc_like), "max_unreadable": 1.0, "num_images": 0}
    with pytest.raises(InputError, match="1 of 4 images cannot be read"):
        evaluate(output=tmp_path / "out", submission=True, **how)
    assert not (tmp_path / "out").exists()
    assert evaluate(output=tmp_path / "out", **how)["images"] == 3


def test_an_archive_of_other_classes_is_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="VOC's 20 classes"):
        evaluate(checkpoint, output=tmp_path / "out", submission=True)
    assert not (tmp_path / "out").exists()
