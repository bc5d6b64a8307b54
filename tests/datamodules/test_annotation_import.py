"""Annotations from Label Studio, CVAT, YOLO and Hugging Face data sets."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from datamodules.annotations.brush_rle import encode_brush
from datamodules.annotations.shapes import Box, Point
from datamodules.annotations.sources import referenced_files
from datamodules.dataset import ImageDataset
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.folder import FolderDataModule
from datamodules.masks import mask_png, read_mask
from tests.datamodules.test_annotations import instance, instances_json, open_voc, read

# tags of the fixture voc: p0 ant; p1 bat; p2 ant, bat; p3 cow; p4 ant, cow; p5 bat, cow. p0 has 48 x 64 pixels


def region(kind, label, **value):
    size = {"original_width": 64, "original_height": 48}
    return {"type": kind, **size, "value": {kind: [label], **value}, "from_name": "a", "to_name": "b"}


def brush(label, rows, columns):
    pixels = np.zeros((48, 64), bool)
    pixels[rows, columns] = True
    return region("brushlabels", label, format="rle", rle=encode_brush(pixels))


def task(image, *results, **annotation):
    return {"data": {"image": image}, "annotations": [{"result": list(results), **annotation}]}


def studio(voc, tmp_path, *tasks, **options):
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    return read(open_voc(voc, str(tmp_path / "export.json"), **options))


# --- Label Studio


def test_brushes_and_polygons_are_a_mask(voc, tmp_path):
    """A smaller region covers a larger one; a label that is no class is 255; what nothing covers is background."""
    square = region("polygonlabels", "ant", points=[[50, 50], [75, 50], [75, 75], [50, 75]])  # x 32..48, y 24..36
    results = [brush("cup", np.s_[0:2], np.s_[0:3]), square, brush("ant", np.s_[0:20], np.s_[:])]
    samples = studio(voc, tmp_path, task("/data/local-files/?d=x/p0.jpg", *results))
    wanted = np.zeros((48, 64), np.uint8)
    wanted[:20], wanted[24:36, 32:48], wanted[0:2, 0:3] = 1, 1, 255
    np.testing.assert_array_equal(read_mask(samples["p0"].mask), wanted)
    assert all(each.mask is None for name, each in samples.items() if name != "p0")


def test_background_may_be_drawn(voc, tmp_path):
    results = [brush("ant", np.s_[:], np.s_[:]), brush("background", np.s_[0:5], np.s_[:])]
    mask = read_mask(studio(voc, tmp_path, task("p0.jpg", *results))["p0"].mask)
    assert (mask[:5] == 0).all()
    assert (mask[5:] == 1).all()


def test_a_label_that_is_no_class_is_reported_beside_drawn_background(voc, tmp_path, capsys):
    results = [brush(label, rows, np.s_[:]) for label, rows in (("background", 0), ("bat", 1), ("ants", 2))]
    studio(voc, tmp_path, task("p0.jpg", *results))
    message = "export.json: some of its labels are not classes of the data set: ants; did you mean 'ant'?"
    assert message in capsys.readouterr().err


def test_rectangles_and_key_points(voc, tmp_path, capsys):
    results = [
        region("rectanglelabels", "ant", x=25, y=50, width=50, height=25),
        region("keypointlabels", "ant", x=50, y=25, width=1),
        region("rectanglelabels", "cup", x=0, y=0, width=5, height=5),  # no class
        {"type": "choices", "value": {"choices": ["blurred"]}},
    ]
    sample = studio(voc, tmp_path, task("s3://bucket/a/p0.jpg", *results))["p0"]
    assert sample.mask is None
    assert sample.boxes == (Box("ant", 16, 24, 48, 36),)
    assert sample.points == (Point("ant", 32, 12),)
    message = "export.json: 1 images have choices, which are not read: correct tags in the data set itself: a/p0"
    assert message in capsys.readouterr().err


def test_a_rectangle_beside_a_mask_keeps_its_tag_and_its_pixels_are_unknown(voc, tmp_path, capsys):
    """A person corrects the ant with a brush, and draws a rectangle for the bat."""
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(voc / "JPEGImages/p2.jpg")
    box = region("rectanglelabels", "bat", x=50, y=50, width=50, height=50)
    (tmp_path / "export.json").write_text(json.dumps([task("p2.jpg", brush("ant", np.s_[:30], np.s_[:]), box)]))
    data = open_voc(voc, str(tmp_path / "export.json"), targets="masks", size=64)
    data.setup("fit")
    assert "get other tags" not in capsys.readouterr().err
    samples = data._datasets["train"].samples
    position = next(index for index, sample in enumerate(samples) if sample.id == "p2")
    assert samples[position].tags == {"ant", "bat"}
    assert samples[position].boxes == (Box("bat", 32, 24, 64, 48),)
    item = data._datasets["train"][position]  # 64 x 64: rows 0..40 are the ant's, the box begins at row 32
    assert item["labels"].tolist() == [1, 1, 0]
    assert (item["mask"][:40] == 1).all()
    assert (item["mask"][40:, :32] == 0).all()
    assert (item["mask"][40:, 32:] == 255).all()


def test_a_remark_on_a_rectangle(voc, tmp_path):
    """Label Studio stores the text of a region as another entry with the region's id."""
    box = region("rectanglelabels", "ant", x=25, y=50, width=50, height=25) | {"id": "r"}
    value = {key: box["value"][key] for key in ("x", "y", "width", "height")}
    remark = {**box, "type": "textarea", "value": {**value, "text": ["blurred"]}}
    for results in ([box, remark], [remark, box]):
        assert studio(voc, tmp_path, task("p0.jpg", *results))["p0"].boxes == (Box("ant", 16, 24, 48, 36),)


