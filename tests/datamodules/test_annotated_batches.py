"""Masks, points, scribbles and boxes as training targets in batches of a data module."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.annotations.shapes import Box, Point, Scribble
from datamodules.dataset import ImageDataset, collate
from datamodules.errors import InputError
from datamodules.masks import read_mask, write_mask
from datamodules.sample import Sample
from datamodules.samplers import Draw, TrainSampler
from datamodules.transforms import Augment
from datamodules.voc import VOCDataModule
from tests.seed_caches import CacheWriter

CLASSES = ["ant", "bat", "cow"]


@pytest.fixture
def cache(voc, tmp_path):
    """Cues of the six training images on a 16x16 grid: bat everywhere, but no cue in the last row."""
    with CacheWriter(tmp_path / "cache", CLASSES, {}) as writer:
        for i in range(6):
            cues = np.full((16, 16), 2, np.uint8)
            cues[15] = 255
            writer.add(f"p{i}", cues)
    return tmp_path / "cache"


def write_table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "mask", "points", "scribbles", "boxes"])
        writer.writeheader()
        for row in rows:
            writer.writerow({key: each if isinstance(each, str) else json.dumps(each) for key, each in row.items()})
    return str(path)


def training_items(voc, cache, annotations, **settings):
    settings = {"targets": "cues", "cues": str(cache), "cue_stride": 4, "size": 64, "num_workers": 0, **settings}
    data = VOCDataModule(str(voc), labels="xml", annotations=annotations, **settings)
    data.setup("fit")
    return data, data._datasets["train"]


def test_without_augmentation_by_hand(voc, cache, tmp_path):
    """Image p1 has 64x52 pixels and is resized to 64x64; its tag is bat, the second class."""
    width, height, tag, index = 64, 52, "bat", 2
    table = write_table(tmp_path / "a.csv", [{
        "id": "p1",
        "points": [[tag, 10.5 * width / 64, 20.5 * height / 64], ["background", 63 * width / 64, 0]],
        "scribbles": [["background", [[0, height - 0.5], [width - 0.5, height - 0.5]]]],
        "boxes": [[tag, width / 4, height / 8, width / 2, height]],
    }])  # fmt: skip
    _, items = training_items(voc, cache, table)
    item = items[1]
    wanted = np.full((64, 64), 255)
    wanted[20, 10], wanted[0, 63], wanted[63] = index, 0, 0
    assert item["mask"].tolist() == wanted.tolist()
    np.testing.assert_allclose(item["boxes"], [[index, 0.25, 0.125, 0.5, 1]])
    cues = np.full((16, 16), 255)
    cues[2:, 4:8] = 2  # bat in its box alone
    cues[5, 2], cues[0, 15], cues[15] = index, 0, 0
    assert item["cues"].tolist() == cues.tolist()
    untouched = items[0]
    assert (untouched["mask"] == 255).all()
    assert untouched["boxes"].shape == (0, 5)
    batch = collate([items[0], item])
    assert batch["mask"].dtype == torch.int64
    assert [each.shape for each in batch["boxes"]] == [(0, 5), (1, 5)]
    assert batch["cues"].shape == (2, 4, 16, 16)


def test_drawn_targets_move_with_the_image(tmp_path):
    """Points, scribbles, boxes and a mask that describe the same square stay together under random crops and flips."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[20:60, 30:90] = 255
    mask = np.where(pixels[..., 0] > 0, 1, 0).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(mask).save(tmp_path / "m.png")
    image, lut = str(tmp_path / "a.png"), np.array([0, 1, *[254] * 253, 255], np.uint8)
    settings = {"training": True, "augment": Augment((0.3, 0.9), True, 0), "with_annotations": True, "mask_lut": lut}
    whole = ImageDataset([Sample("a", image, frozenset({"x"}), str(tmp_path / "m.png"))], ["x"], 96, **settings)
    points = tuple(Point("x", x + 0.5, y + 0.5) for x in range(31, 89, 4) for y in range(21, 59, 4))
    outline = Scribble("x", ((33, 23), (87, 23), (87, 57), (33, 57), (33, 23)))
    around = (Point("background", 5.5, 5.5), Point("background", 110.5, 70.5))
    box = Box("x", 30, 20, 90, 60)
    drawn = ImageDataset(
        [Sample("a", image, frozenset({"x"}), None, (*points, *around), (outline,), (box,))], ["x"], 96, **settings
    )
    seen = set()
    for seed in range(12):
        one, other = whole[Draw(0, seed)], drawn[Draw(0, seed)]
        assert (one["image"] == other["image"]).all()
        known = other["mask"] != 255
        assert known.sum() > 40
        assert (one["mask"][known] == other["mask"][known]).all()
        seen |= set(other["mask"][known].tolist())
        left, top, right, bottom = other["boxes"][0, 1:] * 96
        rows, columns = np.nonzero(one["mask"] == 1)
        assert max(left, 0) == pytest.approx(columns.min(), abs=1.5)
        assert min(right, 96) == pytest.approx(columns.max() + 1, abs=1.5)
        assert max(top, 0) == pytest.approx(rows.min(), abs=1.5)
        assert min(bottom, 96) == pytest.approx(rows.max() + 1, abs=1.5)
    assert seen == {0, 1}


