"""The irn family's files of maps: what irn and psa write is read, and irn's own steps can read what is written."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.seed_cache.irn_maps import read_irn, write_irn

GENERATOR = np.random.default_rng(0)
MAPS = GENERATOR.random((2, 3, 4), np.float32)
LARGE = GENERATOR.random((2, 12, 14), np.float32)


def test_what_irn_writes(tmp_path):
    keys = torch.nonzero(torch.tensor([0, 1, 0, 0, 1.0]))[:, 0]  # as irn makes them
    np.save(tmp_path / "a.npy", {"keys": keys, "cam": torch.from_numpy(MAPS), "high_res": LARGE})
    classes, maps = read_irn(tmp_path / "a.npy", 5)
    assert (classes.dtype, classes.tolist()) == (np.int64, [1, 4])
    np.testing.assert_array_equal(maps, MAPS)
    np.save(tmp_path / "b.npy", {"keys": np.array([1, 4]), "high_res": LARGE.astype(np.float16)})
    classes, maps = read_irn(tmp_path / "b.npy", 5)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, LARGE.astype(np.float16))


def test_an_image_without_a_class(tmp_path):
    """psa's dictionary is empty."""
    np.save(tmp_path / "a.npy", {}, allow_pickle=True)
    classes, maps = read_irn(tmp_path / "a.npy", 2)
    assert classes.shape == (0,)
    assert maps.shape[0] == 0


def test_what_psa_writes(tmp_path):
    np.save(tmp_path / "a.npy", {4: LARGE[0], 1: LARGE[1]})
    classes, maps = read_irn(tmp_path / "a.npy", 5)
    assert classes.tolist() == [4, 1]
    np.testing.assert_array_equal(maps, LARGE)


WRONG = {
    "a class too high": ({"keys": np.array([1, 5]), "cam": MAPS}, r"integers in 0\.\.4, each once"),
    "negative": ({"keys": np.array([-1, 1]), "cam": MAPS}, r"integers in 0\.\.4"),
    "twice": ({"keys": np.array([1, 1]), "cam": MAPS}, "each once"),
    "float classes": ({"keys": np.array([0.5, 1]), "cam": MAPS}, "integers in"),
    "no array of classes": ({"keys": [0, 1], "cam": MAPS}, "integers in"),
    "fewer maps": ({"keys": np.array([0, 1]), "cam": MAPS[:1]}, "one map .* each of its 2 classes"),
    "no maps": ({"keys": np.array([0, 1])}, "one map"),
    "flat maps": ({"keys": np.array([0, 1]), "cam": MAPS[0]}, "one map"),
    "maps of integers": ({"keys": np.array([0, 1]), "cam": MAPS.astype(int)}, "one map"),
    "empty maps": ({"keys": np.array([0, 1]), "cam": MAPS[:, :0]}, "not empty"),
    "nan": ({"keys": np.array([0, 1]), "cam": MAPS * np.nan}, "finite"),
    "below zero": ({"keys": np.array([0, 1]), "cam": MAPS - 0.5}, "not negative"),
    "psa of two sizes": ({0: MAPS[0], 1: LARGE[0]}, "one map"),
    "psa with texts": ({"cat": MAPS[0]}, "integers in"),
    "psa without arrays": ({0: [1.0]}, "one map"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files(tmp_path, name):
    content, words = WRONG[name]
    np.save(tmp_path / "a.npy", content)
    with pytest.raises(InputError, match=words) as caught:
        read_irn(tmp_path / "a.npy", 5)
    assert "a.npy" in str(caught.value)


class Evil:
    def __reduce__(self):
        return pytest.exit, ("code was run",)


def test_nothing_runs(tmp_path):
    np.save(tmp_path / "a.npy", {"keys": np.array([0]), "cam": Evil()})
    with pytest.raises(InputError, match="nothing of it was run"):
        read_irn(tmp_path / "a.npy", 5)


def test_written_as_irn_writes_and_read_as_irn_reads(tmp_path):
    write_irn(tmp_path / "a.npy", np.array([1, 4]), 7 * MAPS, (33, 50))
    # cam_to_ir_label.py and make_sem_seg_labels.py
    found = np.load(tmp_path / "a.npy", allow_pickle=True).item()
    assert np.pad(found["keys"] + 1, (1, 0), mode="constant").tolist() == [0, 2, 5]
    assert np.pad(found["high_res"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=0.3).shape == (
        3,
        33,
        50,
    )
    assert isinstance(found["cam"], torch.Tensor)
    assert found["cam"].shape == (2, 9, 13)
    assert functional.interpolate(found["cam"][None], scale_factor=4)[0, :, :33, :50].shape == (2, 33, 50)
    expected = functional.interpolate(torch.from_numpy(MAPS)[None], (33, 50), mode="bilinear")[0].numpy()
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found["high_res"], expected, atol=1e-5)
    classes, maps = read_irn(tmp_path / "a.npy", 5)
    assert classes.tolist() == [1, 4]
    np.testing.assert_array_equal(maps, found["cam"].numpy())


def test_an_image_without_classes(tmp_path):
    write_irn(tmp_path / "a.npy", np.zeros(0, np.int64), np.zeros((0, 3, 4), np.float32), (33, 50))
    classes, maps = read_irn(tmp_path / "a.npy", 5)
    assert (classes.shape, maps.shape) == ((0,), (0, 9, 13))


def test_a_map_of_zeros_stays_one(tmp_path):
    """And a map is divided by its maximum and 1e-5."""
    maps = np.stack([np.zeros((3, 4), np.float32), np.full((3, 4), 1e-5, np.float32)])
    write_irn(tmp_path / "a.npy", np.array([1, 4]), maps, (12, 16))
    _, found = read_irn(tmp_path / "a.npy", 5)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], 0.5, rtol=1e-5)
