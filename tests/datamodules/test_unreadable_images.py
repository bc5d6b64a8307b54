import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.sample import Sample
from datamodules.unreadable_images import UnreadableImages, readable, too_many
from datamodules.voc import VOCDataModule


def test_readable_images_stay_in_their_order(voc):
    samples = VOCDataModule(voc).samples("train")
    assert readable(samples, UnreadableImages(0.0)) == samples
    for path in (voc / "JPEGImages/p1.jpg", voc / "SegmentationClass/p4.png"):
        path.write_bytes(b"not an image")
    unreadable = UnreadableImages(0.5)
    assert [sample.id for sample in readable(samples, unreadable)] == ["p0", "p2", "p3", "p5"]
    assert list(unreadable.reasons) == ["p1", "p4"]
    assert "p4.png cannot be read" in unreadable.reasons["p4"]


def test_sizes_of_masks_are_checked(voc):
    data = VOCDataModule(voc)
    write_mask(voc / "SegmentationClass/p2.png", np.zeros((56, 60)))
    with pytest.raises(InputError, match=r"p2\.png is 60x56, and its image .*p2\.jpg is 64x56"):
        readable(data.samples("train"), UnreadableImages(0.0))
    assert len(readable(data.samples("train", masks=False), UnreadableImages(0.0))) == 6


def test_too_many_unreadable_images(capsys):
    unreadable = UnreadableImages(0.02)
    unreadable.total = 100
    for name in ("a", "a", "b"):
        unreadable.add(name, f"image {name} is cut short")
    assert capsys.readouterr().err.count("left out: a: image a is cut short") == 1
    with pytest.raises(InputError, match=r"3 of 100 images cannot be read, and max_unreadable .*; the first: image a"):
        unreadable.add("c", "image c is cut short")
    reasons = dict.fromkeys(map(str, range(29)), "cut short")
    assert not too_many(reasons, 100, 0.29)  # though 0.29 * 100 is 28.999999999999996
    assert too_many(reasons, 100, 0.28)
    with pytest.raises(InputError, match=r"max_unreadable is 1\.5"):
        UnreadableImages(1.5)


@pytest.mark.parametrize("count", [10, 12])
def test_of_many_unreadable_images_ten_are_printed(tmp_path, capsys, count):
    """And how many there are."""
    samples = [Sample(f"p{number}", str(tmp_path / f"p{number}.jpg")) for number in range(count)]
    assert readable(samples, UnreadableImages(1.0)) == []
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines[:10]] == [f"p{number}" for number in range(10)]
    assert lines[10:] == (["left out in all: 12 images that cannot be read"] if count > 10 else [])


def test_headers_of_images_at_a_uri_are_not_read():
    """Each would be a request; what is wrong with such an image is found when it is read."""
    samples = [Sample("a", "memory://nowhere/a.jpg", mask="memory://nowhere/a.png")]
    assert readable(samples, UnreadableImages(0.0)) == samples
