import numpy as np
import pytest
from PIL import Image

from datamodules.class_names import ILLEGAL, VOC_CLASSES, check_classes, mask_lut, read_classes, voc_palette
from datamodules.errors import InputError


def test_palette_is_that_of_voc():
    colours = voc_palette()
    table = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128)}
    table[255] = (224, 224, 192)
    for index, colour in table.items():
        assert tuple(colours[index]) == colour


def test_palette_of_a_real_mask(real_data):
    mask = next((real_data / "VOCdevkit/VOC2012/SegmentationClass").glob("*.png"))
    with Image.open(mask) as image:
        assert image.getpalette()[: 21 * 3] == voc_palette()[:21].ravel().tolist()


def test_lut_renames_forgets_and_forbids():
    table = mask_lut(("ant", "bat", "cow"), ("cow", "ant"))
    assert table.dtype == np.uint8
    assert table[:4].tolist() == [0, 2, 255, 1]
    assert (table[4:255] == ILLEGAL).all()
    assert table[255] == 255


def test_lut_of_voc_is_the_identity():
    assert mask_lut(VOC_CLASSES, VOC_CLASSES)[:21].tolist() == list(range(21))


def test_unknown_class_offers_the_nearest():
    with pytest.raises(InputError, match=r"'hrose' does not exist .* did you mean 'horse'\?"):
        check_classes(["cat", "hrose"], VOC_CLASSES, "of VOC")
    with pytest.raises(InputError, match=r"'Cat' does not exist .* did you mean 'cat'"):
        check_classes(["Cat"], VOC_CLASSES, "of VOC")
    with pytest.raises(InputError, match="the classes are ant, bat"):
        check_classes(["zzzzzz"], ("ant", "bat"), "of x")


@pytest.mark.parametrize(("names", "message"), [([], "no class"), (["cat", "cat"], "'cat' is given twice")])
def test_no_or_double_classes(names, message):
    with pytest.raises(InputError, match=message):
        check_classes(names, VOC_CLASSES, "of VOC")


def test_too_many_classes():
    names = [str(i) for i in range(254)]
    with pytest.raises(InputError, match="at most 253"):
        check_classes(names, names, "here")


def test_read_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffant\n\n traffic light \n", encoding="utf-8")
    assert read_classes(path) == ("ant", "traffic light")
    path.write_text("cafe\u0301\ntraffic  light\n", encoding="utf-8")  # exactly as they are in a checkpoint
    assert read_classes(path) == ("cafe\u0301", "traffic  light")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"classes\.txt"):
        read_classes(path)
