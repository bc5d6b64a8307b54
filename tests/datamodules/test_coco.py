"""COCO's layouts and masks, compared with pycocotools' own rendering and with masks by hand."""

import copy
import json
import pickle
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datamodules.annotations.coco_instances import decompress_runs, instance_mask, instance_rle
from datamodules.coco import COCODataModule
from datamodules.errors import InputError
from datamodules.masks import RleMask, read_class_mask, read_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.unreadable_images import UnreadableImages, readable

HEIGHT, WIDTH = 40, 60
CATEGORIES = [
    {"id": 44, "name": "bottle", "supercategory": "kitchen"},
    {"id": 1, "name": "person", "supercategory": "person"},
    {"id": 18, "name": "dog", "supercategory": "animal"},
]
CLASSES = ("person", "dog", "bottle")  # by their ids


def box(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def region(left, top, right, bottom):
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[top:bottom, left:right] = 1
    return pixels


def compressed(pixels):
    rle = coco_mask.encode(np.asfortranarray(pixels))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def run_lengths(pixels):
    """Uncompressed run lengths, column by column, zeros first."""
    flat = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


RING = region(5, 5, 25, 25) - region(10, 10, 20, 20)
INSTANCES = {  # by image: category, segmentation, crowd
    1: [(1, [box(2, 3, 20, 30)], 0), (18, [box(10, 10, 16, 20)], 0)],  # the dog, smaller, is in front
    2: [(18, [box(0, 0, 5, 5), box(30.5, 10.25, 50, 35), [1, 1, 2, 2]], 0)],  # parts; two points have no area
    3: [(44, compressed(RING), 0), (1, run_lengths(region(30, 0, 60, 40)), 1), (18, [box(40, 10, 50, 20)], 0)],
    4: [],
    5: [(1, run_lengths(region(0, 0, 9, 40)), 0), (18, [[30, 5, 8, 8]], 0)],  # two points are no box
}


def content(instances=None, categories=CATEGORIES):
    listed = INSTANCES if instances is None else instances
    return {
        "images": [{"id": i, "file_name": f"{i:03d}.jpg", "height": HEIGHT, "width": WIDTH} for i in listed],
        "categories": categories,
        "annotations": [
            {"id": 100 * i + k, "image_id": i, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}
            for i, own in listed.items()
            for k, (category, segmentation, crowd) in enumerate(own)
        ],
    }


def write(path, what):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))


def write_images(folder, numbers=INSTANCES):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9 * number, np.uint8)).save(folder / f"{number:03d}.jpg")


@pytest.fixture
def coco(tmp_path):
    """COCO 2017's layout: five images in val2017, two of them in train2017."""
    for split, numbers in (("val2017", INSTANCES), ("train2017", (1, 3))):
        write(tmp_path / f"annotations/instances_{split}.json", content({i: INSTANCES[i] for i in numbers}))
        write_images(tmp_path / split, numbers)
    return tmp_path


def open_coco(root, **options):
    splits = {"train_split": "train2017", "val_split": "val2017", "test_split": "val2017"}
    return COCODataModule(str(root), **splits | {"num_workers": 0, "batch_size": 2, "size": 32} | options)


def masks_of(data, split="val2017"):
    return {sample.id: read_class_mask(sample.mask, data.mask_lut) for sample in data.samples(split)}


def test_classes_tags_and_images(coco):
    data = open_coco(coco)
    assert data.classes == CLASSES
    samples = data.samples("val2017")
    assert [sample.id for sample in samples] == ["001", "002", "003", "004", "005"]
    assert samples[0].image == str(coco / "val2017/001.jpg")
    assert [set(sample.tags) for sample in samples] == [
        {"person", "dog"}, {"dog"}, {"person", "dog", "bottle"}, set(), {"person", "dog"},
    ]  # fmt: skip
    assert [sample.id for sample in data.samples("train2017")] == ["001", "003"]
    without = data.samples("val2017", tags=False, masks=False)
    assert {(sample.tags, sample.mask) for sample in without} == {(None, None)}


