"""``tag2mask plan``: gains read off measured curves, and nothing beyond them."""

import csv
from collections import defaultdict

import numpy as np
import pytest
import torch

from datamodules.annotations.shapes import Box, Point
from datamodules.sample import Sample
from training.annotation_plan import CURVES, Curve, count_annotated, expected_gains, read_curves
from training.cli import main

SECONDS = {"points": 22.0, "scribbles": 35.0, "masks": 240.0}
NOTHING = {"points": 0, "scribbles": 0, "masks": 0, "boxes": 0}


def curve(shares, *seeds):
    return Curve(np.array(shares), np.array(seeds))


@pytest.fixture
def curves():
    return {
        "tags": curve([0.5, 1], [0.58, 0.6], [0.6, 0.66]),
        "points": curve([0, 1], [0.6, 0.64], [0.66, 0.72]),
        "scribbles": curve([0, 1], [0.6, 0.7], [0.66, 0.7]),
        "masks": curve([0, 0.1, 0.25], [0.6, 0.65, 0.68], [0.66, 0.69, 0.7]),
        "masks alone": curve([0.1, 0.3], [0.5, 0.6], [0.52, 0.66]),
    }


def test_the_gain_of_each_seed_is_interpolated(curves):
    mean, std = curves["masks"].gain(0, 0.1)
    assert (mean, std) == (pytest.approx(0.04), pytest.approx(np.std([0.05, 0.03], ddof=1)))
    mean, std = curves["masks"].gain(0.05, 0.175)  # 0.625 -> 0.665 and 0.675 -> 0.695
    assert (mean, std) == (pytest.approx(0.03), pytest.approx(np.std([0.04, 0.02], ddof=1)))
    assert curves["masks"].gain(0.1, 0.26) is None
    assert curves["tags"].gain(0.4, 1) is None


def test_an_hour_by_hand(curves):
    """1,000 images: 180 more tags are 1 of 1 / 1.18; a point takes 2 s, a line 15 s, a mask 220 s beside the tags."""
    rows = expected_gains(1000, NOTHING, 3600, 20, SECONDS, curves)
    share = 1 / 1.18  # of the images that there are then; 0.5 to 1 is +2 and +6 points
    tags = [(1 - share) / 0.5 * each for each in (2, 6)]
    assert rows[0] == ("tags", "180 more", "1.0", f"{np.mean(tags):.1f} ± {np.std(tags, ddof=1):.1f}")
    assert rows[1] == ("points", "1,000 (100.0 %)", "0.6", "5.0 ± 1.4")
    assert rows[2][:3] == ("scribbles", "240 (24.0 %)", "1.0")
    masks = [16 / 100 * each for each in (5, 3)]
    assert rows[3] == ("masks", "16 (1.6 %)", "1.0", f"{np.mean(masks):.1f} ± {np.std(masks, ddof=1):.1f}")


def test_hours_that_are_no_whole_number_of_binary_fractions(curves):
    """4.1 hours are 738 times 20 seconds; 4.1 * 3600 is a little less in floating point."""
    rows = expected_gains(1000, NOTHING, 3600 * 4.1, 20, SECONDS, curves)
    assert rows[0][:2] == ("tags", "738 more")


def test_annotated_images_count(curves):
    rows = {row[0]: row for row in expected_gains(100, {**NOTHING, "masks": 10}, 36000, 20, SECONDS, curves)}
    assert rows["masks"][1:] == ("90 (90.0 %)", "5.5", "not measured")
    assert {rows[kind][3] for kind in ("tags", "points", "scribbles")} == {"not measured"}
    rows = {row[0]: row for row in expected_gains(100, {**NOTHING, "masks": 10}, 2200, 20, SECONDS, curves)}
    assert rows["masks"][1:] == ("10 (10.0 %)", "0.6", f"{(2 + 2 / 3) / 2:.1f} ± {np.std([2, 2 / 3], ddof=1):.1f}")
    rows = expected_gains(100, {**NOTHING, "boxes": 1}, 3600, 20, SECONDS, curves)
    assert {row[3] for row in rows} == {"not measured"}


