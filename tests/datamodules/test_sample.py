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
    (tmp_path / "b.png").touch()
    with pytest.raises(InputError, match=r"b\.jpg and .*b\.png have the same id 'b': rename one file"):
        file_samples([paths[0], tmp_path / "b.png"])
    with pytest.raises(InputError, match=r"b\.jpg is given twice"):
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


@pytest.mark.parametrize("count", [2, 3, 30])
def test_few_images_have_a_validation_image(tmp_path, count):
    """And they stay in their split when others are added, but for the one that was moved."""
    samples = [Sample(f"img{number}", "") for number in range(1000)]
    train, val, every = (split_samples(samples[:count], split, 0.02, tmp_path) for split in ("train", "val", "all"))
    assert len(val) == 1
    assert len(train) + len(val) == len(every) == count
    large = split_samples(samples, "val", 0.02, tmp_path)
    assert 10 < len(large) < 30
    assert {each.id for each in large if each in samples[:count]} <= {each.id for each in val}


def test_a_single_image_is_not_in_the_validation(tmp_path):
    samples = [Sample(f"img{number}", "") for number in range(30)]
    assert split_samples(samples[:1], "train", 0.02, tmp_path) == samples[:1]
    assert split_samples(samples[:1], "all", 0.02, tmp_path) == samples[:1]
    for few, fraction in ((samples[:1], 0.02), (samples, 0.0)):
        with pytest.raises(
            InputError, match=f"none of {len(few)} images of {tmp_path} is in 'val': change val_fraction"
        ):
            split_samples(few, "val", fraction, tmp_path)
    assert split_samples([], "val", 0.02, tmp_path) == []
