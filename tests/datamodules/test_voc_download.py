import shutil
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from scipy.io import savemat
from upath import UPath

from datamodules import voc_download as download
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.masks import read_mask
from datamodules.voc import VOCDataModule


@pytest.fixture
def devkit(voc, tmp_path):
    """The small VOC folder where VOC's archive would put it, and an SBD of p2 (VOC's val), p6 and p7."""
    root = tmp_path / "data/VOCdevkit/VOC2012"
    shutil.copytree(voc, root)
    lists = root / "ImageSets/Segmentation"
    (lists / "train.txt").write_text("p0\np1\n")
    (lists / "val.txt").write_text("p2\np3\n")
    sbd = tmp_path / "data/sbd"
    (sbd / "cls").mkdir(parents=True)
    for name in ("p1", "p2", "p6", "p7"):
        shape = read_mask(root / f"SegmentationClass/{name}.png").shape
        content = np.empty((1, 1), dtype=[("Segmentation", object)])
        content["Segmentation"][0, 0] = np.full(shape, 3, np.uint8)
        savemat(sbd / f"cls/{name}.mat", {"GTcls": content})
    (sbd / "train.txt").write_text("p7\np2\n")
    (sbd / "val.txt").write_text("p6\np1\n")
    return root


def test_trainaug_is_voc_s_train_and_sbd_without_voc_s_val(devkit):
    download.download_voc(devkit)
    assert (devkit / "ImageSets/Segmentation/trainaug.txt").read_text() == "p0\np1\np6\np7\n"
    sample = VOCDataModule(devkit, labels="xml").samples("trainaug")[0]
    assert sample.mask == str(devkit / "SegmentationClassAug/p0.png")
    original = devkit / "SegmentationClass/p1.png"
    assert (devkit / "SegmentationClassAug/p1.png").read_bytes() == original.read_bytes()  # VOC's own is the better one
    assert (read_mask(devkit / "SegmentationClassAug/p7.png") == 3).all()
    assert sorted(p.stem for p in (devkit / "SegmentationClassAug").iterdir()) == ["p0", "p1", "p2", "p3", "p6", "p7"]
    assert not [p for p in devkit.iterdir() if p.name.startswith(".")]


def test_what_is_there_is_left_alone(devkit, monkeypatch):
    (devkit / "ImageSets/Segmentation/trainaug.txt").write_text("p0\n")
    monkeypatch.setattr(download, "write_mask", lambda *_: pytest.fail("written again"))
    download.download_voc(devkit)


def test_masks_of_the_user_are_kept_or_the_download_is_refused(devkit):
    own = devkit / "SegmentationClassAug"
    own.mkdir()
    for name in ("p0", "p1", "p2", "p3", "p6"):
        (own / f"{name}.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"^{own} exists already, and lacks p7\.png: remove or rename it, and it is "):
        download.download_voc(devkit)
    assert not (devkit / "ImageSets/Segmentation/trainaug.txt").exists()
    (own / "p7.png").write_bytes(b"mine")
    download.download_voc(devkit)
    assert (devkit / "ImageSets/Segmentation/trainaug.txt").read_text() == "p0\np1\np6\np7\n"
    assert {path.read_bytes() for path in own.iterdir()} == {b"mine"}


def test_a_damaged_sbd_leaves_nothing(devkit):
    (devkit.parent.parent / "sbd/cls/p7.mat").write_bytes(b"no mat file")
    with pytest.raises(InputError, match=r"p7\.mat cannot be read"):
        download.download_voc(devkit)
    assert not (devkit / "SegmentationClassAug").exists()
    assert not list((devkit / "ImageSets/Segmentation").glob("trainaug*"))


@pytest.mark.parametrize("interrupted", ["VOCtrainval_11-May-2012.tar", "benchmark.tgz"])
def test_an_interrupted_extraction_is_repeated(devkit, tmp_path, monkeypatch, interrupted):
    """Though the lists, whose presence marks a complete folder, were extracted before the images."""
    root, attempts = tmp_path / "new/VOCdevkit/VOC2012", []

    def extract(_url, folder, target, filename, _md5):
        assert folder == str(tmp_path / "new")
        inside, source = {
            "VOCtrainval_11-May-2012.tar": ("VOCdevkit/VOC2012", devkit),
            "benchmark.tgz": ("benchmark_RELEASE/dataset", tmp_path / "data/sbd"),
        }[filename]
        attempts.append(filename)
        if filename == interrupted and attempts.count(filename) == 1:
            shutil.copytree(source, Path(target) / inside, ignore=shutil.ignore_patterns("*.jpg", "*.mat"))
            raise KeyboardInterrupt
        shutil.copytree(source, Path(target) / inside)

    monkeypatch.setattr(download, "download_and_extract_archive", extract)
    with pytest.raises(KeyboardInterrupt):
        download.download_voc(root)
    download.download_voc(root)
    assert len(attempts) == 3
    assert (root / "JPEGImages/p0.jpg").is_file()
    assert (root / "ImageSets/Segmentation/trainaug.txt").read_text() == "p0\np1\np6\np7\n"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["VOCdevkit", "sbd"]


def test_a_folder_without_the_lists_is_not_written_into(devkit):
    (devkit / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(InputError, match=rf"^{devkit} exists already, and lacks .*val\.txt: remove or rename it, and "):
        download.download_voc(devkit)


def test_offline(tmp_path, monkeypatch):
    def no_network(*_args, **_settings):
        raise URLError("Name or service not known")

    monkeypatch.setattr(download, "download_and_extract_archive", no_network)
    with pytest.raises(
        InputError, match=r"cannot be downloaded into .*Name or service not known.* check the connection"
    ):
        download.download_voc(tmp_path / "VOCdevkit/VOC2012")


def test_the_folder_must_be_named_as_in_the_archive(tmp_path):
    with pytest.raises(InputError, match=r"ending in VOCdevkit/VOC2012: root cannot be .*photos"):
        download.download_voc(tmp_path / "photos")


def test_the_usual_list_of_10582(real_data, tmp_path, monkeypatch):
    """SBD is all of the usual list that is not VOC's train, and some of VOC's val."""
    lists = real_data / "voc-lists"
    train, val, usual = ((lists / f"{name}.txt").read_text().split() for name in ("train", "val", "train_aug"))
    sbd = sorted((set(usual) - set(train[::2])) | set(val[::3]))
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "sbd").mkdir()
    for path, names in {
        root / "ImageSets/Segmentation/train.txt": train, root / "ImageSets/Segmentation/val.txt": val,
        tmp_path / "sbd/train.txt": sbd[:9000], tmp_path / "sbd/val.txt": sbd[9000:],
    }.items():  # fmt: skip
        path.write_text("\n".join(names))
    monkeypatch.setattr(download.shutil, "copyfile", lambda *_: None)
    monkeypatch.setattr(download, "loadmat", lambda _: {"GTcls": [{"Segmentation": [None]}]})
    monkeypatch.setattr(download, "write_mask", lambda *_: None)
    download.download_voc(root)
    assert (root / "ImageSets/Segmentation/trainaug.txt").read_text().split() == sorted(usual)
    assert len(set(usual)) == 10582


def test_voc_is_not_downloaded_to_a_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "download_and_extract_archive", lambda *_: pytest.fail("it is downloaded"))
    root = "memory://data/VOCdevkit/VOC2012"
    write_atomically(UPath(f"{root}/note.txt"), b"mine")
    with pytest.raises(InputError, match=f"VOC is downloaded into a local folder: root cannot be {root}"):
        VOCDataModule(root, download=True).prepare_data()
    assert not list(tmp_path.iterdir())
