"""What a fingerprint notices, and what it is not meant to."""

import errno
import os

import pytest

from datamodules.files import file_sizes as sizes
from datamodules.files import folder_fingerprint as fingerprint


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name in ("a.jpg", "deep/b.png", "tags.csv", "deep/list.txt", "labels.npy", "one.xml", "two.json", "x.yaml"):
        (root / name).write_bytes(b"1234")
    (root / ".hidden/c.txt").write_bytes(b"1234")
    return root


@pytest.mark.parametrize(
    "name", ["tags.csv", "deep/list.txt", "labels.npy", "one.xml", "two.json", "metadata.jsonl", "x.yaml"]
)
def test_lists_and_labels_count_by_their_bytes(folder, name):
    """However large they are."""
    (folder / name).write_bytes(b"1234" * 20_000)
    before = fingerprint(folder)
    (folder / name).write_bytes(b"1234" * 19_999 + b"1243")
    assert fingerprint(folder) != before
    (folder / name).write_bytes(b"1234" * 20_000)
    assert fingerprint(folder) == before


def test_large_images_count_by_name_and_size(folder):
    (folder / "large.jpg").write_bytes(b"1" * 70_000)
    before = fingerprint(folder)
    (folder / "large.jpg").write_bytes(b"2" * 70_000)
    (folder / ".hidden/c.txt").write_bytes(b"another")
    (folder / ".DS_Store").write_bytes(b"of macOS")
    assert fingerprint(folder) == before
    (folder / "large.jpg").write_bytes(b"1" * 70_001)
    assert fingerprint(folder) != before


def test_tar_files_count_by_their_bytes(folder):
    """Tags in a tar file are padded: a corrected one leaves its size as it is."""
    (folder / "large.tar").write_bytes(b"1" * 70_000)
    before = fingerprint(folder)
    (folder / "large.tar").write_bytes(b"1" * 69_999 + b"2")
    assert fingerprint(folder) != before


def test_small_images_and_masks_count_by_their_bytes(folder):
    """A corrected mask often keeps its size."""
    before = fingerprint(folder)
    (folder / "a.jpg").write_bytes(b"4321")
    assert fingerprint(folder) != before
    (folder / "a.jpg").write_bytes(b"1234")
    assert fingerprint(folder) == before
    (folder / "a.jpg").write_bytes(b"12345")
    assert fingerprint(folder) != before
    (folder / "a.jpg").write_bytes(b"1234")
    (folder / "a.jpg").rename(folder / "c.jpg")
    assert fingerprint(folder) != before
    assert sizes(folder) == dict.fromkeys(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("[!.]*.*")
                                                 if ".hidden" not in path.parts), 4)  # fmt: skip


def test_a_folder_that_cannot_be_read(folder, monkeypatch):
    """It is not taken for an empty one."""

    def scandir(path, real=os.scandir):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (fingerprint, sizes):
        with pytest.raises(PermissionError, match=r"Permission denied: .*deep"):
            read(folder)


@pytest.mark.parametrize("names", [("a1", "a2"), ("y/a", "z"), ("z", "y/a")])
def test_a_folder_reached_by_several_links_is_seen_once(folder, tmp_path, names):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/e.jpg").write_bytes(b"1234")
    before = len(sizes(folder))
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
    assert len(sizes(folder)) == before + 1


def test_the_folder_left_out_links_and_what_is_not_there(folder, tmp_path):
    before = fingerprint(folder, folder / "deep")
    (folder / "deep/list.txt").write_bytes(b"another")
    assert fingerprint(folder, folder / "deep") == before
    assert fingerprint(folder) != before
    whole = fingerprint(folder)
    (folder / "deep/round").symlink_to(folder)  # a folder within itself is seen once
    assert fingerprint(folder) == whole
    (tmp_path / "link").symlink_to(folder)
    assert fingerprint(tmp_path / "link") == whole
    assert fingerprint(tmp_path / "nothing") is None
    assert fingerprint(folder / "a.jpg") != fingerprint(folder / "deep/list.txt")
