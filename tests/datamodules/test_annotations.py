"""Sources of masks, points, scribbles and boxes, on a VOC folder of eight images and a folder of photos."""

import csv
import io
import itertools
import json
import shutil
import tarfile
import unicodedata

import fsspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.annotations.shapes import Box, Point, Scribble
from datamodules.coco import COCODataModule
from datamodules.errors import InputError
from datamodules.folder import FolderDataModule
from datamodules.images import read_image
from datamodules.masks import read_class_mask, read_mask, write_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.sample import Sample, split_samples
from datamodules.voc import VOCDataModule
from datamodules.webdataset import WebDatasetDataModule

# tags of the fixture voc: p0 ant; p1 bat; p2 ant, bat; p3 cow; p4 ant, cow; p5 bat, cow; p6 all; p7 none


def open_voc(root, annotations, **options):
    return VOCDataModule(str(root), annotations=annotations, num_workers=0, **options)


def read(data, split="train", **options):
    """The annotated samples of a split by id."""
    samples = data.annotated(data.samples(split, masks=False, **options), split)
    return {sample.id: sample for sample in samples}


def annotated_ids(samples):
    return {name for name, each in samples.items() if each.mask or each.points or each.scribbles or each.boxes}


def write_csv(path, rows, header=None):
    """Write dictionaries as rows; lists and tuples as JSON."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header or list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        for row in rows:
            plain = {key: field if isinstance(field, str) else json.dumps(field) for key, field in row.items()}
            writer.writerow(plain)
    return str(path)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"file": "p0.jpg", "points": [["ant", 3, 10.5], ["background", 0, 0]], "tags": "ant"},
    {"file": "p2.jpg", "scribbles": [["bat", [[17, 9], [20.5, 30], [18, 9]]]]},
    {
        "file": "p4.jpg",
        "boxes": [["cow", 32, 8, 48, 40], ["ant", 0, 8, 16, 40]],
        "mask": "VOC/SegmentationClass/p4.png",
    },
    {"file": "p6.jpg", "points": [["ant", 1, 1]]},  # of another split
    {"file": "none.jpg", "points": [["ant", 1, 1]]},
    {"file": "p5.jpg"},
]


def test_without_annotations(voc):
    data = open_voc(voc, None)
    samples = data.samples("train")
    assert data.annotated(samples, "train") == samples
    assert data.hparams["annotations"] is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table(voc, tmp_path, kind):
    write = {"csv": write_csv, "jsonl": write_jsonl}[kind]
    samples = read(open_voc(voc, write(tmp_path / f"a.{kind}", ROWS)))
    assert list(samples) == [f"p{i}" for i in range(6)]
    assert samples["p0"].points == (Point("ant", 3.0, 10.5), Point("background", 0.0, 0.0))
    assert samples["p2"].scribbles == (Scribble("bat", ((17.0, 9.0), (20.5, 30.0), (18.0, 9.0))),)
    assert samples["p4"].boxes == (Box("ant", 0, 8, 16, 40), Box("cow", 32, 8, 48, 40))
    assert samples["p4"].mask == str(tmp_path / "VOC/SegmentationClass/p4.png")
    assert annotated_ids(samples) == {"p0", "p2", "p4"}
    assert samples["p0"].tags == {"ant"}


def test_names_of_images(voc, tmp_path):
    """An image is named by its file, or by its id; folders count only where names with them are ids."""
    for column, form in (("file", "JPEGImages/{}.jpg"), ("file_name", "{}.png"), ("id", "{}")):
        rows = [{column: form.format(f"p{i}"), "points": [["bat", i, 1]]} for i in (1, 5)]
        samples = read(open_voc(voc, write_csv(tmp_path / "a.csv", rows)))
        assert {name: each.points for name, each in samples.items() if each.points} == {
            "p1": (Point("bat", 1, 1),), "p5": (Point("bat", 5, 1),),
        }  # fmt: skip


def test_the_table_of_tags_may_contain_annotations(tmp_path):
    for name in ("a", "b/a"):
        (tmp_path / f"{name}.png").parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    rows = [
        {"file": "a.png", "tags": "cat", "points": '[["cat", 1, 2]]'},
        {"file": "b/a.png", "tags": "dog;cat", "points": ""},
    ]
    source = write_csv(tmp_path / "tags.csv", rows)
    samples = read(FolderDataModule(str(tmp_path), annotations=source), "all")
    assert [(name, each.points) for name, each in samples.items()] == [("a", (Point("cat", 1, 2),)), ("b/a", ())]
    assert samples["b/a"].tags == {"cat", "dog"}


def test_own_masks(voc, tmp_path):
    (tmp_path / "few.txt").write_text("p6\np1 1\np5\n")  # of two splits
    folder = voc / "SegmentationClass"
    assert {name for name, each in read(open_voc(voc, "masks")).items() if each.mask} == {f"p{i}" for i in range(6)}
    few = read(open_voc(voc, str(tmp_path / "few.txt")))
    assert {name: each.mask for name, each in few.items() if each.mask} == {
        name: str(folder / f"{name}.png") for name in ("p1", "p5")
    }
    assert annotated_ids(read(open_voc(voc, str(tmp_path / "few.txt")), "val")) == {"p6"}
    (folder / "p0.png").unlink()
    assert annotated_ids(read(open_voc(voc, ["masks"]))) == {f"p{i}" for i in range(1, 6)}
    data = open_voc(voc, str(tmp_path / "few.txt"))
    with_masks = data.annotated(data.samples("train"), "train")
    assert sum(each.mask is not None for each in with_masks) == 2  # the masks of other images are not annotations


def write_xml(root, name, *objects):
    sides = ("xmin", "ymin", "xmax", "ymax")
    text = "".join(
        f"<object><name>{label}</name><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, values, strict=True))
        + "</bndbox></object>"
        for label, *values in objects
    )
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{text}</annotation>")


def test_xml(voc):
    shutil.rmtree(voc / "Annotations")
    (voc / "Annotations").mkdir()
    write_xml(voc, "p2", ("bat", 17, 9, 32, 40), ("ant", 1, 9, 16, 40), ("zebra", 1, 1, 2, 2))
    write_xml(voc, "p3")
    samples = read(open_voc(voc, "xml"))
    assert samples["p2"].boxes == (Box("ant", 0, 8, 16, 40), Box("bat", 16, 8, 32, 40))
    assert annotated_ids(samples) == {"p2"}
    assert read(open_voc(voc, "xml", classes=["bat"]))["p2"].boxes == (Box("bat", 16, 8, 32, 40),)


HEIGHT = {f"p{i}": 48 + 4 * i for i in range(8)}


def polygon(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def instances_json(path, images, categories=("bat", "ant", "cow", "zebra")):
    """Write COCO's JSON; ``images`` are lists of instances by id, whose categories are named."""
    listed = [
        {"id": i, "file_name": f"JPEGImages/{name}.jpg", "height": HEIGHT[name], "width": 64}
        for i, name in enumerate(images)
    ]
    own = itertools.count(100)
    content = {
        "images": listed,
        "categories": [{"id": 7 * i, "name": name} for i, name in enumerate(categories, start=1)],
        "annotations": [
            {"id": next(own), "image_id": i, **each, "category_id": 7 * (categories.index(each["category_id"]) + 1)}
            for i, instances in enumerate(images.values())
            for each in instances
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


def instance(category, segmentation=None, **more):
    return {"category_id": category, **({"segmentation": segmentation} if segmentation else {}), **more}


@pytest.mark.parametrize(
    "more", [{"bbox": [1, 2, 3, 4]}, {"segmentation": [[0, 0, 9, 0, 9, 9]], "keypoints": [1, 2, 2]}]
)
def test_boxes_and_points_of_a_json_in_an_image_of_another_size(voc, tmp_path, more):
    path = instances_json(tmp_path / "a.json", {"p0": [instance("ant", **more)]})
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"][0] |= {"width": HEIGHT["p0"], "height": 64}
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"image 0 is {HEIGHT['p0']}x64, and its image .* is 64x{HEIGHT['p0']}"):
        read(open_voc(voc, path))


def test_a_polygon_without_area_is_no_mask(voc, tmp_path):
    """The object's box counts, as without a segmentation: a mask would call the object background."""
    line = instance("ant", [[1, 2, 30, 20]], bbox=[1, 2, 29, 18])
    sample = read(open_voc(voc, instances_json(tmp_path / "a.json", {"p0": [line]})))["p0"]
    assert sample.mask is None
    assert sample.boxes == (Box("ant", 1, 2, 30, 20),)


def test_annotations_of_a_photo_of_another_split_with_the_same_name(tmp_path):
    """A photo in a folder is not the photo of that name beside the folder."""
    samples = [Sample(f"{folder}img{n}", "") for n in range(1000) for folder in ("", "sub/")]
    in_val = {sample.id for sample in split_samples(samples, "val", 0.1, tmp_path)}
    number = next(n for n in range(1000) if f"sub/img{n}" in in_val and f"img{n}" not in in_val)
    files = [f"img{number}.jpg", f"sub/img{number}.jpg", *(f"other{n}.jpg" for n in range(4))]
    (tmp_path / "photos/sub").mkdir(parents=True)
    for file in files:
        Image.new("RGB", (20, 20)).save(tmp_path / "photos" / file)
    (tmp_path / "photos/tags.csv").write_text("file,tags\n" + "".join(f"{file},cat\n" for file in files))
    rows = [{"file": file, "points": [["cat", place, place]]} for place, file in enumerate(files[:3])]
    both = write_csv(tmp_path / "both.csv", rows)
    samples = read(FolderDataModule(str(tmp_path / "photos"), annotations=both))
    assert samples[f"img{number}"].points == (Point("cat", 0, 0),)
    assert f"sub/img{number}" not in samples
    samples = read(FolderDataModule(str(tmp_path / "photos"), annotations=both), "val")
    assert samples[f"sub/img{number}"].points == (Point("cat", 1, 1),)


def test_masks_of_instances_are_those_of_pycocotools(voc, tmp_path):
    """Indices are those of the data set's classes, not the categories' order; other categories are 255."""
    path = instances_json(tmp_path / "a.json", {
        "p4": [
            instance("cow", [polygon(32.3, 8, 47.6, 40)]),
            instance("ant", [polygon(0, 8, 16, 30), polygon(2, 30, 9, 41)]),
            instance("zebra", [polygon(50, 2, 60, 12)]),
        ],
        "p6": [instance("ant", [polygon(0, 0, 5, 5)])],  # of another split
        "p0": [instance("ant", [polygon(0, 0, 64, 52)], iscrowd=0)],
    })  # fmt: skip
    data = open_voc(voc, path)
    samples = read(data)
    assert annotated_ids(samples) == {"p0", "p4"}
    peer = COCO(path)
    expected = np.zeros((HEIGHT["p4"], 64), np.uint8)
    for each in peer.loadAnns(peer.getAnnIds(imgIds=0)):  # they do not overlap
        expected[peer.annToMask(each) == 1] = {7: 2, 14: 1, 21: 3, 28: 255}[each["category_id"]]
    assert set(np.unique(expected)) == {0, 1, 3, 255}
    np.testing.assert_array_equal(read_mask(samples["p4"].mask), expected)
    chosen = open_voc(voc, path, classes=["cow"])
    mask = read_class_mask(read(chosen)["p4"].mask, chosen.mask_lut)
    np.testing.assert_array_equal(mask, np.select([expected == 3, expected > 0], [1, 255], 0))


@pytest.mark.parametrize(
    "row",
    [
        {"points": [["ant", 0.5, 0.25]]}, {"boxes": [["ant", 0, 0.25, 0.5, 1]]},
        {"scribbles": [["ant", [[0.1, 0.2], [0.9, 0.2]]]]},
    ],
)  # fmt: skip
def test_coordinates_that_are_shares_of_the_image(voc, tmp_path, row):
    table = write_csv(tmp_path / "a.csv", [{"id": name, **row} for name in ("p0", "p2")])
    with pytest.raises(InputError, match=r"a\.csv: no coordinate is above 1; they must be pixels, not shares of the"):
        read(open_voc(voc, table))


def test_a_category_background_is_background(voc, tmp_path):
    """As in the files of the other tools: drawn over an object it takes pixels away, and it has no box."""
    categories = ("background", "ant")
    path = instances_json(tmp_path / "a.json", {
        "p0": [instance("ant", [polygon(0, 0, 20, 20)]), instance("background", [polygon(10, 0, 20, 20)])],
        "p2": [instance("ant", bbox=[0, 8, 16, 32]), instance("background", bbox=[1, 1, 4, 4])],
    }, categories)  # fmt: skip
    samples = read(open_voc(voc, path))
    mask = read_mask(samples["p0"].mask)
    assert set(np.unique(mask)) == {0, 1}
    assert (mask[2:18, 2:9] == 1).all()
    assert not mask[2:18, 12:].any()
    assert samples["p2"].boxes == (Box("ant", 0, 8, 16, 40),)


def test_boxes_and_keypoints_of_instances(voc, tmp_path, capsys):
    path = instances_json(tmp_path / "a.json", {
        "p2": [
            instance("ant", bbox=[0, 8, 16, 32.5], keypoints=[3, 9, 2, 0, 0, 0, 5, 12, 1]),
            instance("bat", [polygon(16, 8, 32, 40)], bbox=[16, 8, 16, 32]), instance("zebra", bbox=[1, 1, 2, 2]),
        ],
        "p4": [
            instance("ant", bbox=[0, 8, 16, 32]), instance("cow", bbox=[32, 8, 5, 5]),
            instance("cow", bbox=[30, 8, 30, 30], iscrowd=1),
        ],
        "p5": [instance("cow", bbox=[32, 8, 5, 5]), instance("cow", keypoints=[34, 9, 2]), instance("bat")],
    })  # fmt: skip
    samples = read(open_voc(voc, path))
    assert samples["p2"].boxes == (Box("ant", 0, 8, 16, 40.5), Box("bat", 16, 8, 32, 40))
    assert samples["p2"].points == (Point("ant", 3, 9), Point("ant", 5, 12))
    assert samples["p4"].boxes == (Box("ant", 0, 8, 16, 40),)  # a crowd: not every cow has a box
    assert (samples["p5"].boxes, samples["p5"].points) == ((), (Point("cow", 34, 9),))
    assert all(sample.mask is None for sample in samples.values())
    message = "a.json: 1 images have instances with and without a segmentation: their boxes are read, and no mask: p2"
    assert message in capsys.readouterr().err


def test_an_image_without_instances_is_background_unless_its_tags_name_an_object(voc, tmp_path):
    path = instances_json(tmp_path / "a.json", {"p6": [], "p7": []})
    samples = read(open_voc(voc, path), "val")  # p6 has tags, and p7 has none
    assert samples["p6"].mask is None
    assert not read_mask(samples["p7"].mask).any()
    untagged = read(open_voc(voc, path, labels=None), "val")
    assert {name: each.tags for name, each in untagged.items()} == {"p6": frozenset(), "p7": frozenset()}


def test_unknown_tags_become_the_classes_of_the_annotations(voc, tmp_path):
    (tmp_path / "few.txt").write_text("p4\n")
    mask = np.zeros((HEIGHT["p3"], 64), np.uint8)
    write_mask(tmp_path / "background.png", mask)
    write_mask(tmp_path / "partial.png", mask + 255 * (np.arange(64) > 9))
    rows = [
        {"id": "p0", "points": [["bat", 1, 1], ["background", 2, 2]]},
        {"id": "p1", "points": [["background", 2, 2]]},
        {"id": "p3", "mask": "background.png"},
        {"id": "p5", "mask": "partial.png"},
    ]
    boxes = write_csv(tmp_path / "boxes.csv", [{"id": "p0", "boxes": [["cow", 0, 0, 2, 2]]}])
    json_file = instances_json(tmp_path / "a.json", {"p2": [instance("bat", [polygon(1, 1, 9, 9)])]})
    sources = [write_csv(tmp_path / "a.csv", rows), boxes, str(tmp_path / "few.txt"), json_file]
    tags = {name: each.tags for name, each in read(open_voc(voc, sources, labels=None)).items()}
    assert tags == {
        "p0": {"bat", "cow"}, "p1": None, "p2": {"bat"}, "p3": set(), "p4": {"ant", "cow"}, "p5": None,
    }  # fmt: skip
    chosen = read(open_voc(voc, sources, labels=None, classes=["cow"]))
    assert chosen["p0"].tags == {"cow"}
    assert chosen["p2"].tags is None  # the pixels of other classes are 255


def test_the_order_of_sources_and_rows_does_not_matter(voc, tmp_path):
    (tmp_path / "few.txt").write_text("p5\np4\n")  # the mask of p4 is that of the table
    points = write_csv(tmp_path / "b.csv", [{"id": "p4", "points": [["cow", 40, 9], ["ant", 3, 9]]}, {"id": "p0"}])
    first = None
    for rows in (ROWS, ROWS[::-1]):
        sources = [write_csv(tmp_path / "a.csv", rows), str(tmp_path / "few.txt"), points, points]
        for ordered in itertools.permutations(sources):
            samples = read(open_voc(voc, list(ordered)))
            first = first or samples
            assert samples == first
    assert first["p4"].points == (Point("ant", 3, 9), Point("cow", 40, 9))
    assert first["p4"].boxes
    assert first["p4"].mask == str(voc / "SegmentationClass/p4.png")


def test_classes_that_were_not_chosen_are_left_out(voc, tmp_path):
    samples = read(open_voc(voc, write_csv(tmp_path / "a.csv", ROWS), classes=["cow"]))
    assert samples["p0"].points == (Point("background", 0, 0),)
    assert samples["p2"].scribbles == ()
    assert samples["p4"].boxes == (Box("cow", 32, 8, 48, 40),)


def test_by_uri():
    memory = fsspec.filesystem("memory")
    try:
        root = "memory://annotated"
        for name in ("a", "b"):
            file = io.BytesIO()
            Image.new("RGB", (8, 8)).save(file, "PNG")
            memory.pipe(f"/annotated/photos/{name}.png", file.getvalue())
        memory.pipe("/annotated/photos/tags.csv", b"file,tags\na.png,cat\nb.png,dog\n")
        table = 'file,mask,points\na.png,../masks/a.png,\nb.png,memory://other/b.png,"[[""dog"", 1, 2]]"\n'
        memory.pipe("/annotated/lists/some.csv", table.encode())
        samples = read(FolderDataModule(f"{root}/photos", annotations=f"{root}/lists/some.csv"), "all")
        assert samples["a"].mask == "memory://annotated/masks/a.png"
        assert samples["b"].mask == "memory://other/b.png"
        assert samples["b"].points == (Point("dog", 1, 2),)
    finally:
        memory.rm("/annotated", recursive=True)


def test_masks_of_coco(voc, tmp_path):
    """The data set of a JSON has masks itself, and a list may choose some of them."""
    instances_json(tmp_path / "own.json", {
        "p0": [instance("ant", [polygon(0, 0, 9, 9)])], "p1": [instance("bat", [polygon(0, 0, 9, 9)])]
    })  # fmt: skip
    (tmp_path / "few.txt").write_text("JPEGImages/p1\n")
    options = {"instances": str(tmp_path / "own.json"), "val_fraction": 0.0, "annotations": str(tmp_path / "few.txt")}
    samples = read(COCODataModule(str(voc), **options), "all")
    assert annotated_ids(samples) == {"JPEGImages/p1"}
    assert read_mask(samples["JPEGImages/p1"].mask)[:9, :9].all()


def test_sources_are_settings(voc, tmp_path):
    """They are one name, a list or null, and belong to a checkpoint's settings."""
    source = write_csv(tmp_path / "a.csv", ROWS)
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(VOCDataModule, "data")
    for given_value, expected in (("null", None), (source, source), (f"[{source}, masks]", [source, "masks"])):
        parsed = parser.parse_args([f"--data.root={voc}", f"--data.annotations={given_value}"])
        assert parsed.data.annotations == expected
    data = open_voc(voc, source)
    assert data.settings["annotations"] == [source]
    again = datamodule_from_settings(json.loads(json.dumps(data.settings)))
    assert read(again) == read(data)


ERRORS = {
    "class unknown": ({"points": [["bta", 1, 1]]}, r"line 2, image p1: there is no class 'bta'; did you mean 'bat'"),
    "background box": ({"boxes": [["background", 1, 1, 2, 2]]}, "there is no class 'background'"),
    "not tagged": (
        {"points": [["ant", 1, 1]]},
        "image p1: there is a point of 'ant', and the tags of the image are bat",
    ),
    "scribble not tagged": (
        {"scribbles": [["ant", [[1, 1]]]]},
        "a scribble of 'ant', and the tags of the image are bat",
    ),
    "box not tagged": ({"boxes": [["cow", 1, 1, 2, 2]]}, "a box of 'cow', and the tags of the image are bat"),
    "empty box": ({"boxes": [["bat", 3, 1, 3, 2]]}, "p1: a box of 'bat' is empty: left 3, top 1, right 3, bottom 2"),
    "flat box": ({"boxes": [["bat", 3, 4, 5, 2]]}, "p1: a box of 'bat' is empty: left 3, top 4, right 5, bottom 2"),
    "nan": ({"points": '[["bat", NaN, 1]]'}, r"points contains \['bat', nan, 1\], and must contain"),
    "inf": ({"boxes": '[["bat", 0, 0, 1e999, 1]]'}, "boxes contains .*inf.*, and must contain .* finite numbers"),
    "huge": ({"points": f'[["bat", 1{"0" * 400}, 1]]'}, "points contains .*, and must contain .* finite numbers"),
    "text": ({"points": [["bat", "1", 1]]}, r"points contains \['bat', '1', 1\]"),
    "true": ({"points": [["bat", True, 1]]}, "points contains .*True"),
    "no class": ({"points": [[1, 1]]}, r'points contains \[1, 1\], and must contain \["class", x, y\]'),
    "no list": ({"points": '{"bat": [1, 1]}'}, r'points contains .*, and must be a list \[\["class", x, y\], \.\.\.\]'),
    "one box": ({"boxes": ["bat", 0, 0, 1, 1]}, "boxes contains bat, and must contain"),
    "no vertex": ({"scribbles": [["bat", []]]}, "p1: a scribble of 'bat' has no vertex"),
    "vertex": ({"scribbles": [["bat", [[1, 1], [2]]]]}, "scribbles contains .*, and must contain"),
    "no JSON": ({"points": "bat 1 1"}, "p1: points contains 'bat 1 1', which is not JSON"),
    "deep": ({"points": "[" * 100_000}, "points contains .*, which is not JSON"),
    "no mask": ({"mask": "none.png"}, "image p1: there is no mask .*none.png"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_values(voc, tmp_path, name):
    fields, message = ERRORS[name]
    data = open_voc(voc, write_csv(tmp_path / "a.csv", [{"id": "p1"} | fields]))
    with pytest.raises(InputError, match=message) as caught:
        read(data)
    assert str(tmp_path / "a.csv") in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"points": "x"}], "needs a column of file, file_name or id, and of mask, points, scribbles, boxes"),
        ([{"file": "p1.jpg", "tags": "bat"}], r"needs a column of .*; its header is 'file,tags'"),
        ([{"id": "p1", "points": []}, {"id": "", "points": [["bat", 1, 1]]}], "line 3 has no id"),
        ([{"id": "p1", "points": []}, {"id": "p1", "points": []}], "a.csv contains the image p1 2 times"),
        ([{"file": "p1.jpg", "points": []}, {"file": "p1.png", "points": []}], "contains the image p1 2 times"),
        ([{"id": "x1", "points": []}], r"no image of the split 'train' of .*: its first is x1, and that of .* p0"),
        ([{"id": "p7", "points": []}], "contains no image of the split 'train'"),
    ],
)  # fmt: skip
def test_wrong_tables(voc, tmp_path, rows, message):
    with pytest.raises(InputError, match=message) as caught:
        read(open_voc(voc, write_csv(tmp_path / "a.csv", rows)))
    assert str(tmp_path / "a.csv") in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
