import errno
import os

import pytest

from datamodules.errors import InputError
from datamodules.files import file_sha256, new_folder, write_atomically


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "x", b"one")
    write_atomically(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="x cannot be written: No space left on device"):
        write_atomically(tmp_path / "x", b"three")
    assert (tmp_path / "x").read_bytes() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_file_does_not_replace_a_folder(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be written: Is a directory"):
        write_atomically(tmp_path / "folder", b"three")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "out").mkdir()  # empty: gives way
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not any((tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "a").read_text() == "1"
    for taken in (tmp_path / "out", tmp_path / "out" / "a"):
        with pytest.raises(InputError, match="exists already"), new_folder(taken):
            pass


@pytest.mark.parametrize("error", [KeyError("bug"), KeyboardInterrupt()])
def test_of_a_folder_that_fails_nothing_stays(tmp_path, error):
    def fail(folder):
        (folder / "a").write_text("1")
        raise error

    with pytest.raises(type(error)), new_folder(tmp_path / "sub/out") as folder:
        fail(folder)
    assert not any((tmp_path / "sub").iterdir())


def test_a_disk_that_is_full_is_said_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="out cannot be written: No space left"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