def test_a_brush_mask_that_was_erased_is_no_tag(voc, tmp_path):
    results = [brush("ant", np.s_[0:20], np.s_[:]), brush("bat", np.s_[0:0], np.s_[:])]
    assert studio(voc, tmp_path, task("p0.jpg", *results))["p0"].tags == {"ant"}


def test_an_entry_that_is_no_region_is_left_out(voc, tmp_path):
    samples = studio(voc, tmp_path, task("p0.jpg", {"type": "relation", "value": 3}))
    assert (samples["p0"].mask, samples["p0"].points) == (None, ())


def test_a_polygon_outside_of_its_image(voc, tmp_path):
    far = region("polygonlabels", "ant", points=[[110, 20], [150, 20], [150, 60]])
    with pytest.raises(
        InputError, match=r"task 1, image p0: a region has a polygon outside of its image, which is 64x48"
    ):
        studio(voc, tmp_path, task("p0.jpg", far))


def test_the_last_annotation_of_an_image_counts(voc, tmp_path, capsys):
    first = task("p0.jpg", brush("ant", np.s_[:1], np.s_[:]), updated_at="2026-01-03T00:00:00Z")
    second = task("p0.jpg", brush("ant", np.s_[:2], np.s_[:]), updated_at="2026-01-02T00:00:00Z")
    skipped = task("p0.jpg", brush("ant", np.s_[:3], np.s_[:]), updated_at="2026-01-04T00:00:00Z", was_cancelled=True)
    for tasks in ([first, second, skipped], [skipped, second, first]):
        assert read_mask(studio(voc, tmp_path, *tasks)["p0"].mask).sum() == 64
    first["annotations"] += second["annotations"]  # two people annotated the task
    capsys.readouterr()
    assert read_mask(studio(voc, tmp_path, first)["p0"].mask).sum() == 64
    message = "export.json: 1 images have several annotations, and the last one counts: p0"
    assert message in capsys.readouterr().err
    studio(voc, tmp_path, second, skipped)
    assert "several" not in capsys.readouterr().err


def test_names_of_uploaded_files_and_own_ids(voc, tmp_path):
    results = brush("bat", np.s_[:1], np.s_[:])
    results["original_height"] = 52
    results["value"]["rle"] = encode_brush(np.ones((52, 64), bool))
    uploaded, own = task("/data/upload/3/0a1b2c3d-p1.jpg", results), task("other.jpg", results)
    own["data"]["tag2mask_id"] = "p1"
    for each in (uploaded, own):
        assert studio(voc, tmp_path, each)["p1"].mask is not None


def test_an_annotation_without_a_region_is_background(voc, tmp_path):
    """A person has removed all regions; a task without annotation is not annotated."""
    pending = {"data": {"image": "p1.jpg"}, "annotations": [], "predictions": [{"result": []}]}
    samples = studio(voc, tmp_path, task("p0.jpg"), pending)
    assert read_mask(samples["p0"].mask).shape == (48, 64)
    assert not read_mask(samples["p0"].mask).any()
    assert samples["p0"].tags == frozenset()
    assert samples["p1"].mask is None


