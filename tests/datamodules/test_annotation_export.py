"""Label maps in the formats of annotation tools, read by their own libraries, and back."""

import json
import subprocess
import zipfile
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools.coco import COCO
from scipy.spatial import cKDTree

from datamodules.annotations import exports as annotation_export
from datamodules.annotations.brush_rle import decode_brush, encode_brush
from datamodules.annotations.exports import LabelledImage, region_polygons, write_annotations
from datamodules.errors import InputError
from datamodules.masks import read_mask
from tests.annotation_tools import INTERPRETER
from tests.datamodules.test_annotations import open_voc, read

CLASSES = ("ant", "bat", "cow")
FILES = {
    "coco": "instances.json", "cvat": "annotations.zip", "yolo": "data.yaml", "label-studio": "tasks.json",
    "huggingface": "train.parquet",
}  # fmt: skip
HOLED = np.zeros((48, 64), np.uint8)
cv2.circle(HOLED, (30, 23), 18, 2, -1)
cv2.circle(HOLED, (24, 22), 5, 0, -1)
cv2.circle(HOLED, (38, 30), 4, 1, -1)
HOLED[44:46, 60:62] = 3


def label_maps(voc, *, unknown=False):
    """A label map with holes, an empty one, and noise of large regions."""
    images = {name: voc / "JPEGImages" / f"{name}.jpg" for name in ("p0", "p1", "p4")}
    sizes = {name: Image.open(image).size for name, image in images.items()}
    noise = cv2.resize(np.random.default_rng(0).integers(0, 4, (7, 8), np.uint8), sizes["p4"], interpolation=0)
    if unknown:
        noise[10:20, 5:30] = 255
    maps = {"p0": HOLED, "p1": np.zeros(sizes["p1"][::-1], np.uint8), "p4": noise}
    return [LabelledImage(name, str(image), maps[name]) for name, image in images.items()]


def export(voc, folder, kind, **options):
    if kind == "huggingface":
        pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    folder.mkdir()
    write_annotations(kind, folder, CLASSES, label_maps(voc, **options))
    return folder


def imported(voc, file, **options):
    """The masks of a file as a data module reads them, by id."""
    samples = read(open_voc(voc, str(file), **options))
    return {name: read_mask(each.mask) for name, each in samples.items() if each.mask}


def assert_equal(found, voc, *, empty=True, **options):
    wanted = {each.id: each.label_map for each in label_maps(voc, **options) if empty or each.label_map.any()}
    assert found.keys() == wanted.keys()
    for name, labels in wanted.items():
        np.testing.assert_array_equal(found[name], labels, err_msg=name)


@pytest.mark.parametrize("kind", FILES)
def test_round_trip(voc, tmp_path, kind):
    """COCO, and YOLO, have no mask of an image without a region: p1 is tagged, thus not annotated."""
    file = export(voc, tmp_path / "out", kind) / FILES[kind]
    if kind == "label-studio":
        file = annotate(file)
    assert_equal(imported(voc, file), voc, empty=kind not in ("coco", "yolo"))


@pytest.mark.parametrize("kind", ["coco", "cvat", "label-studio", "huggingface"])
def test_round_trip_of_unknown_pixels(voc, tmp_path, kind):
    file = export(voc, tmp_path / "out", kind, unknown=True) / FILES[kind]
    if kind == "label-studio":
        file = annotate(file)
    assert_equal(imported(voc, file), voc, empty=kind != "coco", unknown=True)


@pytest.mark.parametrize(("size", "groups"), [(1 << 20, [3]), (1, [1, 1, 1])])
def test_row_groups_of_parquet_have_many_images(voc, tmp_path, monkeypatch, size, groups):
    monkeypatch.setattr(annotation_export, "ROW_GROUP", size)
    file = export(voc, tmp_path / "out", "huggingface") / "train.parquet"
    metadata = pytest.importorskip("pyarrow.parquet").ParquetFile(file).metadata
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == groups
    assert_equal(imported(voc, file), voc)


@pytest.mark.skipif(not INTERPRETER.exists(), reason="the annotation tools' libraries are not installed: make test")
@pytest.mark.parametrize("kind", FILES)
def test_round_trip_through_the_library_of_the_tool(voc, tmp_path, kind):
    """Own file -> the library reads it -> the library writes it -> own reader."""
    source, target = export(voc, tmp_path / "out", kind), tmp_path / "tool"
    target.mkdir()
    script = INTERPRETER.parents[3] / "tests" / "annotation_tools.py"
    command = [INTERPRETER, script, kind, source, target, voc / "JPEGImages"]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    if kind == "yolo":  # supervision writes simplified polygons without holes: what it has read is compared
        read_by_tool = json.loads((target / "masks.json").read_text())
        assert read_by_tool["classes"] == list(CLASSES)
        for each in label_maps(voc):
            found = np.zeros_like(each.label_map)
            for index, pixels in read_by_tool["masks"].get(each.id, ()):
                found[np.array(pixels)] = index + 1
            np.testing.assert_array_equal(found, each.label_map)
        assert imported(voc, target / FILES[kind]).keys() == {"p0", "p4"}
    else:  # datumaro leaves out masks without an object
        assert_equal(imported(voc, target / FILES[kind]), voc, empty=kind not in ("coco", "cvat"))


