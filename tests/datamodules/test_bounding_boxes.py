import numpy as np
import pytest

from datamodules.annotations.bounding_boxes import ground_truth_boxes, mask_boxes, xml_boxes
from datamodules.annotations.shapes import Box
from datamodules.errors import InputError

OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    "<difficult>1</difficult></object>"
)


def write(path, *objects):
    path.write_text(
        "<annotation><filename>x</filename>" + "".join(OBJECT.format(*each) for each in objects) + "</annotation>"
    )
    return path


def test_xml_counts_from_one_and_names_the_last_pixel(tmp_path):
    path = write(tmp_path / "a.xml", ("dog", 1, 1, 10, 20), ("sofa", 1, 1, 2, 2), ("cat", "5.5", 3, 6, 4))
    assert xml_boxes(path, ["cat", "dog"]) == [Box("dog", 0, 0, 10, 20), Box("cat", 4.5, 2, 6, 4)]


def test_synsets_as_imagenet_has_them(tmp_path):
    assert xml_boxes(write(tmp_path / "a.xml", ("n02084071", 3, 3, 3, 3)), ["n02084071"]) == [
        Box("n02084071", 2, 2, 3, 3)
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("dog", 5, 1, 3, 4), "a.xml: a box of 'dog' is empty: left 4, top 0, right 3, bottom 4"),
        (("dog", "nan", 1, 3, 4), "a box of 'dog' is empty: left nan"),
        (("dog", "", 1, 3, 4), "no box of four numbers"),
    ],
)
def test_bad_boxes(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        xml_boxes(write(tmp_path / "a.xml", values), ["dog"])


def test_bad_files(tmp_path):
    with pytest.raises(InputError, match="missing"):
        xml_boxes(tmp_path / "no.xml", ["dog"])
    with pytest.raises(InputError, match="Is a directory"):
        xml_boxes(tmp_path, ["dog"])
    (tmp_path / "a.xml").write_text("<annotation>")
    with pytest.raises(InputError, match="not XML"):
        xml_boxes(tmp_path / "a.xml", ["dog"])
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>')
    with pytest.raises(InputError, match="declares entities"):
        xml_boxes(tmp_path / "a.xml", ["dog"])


def test_boxes_around_a_mask():
    mask = np.zeros((8, 10), np.uint8)
    mask[1:3, 2:5] = 2
    mask[3, 5] = 2  # touches by a corner
    mask[6:, 8:] = 2
    mask[5, :] = 255
    mask[0, 0] = 1
    boxes = [Box("cat", 0, 0, 1, 1), Box("dog", 2, 1, 6, 4), Box("dog", 8, 6, 10, 8)]
    assert sorted(mask_boxes(mask, ["cat", "dog"])) == boxes


def test_an_annotation_goes_before_the_mask(tmp_path):
    mask = np.ones((4, 4), np.uint8)
    image = tmp_path / "JPEGImages" / "a.jpg"
    assert ground_truth_boxes(image, mask, ["dog"]) == [Box("dog", 0, 0, 4, 4)]
    (tmp_path / "Annotations").mkdir()
    write(tmp_path / "Annotations/a.xml", ("dog", 2, 2, 3, 3))
    assert ground_truth_boxes(image, mask, ["dog"]) == [Box("dog", 1, 1, 3, 3)]
