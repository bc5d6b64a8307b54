import shutil

import numpy as np
import pytest

from datamodules.annotations.bounding_boxes import xml_boxes
from datamodules.class_names import VOC_CLASSES
from datamodules.errors import InputError
from datamodules.sample import Sample, multi_hot
from datamodules.unreadable_images import UnreadableImages, readable
from datamodules.voc import VOCDataModule

ANIMALS = ("cat", "cow", "dog", "horse", "sheep", "person")


def labels(data, split="train"):
    return multi_hot(data.samples(split), data.classes).tolist()


def test_a_split(voc):
    data = VOCDataModule(voc)
    samples = data.samples("train")
    assert [sample.id for sample in samples] == ["p0", "p1", "p2", "p3", "p4", "p5"]
    image, mask = str(voc / "JPEGImages/p1.jpg"), str(voc / "SegmentationClass/p1.png")
    assert samples[1] == Sample("p1", image, frozenset({"bat"}), mask)
    assert data.classes == ("ant", "bat", "cow")
    assert labels(data) == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    assert data.mask_lut[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("source", ["imagesets", "xml", "masks"])
def test_all_sources_of_tags_agree(voc, source):
    data = VOCDataModule(voc, classes=["cow", "ant"], labels=source)
    assert labels(data) == [[0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 0]]
    assert data.mask_lut[:4].tolist() == [0, 2, 255, 1]


def test_auto_takes_the_annotations_where_each_image_has_one(voc):
    """VOC's own lists do not contain all images of trainaug; a folder without Annotations has lists alone."""
    for path in (voc / "ImageSets/Main").glob("*.txt"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    expected = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    assert labels(VOCDataModule(voc, labels="auto")) == expected
    with pytest.raises(InputError, match="lacks 1 of the 6 images of train, first p0"):
        VOCDataModule(voc, labels="imagesets").samples("train")
    (voc / "Annotations/p5.xml").unlink()
    with pytest.raises(InputError, match="lacks 1 of the 6 images of train, first p0"):
        VOCDataModule(voc, labels="auto").samples("train")


def test_tags_from_a_file(voc, tmp_path):
    np.save(tmp_path / "labels.npy", {f"p{i}": np.array([0, i % 2, 1]) for i in range(8)})
    assert labels(VOCDataModule(voc, classes=["bat"], labels=str(tmp_path / "labels.npy")), "val") == [[0], [1]]


def test_no_tags_and_no_masks(voc):
    samples = VOCDataModule(voc, labels=None, masks=None).samples("train")
    assert all(sample.tags is None and sample.mask is None for sample in samples)
    data = VOCDataModule(voc, labels="masks")
    assert all(sample.tags is not None and sample.mask is None for sample in data.samples("train", masks=False))
    assert all(sample.tags is None and sample.mask is not None for sample in data.samples("train", tags=False))


def test_voc_s_classes_where_the_folder_names_none(voc):
    (voc / "classes.txt").unlink()
    assert VOCDataModule(voc).classes == VOC_CLASSES
    assert VOCDataModule(voc, classes=["cow"]).classes == ("cow",)


def test_auto_prefers_the_augmented_masks(voc):
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug")
    assert VOCDataModule(voc).samples("train")[0].mask == str(voc / "SegmentationClassAug/p0.png")
    shutil.rmtree(voc / "SegmentationClassAug")
    shutil.rmtree(voc / "SegmentationClass")
    assert VOCDataModule(voc).samples("train")[0].mask is None


def _no_image(root):
    (root / "JPEGImages/p3.jpg").unlink()


def _no_mask(root):
    (root / "SegmentationClass/p4.png").unlink()


def _twice(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("p1\np2\np1\n")


def _empty(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("\n")


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (_no_image, {}, r"the split 'train' of .* contains p3, and there is no image .*p3\.jpg"),
        (_no_mask, {"labels": "masks"}, r"1 of 6 masks are missing, first that of p4"),
        (_twice, {}, "contains p1 more than once"),
        (_empty, {}, "the split 'train' of .* contains no image"),
        (None, {"split": "tarin"}, r"no list .*tarin\.txt; the existing splits are: train, val"),
        (None, {"classes": ["bta"]}, "'bta' does not exist .* did you mean 'bat'"),
        (None, {"labels": "xlm"}, "labels is 'xlm', and must be auto, xml, imagesets, masks"),
        (None, {"masks": "Masks"}, "no folder of masks .*Masks"),
        (None, {"labels": "masks", "masks": None}, "masks are missing.*labels: masks needs a mask"),
    ],
)
def test_errors_name_the_cause(voc, spoil, settings, message):
    if spoil is not None:
        spoil(voc)
    split = settings.pop("split", "train") if settings else "train"
    with pytest.raises(InputError, match=message):
        VOCDataModule(voc, **settings).samples(split)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        VOCDataModule(tmp_path / "nowhere").samples("train")
    with pytest.raises(InputError, match="contains no JPEGImages"):
        VOCDataModule(tmp_path).samples("train")
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
        VOCDataModule(tmp_path / "nowhere", classes=["bee"])


def test_masks_may_be_missing(voc):
    _no_mask(voc)
    masks = [sample.mask for sample in VOCDataModule(voc).samples("train")]
    assert [mask is None for mask in masks] == [False, False, False, False, True, False]


def test_real_voc_animals(real_data):
    root = real_data / "VOCdevkit/VOC2012"
    data = VOCDataModule(root, classes=list(ANIMALS))
    for split, count in (("trainaug", 1252), ("train", 437), ("val", 222)):
        samples = data.samples(split)
        assert len(samples) == count
        assert all(sample.mask for sample in samples)
        assert readable(samples, UnreadableImages(0.0)) == samples
    visible = VOCDataModule(root, classes=list(ANIMALS), labels="masks").samples("val")
    pairs = zip(visible, samples, strict=True)
    assert all(by_mask.tags <= by_list.tags for by_mask, by_list in pairs)  # a class in a mask is among the tags


def test_accents_in_another_form(voc):
    """A list and an XML have one form of an accent, and the file and ``classes.txt`` have the other."""
    composed, decomposed = "K\u00fche", "Ku\u0308he"
    (voc / "classes.txt").write_text(f"ant\n{decomposed}\ncow\n")
    (voc / "ImageSets/Segmentation/train.txt").write_text(f"{composed}\n")
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        (voc / folder / f"p1{suffix}").rename(voc / folder / f"{decomposed}{suffix}")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    annotation = f"<annotation><object><name>{composed}</name>{box}</object></annotation>"
    (voc / f"Annotations/{composed}.xml").write_text(annotation)
    (voc / "ImageSets/Main/bat_train.txt").rename(voc / f"ImageSets/Main/{decomposed}_train.txt")
    (voc / f"ImageSets/Main/{decomposed}_train.txt").write_text(f"{composed} 1\n")
    for name in ("ant", "cow"):
        (voc / f"ImageSets/Main/{name}_train.txt").write_text(f"{composed} -1\n")
    assert labels(VOCDataModule(voc)) == [[0, 1, 0]]
    data = VOCDataModule(voc, labels="xml", annotations="xml", num_workers=0, size=8)
    assert labels(data) == [[0, 1, 0]]
    assert {each.name for each in xml_boxes(voc / f"Annotations/{composed}.xml", data.classes)} == {decomposed}
    assert data.samples("train")[0].image == str(voc / f"JPEGImages/{decomposed}.jpg")
    data.setup("fit")