def test_a_mask_adds_its_classes_to_the_labels(voc, cache):
    """p1 is tagged bat; its mask shows an ant, too."""
    mask = read_mask(voc / "SegmentationClass/p1.png")
    mask[:8, :8] = 1
    write_mask(voc / "SegmentationClass/p1.png", mask)
    _, items = training_items(voc, cache, "masks")
    assert items.samples[1].tags == {"bat"}
    assert items[1]["labels"].tolist() == [1, 1, 0]
    assert items.labels[1].tolist() == [0, 1, 0]


def test_a_mirrored_point_is_drawn_where_its_pixel_is(tmp_path):
    """Points at whole numbers, as tables contain them: the pixel of each is drawn, mirrored or not."""
    size = 32
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(tmp_path / "x.png")
    points = tuple(Point("a", float(x), float(y)) for x, y in ((0, 3), (7, 0), (31, 31)))
    sample = Sample("x", str(tmp_path / "x.png"), points=points)
    augment = Augment(crop=None, flip=True, color=0)
    data = ImageDataset([sample], ["a"], size, training=True, with_annotations=True, augment=augment)
    straight, mirrored = {(3, 0), (0, 7), (31, 31)}, {(3, 31), (0, 24), (31, 0)}
    drawn = [set(map(tuple, np.argwhere(data[Draw(0, seed)]["mask"] == 1).tolist())) for seed in range(8)]
    assert {frozenset(each) for each in drawn} == {frozenset(straight), frozenset(mirrored)}


def test_a_point_outside_of_its_image_is_one_sentence(voc, cache, tmp_path):
    data = VOCDataModule(str(voc), labels="xml")
    sample = data.samples("train")[0]
    table = write_table(tmp_path / "a.csv", [{"id": sample.id, "points": [["background", 3, 4000]]}])
    message = rf"point \(3, 4000\) of background is outside .*{sample.id}.*, which is \d+x\d+"
    with pytest.raises(InputError, match=rf"{table}, line 2, image {sample.id}: the {message}"):
        training_items(voc, cache, table)
    outside = replace(sample, points=(Point("background", 3, 4000),))  # of a URI, whose size is not read before
    with pytest.raises(InputError, match=message):
        ImageDataset([outside], data.classes, 32, training=True, with_annotations=True, augment=Augment(crop=None))[
            Draw(0, 0)
        ]


def test_a_box_outside_of_its_image_is_one_sentence(voc, cache, tmp_path):
    sample = VOCDataModule(str(voc), labels="xml").samples("train")[0]
    table = write_table(tmp_path / "a.csv", [{"id": sample.id, "boxes": [["ant", 4000, 3, 4100, 30]]}])
    message = r"box \(4000, 3, 4100, 30\) of ant is outside .*, which is \d+x\d+"
    with pytest.raises(InputError, match=rf"{table}, line 2, image {sample.id}: the {message}"):
        training_items(voc, cache, table)
    outside = replace(sample, boxes=(Box("ant", 4000, 3, 4100, 30),))
    with pytest.raises(InputError, match=message):
        ImageDataset([outside], ["ant"], 32, training=True, with_annotations=True, augment=Augment(crop=None))[
            Draw(0, 0)
        ]