def test_masks_by_hand(coco):
    """The smaller instance is in front, a crowd behind all others and 255, a hole stays open."""
    expected = {"001": region(2, 3, 20, 30), "002": region(0, 0, 5, 5) * 2, "003": RING * 3, "004": region(0, 0, 0, 0)}
    expected["001"][10:20, 10:16] = 2
    expected["002"][10:35, 31:50] = 2  # pycocotools rounds 30.5 to 31 and 10.25 to 10
    expected["003"][:, 30:] = 255
    expected["003"][10:20, 40:50] = 2
    expected["005"] = region(0, 0, 9, 40)
    found = masks_of(open_coco(coco))
    assert found.keys() == expected.keys()
    for name, mask in found.items():
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, expected[name], err_msg=name)


def test_a_subset_of_the_classes(coco):
    """Other categories are no tags that count, and 255 in masks."""
    data = open_coco(coco, classes=["dog"])
    mask = masks_of(data)["001"]
    assert (mask[10:20, 10:16] == 1).all()
    assert (mask[3:10, 2:20] == 255).all()
    assert mask[0, 0] == 0
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert batch["labels"].tolist() == [[1], [1]]
    assert batch["mask"].shape == (2, HEIGHT, WIDTH)


rectangles = st.tuples(
    st.integers(0, WIDTH - 6), st.integers(0, HEIGHT - 6), st.integers(1, 25), st.integers(1, 25),
    st.sampled_from([1, 18, 44]), st.sampled_from(["polygon", "compressed", "runs"]), st.booleans(),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(drawn=st.lists(rectangles, max_size=6))
def test_agreement_with_pycocotools(tmp_path_factory, drawn):
    """Every instance's pixels are those of annToMask; where instances overlap, the order by area is painted anew."""
    root = tmp_path_factory.mktemp("coco")
    instances = []
    for left, top, width, height, category, kind, crowd in drawn:
        right, bottom = min(WIDTH, left + width), min(HEIGHT, top + height)
        pixels = region(left, top, right, bottom)
        ways = {"polygon": [box(left + 0.3, top, right, bottom - 0.4)], "compressed": compressed(pixels)}
        instances.append((category, ways.get(kind, run_lengths(pixels)), int(crowd)))
    path = root / "annotations/instances_val2017.json"
    no_crowd = (1, [box(1, 1, 9, 9)], 0)  # of another image: where all are crowds, they are CVAT's brush masks
    write(path, content({1: instances, 2: [no_crowd]}))
    write_images(root / "val2017", [1, 2])
    peer = COCO(path)
    annotations = peer.loadAnns(peer.getAnnIds(imgIds=1))
    layers = [(peer.annToMask(each).astype(bool), each) for each in annotations]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    index = {1: 1, 18: 2, 44: 3}
    for pixels, each in sorted(layers, key=lambda layer: (1 - layer[1]["iscrowd"], -layer[0].sum())):
        expected[pixels] = 255 if each["iscrowd"] else index[each["category_id"]]
    np.testing.assert_array_equal(masks_of(open_coco(root))["001"], expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_compressed_runs(seed, share):
    pixels = (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share).astype(np.uint8)
    assert decompress_runs(compressed(pixels)["counts"]) == run_lengths(pixels)["counts"]


# --- exports of annotation tools

LAYOUTS = {
    "COCO": ("annotations/instances_{split}.json", "{split}"),
    "images in a folder": ("annotations/instances_{split}.json", "images/{split}"),
    "Roboflow": ("{split}/_annotations.coco.json", "{split}"),
    "CVAT": ("annotations/instances_default.json", "images/default"),
    "older CVAT": ("annotations/instances_default.json", "images"),
    "beside the JSON": ("result.json", ""),
    "images in the root": ("annotations/instances_default.json", ""),
    "beside the JSON in a folder": ("annotations/instances_default.json", "annotations"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    annotations, images = LAYOUTS[layout]
    for split in ("train", "val"):
        write(tmp_path / annotations.replace("{split}", split), content())
        write_images(tmp_path / images.replace("{split}", split))
    data = COCODataModule(str(tmp_path), val_fraction=0.4)
    train, val = data.samples("train"), data.samples("val")
    assert len(train) + len(val) == (10 if "{split}" in annotations else 5)
    folder = tmp_path / images.replace("{split}", "val")
    assert {sample.image for sample in val} <= {str(folder / f"{number:03d}.jpg") for number in INSTANCES}
    assert masks_of(data, "val").keys() == {sample.id for sample in val}
    data.setup()


def test_one_json_for_all_images_has_the_splits_of_a_hash(tmp_path):
    """As for a folder: train and val are disjoint and complete, and the JSON is read once."""
    write(tmp_path / "result.json", content())
    write_images(tmp_path / "images")
    data = COCODataModule(str(tmp_path), val_fraction=0.4)
    (tmp_path / "result.json").write_text("{}")  # it is not read again
    ids = {split: {sample.id for sample in data.samples(split)} for split in ("train", "val", "all")}
    assert ids["train"] | ids["val"] == ids["all"] == {f"{number:03d}" for number in INSTANCES}
    assert not ids["train"] & ids["val"]
    with pytest.raises(InputError, match=r"no split 'test': the images of .* have train, val and all"):
        data.samples("test")
    none = COCODataModule(str(shutil.copytree(tmp_path / "images", tmp_path / "x/images").parent), **named(tmp_path))
    with pytest.raises(InputError, match=r"none of 5 images of .* is in 'val': change val_fraction"):
        none.samples("val")


def named(root):
    """A JSON of another name, written into the folder x."""
    write(root / "x/own/list.json", content())
    return {"instances": "own/list.json", "val_fraction": 0.0}


def test_files_in_folders_and_uris(tmp_path):
    """Paths below the images' folder make the id; a URI is used as it is, and so is coco_url without a file_name."""
    listed = content({1: INSTANCES[1], 2: [], 3: []})
    for image, file in zip(listed["images"], ("images/sub/001.jpg", "s3://bucket/a/002.jpg", ""), strict=True):
        image |= {"file_name": file, "coco_url": "http://images.example/003.jpg"}
    write(tmp_path / "result.json", listed)
    write_images(tmp_path / "images/sub", [1])
    samples = COCODataModule(str(tmp_path), val_fraction=0.0).samples("all")
    assert [sample.id for sample in samples] == ["images/sub/001", "a/002", "003"]
    assert [sample.image for sample in samples] == [
        str(tmp_path / "images/sub/001.jpg"), "s3://bucket/a/002.jpg", "http://images.example/003.jpg",
    ]  # fmt: skip


def test_ids_of_images_may_be_texts(tmp_path):
    listed = content({1: INSTANCES[1], 2: []})
    for key, entries in (("id", listed["images"]), ("image_id", listed["annotations"])):
        for each in entries:
            each[key] = f"image {each[key]}"
    write(tmp_path / "result.json", listed)
    write_images(tmp_path / "images", [1, 2])
    samples = COCODataModule(str(tmp_path)).samples("all")
    assert {sample.id: sample.tags for sample in samples} == {"001": {"person", "dog"}, "002": set()}


def test_a_folder_by_uri(coco):
    """Annotations, images and masks are found as in a local folder; a missing image is named."""
    storage = fsspec.filesystem("memory")
    storage.put(str(coco), "/coco-by-uri", recursive=True)
    data, local = open_coco("memory://coco-by-uri"), open_coco(coco)
    assert [sample.mask for sample in data.samples("val2017")] == [sample.mask for sample in local.samples("val2017")]
    assert data.samples("val2017")[0].image == "memory://coco-by-uri/val2017/001.jpg"
    data.setup("validate")
    assert next(iter(data.val_dataloader()))["id"] == ["001", "002"]
    beside = open_coco("memory://coco-by-uri/val2017", instances="../annotations/instances_{split}.json")
    assert beside.samples("val2017") == data.samples("val2017")
    with pytest.raises(InputError, match=r"no annotations/instances_val.json or .*: train2017, val2017$"):
        COCODataModule("memory://coco-by-uri")
    storage.rm("/coco-by-uri/val2017/003.jpg")
    with pytest.raises(InputError, match=r"003, and there is no image memory://coco-by-uri/val2017/003.jpg"):
        open_coco("memory://coco-by-uri").samples("val2017")


def test_a_supercategory_that_no_annotation_uses_is_no_class(tmp_path):
    """Roboflow's category 0 is the name of the project, or of the only class. Other categories stay, used or not."""
    categories = [
        {"id": 0, "name": "dog", "supercategory": "none"},
        {"id": 1, "name": "person", "supercategory": "dog"},
        {"id": 2, "name": "dog", "supercategory": "dog"},
    ]
    write(
        tmp_path / "result.json", content({1: [(1, [box(1, 1, 9, 9)], 0)], 2: [(2, [box(1, 1, 9, 9)], 0)]}, categories)
    )
    write_images(tmp_path / "images", [1, 2])
    data = COCODataModule(str(tmp_path))
    assert data.classes == ("person", "dog")
    assert [set(sample.tags) for sample in data.samples("all")] == [{"person"}, {"dog"}]
    child = {"id": 3, "name": "puppy", "supercategory": "dog"}
    write(tmp_path / "result.json", content({1: []}, [*categories[1:], child]))
    assert COCODataModule(str(tmp_path)).classes == ("person", "dog", "puppy")
    write(tmp_path / "result.json", content({1: [(0, [box(1, 1, 9, 9)], 0)]}, categories[:2]))
    assert COCODataModule(str(tmp_path)).classes == ("dog", "person")


def test_an_instance_without_a_segmentation(coco):
    """Its box is no mask: the tag counts, and the image is not scored."""
    write(coco / "annotations/instances_val2017.json", content({1: [(1, [], 0)], 2: INSTANCES[2]}))
    first, second = open_coco(coco).samples("val2017")
    assert (set(first.tags), first.mask) == ({"person"}, None)
    assert second.mask is not None


def test_an_instance_with_empty_polygons_has_no_segmentation(coco):
    write(coco / "annotations/instances_val2017.json", content({1: [(1, [[]], 0)], 2: [(18, [[], []], 0)]}))
    assert [each.mask for each in open_coco(coco).samples("val2017")] == [None, None]


def test_brush_masks_of_cvat_are_no_crowds(coco):
    """CVAT writes ``iscrowd`` 1 with all run lengths; a polygon beside them shows that crowds are meant."""
    brushes = {1: [(1, compressed(region(5, 5, 25, 25)), 1)], 2: [(18, run_lengths(region(0, 0, 9, 40)), 1)]}
    write(coco / "annotations/instances_val2017.json", content(brushes))
    first, second = masks_of(open_coco(coco)).values()
    np.testing.assert_array_equal(first, region(5, 5, 25, 25))
    np.testing.assert_array_equal(second, 2 * region(0, 0, 9, 40))
    write(coco / "annotations/instances_val2017.json", content(brushes | {3: [(1, [box(1, 1, 9, 9)], 0)]}))
    first, *_ = masks_of(open_coco(coco)).values()
    np.testing.assert_array_equal(first, np.where(region(5, 5, 25, 25), 255, 0))
    mixed = content(brushes | {3: [(1, [box(1, 1, 9, 9)], 0)]})
    mixed["annotations"][0]["attributes"] = {"occluded": False}  # CVAT gives each of its instances one
    write(coco / "annotations/instances_val2017.json", mixed)
    first, second, _ = masks_of(open_coco(coco)).values()
    np.testing.assert_array_equal(first, region(5, 5, 25, 25))
    np.testing.assert_array_equal(second, np.where(region(0, 0, 9, 40), 255, 0))


@pytest.mark.parametrize("crowd", ["0", "1", 2, [0]])
def test_an_invalid_iscrowd(coco, crowd):
    """A text would count as a crowd, whose pixels are 255."""
    segmentation = [box(1, 1, 9, 9)]
    write(coco / "annotations/instances_val2017.json", content({1: [(1, segmentation, 0), (1, segmentation, crowd)]}))
    message = rf"instances_val2017\.json: annotation 101 has the iscrowd {re.escape(repr(crowd))}, which must be 0 or 1"
    with pytest.raises(InputError, match=message):
        open_coco(coco).samples("val2017")
    for valid in (None, 0, False, True):  # a file of crowds alone has brush masks
        write(coco / "annotations/instances_val2017.json", content({1: [(1, segmentation, valid)]}))
        assert masks_of(open_coco(coco))["001"].max() == 1


@pytest.mark.parametrize("form", [compressed, run_lengths])
def test_an_erased_brush_mask_is_no_instance(coco, form):
    """A polygon that is smaller than a pixel is one: somebody drew a tiny object."""
    tiny = [[10.1, 10.1, 10.9, 10.1, 10.5, 10.6]]
    square = (1, compressed(region(5, 5, 25, 25)), 0)
    erased = {1: [square, (18, form(region(0, 0, 0, 0)), 0)], 2: [square, (18, tiny, 0)]}
    write(coco / "annotations/instances_val2017.json", content(erased))
    first, second = open_coco(coco).samples("val2017")
    assert (first.tags, second.tags) == ({"person"}, {"person", "dog"})
    np.testing.assert_array_equal(read_mask(first.mask), region(5, 5, 25, 25))


def test_run_lengths_of_an_image_without_a_size(coco):
    what = content({1: [(1, {"size": [None, None], "counts": [2400]}, 0)]})
    what["images"][0] |= {"height": None, "width": None}
    write(coco / "annotations/instances_val2017.json", what)
    with pytest.raises(InputError, match="image 1 has no height or width"):
        open_coco(coco).samples("val2017")


def test_a_json_that_was_written_on_windows(coco):
    (coco / "val2017/cats").mkdir()
    (coco / "val2017/001.jpg").rename(coco / "val2017/cats/001.jpg")
    what = content({1: INSTANCES[1]})
    what["images"][0]["file_name"] = r"cats\001.jpg"
    write(coco / "annotations/instances_val2017.json", what)
    (sample,) = open_coco(coco).samples("val2017")
    assert (sample.id, sample.image) == ("cats/001", str(coco / "val2017/cats/001.jpg"))


# --- use


def test_it_is_made_again_from_its_settings(coco):
    """As `tag2mask evaluate` does, with its class, its annotations and a subset of the classes."""
    data = open_coco(coco, classes=["dog", "bottle"], instances="annotations/instances_{split}.json")
    again = datamodule_from_settings(data.settings, test_split="train2017")
    assert isinstance(again, COCODataModule)
    assert (again.classes, again.hparams["test_split"]) == (("dog", "bottle"), "train2017")
    assert again.samples("train2017") == data.samples("train2017")


def test_the_training_reads_no_masks_for_tags(coco, monkeypatch):
    """The masks of COCO's 118,287 training images would take time and memory."""
    data = open_coco(coco)
    monkeypatch.setattr("datamodules.coco.instance_mask", None)  # not called
    assert len(data.samples("train2017", masks=False)) == 2


def test_masks_travel_to_workers(coco):
    """Batches of a worker process, and a mask that takes a few bytes an instance."""
    data = open_coco(coco, targets="masks", num_workers=1)
    data.setup("fit")
    batches = list(data.val_dataloader())
    assert [len(batch["mask"]) for batch in batches] == [2, 2, 1]
    assert batches[1]["mask"][0, 15, 45] == 2
    training = data.samples("train2017")[1].mask
    assert isinstance(training, RleMask)
    assert len(pickle.dumps(training)) < 400
    assert pickle.loads(pickle.dumps(training)) == training


def test_a_turned_image_has_another_size_than_its_mask(coco):
    """The JSON's size is that of the file, EXIF turns the image: one sentence that names both."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(coco / "val2017/002.jpg", exif=exif)
    data = open_coco(coco)
    message = r"^mask of image 2 in instances_val2017.json is 60x40, and its image .*002.jpg is 40x60$"
    with pytest.raises(InputError, match=message):
        readable(data.samples("val2017"), UnreadableImages())


# --- mistakes


def spoiled(change):
    listed = copy.deepcopy(content())
    change(listed)
    return listed


def test_a_sliver_on_the_border_of_an_image_is_not_beyond_it():
    """COCO contains such polygons, which have no pixel."""
    for sliver in ([60, 1, 60, 1, 60, 9], [0, 1, 0, 5, 0, 9], [0, 0, 5, 0, 9, 0], [2, 40, 6, 40, 9, 40]):
        assert coco_mask.area(instance_rle([sliver], 40, 60)) == 0


def first(**changes):
    return lambda listed: listed["annotations"][0].update(changes)


POLYGONS = "annotation 100 has a segmentation that is not a list"
RUNS = {"size": [HEIGHT, WIDTH]}
BAD = {
    "no category": (first(category_id=99), r"annotation 100 has the category_id 99, and there is no such category"),
    "category missing": (lambda c: c["annotations"][0].pop("category_id"), "annotation 100 has the category_id None"),
    "no image": (first(image_id=99), "annotation 100 has the image_id 99, and there is no such image"),
    "unhashable": (first(image_id=[1]), r"annotation 100 has the image_id \[1\]"),
    "odd polygon": (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), POLYGONS),
    "flat polygon": (first(segmentation=box(1, 2, 3, 4)), POLYGONS),
    "right of the image": (first(segmentation=[[60, 1, 70, 1, 70, 9]]), "a polygon outside of its image"),
    "above the image": (first(segmentation=[[1, -9, 9, -9, 9, 0]]), r"a polygon outside of its image, which is 60x40"),
    "a line beyond": (first(segmentation=[[61, 1, 61, 1, 61, 9]]), "a polygon outside of its image, which is 60x40"),
    "not a number": (first(segmentation=[[float("nan")] * 6]), POLYGONS),
    "far away": (first(segmentation=[[1e9] * 6]), POLYGONS),
    "text": (first(segmentation="abc"), "annotation 100 has run lengths of the size None"),
    "other size": (first(segmentation={"size": [3, 4], "counts": [12]}), r"size \[3, 4\], and its image is \[40, 60\]"),
    "short runs": (first(segmentation={**RUNS, "counts": [5, 6]}), "annotation 100 has run lengths that do not sum up"),
    "negative runs": (first(segmentation={**RUNS, "counts": [-1, 2401]}), "run lengths that do not sum up"),
    "short text": (first(segmentation={**RUNS, "counts": "0" * 50}), "run lengths that do not sum up"),
    "open text": (first(segmentation={**RUNS, "counts": "PPPP"}), "run lengths that do not sum up"),
    "no size": (lambda c: c["images"][0].pop("height"), "image 1 has no height or width"),
    "huge": (lambda c: c["images"][0].update(width=10**30), "image 1 has no height or width, or they are no integers"),
    "no file": (lambda c: c["images"][0].pop("file_name"), "image 1 has no file_name"),
    "image twice": (lambda c: c["images"].append(c["images"][0]), "the id 1 of an image is missing, or occurs twice"),
    "name twice": (lambda c: c["categories"].append({"id": 3, "name": "dog"}), "two categories have the name 'dog'"),
    "no name": (lambda c: c["categories"].append({"id": 3}), "the category {'id': 3} has no id or name"),
    "no categories": (lambda c: c.pop("categories"), "not a JSON of COCO's instances: it has no list of categories"),
    "no class": (lambda c: c.update(categories=[], annotations=[]), "has 0 categories"),
    "many": (
        lambda c: c["categories"].extend({"id": 1000 + i, "name": str(i)} for i in range(251)),
        "has 254 categories, and an 8-bit mask has 1 to 253 classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_mistakes(coco, mistake):
    change, message = BAD[mistake]
    path = coco / "annotations/instances_val2017.json"
    write(path, spoiled(change))
    with pytest.raises(InputError, match=message) as error:
        open_coco(coco).samples("val2017")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_missing_files_and_unknown_names(coco):
    with pytest.raises(InputError, match=r"class 'dgo' does not exist among the classes of .*: did you mean 'dog'"):
        open_coco(coco, classes=["dgo"])
    with pytest.raises(InputError, match=r"no annotations/instances_val.json or .*: train2017, val2017$"):
        COCODataModule(str(coco))
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        COCODataModule(str(coco / "nowhere"))
    with pytest.raises(InputError, match=r"there is no own.json in"):
        COCODataModule(str(coco), instances="own.json")
    (coco / "val2017/003.jpg").unlink()
    with pytest.raises(InputError, match=r"contains 003, and there is no image .*val2017/003.jpg"):
        open_coco(coco).samples("val2017")
    (coco / "annotations/instances_val2017.json").write_text('{"images": [')
    with pytest.raises(InputError, match=r"instances_val2017.json is not JSON: Expecting value"):
        open_coco(coco)


@pytest.mark.parametrize("name", ["background", "", "cat\ndog"])
def test_a_category_that_cannot_be_a_class(coco, name):
    """Background has index 0; classes.txt has one class a line."""
    for split in ("train2017", "val2017"):
        write(coco / f"annotations/instances_{split}.json", content(categories=[*CATEGORIES, {"id": 99, "name": name}]))
    with pytest.raises(InputError, match=r"cannot be one of the classes of .*: a class is one line of text other than"):
        open_coco(coco)
    assert open_coco(coco, classes=["dog"]).classes == ("dog",)


def test_splits_of_different_categories(coco):
    write(
        coco / "annotations/instances_train2017.json", content(categories=[*CATEGORIES[:2], {"id": 18, "name": "cat"}])
    )
    with pytest.raises(InputError, match=r"instances_train2017.json: category 18 is 'cat', and 'dog' in another split"):
        open_coco(coco).samples("train2017")


@pytest.mark.parametrize("order", [("train", "val"), ("val", "train")])
def test_a_category_that_only_the_training_images_have(coco, order):
    """The order of the options does not matter."""
    write(coco / "annotations/instances_val2017.json", content(categories=CATEGORIES[:2], instances={}))
    data = open_coco(coco, **{f"{name}_split": f"{name}2017" for name in order})
    with pytest.raises(InputError, match=r"instances_train2017.json: category 18 is 'dog', .* has only person, bottle"):
        data.samples("train2017")


def test_read_mask_renders(coco):
    """Whatever reads a mask reads one of either kind."""
    sample = open_coco(coco).samples("val2017")[0]
    assert set(np.unique(read_mask(sample.mask))) == {0, 1, 2}


def test_an_image_whose_instances_have_no_area_is_unknown():
    """Lines: where the objects are is not known."""
    image, line = {"id": 1, "height": 8, "width": 6}, {"id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1]]}
    path = Path("x.json")
    assert (read_mask(instance_mask(image, [line], {1: 1}, path)) == np.full((8, 6), 255)).all()
    square = {"id": 2, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
    assert set(np.unique(read_mask(instance_mask(image, [line, square], {1: 1}, path)))) == {0, 1}
    assert not read_mask(instance_mask(image, [], {1: 1}, path)).any()


def test_accents_in_another_form(tmp_path):
    """A JSON that was written on another system than the images."""
    listed = content()
    for image in listed["images"]:
        image["file_name"] = f"K\u00fche {image['file_name']}"
    write(tmp_path / "annotations/instances_train.json", listed)
    write_images(tmp_path / "images")
    for path in (tmp_path / "images").iterdir():
        path.rename(path.with_name(f"Ku\u0308he {path.name}"))
    data = COCODataModule(str(tmp_path), val_split=None)
    assert {sample.image for sample in data.samples("train")} == set(map(str, (tmp_path / "images").iterdir()))
