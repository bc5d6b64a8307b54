import pickle

import numpy as np
import pytest

from datamodules.class_names import VOC_CLASSES, mask_lut
from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.voc_labels import list_labels, mask_labels, npy_labels, xml_labels

IDS = ("p0", "p2", "p7")
EXPECTED = [[1, 0, 0], [0, 1, 1], [0, 0, 0]]  # of the classes cow, bat, ant
CLASSES = ("cow", "bat", "ant")


@pytest.fixture
def expected(voc):
    for c, label in enumerate(CLASSES):
        rows = [f"{name} {1 if row[c] else -1:2d}" for name, row in zip(IDS, EXPECTED, strict=True)]
        (voc / f"ImageSets/Main/{label}_all.txt").write_text("\n".join(rows))
    return np.array(EXPECTED, np.float32)


def test_xml(voc):
    labels = xml_labels(voc, IDS, ("cow", "bat", "ant"))
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0, 0, 1], [0, 1, 1], [0, 0, 0]]


def test_xml_counts_difficult_objects_once_and_skips_parts(voc):
    (voc / "Annotations/p7.xml").write_text(
        "<annotation><object><name> bat </name><difficult>1</difficult><part><name>cow</name></part></object>"
        "<object><name>bat</name></object><object><name>zebra</name></object></annotation>"
    )
    assert xml_labels(voc, ["p7"], CLASSES).tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no labels for image p0"),
        ("<annotation>", "is not XML"),
        ('<!DOCTYPE a [<!ENTITY a "b">]><annotation/>', "entities"),
    ],
)
def test_bad_xml(voc, text, said):
    path = voc / "Annotations/p0.xml"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        xml_labels(voc, IDS, CLASSES)
    assert "p0.xml" in str(caught.value)


def test_lists(voc, expected):
    assert (list_labels(voc, "all", IDS, CLASSES) == expected).all()
    assert list_labels(voc, "all", IDS, CLASSES).dtype == np.float32


def test_lists_fall_back_to_trainval_and_count_difficult_objects(voc):
    (voc / "ImageSets/Main/bat_trainval.txt").write_text("p0 -1\np2  0\np7  1\n\n")
    assert list_labels(voc, "other", IDS, ["bat"]).tolist() == [[0], [1], [1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"no labels of 'bat': .*bat_all\.txt is missing"),
        ("p0 1\np2 1\n", r"bat_all\.txt lacks 1 of the 3 images of all, first p7"),
        ("p0 1\np2 yes\np7 1", r"bat_all\.txt, line 2"),
        ("p0 1\np2\np7 1", r"bat_all\.txt, line 2"),
    ],
)
def test_bad_lists(voc, expected, text, said):
    path = voc / "ImageSets/Main/bat_all.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(InputError, match=said):
        list_labels(voc, "all", IDS, CLASSES)


def test_masks_by_pixel(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, row in zip(paths, ([0, 1, 3], [2, 255, 0], [0, 0, 255]), strict=True):
        write_mask(path, np.array([row]))
    labels = mask_labels(paths, mask_lut(("ant", "bat", "cow"), ("cow", "ant")), 2)
    assert labels.dtype == np.float32
    assert labels.tolist() == [[1, 1], [0, 0], [0, 0]]  # bat is none of the two


@pytest.mark.parametrize("number", [int, np.int32, str])
def test_npy(tmp_path, number):
    rows = {2007_000032: [0, 0, 1], 2011_003276: [1, 1, 0]}
    table = {
        number(k) if number is not str else f"{k // 10**6}_{k % 10**6:06d}": np.float32(v) for k, v in rows.items()
    }
    np.save(tmp_path / "labels.npy", table)
    labels = npy_labels(tmp_path / "labels.npy", ["2011_003276", "2007_000032"], ["cow", "bat"], ("ant", "bat", "cow"))
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0, 1], [1, 0]]


def test_npy_lacks_a_picture_or_a_class(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, {"p0": np.ones(3)})
    with pytest.raises(InputError, match=r"labels\.npy lacks 2 of 3 images, first p2"):
        npy_labels(path, IDS, ["bat"], ("ant", "bat", "cow"))
    with pytest.raises(InputError, match=r"\(3,\) labels for p0, and there are 2"):
        npy_labels(path, ["p0"], ["bat"], ("ant", "bat"))


class Evil:
    def __reduce__(self):
        return (pytest.exit, ("code was run",))


@pytest.mark.parametrize("content", [{"p0": Evil()}, {"p0": np.array([Evil()], dtype=object)}, Evil()])
def test_npy_runs_nothing(tmp_path, content):
    path = tmp_path / "labels.npy"
    np.save(path, np.array(content, dtype=object))
    with pytest.raises(InputError, match="which saved arrays never need: nothing of it was run"):
        npy_labels(path, ["p0"], ["bat"], ("bat",))


@pytest.mark.parametrize("content", [np.ones(3), np.array([1, 2], dtype=object), np.array("text", dtype=object)])
def test_npy_of_another_kind(tmp_path, content):
    path = tmp_path / "labels.npy"
    np.save(path, content)
    with pytest.raises(InputError, match=r"labels\.npy must hold one dictionary"):
        npy_labels(path, ["p0"], ["bat"], ("bat",))


def test_npy_damaged_or_missing(tmp_path):
    path = tmp_path / "labels.npy"
    with pytest.raises(InputError, match=r"labels\.npy cannot be read"):
        npy_labels(path, ["p0"], ["bat"], ("bat",))
    path.write_bytes(pickle.dumps({"p0": [1]}))  # no .npy header
    with pytest.raises(InputError, match=r"labels\.npy is not a NumPy file"):
        npy_labels(path, ["p0"], ["bat"], ("bat",))
    np.save(path, {"p0": np.ones(1)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"labels\.npy is cut short or not a pickle"):
        npy_labels(path, ["p0"], ["bat"], ("bat",))


def test_real_lists_agree_with_the_community_s_file(real_data):
    root = real_data / "VOCdevkit/VOC2012"
    for split in ("train", "val"):
        ids = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        table = npy_labels(real_data / "voc-lists/cls_labels.npy", ids, VOC_CLASSES, VOC_CLASSES)
        assert (table == list_labels(root, split, ids, VOC_CLASSES)).all()
        assert table.sum() > len(ids)


def test_npy_rows_are_numbers(tmp_path):
    """A list does; nested tuples, each twice in the next, would be 2^30 numbers as an array."""
    nested = (1.0,)
    for _ in range(30):
        nested = (nested, nested)
    for row in (nested, "110", None, [[1, 0, 1]]):
        np.save(tmp_path / "labels.npy", {"p0": row})
        with pytest.raises(InputError, match=r"labels\.npy holds no row of numbers for p0"):
            npy_labels(tmp_path / "labels.npy", ["p0"], ["bat"], ("ant", "bat", "cow"))
    np.save(tmp_path / "labels.npy", {"p0": [1, 0, 1]})
    assert npy_labels(tmp_path / "labels.npy", ["p0"], ["cow"], ("ant", "bat", "cow")).tolist() == [[1]]
