import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.sample import (
    Sample,
    SplitSamples,
    file_samples,
    image_id,
    match_ids,
    multi_hot,
    read_ids,
    require_masks,
    require_tags,
    split_samples,
)  # fmt: skip


def test_multi_hot():
    samples = [
        Sample("a", "a.jpg", frozenset({"cat", "zebra"})),
        Sample("b", "b.jpg"),
        Sample("c", "c.jpg", frozenset()),
    ]
    labels = multi_hot(samples, ["dog", "cat"])
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert multi_hot([], ["dog", "cat"]).shape == (0, 2)


def test_files(tmp_path):
    paths = [tmp_path / "b.jpg", tmp_path / "a.png"]
    for path in paths:
        path.touch()
    assert file_samples(paths) == [Sample("b", str(paths[0])), Sample("a", str(paths[1]))]
    with pytest.raises(InputError, match=r"no image .*nowhere"):
        file_samples([tmp_path / "nowhere.jpg"])
    with pytest.raises(InputError, match="have the same id 'b'"):
        file_samples([paths[0], paths[0]])


def test_a_tag_of_the_classes_is_required():
    samples = [Sample("a", "a.jpg", frozenset({"zebra"})), Sample("b", "b.jpg")]
    require_tags(samples, ["cat", "zebra"], "some file")
    with pytest.raises(InputError, match=r"all 2 images are zero: some file gives no image any of .* ant, bat"):
        require_tags(samples, ["ant", "bat"], "some file")


def test_masks_are_required():
    samples = [Sample("a", "a.jpg", mask="a.png"), Sample("b", "b.jpg"), Sample("c", "c.jpg")]
    assert require_masks(samples[:1], "a score") == ["a.png"]
    with pytest.raises(InputError, match="2 of 3 masks are missing, first that of b; a score needs"):
        require_masks(samples, "a score")


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


def test_a_list_with_a_byte_order_mark(tmp_path):
    (tmp_path / "ids.txt").write_bytes("\ufeffa\nb\n".encode())
    assert read_ids(tmp_path / "ids.txt") == ("a", "b")


@pytest.mark.parametrize("count", [1, 2, 3, 30])
def test_few_images_have_a_validation_image(count):
    """And they stay in their split when others are added, but for the one that was moved."""
    samples = [Sample(f"img{number}", "") for number in range(1000)]
    train, val, every = (split_samples(samples[:count], split, 0.02) for split in ("train", "val", "all"))
    assert len(val) == (0 if count == 1 else 1)
    assert len(train) + len(val) == len(every) == count
    assert not split_samples(samples[:count], "val", 0)
    large = split_samples(samples, "val", 0.02)
    assert 10 < len(large) < 30
    assert {each.id for each in large if each in samples[:count]} <= {each.id for each in val}


def test_the_longest_end_of_a_path_is_the_image_of_any_split(tmp_path):
    """``sub/a`` is not ``a`` where another split has an image ``sub/a``."""
    samples = SplitSamples([Sample("a", "a.jpg"), Sample("b", "b.jpg")], "the split", {"sub/a"})
    found = match_ids(["photos/sub/a", "photos/a", "x/b", "c"], list("1234"), samples, tmp_path / "t.csv")
    assert found == ["sub/a", "a", "b", "c"]
    assert [name in samples for name in found] == [False, True, True, False]
