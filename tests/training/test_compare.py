"""Evaluations side by side, by the command."""

import json

import numpy as np
import pytest

from tests.training.fits import run
from training.cli import main
from training.evaluation.evaluate import evaluate


def write_metrics(folder, iou, **more):
    folder.mkdir()
    metrics = {"iou": iou, "miou": float(np.mean(list(iou.values()))), "images": 3, "split": "val", **more}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_compare_shows_differences_from_the_first(tmp_path, capsys):
    first = write_metrics(tmp_path / "first", {"background": 0.9, "cat": 0.5})
    second = write_metrics(tmp_path / "second", {"background": 0.8, "cat": 0.625, "[dog]": 0.1}, split="train")
    assert run("compare", first, second / "metrics.json") == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in printed.splitlines() if line.count("│") > 2}
    assert [text.split() for text in rows["cat"]] == [["50.0"], ["62.5", "+12.5"]]
    assert [text.split() for text in rows["background"]] == [["90.0"], ["80.0", "-10.0"]]
    assert [text.split() for text in rows["[dog]"]] == [[], ["10.0"]]
    assert [text.split() for text in rows["mean"]] == [["70.0"], ["50.8", "-19.2"]]
    assert "differ in their split: val | train" in printed
    assert "first" in printed
    assert "second" in printed


def test_compare_shows_other_means_intervals_and_what_differs(tmp_path, capsys):
    more = {"boundary_miou": 0.3, "pixel_accuracy": 0.8, "miou_interval": {"low": 0.1, "high": 0.2}}
    first = write_metrics(tmp_path / "first", {"background": 0.9}, **more, classes=["cat"])
    second = write_metrics(tmp_path / "second", {"background": 0.9}, classes=["dog"])
    assert run("compare", first, second) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in printed.splitlines() if "│" in line}
    assert rows["boundary mean"] == "30.0"
    assert rows["pixel accuracy"] == "80.0"
    assert rows["mean, interval"] == "10.0 to 20.0"
    assert "note: the results differ in their classes: ['cat'] | ['dog']" in printed


def test_compare_of_seeds_shows_mean_and_deviation(tmp_path, capsys):
    """Two seeds of one experiment against one of another; a class that one seed lacks has no mean."""
    for name, cat in (("a", (0.5, 0.6)), ("b", (0.7,))):
        for seed, value in enumerate(cat):
            (tmp_path / name / f"seed-{seed}").mkdir(parents=True)
            iou = {"background": 0.9, "cat": value} | ({"dog": 0.2} if seed == 0 else {})
            write_metrics(tmp_path / name / f"seed-{seed}/val", iou)
    every = sorted(tmp_path.glob("*/seed-*/val"))
    assert run("compare", "--mean", "true", *every, every[0]) == 0
    printed = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in printed.splitlines() if line.count("│") > 2}
    spread = 100 * np.std([0.5, 0.6], ddof=1)
    assert [text.split() for text in rows["cat"]] == [["55.0", "±", f"{spread:.1f}"], ["70.0", "+15.0"]]
    assert [text.split() for text in rows["background"]] == [["90.0", "±", "0.0"], ["90.0", "+0.0"]]
    assert [text.split() for text in rows["dog"]] == [[], ["20.0"]]
    assert "a/seed-*/val" in printed
    assert run("compare", every[0], every[0]) == 0
    assert "±" not in capsys.readouterr().out


def test_compare_of_what_evaluate_wrote(voc, predicted_masks, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.evaluation.metrics.MIN_IMAGES", 1)  # a class is in one of the four images
    for name in ("a", "b"):
        evaluate(predictions=predicted_masks[0], root=str(voc), output=tmp_path / name, num_images=0)
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b") == 0
    printed = capsys.readouterr().out
    assert "+0.0" in printed
    assert "interval" in printed
    assert "note" not in printed
    path = tmp_path / "b/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images_with_mask": 1}))
    assert run("compare", tmp_path / "a", tmp_path / "b") == 0
    assert "note: the results differ in their images_with_mask" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "JSONDecodeError"),
        ('{"a": 1}', "'miou'"),
        ('{"iou": {}, "miou": null}', "TypeError"),
        ('{"iou": {"cat": "x"}, "miou": 1}', "ValueError"),
        ("[]", "TypeError"),
        ('{"iou": {}, "miou": 1, "pixel_accuracy": [1]}', "TypeError"),
        ('{"iou": {}, "miou": 1, "miou_interval": {"low": 0.5}}', "'high'"),
        ('{"iou": {}, "miou": 1, "miou_interval": [0.5, 0.6]}', "TypeError"),
    ],
)
def test_compare_of_something_else(tmp_path, capsys, content, words):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    assert run("compare", path) == 1
    printed = capsys.readouterr().err
    assert words in printed
    assert "x.json" in printed


def test_compare_of_nothing(tmp_path, capsys):
    assert run("compare") == 2
    assert "results" in capsys.readouterr().err
    (tmp_path / "none.yaml").write_text("results: []\n")
    assert run("compare", f"--config={tmp_path / 'none.yaml'}") == 2
    assert capsys.readouterr().err == "tag2mask: results: give at least one\n"


def test_compare_reads_numbers_that_are_texts(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"iou": {"cat": "0.5"}, "miou": "0.25"}')
    assert run("compare", tmp_path / "x.json") == 0
    printed = capsys.readouterr().out
    assert "50.0" in printed
    assert "25.0" in printed


def test_an_evaluation_without_masks_has_no_figures(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"miou": null, "iou": {}, "images_with_mask": 0}')
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    message = f"{tmp_path / 'metrics.json'} has no figures: no image of that evaluation has a mask"
    assert capsys.readouterr().err == f"tag2mask: {message}\n"
    (tmp_path / "metrics.json").write_text('{"miou": null, "iou": {}, "images_with_mask": 3}')  # all 255
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 1
    assert capsys.readouterr().err.endswith(" has no figures: its masks contain no known class\n")
