"""Ids of images from paths and lists."""

import pytest

from datamodules.errors import InputError
from datamodules.image_ids import image_id, read_ids
from datamodules.sample import Sample, SplitSamples


@pytest.mark.parametrize("file", [".", "/", "", "http://[x/a.jpg", "s3://bucket"])
def test_what_is_no_path_of_an_image(file):
    with pytest.raises(InputError, match="no path of an image"):
        image_id(file)


@pytest.mark.parametrize(("file", "name"), [
    ("s3://b/photos/cat #1.jpg", "photos/cat #1"), ("gs://b/is it a cat?.jpg", "is it a cat?"),
    ("https://host/photos/a.jpg?size=1.5#top", "photos/a"), ("file:///photos/a.jpg", "photos/a"),
    ("zip://f/a.jpg::s3://b/photos.zip", "f/a"), ("zip://a.jpg::photos.zip", "a"),
    ("simplecache::s3://b/f/a.jpg", "f/a"),
])  # fmt: skip
def test_ids_of_images_by_uri(file, name):
    """``?`` and ``#`` are parts of names in an object store: cat #1.jpg and cat #2.jpg are two images."""
    assert image_id(file) == name


def test_a_path_that_was_written_on_windows():
    assert image_id(r"cats\at home\1.jpg") == "cats/at home/1"
    assert image_id(r"C:\photos\1.jpg") == "C:/photos/1"
    assert image_id(r"s3://b/photos/a\b.jpg") == r"photos/a\b"  # a part of the name in an object store


def test_a_list_with_a_byte_order_mark(tmp_path):
    (tmp_path / "ids.txt").write_bytes("\ufeffa\nb\n".encode())
    assert read_ids(tmp_path / "ids.txt") == ("a", "b")


def test_the_longest_end_of_a_path_is_the_image_of_any_split(tmp_path):
    """``sub/a`` is not ``a`` where another split has an image ``sub/a``."""
    samples = SplitSamples([Sample("a", "a.jpg"), Sample("b", "b.jpg")], "the split", {"sub/a"})
    found = samples.match_ids(["photos/sub/a", "photos/a", "x/b", "c"], list("1234"), tmp_path / "t.csv")
    assert found == ["sub/a", "a", "b", "c"]
    assert [name in samples for name in found] == [False, True, True, False]