def test_a_training_on_masks_alone(curves):
    """Its gain is that of more masks without tags, which is not measured below a tenth of the images."""
    for masks, hours, expected in (
        (20, 5 / 15, ("masks", "5 (5.0 %)", "0.3", f"3.0 ± {np.std([2.5, 3.5], ddof=1):.1f}")),
        (5, 1, ("masks", "15 (15.0 %)", "1.0", "not measured")),
        (100, 1, ("masks", "0 (0.0 %)", "0.0", "no image")),
        (20, 0.01, ("masks", "0 (0.0 %)", "0.0", "no image")),
    ):
        annotated = {**NOTHING, "masks": masks}
        assert expected_gains(100, annotated, 3600 * hours, 20, SECONDS, curves, masks_alone=True) == [expected]


def test_the_measured_curves_have_three_seeds():
    seeds = defaultdict(set)
    with CURVES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seeds[row["kind"], float(row["share"])].add(int(row["seed"]))
            assert 0.5 < float(row["miou"]) < 0.8
            assert 0.5 < float(row["miou_crf"]) < 0.8
    assert set(map(frozenset, seeds.values())) == {frozenset((0, 1, 2))}
    found = read_curves()
    for kind in ("points", "scribbles", "masks"):
        assert found[kind].shares[0] == 0
        np.testing.assert_array_equal(found[kind].miou[:, 0], found["tags"].miou[:, -1])


def test_the_command(checkpoint, capsys):
    """Of nine images in 14, 36 and 223 s: tags take 20 s, and beside them a point 2, a scribble 15 and a mask 220 s."""
    for hours, images in (
        ("0.004", ["0 more", "7 (77.8 %)", "0 (0.0 %)", "0 (0.0 %)"]),
        ("0.01", ["1 more", "9 (100.0 %)", "2 (22.2 %)", "0 (0.0 %)"]),
        ("0.062", ["11 more", "9 (100.0 %)", "9 (100.0 %)", "1 (11.1 %)"]),
    ):
        assert main(["plan", "--checkpoint", str(checkpoint), "--hours", hours]) == 0
        out = capsys.readouterr().out
        assert "none annotated" in out
        rows = [line.strip("│").split("│") for line in out.splitlines() if line.startswith("│")]
        assert [row[0].strip() for row in rows] == ["tags", "points", "scribbles", "masks"]
        assert [row[1].strip() for row in rows] == images


def test_the_command_after_a_training_on_masks(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["targets"] = "masks"
    content["provenance"] = {"attempts": [{}], "figures": {"val/miou": 0.5}}
    torch.save(content, tmp_path / "masks.ckpt")
    assert main(["plan", "--checkpoint", str(tmp_path / "masks.ckpt")]) == 0
    out = capsys.readouterr().out
    assert "9 with masks; mIoU of the run on its validation images: 50.0 without the CRF" in " ".join(out.split())
    rows = [line.strip("│ ").split() for line in out.splitlines() if line.startswith("│")]
    assert rows == [["masks", "│", "0", "(0.0", "%)", "│", "0.0", "│", "no", "image"]]  # all have a mask already


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hours", "0"], "hours 0.0 and tag_seconds 20.0 must be positive"),
        (["--hours", ".inf"], "hours inf and tag_seconds 20.0 must be positive and finite"),
        (["--tag_seconds", ".nan"], "hours 1.0 and tag_seconds nan must be positive and finite"),
        (["--point_seconds", ".nan"], "point_seconds nan must be more than tag_seconds 20.0: they include tags"),
        (["--mask_seconds", "20"], "mask_seconds 20.0 must be more than tag_seconds 20.0: they include tags"),
        (["--checkpoint", "nothing.ckpt"], "nothing.ckpt"),
        (["--root", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_planned(checkpoint, words, message, capsys):
    given = [] if "--checkpoint" in words else ["--checkpoint", str(checkpoint)]
    assert main(["plan", *given, *words]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_curves_are_those_with_the_crf():
    """Tags alone of all images, seed 0, by hand from the file."""
    with CURVES.open(encoding="utf-8") as file:
        rows = {(row["kind"], float(row["share"]), row["seed"]): row for row in csv.DictReader(file)}
    row = rows["tags", 1, "0"]
    assert row["miou"] != row["miou_crf"]
    assert read_curves()["tags"].miou[0, -1] == float(row["miou_crf"])


def test_annotated_images_are_counted_once():
    """However many points an image has."""
    samples = [
        Sample("a", "a.jpg", points=(Point("cat", 1, 1), Point("dog", 2, 2))),
        Sample("b", "b.jpg", boxes=(Box("cat", 0, 0, 1, 1),), mask="b.png"),
        Sample("c", "c.jpg"),
    ]
    assert count_annotated(samples) == {"points": 1, "scribbles": 0, "boxes": 1, "masks": 1}