def test_a_mask_from_a_file_allows_annotations_of_its_new_tags(voc, tmp_path, order):
    """p1 is tagged bat; its mask shows an ant, and a point and a box are on it."""
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = 1
    write_mask(tmp_path / "p1.png", mask)
    shapes = write_csv(tmp_path / "a.csv", [{"id": "p1", "points": [["ant", 1, 1]], "boxes": [["ant", 0, 0, 64, 9]]}])
    sources = [write_csv(tmp_path / "b.csv", [{"id": "p1", "mask": "p1.png"}]), shapes][::order]
    sample = read(open_voc(voc, sources))["p1"]
    assert sample.tags == {"ant"}
    assert [each.name for each in (*sample.points, *sample.boxes)] == ["ant", "ant"]
    with pytest.raises(InputError, match=r"p1: there is a (point|box) of 'ant', and the tags of the image are bat"):
        read(open_voc(voc, ["masks", shapes]))  # the data set's own masks are no corrections


def test_a_path_in_the_home_folder(voc, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_csv(tmp_path / "a.csv", [{"id": "p1", "points": [["bat", 1, 1]]}])
    assert len(read(open_voc(voc, "~/a.csv"))["p1"].points) == 1


def test_an_image_without_tags(voc, tmp_path):
    data = open_voc(voc, write_csv(tmp_path / "a.csv", [{"id": "p7", "points": [["bat", 1, 1]]}]))
    with pytest.raises(InputError, match="image p7: there is a point of 'bat', and the image has no tag"):
        read(data, "val")


def test_a_row_needs_quotes(voc, tmp_path):
    (tmp_path / "a.csv").write_text('id,points\np1,[["bat", 1, 1]]\n')
    with pytest.raises(InputError, match=r"line 2: .* beyond the columns of the header; .* in quotes"):
        read(open_voc(voc, str(tmp_path / "a.csv")))


def test_a_mask_that_is_no_text(voc, tmp_path):
    with pytest.raises(InputError, match=r"a.jsonl, line 1, image p1: the mask 3 is not a path"):
        read(open_voc(voc, write_jsonl(tmp_path / "a.jsonl", [{"id": "p1", "mask": 3}])))


def test_wrong_lists(voc, tmp_path):
    path = tmp_path / "a.txt"
    data = open_voc(voc, str(path))
    with pytest.raises(InputError, match=r"the list .*a\.txt cannot be read"):
        read(data)
    path.write_text("p6\np7\n")
    with pytest.raises(
        InputError, match=r"a\.txt contains no image of the split 'train' of .*: its first is p6, .* is p0"
    ):
        read(data)
    path.write_text("p6\np1\n")
    (voc / "SegmentationClass/p1.png").unlink()
    with pytest.raises(InputError, match=r"the list .*a\.txt contains p1, and the data set has no mask of it"):
        read(data)


@pytest.mark.parametrize("line", ["my photo 1", "caf\u0065\u0301 2", "my photo 1.jpg", "/home/me/my photo 1.png"])
def test_lists_of_ids_with_spaces_and_accents_and_of_files(tmp_path, line):
    """As other sources: the accents of macOS, and paths. Without them the first word of a line counts."""
    (tmp_path / "masks").mkdir()
    for name in ("my photo 1", "my photo 3", "caf\u00e9 2"):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{name}.jpg")
        write_mask(tmp_path / f"masks/{name}.png", np.ones((6, 8), np.uint8))
    (tmp_path / "tags.csv").write_text("file,tags\nmy photo 1.jpg,cat\nmy photo 3.jpg,cat\ncaf\u00e9 2.jpg,cat\n")
    (tmp_path / "few.txt").write_text(f"{line}\n")
    data = FolderDataModule(str(tmp_path), annotations=str(tmp_path / "few.txt"), classes=["cat"])
    found = {sample.id for sample in data.annotated(data.samples("all", masks=False), "all") if sample.mask}
    assert found == {"my photo 1" if "photo" in line else "caf\u00e9 2"}


def test_lists_with_words_after_the_id_and_with_dots_in_ids(voc, tmp_path):
    """As in VOC's lists of a class; p1.5 is an image of another split, and no file with the suffix .5."""
    (tmp_path / "a.txt").write_text("p0 -1\np1.5\np3.jpg p3.png\n")
    data = open_voc(voc, str(tmp_path / "a.txt"))
    assert {name for name, each in read(data).items() if each.mask} == {"p0", "p3"}
    (tmp_path / "a.txt").write_text("/\n")
    with pytest.raises(InputError, match=r"a\.txt contains no image of the split 'train' .*: its first is /, "):
        read(data)


def test_the_last_of_two_masks_counts(voc, tmp_path, capsys):
    shutil.copyfile(voc / "SegmentationClass/p4.png", tmp_path / "other.png")
    source = write_csv(tmp_path / "a.csv", [{"id": "p4", "mask": "other.png"}])
    own = str(voc / "SegmentationClass/p4.png")
    for sources, last in ((["masks", source], str(tmp_path / "other.png")), ([source, "masks"], own)):
        assert read(open_voc(voc, sources))["p4"].mask == last
        assert "annotations: 1 images have several masks, and the last one counts: p4" in capsys.readouterr().err
    assert read(open_voc(voc, ["masks", "masks"]))["p4"].mask == own
    assert capsys.readouterr().err == ""


def test_masks_of_0_and_255_from_a_file(voc, tmp_path, capsys):
    """Many tools write objects as 255, which is not known here."""
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = 255
    Image.fromarray(mask).save(tmp_path / "p1.png")
    source = write_csv(tmp_path / "a.csv", [{"id": "p1", "mask": "p1.png"}])
    assert read(open_voc(voc, source))["p1"].tags == {"bat"}
    message = "warning: no mask in the annotations shows a class: 0 is background, 255 is not known, and objects have "
    assert f"{message}the index 1 for ant, 2 for bat, 3 for cow" in capsys.readouterr().err


def test_masks_from_files_correct_tags(voc, tmp_path, capsys):
    """p0 is tagged ant, p1 bat, p3 cow."""
    ant, bat, unknown = np.zeros((3, 48, 64), np.uint8)
    ant[:9], bat[:9], unknown[:] = 1, 2, 255
    unknown[:9] = 1
    for name, mask in {"p0": bat, "p1": ant, "p3": unknown}.items():
        write_mask(tmp_path / f"{name}.png", mask)
    rows = [{"id": name, "mask": f"{name}.png"} for name in ("p0", "p1", "p3")]
    source = write_csv(tmp_path / "a.csv", rows)
    samples = read(open_voc(voc, source))
    assert [samples[name].tags for name in ("p0", "p1", "p3")] == [{"bat"}, {"ant"}, {"ant", "cow"}]
    assert "annotations: 3 images get other tags: p0 +bat -ant, p1 +ant -bat, p3 +ant" in capsys.readouterr().err
    few = read(open_voc(voc, source, classes=["ant", "cow"]))  # bats are 255 in masks: not known
    assert [few[name].tags for name in ("p0", "p1", "p3")] == [{"ant"}, {"ant"}, {"ant", "cow"}]
    (tmp_path / "few.txt").write_text("p0\n")  # the data set's own masks are not corrections
    assert read(open_voc(voc, str(tmp_path / "few.txt")))["p0"].tags == {"ant"}


def test_missing_sources(voc, tmp_path):
    for source, message in (
        ("boxes", r"annotations contains 'boxes', and must contain masks, xml, or .*\.txt, \.csv, \.jsonl, \.json"),
        (["masks", "a.xlsx"], "annotations contains 'a.xlsx'"),
    ):
        with pytest.raises(InputError, match=message):
            open_voc(voc, source)
    for name in ("a.csv", "a.jsonl", "a.json"):
        with pytest.raises(InputError, match=rf"{name} cannot be read: No such file"):
            read(open_voc(voc, str(tmp_path / name)))
    shutil.rmtree(voc / "Annotations")
    with pytest.raises(InputError, match=r"contains xml, and .*Annotations has no <id>\.xml of an image of the split"):
        read(open_voc(voc, "xml"))
    shutil.rmtree(voc / "SegmentationClass")
    with pytest.raises(InputError, match=r"contains masks, and no image of the split 'train' of .* has a mask"):
        read(open_voc(voc, "masks"))


def test_wrong_xml(voc):
    write_xml(voc, "p1", ("ant", 1, 1, 2, 2))
    for name in ("p0", "p2", "p3", "p4", "p5"):
        write_xml(voc, name)
    with pytest.raises(InputError, match=r"p1\.xml: there is a box of 'ant', and the tags of the image are bat"):
        read(open_voc(voc, "xml"))


JSON_ERRORS = {
    "not tagged": ({"p1": [instance("ant", bbox=[1, 1, 2, 2])]}, "annotation 100 of image p1: there is a box of 'ant'"),
    "point not tagged": ({"p1": [instance("cow", keypoints=[1, 1, 2])]}, "of image p1: there is a point of 'cow'"),
    "empty box": (
        {"p1": [instance("bat", bbox=[1, 1, 0, 2])]},
        "image p1: a box of 'bat' is empty: left 1, top 1, right 1",
    ),
    "bbox": ({"p1": [instance("bat", bbox=[1, 1, 2])]}, r"100 of image p1: the bbox \[1, 1, 2\] is not \[x, y, width"),
    "nan": ({"p1": [instance("bat", bbox=[1, float("nan"), 2, 3])]}, "100 of image p1: the bbox .* is not"),
    "keypoints": ({"p1": [instance("bat", keypoints=[1, 1, 2, 3])]}, "100 of image p1: its keypoints are not a list"),
    "no text": ({"p1": [instance("bat", keypoints="abc")]}, "100 of image p1: its keypoints are not a list"),
    "segmentation": ({"p1": [instance("bat", [[1, 1, 2]])]}, "annotation 100 has a segmentation"),
    "other split": ({"p7": []}, "contains no image of the split 'train' of .*: its first is JPEGImages/p7, and .* p0"),
    "no image": ({}, "contains no image of the split 'train' of .*: it is empty"),
}


@pytest.mark.parametrize("name", JSON_ERRORS)
def test_wrong_json(voc, tmp_path, name):
    images, message = JSON_ERRORS[name]
    with pytest.raises(InputError, match=message) as caught:
        read(open_voc(voc, instances_json(tmp_path / "a.json", images)))
    assert str(tmp_path / "a.json") in str(caught.value)


def test_json_of_some_other_classes(voc, tmp_path, capsys):
    """A label with another capital is another class, whose corrections would be lost unnoticed."""
    path = instances_json(tmp_path / "a.json", {"p1": []}, categories=("Ant", "bat", "background", "unknown"))
    read(open_voc(voc, path))
    assert (
        f"{path}: some of its categories are not classes of the data set: Ant; did you mean 'ant'?\n"
        in capsys.readouterr().err
    )


def test_json_of_other_classes(voc, tmp_path):
    path = instances_json(tmp_path / "a.json", {"p1": []}, categories=("Ant", "zebra"))
    with pytest.raises(
        InputError, match=r"none of its categories is a class of the data set: Ant, zebra; there are ant, bat, cow$"
    ):
        read(open_voc(voc, path))
    content = json.loads((tmp_path / "a.json").read_text())
    content["images"].append(content["images"][0] | {"id": 1})
    content["categories"][0]["name"] = "ant"
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"image 0: .*a\.json contains the image JPEGImages/p1 2 times"):
        read(open_voc(voc, path))


