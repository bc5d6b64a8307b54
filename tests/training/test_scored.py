"""Scoring folders of masks, VOC's archive, and evaluations side by side: by their commands."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.class_names import voc_palette
from datamodules.errors import InputError
from datamodules.masks import write_mask
from training.cli import main
from training.evaluation.evaluate import evaluate
from training.evaluation.voc_submission import write_submission
from training.inference import view_scores


def run(*words) -> int:
    return main([str(word) for word in words])


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


@pytest.fixture
def foreign(voc, tmp_path):
    """Somebody's predictions of the validation images: the masks, moved, the void filled; gray and palette."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    ids = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
    for number, name in enumerate(ids):
        mask = np.roll(np.array(Image.open(voc / f"SegmentationClass/{name}.png")), 5, axis=number % 2)
        mask[mask == 255] = 1
        if number % 2:
            Image.fromarray(mask).save(folder / f"{name}.png")
        else:
            write_mask(folder / f"{name}.png", mask)
    return folder, ids


def test_a_folder_of_predictions(voc, foreign, tmp_path):
    folder, ids = foreign
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


def test_classes_of_predictions_go_by_their_names(voc, foreign, tmp_path):
    """With a classes.txt that names them backwards, indices are translated; fewer classes leave pixels out."""
    folder, ids = foreign
    plain = evaluate(predictions=folder, root=str(voc), output=tmp_path / "plain", num_images=0)
    names = plain["classes"]
    (folder / "classes.txt").write_text("\n".join(reversed(names)))
    back = np.array([0, *range(len(names), 0, -1)], np.uint8)
    for name in ids:
        write_mask(folder / f"{name}.png", back[np.array(Image.open(folder / f"{name}.png"))])
    turned = evaluate(predictions=folder, root=str(voc), output=tmp_path / "turned", num_images=0)
    assert turned["iou"] == plain["iou"]
    assert turned["classes"] == names[::-1]
    straight = evaluate(predictions=folder, root=str(voc), output=tmp_path / "s", num_images=0, classes=names)
    assert list(straight["iou"].items()) == list(plain["iou"].items())


def test_what_predict_writes_scores_as_evaluate_does(voc, checkpoint, tmp_path):
    photos = [voc / f"JPEGImages/{name}.jpg" for name in (voc / "ImageSets/Segmentation/val.txt").read_text().split()]
    listed = json.dumps([str(photo) for photo in photos])
    common = ("--checkpoint", checkpoint, "--crf", "false", "--num_workers", 0)
    assert run("predict", *common, "--images", listed, "--output", tmp_path / "masks") == 0
    assert run("evaluate", *common, "--num_images", 0, "--batch_size", 1, "--output", tmp_path / "a") == 0
    scored = evaluate(predictions=tmp_path / "masks", root=str(voc), output=tmp_path / "b", num_images=0)
    direct = json.loads((tmp_path / "a/metrics.json").read_text())
    assert scored["confusion"] == direct["confusion"]
    assert scored["boundary_iou"] == direct["boundary_iou"]
    assert scored["miou_interval"] == direct["miou_interval"]


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
    ("how", "says"),
    [("missing", "1 of 4 predictions are missing"), ("size", "is 71x96"), ("void", "holds 255"), ("index", "index 77"),
     ("colours", "RGB")],
)  # fmt: skip
def test_predictions_that_cannot_be_scored(voc, foreign, tmp_path, capsys, how, says):
    folder, ids = foreign
    spoil(folder, ids, how)
    assert run("evaluate", "--predictions", folder, "--root", voc, "--output", tmp_path / "out") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in said
    assert f"{ids[1]}.png" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [({}, "either"), ({"checkpoint": "x", "predictions": "y"}, "either"), ({"predictions": Path("y")}, "--root"),
     ({"checkpoint": "x", "classes": ["cat"]}, "classes are for"),
     ({"predictions": Path("y"), "root": "z"}, "no folder of predictions y")],
)  # fmt: skip
def test_options_that_do_not_go_together(tmp_path, given, says):
    with pytest.raises(InputError, match=says):
        evaluate(**given, output=tmp_path / "out")


