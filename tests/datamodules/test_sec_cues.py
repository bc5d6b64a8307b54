"""SEC's files of cues: the form of the released file, what is checked of each image, and what is written."""

import pickle
import pickletools

import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.seed_cache.sec_cues import SecCues, read_input_list, sec_files

LABELS = np.array([2])
CUES = np.array([[0, 0, 2], [0, 3, 1], [1, 3, 2]])  # class, row, column


def write(folder, labels=LABELS, cues=CUES, lines="a_1.jpg 0\n", **others):
    (folder / "cues.pickle").write_bytes(pickle.dumps({"0_labels": labels, "0_cues": cues} | others, 2))
    (folder / "list.txt").write_text(lines)
    return SecCues(folder / "cues.pickle", folder / "list.txt", num_classes=3, grid=4)


def test_positions_by_hand(tmp_path):
    release = write(tmp_path)
    positions = release.positions("a_1")
    assert release.ids == ("a_1",)
    assert positions.shape == (4, 4, 4)
    assert np.argwhere(positions).tolist() == [[0, 0, 1], [0, 3, 3], [2, 1, 2]]


def test_a_position_of_two_classes_and_an_image_without_cues(tmp_path):
    both = np.array([[0, 2], [1, 1], [2, 2]])
    assert write(tmp_path, cues=both).positions("a_1")[:, 1, 2].tolist() == [True, False, True, False]
    assert not write(tmp_path, labels=np.zeros(0, int), cues=np.zeros((3, 0), int)).positions("a_1").any()


WRONG = {
    "class too high": ({"cues": np.array([[4], [0], [0]])}, r"within 0\.\.3 and a grid of 4x4"),
    "row too high": ({"cues": np.array([[0], [4], [0]])}, r"image 0 \(a_1\)"),
    "column too high": ({"cues": np.array([[0], [0], [4]])}, r"grid of 4x4"),
    "negative": ({"cues": np.array([[0], [-1], [0]])}, r"grid of 4x4"),
    "beyond an int": ({"cues": np.array([[0], [2**63], [0]], np.uint64)}, r"grid of 4x4"),
    "two rows": ({"cues": CUES[:2]}, "class, row, column"),
    "twice": ({"cues": np.repeat(CUES, 2, axis=1)}, "cued for the same class twice"),
    "a class without a label": ({"labels": np.array([1])}, "not among the labels"),
    "label 0": ({"labels": np.array([0, 2])}, r"labels are not all in 1\.\.3"),
    "label too high": ({"labels": np.array([2, 4])}, r"labels are not all in 1\.\.3"),
    "floats": ({"cues": CUES * 1.0}, "'0_cues' is not an array of integers of 2"),
    "flat": ({"cues": CUES[0]}, "'0_cues' is not an array of integers of 2"),
    "no array": ({"labels": [2]}, "'0_labels' is not an array"),
    "missing": ({"lines": "a_1.jpg 1\n"}, "entry '1_labels' is not an array"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_cues(tmp_path, name):
    changed, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        write(tmp_path, **changed).positions("a_1")


def test_no_dictionary(tmp_path):
    write(tmp_path)
    (tmp_path / "cues.pickle").write_bytes(pickle.dumps([1], 2))
    with pytest.raises(InputError, match="must contain one dictionary"):
        SecCues(tmp_path / "cues.pickle", tmp_path / "list.txt", 3, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a.jpg 0\na.jpg 1\n", "line 2: expected a new image"),
        ("a.jpg 0\nb.jpg 0\n", "gives a number twice"),
        ("a.jpg\n", "line 1"),
        ("a.jpg -1\n", "line 1"),
        ("a.jpg ٣\n", "line 1"),
        ("a.jpg 0 0\n", "line 1"),
        ("\n", "is empty"),
    ],
)
def test_wrong_lists(tmp_path, content, words):
    (tmp_path / "list.txt").write_text(content)
    with pytest.raises(InputError, match=words):
        read_input_list(tmp_path / "list.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_input_list(tmp_path / "nothing.txt")


def test_a_list_with_folders(tmp_path):
    (tmp_path / "list.txt").write_text("JPEGImages/2007_000032.jpg 7\n\n../../b.jpg 8\n")
    assert read_input_list(tmp_path / "list.txt") == {"2007_000032": 7, "b": 8}


def test_files_by_hand():
    cues = np.array([[255, 2, 0], [0, 255, 1]], np.uint8)
    files = sec_files([("x", np.array([2, 1]), cues), ("y", np.zeros(0, int), np.full((2, 3), 255, np.uint8))])
    assert files["input_list.txt"] == b"x.jpg 0\ny.jpg 1\n"
    found = pickle.loads(files["localization_cues.pickle"], encoding="latin1")
    assert list(found) == ["0_labels", "0_cues", "1_labels", "1_cues"]
    assert found["0_labels"].tolist() == [1, 2]
    assert found["0_cues"].tolist() == [[0, 0, 1, 2], [0, 1, 1, 0], [2, 0, 2, 1]]
    assert found["1_cues"].shape == (3, 0)
    cues = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (41, 41))
    large = pickle.loads(sec_files([("x", np.array([1, 2]), cues)])["localization_cues.pickle"], encoding="latin1")
    ascending = [(cues[y, x], y, x) for c in range(3) for y in range(41) for x in range(41) if cues[y, x] == c]
    assert large["0_cues"].T.tolist() == [list(each) for each in ascending]
    assert {(each.dtype, each.flags.c_contiguous) for each in found.values()} == {(np.dtype("<i8"), True)}


@pytest.mark.parametrize("name", ["a b", "cat/a"])
def test_ids_that_the_list_cannot_contain(name):
    with pytest.raises(InputError, match=f"the id '{name}' has a space or a slash"):
        sec_files([(name, np.array([1]), np.array([[0, 1]], np.uint8))])


def test_only_opcodes_and_names_of_python_2():
    content = sec_files([("x", np.array([1]), np.array([[0, 1]], np.uint8))])["localization_cues.pickle"]
    found = [(opcode.name, opcode.proto, argument) for opcode, argument, _ in pickletools.genops(content)]
    assert max(proto for _, proto, _ in found) <= 2
    assert {argument for name, _, argument in found if name == "GLOBAL"} == {
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
    }
    assert not any(name == "BINUNICODE" and argument not in ("0_cues", "0_labels") for name, _, argument in found)
