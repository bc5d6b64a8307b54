import shutil

import numpy as np
import pytest

from datamodules.class_names import VOC_CLASSES
from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.photos import check_labels, file_photos
from datamodules.unreadable import UnreadableImages, leave_out_unreadable
from datamodules.voc import voc_classes, voc_photos

ANIMALS = ("cat", "cow", "dog", "horse", "sheep", "person")


def test_a_split(voc):
    photos = voc_photos(voc, "train")
    assert photos.ids == ("p0", "p1", "p2", "p3", "p4", "p5")
    assert photos.images[1] == voc / "JPEGImages/p1.jpg"
    assert photos.masks is not None
    assert photos.masks[1] == voc / "SegmentationClass/p1.png"
    assert photos.classes == ("ant", "bat", "cow")
    assert photos.labels.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]]
    assert photos.lut is not None
    assert photos.lut[:4].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("labels", ["imagesets", "xml", "masks"])
def test_every_source_says_the_same(voc, labels):
    photos = voc_photos(voc, "train", ["cow", "ant"], labels)
    assert photos.labels.dtype == np.float32
    assert photos.labels.tolist() == [[0, 1], [0, 0], [0, 1], [1, 0], [1, 1], [1, 0]]
    assert photos.lut is not None
    assert photos.lut[:4].tolist() == [0, 2, 255, 1]


def test_labels_from_a_file(voc, tmp_path):
    np.save(tmp_path / "labels.npy", {f"p{i}": np.array([0, i % 2, 1]) for i in range(8)})
    photos = voc_photos(voc, "val", ["bat"], str(tmp_path / "labels.npy"))
    assert photos.labels.tolist() == [[0], [1]]


def test_no_labels_and_no_masks(voc):
    photos = voc_photos(voc, "train", labels=None, masks=None)
    assert not photos.labels.any()
    assert photos.masks is None
    assert photos.lut is None


def test_voc_s_classes_where_the_folder_names_none(voc):
    (voc / "classes.txt").unlink()
    assert voc_classes(voc) == VOC_CLASSES
    assert voc_photos(voc, "train", ["cow"], labels=None).classes == ("cow",)


def test_auto_prefers_the_augmented_masks(voc):
    shutil.copytree(voc / "SegmentationClass", voc / "SegmentationClassAug")
    photos = voc_photos(voc, "train")
    assert photos.masks is not None
    assert photos.masks[0].parent.name == "SegmentationClassAug"
    shutil.rmtree(voc / "SegmentationClassAug")
    shutil.rmtree(voc / "SegmentationClass")
    assert voc_photos(voc, "train").masks is None


def _no_picture(root):
    (root / "JPEGImages/p3.jpg").unlink()


def _no_mask(root):
    (root / "SegmentationClass/p4.png").unlink()


def _twice(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("p1\np2\np1\n")


def _empty(root):
    (root / "ImageSets/Segmentation/train.txt").write_text("\n")


@pytest.mark.parametrize(
    ("spoil", "settings", "said"),
    [
        (_no_picture, {}, r"the list 'train' names p3, and there is no image .*p3\.jpg"),
        (_no_mask, {"labels": "masks"}, r"1 of 6 masks are missing in .*SegmentationClass, first p4\.png"),
        (_twice, {}, "names p1 more than once"),
        (_empty, {}, "is empty"),
        (None, {"split": "tarin"}, r"no list .*tarin\.txt; the splits there are: train, val"),
        (None, {"classes": ["bta"]}, "'bta' does not exist .* did you mean 'bat'"),
        (None, {"labels": "xlm"}, "labels is 'xlm', and must be xml, imagesets, masks"),
        (None, {"masks": "Masks"}, "no folder of masks .*Masks"),
        (None, {"labels": "masks", "masks": None}, "needs masks"),
    ],
)
def test_what_is_wrong(voc, spoil, settings, said):
    if spoil is not None:
        spoil(voc)
    with pytest.raises(InputError, match=said):
        voc_photos(voc, **{"split": "train", **settings})


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        voc_photos(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="has no JPEGImages"):
        voc_photos(tmp_path, "train")


def check_sizes(photos):
    """Look at all headers; every file can be read."""
    assert leave_out_unreadable(photos, UnreadableImages(0.0)) is photos


def test_masks_may_be_missing(voc):
    _no_mask(voc)
    photos = voc_photos(voc, "train")
    assert [mask and mask.stem for mask in photos.masks] == ["p0", "p1", "p2", "p3", None, "p5"]
    assert photos.with_masks().ids == ("p0", "p1", "p2", "p3", "p5")


def test_sizes_are_checked(voc):
    photos = voc_photos(voc, "train")
    check_sizes(photos)
    write_mask(voc / "SegmentationClass/p2.png", np.zeros((56, 60)))
    with pytest.raises(InputError, match=r"p2\.png is 60x56, and its image .*p2\.jpg is 64x56"):
        check_sizes(photos)
    check_sizes(photos.without_masks())


def test_zero_labels_are_refused(voc):
    with pytest.raises(
        InputError, match=r"all 6 images are zero: some file gives none of them any of .* ant, bat, cow"
    ):
        check_labels(voc_photos(voc, "train", labels=None), "some file")


def test_subset(voc):
    part = voc_photos(voc, "train").subset([4, 1])
    assert part.ids == ("p4", "p1")
    assert [p.stem for p in part.images] == ["p4", "p1"]
    assert [p.stem for p in part.masks or ()] == ["p4", "p1"]
    assert part.labels.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_loose_files(voc, tmp_path):
    paths = [voc / "JPEGImages/p1.jpg", voc / "JPEGImages/p0.jpg"]
    photos = file_photos(paths, ["ant"])
    assert photos.ids == ("p1", "p0")
    assert photos.labels.tolist() == [[0], [0]]
    with pytest.raises(InputError, match=r"no image .*nowhere"):
        file_photos([tmp_path / "nowhere.jpg"], ["ant"])
    with pytest.raises(InputError, match="would both be called 'p1'"):
        file_photos([paths[0], paths[0]], ["ant"])


def test_real_voc_animals(real_data):
    root = real_data / "VOCdevkit/VOC2012"
    for split, count in (("trainaug", 1252), ("train", 437), ("val", 222)):
        photos = voc_photos(root, split, ANIMALS)
        assert len(photos) == count
        assert photos.masks is not None
        check_sizes(photos)
    seen = voc_photos(root, "val", ANIMALS, "masks").labels
    assert (seen <= photos.labels).all()  # whatever a mask shows is tagged