def test_masks_must_be_there(voc, foreign, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(voc, bare)
    shutil.rmtree(bare / "SegmentationClass")
    with pytest.raises(InputError, match="no masks to score"):
        evaluate(predictions=foreign[0], root=str(bare), output=tmp_path / "out")


# --- several views of a checkpoint


def test_scales_and_flip(checkpoint, tmp_path, monkeypatch):
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


# --- VOC's archive


@pytest.fixture
def voc_like(foreign, voc, tmp_path):
    """The same images as if of VOC's classes: no classes.txt."""
    root = tmp_path / "VOC2012"
    shutil.copytree(voc, root)
    (root / "classes.txt").unlink()
    return root


def test_the_archive_for_vocs_server(voc_like, foreign, tmp_path):
    folder, ids = foreign
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
            assert image.getpalette()[:63] == voc_palette()[:63]
            assert np.array_equal(np.array(image), np.array(Image.open(folder / f"{name}.png")))


def test_an_archive_of_other_classes_is_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="VOC's 20 classes"):
        evaluate(checkpoint, output=tmp_path / "out", submission=True)
    assert not (tmp_path / "out").exists()


def test_an_archive_that_reads_back_otherwise_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("training.evaluation.voc_submission.mask_png", lambda mask, _: gray_png(mask))
    with pytest.raises(InputError, match="not read back"):
        write_submission(tmp_path, "val", {"a": np.ones((3, 4), np.uint8)})
    assert not list(tmp_path.iterdir())


def gray_png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, format="PNG")
    return file.getvalue()


# --- side by side


def write_metrics(folder, iou, **more):
    folder.mkdir()
    metrics = {"iou": iou, "miou": float(np.mean(list(iou.values()))), "images": 3, "split": "val", **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_compare_shows_differences_from_the_first(tmp_path, capsys):
    first = write_metrics(tmp_path / "first", {"background": 0.9, "cat": 0.5})
    second = write_metrics(tmp_path / "second", {"background": 0.8, "cat": 0.625, "[dog]": 0.1}, split="train")
    assert run("compare", first, second / "metrics.json") == 0
    said = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in said.splitlines() if line.count("│") > 2}
    assert [cell.split() for cell in rows["cat"]] == [["50.0"], ["62.5", "+12.5"]]
    assert [cell.split() for cell in rows["background"]] == [["90.0"], ["80.0", "-10.0"]]
    assert [cell.split() for cell in rows["[dog]"]] == [[], ["10.0"]]
    assert [cell.split() for cell in rows["mean"]] == [["70.0"], ["50.8", "-19.2"]]
    assert "differ in their split: val | train" in said
    assert "first" in said
    assert "second" in said


def test_compare_of_seeds_shows_mean_and_deviation(tmp_path, capsys):
    """Two seeds of one experiment against one of another; a class that one seed lacks has no mean."""
    for name, cat in (("a", (0.5, 0.6)), ("b", (0.7,))):
        for seed, value in enumerate(cat):
            (tmp_path / name / f"seed-{seed}").mkdir(parents=True)
            iou = {"background": 0.9, "cat": value} | ({"dog": 0.2} if seed == 0 else {})
            write_metrics(tmp_path / name / f"seed-{seed}/val", iou)
    every = sorted(tmp_path.glob("*/seed-*/val"))
    assert run("compare", "--mean", "true", *every, every[0]) == 0
    said = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in said.splitlines() if line.count("│") > 2}
    spread = 100 * np.std([0.5, 0.6], ddof=1)
    assert [cell.split() for cell in rows["cat"]] == [["55.0", "±", f"{spread:.1f}"], ["70.0", "+15.0"]]
    assert [cell.split() for cell in rows["background"]] == [["90.0", "±", "0.0"], ["90.0", "+0.0"]]
    assert [cell.split() for cell in rows["dog"]] == [[], ["20.0"]]
    assert "a/seed-*/val" in said
    assert run("compare", every[0], every[0]) == 0
    assert "±" not in capsys.readouterr().out


def test_compare_of_what_evaluate_wrote(voc, foreign, tmp_path, capsys):
    for name in ("a", "b"):
        evaluate(predictions=foreign[0], root=str(voc), output=tmp_path / name, num_images=0)
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b") == 0
    said = capsys.readouterr().out
    assert "+0.0" in said
    assert "interval" in said
    assert "mind" not in said


@pytest.mark.parametrize(
    ("content", "says"), [(None, "there is no"), ("{", "is not JSON"), ('{"a": 1}', "holds no IoU")]
)
def test_compare_of_something_else(tmp_path, capsys, content, says):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert run("compare", path) == 1
    said = capsys.readouterr().err
    assert says in said
    assert "x.json" in said


def test_compare_of_nothing(capsys):
    assert run("compare") == 2
    assert "results" in capsys.readouterr().err
