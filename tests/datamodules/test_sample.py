import numpy as np
import pytest

from datamodules.errors import InputError
from datamodules.sample import Sample, file_samples, multi_hot, require_masks, require_tags, split_samples


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
