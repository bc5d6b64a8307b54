"""Cut-out objects on photos: tags and masks, and what training and test share."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from datamodules.masks import read_class_mask
from tests.experiments import paste_objects

COLORS = {"blue": (0, 0, 255), "red": (255, 0, 0)}  # of the first object of a class, the second is half as bright


def run(monkeypatch, folder, *words):
    given = [f"--{name}={folder / name}" for name in ("objects", "photos", "output")]
    monkeypatch.setattr(sys, "argv", ["paste_objects", *given, *words])
    paste_objects.main()


@pytest.fixture
def folder(tmp_path):
    for name, color in COLORS.items():
        (tmp_path / "objects" / name).mkdir(parents=True)
        for number in (1, 2):
            cut_out = np.zeros((40, 60, 4), np.uint8)
            cut_out[10:30, 10:50] = *(value // number for value in color), 255
            Image.fromarray(cut_out).save(tmp_path / "objects" / name / f"{number}.png")
    (tmp_path / "photos").mkdir()
    for number, gray in enumerate((60, 190)):
        Image.new("RGB", (700, 650), (gray, gray, gray)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def test_masks_and_tags_are_those_of_the_pasted_objects(folder, monkeypatch):
    run(monkeypatch, folder, "--train=6", "--test=6")
    grays, colors = {}, {}
    for split in ("train", "test"):
        root = folder / "output" / split
        assert (root / "classes.txt").read_text() == "blue\nred\n"
        rows = list(csv.DictReader((root / "tags.csv").open()))
        assert len(rows) == 6
        grays[split], colors[split] = set(), set()
        for row in rows:
            image = np.array(Image.open(root / row["file"]))
            mask = read_class_mask(root / "masks" / row["file"].replace("jpg", "png"), np.arange(256, dtype=np.uint8))
            assert mask.shape == image.shape[:2]
            tags = [name for label, name in enumerate(COLORS, start=1) if (mask == label).any()]
            assert row["tags"] == ";".join(tags) != ""
            for label, name in enumerate(COLORS, start=1):
                if (mask == label).any():
                    middle = np.median(image[mask == label], axis=0)
                    assert middle.argmax() == np.argmax(COLORS[name])
                    colors[split].add((name, bool(middle.max() > 190)))
            grays[split].add(bool(np.median(image[mask == 0]) > 125))
    assert not grays["train"] & grays["test"]
    assert not colors["train"] & colors["test"]


def test_a_class_with_one_object(folder, monkeypatch, capsys):
    (folder / "objects" / "red" / "2.png").unlink()
    with pytest.raises(SystemExit):
        run(monkeypatch, folder)
    assert "red: 1 images cannot be divided" in capsys.readouterr().err
    assert not (folder / "output").exists()
