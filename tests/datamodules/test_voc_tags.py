import numpy as np
import pytest

from datamodules.class_names import VOC_CLASSES, mask_lut
from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.voc_tags import list_tags, mask_tags, npy_tags, xml_tags

IDS = ("p0", "p2", "p7")
TAGS = [{"cow"}, {"bat", "ant"}, set()]
CLASSES = ("cow", "bat", "ant")


@pytest.fixture
def expected(voc):
    for label in CLASSES:
        rows = [f"{name} {1 if label in tags else -1:2d}" for name, tags in zip(IDS, TAGS, strict=True)]
        (voc / f"ImageSets/Main/{label}_all.txt").write_text("\n".join(rows))
    return TAGS


def test_xml(voc):
    assert xml_tags(voc, IDS, CLASSES) == [{"ant"}, {"ant", "bat"}, set()]


def test_xml_counts_difficult_objects_once_and_skips_parts(voc):
    (voc / "Annotations/p7.xml").write_text(
        "<annotation><object><name> bat </name><difficult>1</difficult><part><name>cow</name></part></object>"
        "<object><name>bat</name></object><object><name>zebra</name></object></annotation>"
    )
    assert xml_tags(voc, ["p7"], CLASSES) == [{"bat", "zebra"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no labels for image p0"),
        ("<annotation>", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY a "b">]><annotation/>', "entities"),
        ('<?xml version="1.0" encoding="utf-33"?><annotation/>', "is not XML"),
    ],
)
def test_bad_xml(voc, text, message):
    path = voc / "Annotations/p0.xml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        xml_tags(voc, IDS, CLASSES)
    assert "p0.xml" in str(caught.value)


def test_lists(voc, expected):
    assert list_tags(voc, "all", IDS, CLASSES) == expected


def test_lists_fall_back_to_trainval_and_count_difficult_objects(voc):
    (voc / "ImageSets/Main/bat_trainval.txt").write_text("p0 -1\np2  0\np7  1\n\n")
    assert list_tags(voc, "other", IDS, ["bat"]) == [set(), {"bat"}, {"bat"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"no labels of 'bat': .*bat_all\.txt is missing"),
        ("p0 1\np2 1\n", r"bat_all\.txt lacks 1 of the 3 images of all, first p7"),
        ("p0 1\np2 yes\np7 1", r"bat_all\.txt, line 2"),
        ("p0 1\np2\np7 1", r"bat_all\.txt, line 2"),
        ("p\xe9 1", r"list .*bat_all\.txt cannot be read"),
    ],
)
def test_bad_lists(voc, expected, text, message):
    path = voc / "ImageSets/Main/bat_all.txt"
    path.unlink() if text is None else path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=message):
        list_tags(voc, "all", IDS, CLASSES)


def test_masks_by_pixel(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, row in zip(paths, ([0, 1, 3], [2, 255, 0], [0, 0, 255]), strict=True):
        write_mask(path, np.array([row]))
    tags = mask_tags(paths, mask_lut(("ant", "bat", "cow"), ("cow", "ant")), ("cow", "ant"))
    assert tags == [{"ant", "cow"}, set(), set()]  # bat is not chosen


@pytest.mark.parametrize("number", [int, np.int32, str])
def test_npy(tmp_path, number):
    rows = {2007_000032: [0, 0, 1], 2011_003276: [1, 1, 0]}
    table = {
        number(k) if number is not str else f"{k // 10**6}_{k % 10**6:06d}": np.float32(v) for k, v in rows.items()
    }
    np.save(tmp_path / "labels.npy", table)
    tags = npy_tags(tmp_path / "labels.npy", ["2011_003276", "2007_000032"], ("ant", "bat", "cow"))
    assert tags == [{"ant", "bat"}, {"cow"}]


def test_npy_lacks_an_image_or_a_class(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, {"p0": np.ones(3)})
    with pytest.raises(InputError, match=r"labels\.npy lacks 2 of 3 images, first p2"):
        npy_tags(path, IDS, ("ant", "bat", "cow"))
    with pytest.raises(InputError, match=r"\(3,\) labels for p0, and there are 2"):
        npy_tags(path, ["p0"], ("ant", "bat"))


class Evil:
    def __reduce__(self):
        return (pytest.exit, ("code was run",))


@pytest.mark.parametrize("content", [{"p0": Evil()}, {"p0": np.array([Evil()], dtype=object)}, Evil()])
def test_npy_runs_nothing(tmp_path, content):
    path = tmp_path / "labels.npy"
    np.save(path, np.array(content, dtype=object))
    with pytest.raises(InputError, match="which saved arrays never need; nothing of it was run"):
        npy_tags(path, ["p0"], ("bat",))


@pytest.mark.parametrize("content", [np.ones(3), np.array([1, 2], dtype=object), np.array("text", dtype=object)])
def test_npy_of_another_kind(tmp_path, content):
    path = tmp_path / "labels.npy"
    np.save(path, content)
    with pytest.raises(
        InputError, match=r"labels\.npy must contain one dictionary|labels\.npy is not a pickle of arrays"
    ):
        npy_tags(path, ["p0"], ("bat",))


def test_npy_damaged_or_missing(tmp_path):
    path = tmp_path / "labels.npy"
    with pytest.raises(InputError, match=r"labels\.npy cannot be read"):
        npy_tags(path, ["p0"], ("bat",))
    np.save(path, {"p0": np.ones(1)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"labels\.npy is not a pickle of arrays, or damaged: pickle exhausted"):
        npy_tags(path, ["p0"], ("bat",))


def test_real_lists_agree_with_the_community_s_file(real_data):
    root = real_data / "VOCdevkit/VOC2012"
    for split in ("train", "val"):
        ids = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        tags = npy_tags(real_data / "voc-lists/cls_labels.npy", ids, VOC_CLASSES)
        assert tags == list_tags(root, split, ids, VOC_CLASSES)
        assert sum(map(len, tags)) > len(ids)


def test_npy_rows_are_numbers(tmp_path):
    """A list does; nested tuples, each twice in the next, would be 2^30 numbers as an array."""
    nested = (1.0,)
    for _ in range(30):
        nested = (nested, nested)
    for row in (nested, "110", None, [[1, 0, 1]]):
        np.save(tmp_path / "labels.npy", {"p0": row})
        with pytest.raises(InputError, match=r"labels\.npy (has no row of numbers for p0|.* uses a tuple twice)"):
            npy_tags(tmp_path / "labels.npy", ["p0"], ("ant", "bat", "cow"))
    np.save(tmp_path / "labels.npy", {"p0": [1, 0, 1]})
    assert npy_tags(tmp_path / "labels.npy", ["p0"], ("ant", "bat", "cow")) == [{"ant", "cow"}]