def annotate(tasks):
    """Turn the predictions of Label Studio's tasks into annotations, as a person submits them."""
    content = json.loads(tasks.read_text())
    for task in content:
        task["annotations"] = task.pop("predictions")
    tasks.write_text(json.dumps(content))
    return tasks


# --- the files


def test_coco_is_read_by_pycocotools(voc, tmp_path):
    coco = COCO(str(export(voc, tmp_path / "out", "coco") / "instances.json"))
    assert [each["name"] for each in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    (image,) = (each for each in coco.loadImgs(coco.getImgIds()) if each["file_name"] == "p0.jpg")
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"], iscrowd=False))
    assert sorted(each["category_id"] for each in annotations) == [1, 2, 3]
    for each in annotations:
        pixels = each["category_id"] == HOLED
        np.testing.assert_array_equal(coco.annToMask(each), pixels)
        assert each["area"] == pixels.sum()
        rows, columns = np.nonzero(pixels)
        left, top = columns.min(), rows.min()
        assert each["bbox"] == [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_yolo_files(voc, tmp_path):
    folder = export(voc, tmp_path / "out", "yolo")
    assert "0: ant\n" in (folder / "data.yaml").read_text()
    assert (folder / "labels/p1.txt").read_text() == ""
    lines = (folder / "labels/p0.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert lines[2].split()[1:3] == ["0.9414062", "0.921875"]  # (60.25 / 64, 44.25 / 48)
    assert len(lines[2].split()) == 1 + 2 * 4


def test_one_pixel_is_a_polygon_of_three_vertices():
    pixels = np.zeros((3, 4), bool)
    pixels[1, 2] = True
    (polygon,) = region_polygons(pixels)
    assert polygon.tolist() == [[2, 1]] * 3


def test_label_studio_config(voc, tmp_path):
    """People may draw `unknown`, also where no pixel of the label maps is."""
    folder = export(voc, tmp_path / "out", "label-studio")
    labels = ET.parse(folder / "labeling_config.xml").findall("BrushLabels/Label")
    assert [each.get("value") for each in labels] == [*CLASSES, "unknown"]
    first = json.loads((folder / "tasks.json").read_text())[0]
    assert first["data"]["tag2mask_id"] == "p0"
    assert first["data"]["image"] == f"/data/local-files/?d={str(voc).lstrip('/')}/JPEGImages/p0.jpg"


def test_cvat_archive(voc, tmp_path):
    with zipfile.ZipFile(export(voc, tmp_path / "out", "cvat") / "annotations.zip") as archive:
        assert archive.read("labelmap.txt").decode().splitlines() == [
            "# label:color_rgb:parts:actions",
            "background:0,0,0::", "ant:128,0,0::", "bat:0,128,0::", "cow:128,128,0::",
        ]  # fmt: skip
        assert archive.read("ImageSets/Segmentation/default.txt") == b"p0\np1\np4\n"
        with archive.open("SegmentationClass/p0.png") as file:
            colours = np.array(Image.open(file).convert("RGB"))
    assert (colours[HOLED == 2] == (0, 128, 0)).all()


def test_a_class_named_unknown(voc, tmp_path):
    for kind in ("coco", "cvat", "label-studio"):
        with pytest.raises(InputError, match="'unknown' is the name of a class"):
            write_annotations(kind, tmp_path, ("ant", "bat", "unknown"), label_maps(voc, unknown=True))


def test_a_class_with_a_colon(voc, tmp_path):
    with pytest.raises(InputError, match="'a:b' has a colon"):
        write_annotations("cvat", tmp_path, ("ant", "a:b", "cow"), label_maps(voc))


@pytest.mark.parametrize(("image", "name"), [
    ("photos/a b#1.JPG", "x/a.JPG"), ("https://host/a.jpg?d=1.png", "x/a.jpg"), ("s3://bucket/f/a#1.png", "x/a.png"),
    ("zip://f/a.jpg::s3://bucket/c.zip", "x/a.jpg"), ("memory://a.tif", "x/a.tif"),
    ("s3://bucket/is it a cat?.png", "x/a.png"), ("s3://bucket/v1.2#3/a", "x/a"),
])  # fmt: skip
def test_file_names(image, name):
    assert LabelledImage("x/a", image, HOLED).file_name == name


def test_what_a_tool_cannot_open(tmp_path):
    with pytest.raises(InputError, match=r"Label Studio cannot open zip://a\.jpg::b\.zip"):
        write_annotations("label-studio", tmp_path, CLASSES, [LabelledImage("a", "zip://a.jpg::b.zip", HOLED)])
    with pytest.raises(InputError, match="the id '#a' begins with '#'"):
        write_annotations("cvat", tmp_path, CLASSES, [LabelledImage("#a", "a.jpg", HOLED)])


# --- polygons and run lengths


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_polygons_fill_exactly_the_pixels(pixels):
    filled = np.zeros(pixels.shape, np.uint8)
    for polygon in region_polygons(pixels):
        assert len(polygon) >= 3
        cv2.fillPoly(filled, [polygon.astype(np.int32)], 1)
    np.testing.assert_array_equal(filled, pixels)


def test_the_distances_of_many_holes_are_searched_together(monkeypatch):
    """One tree for the outline, and one for each hole that is joined."""
    pixels = np.ones((120, 120), bool)
    pixels[5:-5:10, 5:-5:10] = False
    trees = []

    def recorded(points):
        trees.append(points)
        return cKDTree(points)

    monkeypatch.setattr(annotation_export, "cKDTree", recorded)
    (polygon,) = region_polygons(pixels)
    assert len(trees) == 1 + (~pixels).sum() == 122
    filled = cv2.fillPoly(np.zeros(pixels.shape, np.uint8), [polygon.astype(np.int32)], 1)
    np.testing.assert_array_equal(filled, pixels)


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_brush_masks(pixels):
    packed = encode_brush(pixels)
    np.testing.assert_array_equal(decode_brush(packed, *pixels.shape), pixels)
    assert int.from_bytes(bytes(packed[:4])) == 4 * pixels.size


def test_brush_masks_by_hand():
    """1 x 2 pixels, the second in the mask: 8 values of 8 bits, sizes 3, 4, 8, 16; runs of four 0 and four 255."""
    bits = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "10001100000000" + "10001111111111"
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert encode_brush(np.array([[False, True]])) == packed
    # single values in place of runs, as Label Studio writes noise: 0 0 0 0 1 2 3 255
    singles = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111" + "000111"
    singles += "".join(f"{value:08b}" for value in (0, 0, 0, 0, 1, 2, 3, 255)) + "00"
    singles += "0" * (-len(singles) % 8)
    packed = [int(singles[start : start + 8], 2) for start in range(0, len(singles), 8)]
    assert decode_brush(packed, 1, 2).tolist() == [[False, True]]


@pytest.mark.parametrize("packed", [[], [1, 2], None, [300] * 9, ["a"], encode_brush(np.ones((3, 3), bool))[:-1]])
def test_brush_masks_that_are_none(packed):
    with pytest.raises(InputError, match=r"brush run lengths that are not those of an image of 3 x 3 pixels"):
        decode_brush(packed, 3, 3)
    with pytest.raises(InputError, match="of 3 x 4 pixels"):
        decode_brush(encode_brush(np.ones((3, 3), bool)), 3, 4)


def test_a_run_longer_than_the_largest_length():
    """Label Studio's lengths have at most 16 bits: one class in an image of 200 x 300 pixels is several runs."""
    pixels = np.zeros((200, 300), bool)
    pixels[150:] = True
    np.testing.assert_array_equal(decode_brush(encode_brush(pixels), 200, 300), pixels)


def test_tags_of_parquet_are_the_classes_of_the_mask(voc, tmp_path):
    """Counted from 0, without background and unknown pixels."""
    file = export(voc, tmp_path / "out", "huggingface", unknown=True) / "train.parquet"
    tags = pytest.importorskip("pyarrow.parquet").read_table(file)["tags"].to_pylist()
    assert tags == [[index - 1 for index in (1, 2, 3) if (each.label_map == index).any()] for each in label_maps(voc)]
    assert tags[:2] == [[0, 1, 2], []]


def test_names_with_signs_of_urls_and_of_xml(tmp_path):
    """Label Studio reads the path of an image as a part of a URL, and the names of the classes as XML."""
    image = LabelledImage("a", "/photos/50 % #1 & 2?.jpg", np.ones((4, 6), np.uint8))
    write_annotations("label-studio", tmp_path, ('a & "b" <c>',), [image])
    (task,) = json.loads((tmp_path / "tasks.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/50%20%25%20%231%20%26%202%3F.jpg"
    labels = ET.parse(tmp_path / "labeling_config.xml").findall("BrushLabels/Label")
    assert labels[0].get("value") == 'a & "b" <c>'