BAD_REGIONS = {
    "ellipse": (
        region("ellipselabels", "ant", x=1, y=1, radiusX=3, radiusY=3),
        "type ellipselabels is no brush mask, pol",
    ),
    "run lengths": (region("brushlabels", "ant", rle=[1, 2]), "image of 48 x 64 pixels"),
    "no shape": (region("brushlabels", "ant"), "a region of the type brushlabels is no brush mask"),
    "two labels": (region("brushlabels", "ant", labels=["bat"]), r"has the labels \['ant', 'bat'\], and must have one"),
    "empty box": (region("rectanglelabels", "ant", x=9, y=9, width=0, height=9), "a box of 'ant' is empty"),
    "nan": (region("rectanglelabels", "ant", x=9, y=float("nan"), width=1, height=9), "a box of 'ant' is empty"),
    "turned": (region("rectanglelabels", "ant", x=9, y=9, width=1, height=9, rotation=45), "a rectangle is rotated"),
    "size": (region("brushlabels", "ant", rle=[]) | {"original_width": 0}, "a region has the original size 48 x 0"),
    "rotated": (region("brushlabels", "ant", rle=[]) | {"image_rotation": 90}, "rotated in Label Studio"),
    "polygon": (region("polygonlabels", "ant", points=[[1, 2, 3]]), "polygonlabels is invalid"),
    "two points": (region("polygonlabels", "ant", points=[[1, 2], [3, 4]]), "a polygon has 2 points, and needs three"),
    "far polygon": (region("polygonlabels", "ant", points=[[1e300, 2]] * 3), "not a list of polygons"),
    "text": (region("keypointlabels", "ant", x="1", y=2), "keypointlabels is invalid"),
    "number": (region("brushlabels", 3), r"a region has the labels \[3\]"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_REGIONS.values(), ids=BAD_REGIONS)
def test_regions_that_cannot_be_read(voc, tmp_path, bad, message):
    with pytest.raises(InputError, match=rf"export\.json, task 1, image p0: .*{message}"):
        studio(voc, tmp_path, task("p0.jpg", bad))


def test_a_shape_and_its_label_may_be_two_entries(voc, tmp_path):
    """The control Labels beside Brush; a shape without a label is unknown."""
    shape = {key: value for key, value in brush("ant", np.s_[:9], np.s_[:]).items() if key != "value"}
    rle = brush("ant", np.s_[:9], np.s_[:])["value"]["rle"]
    entries = [
        {**shape, "type": "brush", "id": "r1", "value": {"rle": rle}},
        {**shape, "type": "labels", "id": "r1", "value": {"rle": rle, "labels": ["ant"]}},
        {**shape, "type": "choices", "id": "r1", "value": {"rle": rle, "choices": ["blurred"]}},
        {"type": "relation", "from_id": "r1", "to_id": "r2"},
        brush("bat", np.s_[20:30], np.s_[:]) | {"type": "brush", "id": "r2"},
    ]
    del entries[-1]["value"]["brushlabels"]
    mask = read_mask(studio(voc, tmp_path, task("p0.jpg", *entries))["p0"].mask)
    assert (mask[:9] == 1).all()
    assert (mask[20:30] == 255).all()
    assert not mask[30:].any()


def test_key_points_of_the_background(voc, tmp_path):
    point = region("keypointlabels", "background", x=50, y=25, width=1)
    assert studio(voc, tmp_path, task("p0.jpg", point))["p0"].points == (Point("background", 32, 12),)


def test_regions_of_two_sizes(voc, tmp_path):
    small = brush("ant", 0, 0) | {"original_width": 32, "original_height": 24}
    small["value"]["rle"] = encode_brush(np.ones((24, 32), bool))
    with pytest.raises(InputError, match=r"regions have the original sizes \(24, 32\) and \(48, 64\)"):
        studio(voc, tmp_path, task("p0.jpg", small, brush("ant", 1, 1)))
    with pytest.raises(InputError, match=r"image p0 is 32x24, and its image .* is 64x48"):
        studio(voc, tmp_path, task("p0.jpg", small))


@pytest.mark.parametrize("kind", ["rectanglelabels", "keypointlabels"])
def test_a_box_or_point_in_an_image_of_another_size(voc, tmp_path, kind):
    """For example the size before a turn that the image's metadata records."""
    turned = region(kind, "ant", x=50, y=25, width=1, height=1) | {"original_width": 48, "original_height": 64}
    if kind == "keypointlabels":
        del turned["value"]["height"]
    with pytest.raises(InputError, match=r"image p0 is 48x64, and its image .* is 64x48"):
        studio(voc, tmp_path, task("p0.jpg", turned))


@pytest.mark.parametrize("url", [
    "https://host/a%20b/p0.jpg?X-Amz-Signature=1&d=1", "s3://bucket/x/p0.jpg", "/data/local-files/?d=x%5Cp0.jpg",
    "/data/upload/3/0a1b2c3d-p0.jpg?x=1", "/tasks/1/presign/?fileuri=czM6Ly9iL3AwLmpwZw==", "C:\\x\\p0.jpg",
    "/home/a#1/p0.jpg", "/tasks/1/resolve/?fileuri=czM6Ly9iL3h-eS9wMC5qcGc=",
])  # fmt: skip
def test_urls_of_images(voc, tmp_path, url):
    assert studio(voc, tmp_path, task(url, brush("ant", 0, 0)))["p0"].mask is not None


def test_the_image_of_a_task_with_several(voc, tmp_path):
    first = task("p0.jpg", brush("ant", 0, 0))
    first["data"] = {"thumbnail": "p1.jpg", "image": "p0.jpg"}
    assert studio(voc, tmp_path, first)["p0"].mask is not None
    first["data"] = {"left": "p1.jpg", "right": "p0.jpg"}
    with pytest.raises(InputError, match=r"task 1 has several images, p1.jpg, p0.jpg: name one of them 'image'"):
        studio(voc, tmp_path, first)


def test_a_text_beside_the_image_of_a_task(voc, tmp_path):
    first = task("p0.jpg", brush("ant", 0, 0))
    first["data"]["remark"] = "http://[host]/ has another photo"
    assert studio(voc, tmp_path, first)["p0"].mask is not None
    with pytest.raises(InputError, match=r"'http://\[host\]/p0.jpg' is no path of an image"):
        studio(voc, tmp_path, task("http://[host]/p0.jpg", brush("ant", 0, 0)))


def test_images_in_folders(tmp_path):
    """Ids of a folder for each tag are paths; a file lists longer or shorter ones."""
    for name in ("cat/a", "dog/b", "dog/c"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "photos" / f"{name}.png")
    tasks = [task(f"/data/local-files/?d=home/me/photos/{name}.png", brush("dog", 0, 0)) for name in ("dog/b", "cat/a")]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    data = FolderDataModule(str(tmp_path / "photos"), annotations=str(tmp_path / "a.json"), num_workers=0)
    samples = {each.id: each for each in data.annotated(data.samples("all"), "all")}
    assert [name for name, each in samples.items() if each.mask] == ["cat/a", "dog/b"]


def test_a_message_counts_images_that_are_not_in_the_split(voc, tmp_path, capsys):
    studio(voc, tmp_path, task("x/p0.jpg", brush("ant", 0, 0)), task("x9.jpg"))
    assert "export.json: 1 of 2 images are in the split 'train'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"contains the image x/p0 2 times"):
        studio(voc, tmp_path, task("x/p0.jpg"), task("p0.jpg"))


def test_other_json_of_label_studio(voc, tmp_path):
    for content, message in (
        ([{"image": "p0.jpg", "tag": []}], r"export\.json, task 1 has no list of annotations: export .* as JSON"),
        ([3], "task 1 has no list of annotations"),
        ([{"data": {"text": "p0"}, "annotations": []}], "task 1 has no image"),
        ([{"data": {"image": "p0.jpg"}, "annotations": [{"id": 1}]}], "task 1 has an annotation without a result"),
        ([{"data": {"image": "p0.jpg"}, "annotations": []}], r"export\.json contains no annotation of any image"),
        ([task("x9.jpg")], r"export\.json contains no image of the split 'train'"),
        (
            [task("p0.jpg", brush("cup", 0, 0))],
            "none of its labels is a class of the data set: cup; there are ant, bat",
        ),
    ):
        with pytest.raises(InputError, match=message):
            studio(voc, tmp_path, *content)


def test_images_by_uri_are_not_read_at_the_setup(tmp_path, monkeypatch):
    """A request for each of them would take hours; a mask of another size is found when its image is read."""
    (tmp_path / "tags.csv").write_text("file,tags\nmemory://studio/a.png,ant\nmemory://studio/b.png,bat\n")
    tasks = [task(f"memory://studio/{name}.png", brush("ant", np.s_[:9], np.s_[:])) for name in "ab"]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    data = FolderDataModule(str(tmp_path), annotations=str(tmp_path / "a.json"), val_fraction=0)
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.images.open_file", lambda path: pytest.fail(f"{path} is read"))
        samples = data.annotated(data.samples("train"), "train")
    assert [sample.tags for sample in samples] == [{"ant"}, {"ant"}]
    for name, size in (("a", (64, 48)), ("b", (32, 24))):
        content = io.BytesIO()
        Image.new("RGB", size).save(content, "PNG")
        write_atomically(UPath(f"memory://studio/{name}.png"), content.getvalue())
    dataset = ImageDataset(samples, data.classes, 32, mask_lut=data.mask_lut)
    assert dataset[0]["mask"].shape == (48, 64)
    with pytest.raises(InputError, match=r"image b is 64x48, and its image memory://studio/b\.png is 32x24"):
        dataset[1]


@pytest.mark.parametrize("kind", ["box", "mask", "background", "yolo", "coco"])
def test_an_unreadable_image_is_left_out_by_the_training(voc, tmp_path, kind):
    """Whatever is known about it, and as many others as max_unreadable allows."""
    (voc / "JPEGImages/p0.jpg").write_bytes(b"no image")
    if kind == "yolo":
        source = yolo(tmp_path / "a", labels__p0="1 0.5 0.5 0.25 0.5\n", labels__p2="1 0.5 0.5 0.25 0.5\n")
    elif kind == "coco":
        source = instances_json(tmp_path / "a.json", {"p0": [instance("ant", bbox=[1, 2, 3, 4])]})
    else:
        box, mask = region("rectanglelabels", "ant", x=25, y=50, width=50, height=25), brush("ant", 0, 0)
        tasks = [task("p0.jpg", *{"box": [box], "mask": [mask], "background": []}[kind])]
        source = str(tmp_path / "a.json")
        (tmp_path / "a.json").write_text(json.dumps(tasks))
    data = open_voc(voc, source, max_unreadable=0.2, size=32)
    data.setup("fit")
    assert list(data.unreadable.reasons) == ["p0"]
    assert [sample.id for sample in data.train_dataloader().dataset.samples] == [f"p{i}" for i in range(1, 6)]
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read, and max_unreadable allows .*p0\.jpg"):
        open_voc(voc, source, max_unreadable=0.1, size=32).setup("fit")


# --- CVAT


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbat:10,20,30::\ncup:9,9,9::\nant:1,0,0::\n"


def archive(path, labelmap=LABELMAP, **masks):
    with zipfile.ZipFile(path, "w") as file:
        if labelmap:
            file.writestr("labelmap.txt", labelmap)
        for name, colours in masks.items():
            content = io.BytesIO()
            Image.fromarray(colours).save(content, "PNG")
            file.writestr(f"SegmentationClass/{name}.png", content.getvalue())
    return str(path)


def test_colours_are_those_of_the_labelmap(voc, tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[0], colours[1], colours[2] = (10, 20, 30), (1, 0, 0), (9, 9, 9)
    samples = read(open_voc(voc, archive(tmp_path / "a.zip", p0=colours)))
    wanted = np.zeros((48, 64), np.uint8)
    wanted[0], wanted[1], wanted[2] = 2, 1, 255
    np.testing.assert_array_equal(read_mask(samples["p0"].mask), wanted)
    assert sum(each.mask is not None for each in samples.values()) == 1


def test_other_files_of_an_archive_are_not_read(voc, tmp_path):
    """Neither masks of objects nor those of images of other splits: an archive may be larger than the memory."""
    path, colours = tmp_path / "a.zip", np.zeros((48, 64, 3), np.uint8)
    archive(path, p0=colours, x9=colours)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("SegmentationObject/p0.png", b"objects")
    content = path.read_bytes()
    for name in (b"SegmentationClass/x9.png", b"SegmentationObject/p0.png"):
        content = content.replace(name, bytes(len(name)), 1)  # in front of the content: reading it is an error
    path.write_bytes(content)
    assert [name for name, each in read(open_voc(voc, str(path))).items() if each.mask] == ["p0"]
    for suffix in ("SegmentationClass/p0.png", "labelmap.txt"):
        path.write_bytes(content.replace(suffix.encode(), bytes(len(suffix)), 1))
        with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip file"):
            read(open_voc(voc, str(path)))


def test_archives_that_are_none(voc, tmp_path):
    colours = np.full((48, 64, 3), 7, np.uint8)
    path = tmp_path / "a.zip"
    for content, message in (
        ({"labelmap": None, "p0": colours}, "contains 0 files labelmap.txt and 1 masks in SegmentationClass: export"),
        ({}, "contains 1 files labelmap.txt and 0 masks"),
        (
            {"labelmap": "ant:1,2,3::\nbat:1,2,3::\n", "p0": colours},
            "the colour of 'bat' in labelmap.txt is that of an",
        ),
        ({"labelmap": "ant:0,0,0::\n", "p0": colours}, "the colour of 'ant' in labelmap.txt is that of another label"),
        ({"labelmap": "ant:300,0,0::\n", "p0": colours}, "the line 'ant:300,0,0::' of labelmap.txt is not"),
        (
            {"labelmap": "ant,1,2,3\n", "p0": colours},
            "the line 'ant,1,2,3' of labelmap.txt is not label:red,green,blue",
        ),
        ({"labelmap": "cup:1,2,3::\n", "p0": colours}, "none of the labels of labelmap.txt is a class"),
        ({"p0": colours}, r"SegmentationClass/p0.png has pixels of the colour 7,7,7, which labelmap.txt does not list"),
        ({"x9": colours}, "contains no image of the split 'train'"),
    ):
        with pytest.raises(InputError, match=message):
            read(open_voc(voc, archive(path, **content)))
    content = bytearray(archive(path, p0=colours) and path.read_bytes())
    start = content.index(b"labelmap.txt") + len("labelmap.txt")
    content[start : start + 20] = bytes(20)
    for damaged in (b"PK no zip file", bytes(content)):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip file"):
            read(open_voc(voc, str(path)))
    path.write_bytes(b"PK no zip file")
    with pytest.raises(InputError, match=r"a\.zip cannot be read as a zip file"):
        read(open_voc(voc, str(path)))


# --- YOLO


def yolo(folder, names="names: {0: bat, 1: ant, 2: cup}\n", **files):
    folder.mkdir(exist_ok=True)
    (folder / "data.yaml").write_text(names)
    for name, text in files.items():
        target = folder / name.replace("__", "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix(".txt").write_text(text)
    return str(folder / "data.yaml")


SQUARE = "0.25 0.25 0.734375 0.25 0.734375 0.734375 0.25 0.734375"  # x 16..47, y 12..35 of 64 x 48


@pytest.mark.parametrize("place", ["labels__{}", "labels__train__{}", "train__labels__{}"])
def test_polygons_of_yolo(voc, tmp_path, place):
    text = f"1 {SQUARE}\n2 0 0 0.99 0 0.99 0.1 0 0.1\n"
    samples = read(open_voc(voc, yolo(tmp_path / "a", **{place.format("p0"): text})))
    wanted = np.zeros((48, 64), np.uint8)
    wanted[12:36, 16:48], wanted[0:5] = 1, 255
    np.testing.assert_array_equal(read_mask(samples["p0"].mask), wanted)


def test_boxes_of_yolo(voc, tmp_path):
    source = yolo(tmp_path / "a", labels__p0="1 0.5 0.5 0.25 0.5\n2 0.1 0.1 0.1 0.1\n", labels__p7="")
    sample = read(open_voc(voc, source))["p0"]
    assert sample.boxes == (Box("ant", 24, 12, 40, 36),)
    assert sample.mask is None


def test_an_empty_file_of_yolo(voc, tmp_path):
    """An image without any tag is background; one with a tag is not annotated."""
    tags = dict.fromkeys(("labels__p0", "labels__p1"), "")
    tags["labels__p2"] = f"1 {SQUARE}\n"
    samples = read(open_voc(voc, yolo(tmp_path / "a", **tags)))
    assert [name for name, each in samples.items() if each.mask] == ["p2"]
    without = read(open_voc(voc, yolo(tmp_path / "a", **tags), labels=None))
    assert [name for name, each in without.items() if each.mask] == ["p0", "p1", "p2"]
    assert without["p0"].tags == frozenset()


def test_files_of_yolo_that_are_none(voc, tmp_path):
    for number, (names, text, message) in enumerate(
        (
            ("path: .\n", "", r"data\.yaml has no names of classes"),
            ("names: [cup]\n", "", "none of its names is a class of the data set: cup; there are ant"),
            ("names: [\n", "", r"data\.yaml cannot be read as YAML"),
            ("names: [ant]\ndate: 2024-13-01\n", "", r"data\.yaml cannot be read as YAML"),
            ("names: [[ant]]\n", "", "has no names of classes"),
            ("names: [ant]\nkpt_shape: [4, 3]\n", "", "is of a data set of poses"),
            ("names: [ant]\n", "0 .5 .5 0 0\n", r"p0\.txt, line 1: a box of 'ant' is empty"),
            ("names: [ant]\n", "0 1 2 3\n", r"p0\.txt, line 1: the coordinates are no pairs"),
            ("names: [ant]\n", "\n0 0 0 nan 0\n", r"p0\.txt, line 2: the coordinates are no pairs"),
            (
                "names: [ant]\n",
                "3 0 0 1 1\n",
                r"p0\.txt, line 1: '3 0 0 1 1' is not the number of a class and coordinates",
            ),
            ("names: [ant]\n", "ant 0 0 1 1\n", "is not the number of a class"),
        )
    ):
        with pytest.raises(InputError, match=message):
            read(open_voc(voc, yolo(tmp_path / str(number), names, labels__p0=text)))
    with pytest.raises(InputError, match="there is no folder labels with text files beside"):
        read(open_voc(voc, yolo(tmp_path / "none")))
    with pytest.raises(InputError, match=r"contains the image p0 2 times"):
        read(open_voc(voc, yolo(tmp_path / "twice", train__labels__p0="", valid__labels__p0="")))


def test_predictions_below_the_yaml_are_no_labels(voc, tmp_path):
    source = yolo(tmp_path / "a", labels__p2=f"1 {SQUARE}\n", runs__segment__predict__labels__p3=f"1 {SQUARE}\n")
    assert [name for name, each in read(open_voc(voc, source)).items() if each.mask] == ["p2"]


# --- Hugging Face


def test_masks_of_parquet(voc, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    mask = np.zeros((56, 64), np.uint8)
    mask[:3], mask[5] = 2, 255
    path = tmp_path / "train.parquet"
    rows = {"file_name": ["x/p2.jpg", "x/p3.jpg"], "mask": [{"bytes": mask_png(mask), "path": None}, None]}
    parquet.write_table(pa.table(rows), path)
    samples = read(open_voc(voc, str(path)))
    np.testing.assert_array_equal(read_mask(samples["p2"].mask), mask)
    assert samples["p3"].mask is None
    tags = {"feature": {"names": ["background", "cow", "cup"], "_type": "ClassLabel"}, "_type": "List"}
    features = {"split": {"names": ["ant", "bat"], "_type": "ClassLabel"}, "tags": tags}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    mask[4] = 1  # cow, of another order
    rows["mask"][0]["bytes"] = mask_png(mask)
    parquet.write_table(pa.table(rows).replace_schema_metadata(metadata), path)
    mask[:3], mask[4] = 255, 3
    np.testing.assert_array_equal(read_mask(read(open_voc(voc, str(path)))["p2"].mask), mask)


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
def test_ids_of_parquet_of_every_kind_of_text(voc, tmp_path, kind):
    """Polars writes large_string."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"id": pa.array(["p2"], getattr(pa, kind)()), "mask": [mask_png(np.ones((56, 64), np.uint8))]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert read_mask(read(open_voc(voc, str(tmp_path / "a.parquet")))["p2"].mask).all()


def test_a_mask_of_parquet_is_turned_as_its_image(voc, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    exif, content = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.eye(64, 56, dtype=np.uint8)).save(content, "PNG", exif=exif)
    parquet.write_table(pa.table({"id": ["p2"], "mask": [content.getvalue()]}), tmp_path / "a.parquet")
    mask = read_mask(read(open_voc(voc, str(tmp_path / "a.parquet")))["p2"].mask)
    np.testing.assert_array_equal(mask, np.rot90(np.eye(64, 56, dtype=np.uint8), -1))


def test_parquet_that_is_none(voc, tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    rgb = io.BytesIO()
    Image.new("RGB", (64, 48)).save(rgb, "PNG")
    for columns, message in (
        ({"id": ["p0"]}, r"train\.parquet needs a column id or file_name of texts, and mask; it has id"),
        ({"id": ["p0"], "mask": [{"bytes": b"x"}]}, r"train\.parquet, image p0 cannot be read: it is not an image"),
        ({"id": ["p0"], "mask": ["a"]}, "image p0: the mask is no image"),
        ({"id": [0], "mask": [b"x"]}, "needs a column id or file_name of texts"),
        ({"id": ["p0"], "mask": [rgb.getvalue()]}, r"train\.parquet, image p0 contains RGB values, not class ind"),
        ({"id": ["p0"], "mask": [mask_png(np.full((48, 64), 9))]}, "p0 contains the index 9, and its classes end at 3"),
    ):
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=message):
            read(open_voc(voc, str(path)))
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"train\.parquet cannot be read as Parquet"):
        read(open_voc(voc, str(path)))


def test_of_two_annotations_of_one_time_the_later_in_the_file_counts(voc, tmp_path):
    first, second = (task("p0.jpg", brush("ant", np.s_[:rows], np.s_[:]), updated_at="2026-01-02") for rows in (1, 2))
    assert read_mask(studio(voc, tmp_path, first, second)["p0"].mask).sum() == 2 * 64


def test_the_time_of_an_annotation_that_nobody_has_changed_is_that_of_its_creation(voc, tmp_path):
    later, earlier = (
        task("p0.jpg", brush("ant", np.s_[:rows], np.s_[:]), created_at=f"2026-01-0{day}")
        for rows, day in ((1, 3), (2, 2))
    )
    assert read_mask(studio(voc, tmp_path, later, earlier)["p0"].mask).sum() == 64


def test_a_smaller_polygon_of_yolo_covers_a_larger_one(voc, tmp_path):
    large, small = "0 0 0 0.99 0 0.99 0.99 0 0.99", "1 0.25 0.25 0.734375 0.25 0.734375 0.734375 0.25 0.734375"
    for lines in ((large, small), (small, large)):
        source = yolo(tmp_path / "a", labels__p0="".join(f"{line}\n" for line in lines))
        mask = read_mask(read(open_voc(voc, source, labels=None))["p0"].mask)
        assert (mask[12:36, 16:48] == 1).all()  # ant
        assert (mask[:12] == 2).sum() > 600  # bat


def test_polygons_of_one_size_do_not_depend_on_the_order_of_lines(voc, tmp_path):
    """The class that comes later in the data set covers the other one."""
    for lines in (f"0 {SQUARE}\n1 {SQUARE}\n", f"1 {SQUARE}\n0 {SQUARE}\n"):
        source = yolo(tmp_path / "a", labels__p0=lines)
        mask = read_mask(read(open_voc(voc, source, labels=None))["p0"].mask)
        assert (mask[12:36, 16:48] == 2).all()  # bat


@pytest.mark.parametrize("line", ["1 32 24 16 12", "1 0.5 0.5 0.25 2.5", "1 16 12 47 12 47 35"])
def test_coordinates_of_yolo_in_pixels(voc, tmp_path, line):
    """They are fractions of the image's sides; a box may leave the image a little."""
    with pytest.raises(InputError, match=r"p0\.txt, line 1: the coordinates are no pairs of fractions of the image's"):
        read(open_voc(voc, yolo(tmp_path / "a", labels__p0=f"{line}\n")))
    source = yolo(tmp_path / "b", labels__p0="1 0.0 0.5 0.25 1.5\n")
    assert read(open_voc(voc, source))["p0"].boxes == (Box("ant", -8, -12, 8, 60),)


def test_texts_with_a_byte_order_mark(voc, tmp_path):
    """Editors of Windows write one."""
    source = yolo(tmp_path / "a", labels__p0="\ufeff1 0.5 0.5 0.25 0.5\n")
    assert read(open_voc(voc, source))["p0"].boxes == (Box("ant", 24, 12, 40, 36),)
    colours = np.full((48, 64, 3), (1, 0, 0), np.uint8)
    source = archive(tmp_path / "a.zip", "\ufeff" + LABELMAP, p0=colours)
    assert (read_mask(read(open_voc(voc, source))["p0"].mask) == 1).all()


def test_a_data_yaml_may_be_named_yml(voc, tmp_path):
    source = yolo(tmp_path / "a", labels__p0=f"1 {SQUARE}\n")
    (tmp_path / "a/data.yaml").rename(tmp_path / "a/data.yml")
    source = str(tmp_path / "a/data.yml")
    assert read(open_voc(voc, source))["p0"].mask is not None
    assert referenced_files(UPath(source)) == [str(tmp_path / "a/labels/p0.txt")]


def test_what_macos_adds_to_an_archive_and_a_background_that_is_not_listed(voc, tmp_path):
    colours = np.zeros((48, 64, 3), np.uint8)
    colours[:9] = 1, 0, 0
    archive(tmp_path / "a.zip", LABELMAP.replace("background:0,0,0::\n", ""), p0=colours)
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as file:
        for name in ("labelmap.txt", "SegmentationClass/._p0.png"):
            file.writestr(f"__MACOSX/{name}", b"of macOS")
    mask = read_mask(read(open_voc(voc, str(tmp_path / "a.zip")))["p0"].mask)
    np.testing.assert_array_equal(mask, np.repeat([1, 0], (9 * 64, 39 * 64)).reshape(48, 64))


def test_an_id_in_a_parquet_file_goes_before_the_name_of_a_file(voc, tmp_path):
    """As our own export writes both."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    mask = mask_png(np.ones((56, 64), np.uint8))
    parquet.write_table(pa.table({"file_name": ["p3.jpg"], "id": ["p2"], "mask": [mask]}), tmp_path / "a.parquet")
    samples = read(open_voc(voc, str(tmp_path / "a.parquet")))
    assert [name for name, each in samples.items() if each.mask] == ["p2"]
