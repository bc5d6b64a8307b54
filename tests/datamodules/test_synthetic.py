import errno
import hashlib
import os

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from datamodules import synthetic as module
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.masks import read_mask
from datamodules.synthetic import SyntheticDataModule, write_synthetic_voc
from datamodules.synthetic_scenes import CLASSES
from datamodules.unreadable_images import UnreadableImages, readable
from datamodules.voc import VOCDataModule

SIZE = 64


def files(root):
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in root.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("set") / "voc"
    write_synthetic_voc(root, train=12, val=5, size=SIZE)
    return root


def test_it_is_a_voc_folder(written):
    for split, count in (("train", 12), ("val", 5)):
        data = VOCDataModule(written)
        samples = data.samples(split)
        assert data.classes == CLASSES
        assert len(samples) == count
        assert readable(samples, UnreadableImages(0.0)) == samples
        assert samples == VOCDataModule(written, labels="masks").samples(split)
        for sample in samples:
            assert sample.tags
            assert set(np.unique(read_mask(sample.mask))) <= set(range(len(CLASSES) + 1))
            with Image.open(sample.mask) as image:
                assert image.mode == "P"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "1" * 5000])
def test_a_damaged_record(tmp_path, text):
    (tmp_path / module.RECORD).write_text(text)
    with pytest.raises(InputError, match=r"synthetic\.json is not JSON: "):
        SyntheticDataModule(str(tmp_path)).prepare_data()


def test_the_data_module_writes_the_folder_once(tmp_path, written):
    settings = {"train": 12, "val": 5, "image_size": SIZE, "size": SIZE, "num_workers": 0, "batch_size": 4}
    data = SyntheticDataModule(str(tmp_path / "data"), **settings)
    assert data.classes == CLASSES  # known before the folder is written
    data.prepare_data()
    assert files(tmp_path / "data") == files(written)
    data.setup()
    assert [len(batch["id"]) for batch in data.val_dataloader()] == [4, 1]
    before = (tmp_path / "data/classes.txt").stat().st_mtime_ns
    SyntheticDataModule(str(tmp_path / "data"), **settings).prepare_data()
    assert (tmp_path / "data/classes.txt").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="other numbers"):
        SyntheticDataModule(str(tmp_path / "data"), **settings | {"data_seed": 1}).prepare_data()


def test_the_same_numbers_give_the_same_bytes(written, tmp_path):
    write_synthetic_voc(tmp_path / "again", train=12, val=5, size=SIZE)
    assert files(tmp_path / "again") == files(written)
    write_synthetic_voc(tmp_path / "other", train=12, val=5, size=SIZE, seed=1)
    same = {k for k, v in files(tmp_path / "other").items() if files(written)[k] == v}
    assert not {k for k in same if k.startswith(("JPEGImages", "SegmentationClass"))}


def test_a_larger_set_begins_with_a_smaller_one(written, tmp_path):
    write_synthetic_voc(tmp_path / "more", train=14, val=6, size=SIZE)
    more = files(tmp_path / "more")
    images = {k: v for k, v in files(written).items() if k.startswith(("JPEGImages", "SegmentationClass/"))}
    assert images.items() <= more.items()


def test_train_and_val_share_no_image(written):
    digests = [v for k, v in files(written).items() if k.startswith("JPEGImages")]
    assert len(set(digests)) == 17


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "precious").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        write_synthetic_voc(tmp_path, train=1, val=1)
    with pytest.raises(InputError, match="precious exists already"):
        write_synthetic_voc(tmp_path / "precious", train=1, val=1)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write_synthetic_voc(tmp_path / "out", train=1, val=1, size=32)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == (tmp_path / "out/JPEGImages").stat().st_mode & 0o777


@pytest.mark.parametrize("settings", [{"train": 0}, {"val": 0}, {"size": 8}, {"seed": -1}])
def test_bad_numbers(tmp_path, settings):
    with pytest.raises(InputError, match="must be at least"):
        write_synthetic_voc(tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(path, _mask):
        if path.stem.endswith("3"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_mask", full)
    with pytest.raises(InputError, match="out cannot be written: No space left on device"):
        write_synthetic_voc(tmp_path / "out", train=5, val=1, size=32)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="out cannot be written: Permission denied"):
        write_synthetic_voc(tmp_path / "out", train=1, val=1)


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="out cannot be written"):
        write_synthetic_voc(tmp_path / "file/out", train=1, val=1)


def test_a_folder_that_other_code_has_written_is_refused(tmp_path, written, monkeypatch):
    """Its images would differ from those of a new folder."""
    settings = {"train": 12, "val": 5, "image_size": SIZE}
    SyntheticDataModule(str(written), **settings).prepare_data()
    monkeypatch.setattr(module, "file_sha256", lambda _path: "another")
    with pytest.raises(InputError, match="of other numbers or other code: remove it"):
        SyntheticDataModule(str(written), **settings).prepare_data()


def test_it_is_not_written_to_a_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically(UPath("memory://synthetic/note.txt"), b"mine")
    with pytest.raises(InputError, match=r"^memory://synthetic contains no .* written to local folders alone$"):
        SyntheticDataModule("memory://synthetic").prepare_data()
    assert not list(tmp_path.iterdir())