def test_a_data_set_without_masks(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in (("a.jpg", b"x"), ("a.txt", b"cat;dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    table = write_csv(tmp_path / "a.csv", [{"id": "a", "points": [["cat", 1, 1], ["dog", 2, 2]]}])
    data = WebDatasetDataModule(str(tmp_path), classes=["dog"], annotations=table)
    assert read(data)["a"].points == (Point("dog", 2, 2),)  # cat is a tag, and no chosen class
    with pytest.raises(InputError, match=r"no image of the split 'train' of .* has a mask"):
        read(WebDatasetDataModule(str(tmp_path), annotations="masks"))
    with pytest.raises(InputError, match=r"tar files in .* cannot follow annotations: unpack them"):
        data.blocks("train", 8)


numbers = st.floats(0, 47.99) | st.integers(0, 47)  # inside of all images
names = st.sampled_from(["ant", "bat", "cow", "background"])
drawn_points = st.lists(st.tuples(names, numbers, numbers), max_size=5)
drawn_scribbles = st.lists(st.tuples(names, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5)), max_size=3)
drawn_boxes = st.lists(
    st.tuples(st.sampled_from(["ant", "bat", "cow"]), st.integers(-99, 47), st.floats(-99, 47), st.integers(100, 200),
              st.floats(100, 200)),
    max_size=4,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@example(points=[("ant", 0.0, 0.5)], scribbles=[], boxes=[])
@given(points=drawn_points, scribbles=drawn_scribbles, boxes=drawn_boxes)
def test_tables_keep_what_is_written(voc_source, tmp_path_factory, points, scribbles, boxes):
    row = {"id": "p6", "points": points, "scribbles": scribbles, "boxes": boxes}  # p6 has all tags
    folder = tmp_path_factory.mktemp("table")
    for source in (write_csv(folder / "a.csv", [row]), write_jsonl(folder / "a.jsonl", [row])):
        sample = read(open_voc(voc_source, source), "val")["p6"]
        assert sample.points == tuple(sorted({Point(*each) for each in points}))
        lines = {Scribble(name, tuple(vertices)) for name, vertices in scribbles}
        assert sample.scribbles == tuple(sorted(lines))
        assert sample.boxes == tuple(sorted({Box(*each) for each in boxes}))


@pytest.mark.parametrize("point", [(64, 3), (3, 48), (-0.5, 3)])
def test_a_point_on_the_far_side_is_outside(voc, tmp_path, point):
    """Pixels of an image 64 wide are 0 to 63."""
    table = write_csv(tmp_path / "a.csv", [{"id": "p0", "points": [["background", *point]]}])
    with pytest.raises(InputError, match="of background is outside of the image"):
        read(open_voc(voc, table))


@pytest.mark.parametrize("sides", [(-5, 3, 0, 9), (3, -5, 9, 0), (64, 3, 70, 9), (3, 48, 9, 60)])
def test_a_box_that_touches_the_image_is_outside(voc, tmp_path, sides):
    table = write_csv(tmp_path / "a.csv", [{"id": "p0", "boxes": [["ant", *sides]]}])
    with pytest.raises(InputError, match="of ant is outside of the image"):
        read(open_voc(voc, table))


def test_a_mask_of_a_file_corrects_tags_after_one_of_the_data_set(voc, tmp_path):
    """The last mask counts, and so where it is from."""
    bat = np.zeros((48, 64), np.uint8)
    bat[:9] = 2
    write_mask(tmp_path / "p0.png", bat)
    source = write_csv(tmp_path / "a.csv", [{"id": "p0", "mask": "p0.png"}])
    assert read(open_voc(voc, ["masks", source]))["p0"].tags == {"bat"}
    assert read(open_voc(voc, [source, "masks"]))["p0"].tags == {"ant"}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_in_another_form_and_spaces_are_no_other_name(tmp_path, form):
    """Of classes, tags, images, and what a file of annotations names; macOS writes accents in another form."""
    name = unicodedata.normalize(form, "Käfer")
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", "Käfer")
    for file in (f"{name}.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / file)
    (tmp_path / "tags.csv").write_text(f"file,tags\n{other}.png,{other}\nb.png,{name};cat\n")
    (tmp_path / "points.csv").write_text(f'file,points\n{name}.png,"[[""{name}  "", 1, 1]]"\n')
    coco = {
        "images": [{"id": 1, "file_name": f"{name}.png", "height": 8, "width": 8}],
        "categories": [{"id": 1, "name": f"{name} "}, {"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}],
    }
    (tmp_path / "masks.json").write_text(json.dumps(coco))
    sources = [str(tmp_path / each) for each in ("points.csv", "masks.json")]
    data = FolderDataModule(str(tmp_path), classes=[name, "cat"], annotations=sources, val_fraction=0)
    assert data.classes == ("Käfer", "cat")
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / f"masks/{other}.png", np.zeros((8, 8)))
    assert any(each.mask for each in FolderDataModule(str(tmp_path), val_fraction=0).samples("all"))
    first = next(each for each in data.annotated(data.samples("all"), "all") if each.id != "b")
    assert read_image(first.image).shape == (8, 8, 3)
    assert [each.name for each in first.points] == ["Käfer"]
    assert list(first.mask.indices) == [data.mask_classes.index("Käfer") + 1]
