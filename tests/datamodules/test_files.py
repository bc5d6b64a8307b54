import errno
import os

import pytest

from datamodules.errors import InputError
from datamodules.files import file_sha256, write_whole


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_whole(tmp_path / "x", b"one")
    write_whole(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_bytes() == b"two"

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="x cannot be written: No space left on device"):
        write_whole(tmp_path / "x", b"three")
    assert (tmp_path / "x").read_bytes() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