def test_the_order_of_annotations_does_not_matter(voc, cache, tmp_path):
    points = [["background", 1, 1], ["background", 5, 9], ["background", 30, 2]]
    boxes = [["ant", 2, 2, 20, 30], ["ant", 10, 10, 40, 40]]
    rows = [{"id": "p0", "points": points, "boxes": boxes}, {"id": "p2", "points": points}]
    turned = [{key: each if key == "id" else each[::-1] for key, each in row.items()} for row in rows[::-1]]
    one, other = write_table(tmp_path / "a.csv", rows), write_table(tmp_path / "b.csv", turned)
    items = [training_items(voc, cache, table)[1] for table in (one, other)]
    for index in range(6):
        a, b = (each[index] for each in items)
        assert all(np.array_equal(a[key], b[key]) for key in ("mask", "boxes", "cues", "image", "labels"))


def test_masks_alone_are_those_of_the_list(voc, tmp_path, capsys):
    (tmp_path / "two.txt").write_text("p3\np1\n")
    data = VOCDataModule(str(voc), labels="xml", annotations=str(tmp_path / "two.txt"), targets="masks", num_workers=0)
    data.setup("fit")
    assert [sample.id for sample in data._datasets["train"].samples] == ["p1", "p3"]
    assert "2 training images have a mask" in capsys.readouterr().err
    assert "cues" not in next(iter(data.train_dataloader()))


def test_images_with_masks_are_drawn_more_often_in_epochs_of_the_same_length():
    repeats = np.ones(50, int)
    repeats[:5] = 4
    sampler = TrainSampler(50, 10, seed=0, repeats=repeats)
    counts = np.zeros(50)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn = [draw.number for draw in sampler]
        assert len(drawn) == len(sampler) == 50
        counts += np.bincount(drawn, minlength=50)
    assert counts[:5].mean() / counts[5:].mean() == pytest.approx(4, rel=0.05)
    assert list(TrainSampler(50, 10, seed=0, repeats=np.ones(50, int))) == list(TrainSampler(50, 10, seed=0))


def test_validation_does_not_see_annotations(voc, cache):
    data, _ = training_items(voc, cache, "masks")
    batch = next(iter(data.val_dataloader()))
    assert "boxes" not in batch
    assert batch["mask"].shape[1:] == (76, 64)  # the masks' own size


def test_boxes_alone_are_no_masks_to_train_on(voc, tmp_path):
    table = write_table(tmp_path / "boxes.csv", [{"id": "p0", "boxes": [["ant", 2, 2, 20, 30]]}])
    data = VOCDataModule(str(voc), labels="xml", annotations=str(table), targets="masks")
    with pytest.raises(InputError, match=r"no training image has a mask, point or scribble in .*boxes\.csv"):
        data.setup("fit")


def test_only_in_training_a_mask_adds_its_classes_to_the_labels(tmp_path):
    """Seeds are made of the tags of an image."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "x.png")
    write_mask(tmp_path / "m.png", np.full((8, 8), 2))
    sample = Sample("x", str(tmp_path / "x.png"), frozenset({"ant"}), str(tmp_path / "m.png"))
    settings = {"mask_lut": np.array([0, 1, 2, *[254] * 252, 255], np.uint8), "with_annotations": True}
    labels = [
        ImageDataset([sample], ["ant", "bat"], 8, training=training, **settings)[0]["labels"].tolist()
        for training in (False, True)
    ]
    assert labels == [[1, 0], [1, 1]]


def test_images_with_a_point_or_a_scribble_are_trained_on(voc, tmp_path):
    """Those with a box alone are not: a box is no label of a pixel."""
    rows = [
        {"id": "p0", "scribbles": [["ant", [[2, 2], [9, 9]]]]},
        {"id": "p1", "points": [["bat", 2, 2]]},
        {"id": "p3", "boxes": [["cow", 2, 2, 20, 30]]},
    ]
    table = write_table(tmp_path / "a.csv", rows)
    data = VOCDataModule(str(voc), labels="xml", annotations=table, targets="masks")
    assert [sample.id for sample in data.training_samples()] == ["p0", "p1"]
