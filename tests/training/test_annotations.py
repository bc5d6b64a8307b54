"""Training with masks, points, scribbles and boxes of some images, by the command line."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.voc import VOCDataModule
from seeds.checkpoints import read_checkpoint
from tests.training.fits import fit
from training.cli import main


def logged(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.fixture
def table(voc, tmp_path):
    """Of the first image a mask, of the others a point and a box around each class, and a scribble of background."""
    data, rows = VOCDataModule(str(voc)), []
    for number, sample in enumerate(data.samples("train")):
        mask = np.array(Image.open(sample.mask))
        if number == 0:
            rows.append({"id": sample.id, "mask": sample.mask})
            continue
        points, boxes = [], []
        for index in np.setdiff1d(mask, (0, 255)).tolist():
            rows_of, columns = np.nonzero(mask == index)
            points.append([data.classes[index - 1], int(columns[0]), int(rows_of[0])])
            corners = columns.min(), rows_of.min(), columns.max() + 1, rows_of.max() + 1
            boxes.append([data.classes[index - 1], *map(int, corners)])
        rows.append(
            {"id": sample.id, "points": points, "boxes": boxes, "scribbles": [["background", [[0, 0], [20, 0]]]]}
        )
    path = tmp_path / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("loss", ["sec", "cross_entropy"])
def test_a_network_learns_what_is_drawn(voc, cues, table, tmp_path, loss):
    words = [f"--data.annotations={table}", f"--model.loss={loss}", "--trainer.max_epochs=12", "--data.augment=null"]
    assert fit(voc, cues, tmp_path / "run", *words, "--model.optimizer=adamw", "--model.lr=0.003") == 0
    for name in ("train/mask", "train/box"):
        values = logged(tmp_path / "run", name)
        assert len(values) == 36
        assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])
    stored = read_checkpoint(tmp_path / "run/last.ckpt", "segmentation")["datamodule_hyper_parameters"]
    assert stored["annotations"] == [str(table)]


def test_without_annotations_nothing_changes(voc, cues, tmp_path):
    """The weights are those of a training with the option left out."""
    assert fit(voc, cues, tmp_path / "a") == 0
    assert fit(voc, cues, tmp_path / "b", "--data.annotations=null", "--model.min_drawn_weight=1") == 0
    one, other = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in "ab")
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not logged(tmp_path / "a", "train/mask")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"points": [["unicorn", 1, 1]]}, "unicorn"),
        ({"points": [["background", 1, 9000]]}, "(1, 9000)"),
        ({"boxes": [["background", 1, 1, 2, 2]]}, "background"),
        ({"mask": "missing.png"}, "missing.png"),
        ({"points": "[["}, "not JSON"),
    ],
)
def test_mistakes_are_one_sentence(voc, cues, tmp_path, row, message, capfd):
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps({"id": "train_00000", **row}))
    assert fit(voc, cues, tmp_path / "run", f"--data.annotations={path}") != 0
    err = capfd.readouterr().err
    last = err.strip().splitlines()[-1]
    assert message in last
    assert "train_00000" in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("source", "message"), [("none.csv", "none.csv"), ("table.xls", "table.xls"), ("xml", "Annotations")]
)
def test_sources_that_cannot_be_read(voc, cues, tmp_path, source, message, capfd):
    assert fit(voc, cues, tmp_path / "run", f"--data.annotations={source}") != 0
    err = capfd.readouterr().err
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_masks_alone(voc, cues, tmp_path):
    (tmp_path / "few.txt").write_text("train_00002\ntrain_00005\ntrain_00006\n")
    words = ["--data.targets=masks", "--model.loss=cross_entropy", f"--data.annotations={tmp_path / 'few.txt'}"]
    assert fit(voc, cues, tmp_path / "run", *words) == 0
    assert len(logged(tmp_path / "run", "train/cross_entropy")) == 1  # three images: one step
    assert main(["evaluate", f"--checkpoint={tmp_path / 'run/last.ckpt'}", f"--output={tmp_path / 'val'}"]) == 0
    assert json.loads((tmp_path / "val/metrics.json").read_text())["images"] == 4
