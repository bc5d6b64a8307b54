import errno
import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from datamodules.errors import InputError
from datamodules.files import (
    file_sha256,
    new_folder,
    open_atomically,
    read_json_or_empty,
    write_atomically,
    write_csv,
)


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


@pytest.mark.parametrize("name", ["a" * 255, "\u00e4" * 127, "\U0001f408" * 60 + ".safetensors", "b"])
def test_every_name_can_be_written(tmp_path, name):
    """A file system allows 255 bytes; the temporary neighbour needs some of them for itself."""
    write_atomically(tmp_path / name, b"one")
    assert (tmp_path / name).read_bytes() == b"one"
    with open_atomically(tmp_path / name) as file:
        (part,) = (each.name for each in tmp_path.iterdir() if each.name != name)
        assert re.fullmatch(rf"\..*{name[-8:]}\.\d+\.[0-9a-f]{{8}}\.part", part)
        file.write(b"two")
    assert (tmp_path / name).read_bytes() == b"two"
    with new_folder(tmp_path / "sub" / name) as folder:
        (folder / name).write_bytes(b"three")
    assert (tmp_path / "sub" / name / name).read_bytes() == b"three"


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


def test_a_file_that_is_read_meanwhile_is_named_itself(tmp_path):
    """The context reports its own file or folder as not writable, and no other."""
    missing = tmp_path / "missing.png"
    with pytest.raises(FileNotFoundError, match=r"missing\.png"), new_folder(tmp_path / "out") as folder:
        shutil.copyfile(missing, folder / "a.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"), open_atomically(tmp_path / "a") as file:
        file.write(missing.read_bytes())
    with pytest.raises(InputError, match="out cannot be written"), new_folder(tmp_path / "out") as folder:
        (folder / "no/folder").write_text("")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/a cannot be written"), open_atomically(tmp_path / "file/a"):
        pass
    assert {each.name for each in tmp_path.iterdir()} == {"file"}


def test_the_folder_of_a_file_is_made(tmp_path):
    write_atomically(tmp_path / "a/b/c", b"1")
    assert (tmp_path / "a/b/c").read_bytes() == b"1"


def test_a_disk_that_is_full_is_said_of_a_folder(tmp_path):
    with pytest.raises(InputError, match="out cannot be written: No space left"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_content_is_on_the_disk_before_the_name_and_the_name_afterwards(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def recorded(handle):
        info = os.fstat(handle)
        synced.append(("folder" if stat.S_ISDIR(info.st_mode) else info.st_size, (tmp_path / "x").exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    write_atomically(tmp_path / "x", b"one")
    assert synced == [(3, False), ("folder", True)]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"[1]", b"3", b"\xff"])
def test_a_json_that_is_missing_or_is_no_mapping_counts_as_empty(tmp_path, content):
    """A kill or another program may leave it so."""
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json_or_empty(tmp_path / "a.json") == {}
    (tmp_path / "a.json").write_bytes(b'{"a": 1}')
    assert read_json_or_empty(tmp_path / "a.json") == {"a": 1}


def test_lines_of_a_csv_end_as_those_of_other_texts(tmp_path):
    """Programs such as cut would take a carriage return for a part of the last column."""
    write_csv(tmp_path / "a.csv", [("id", "image"), ("a,b", "x.jpg")])
    assert (tmp_path / "a.csv").read_bytes() == b'id,image\n"a,b",x.jpg\n'


def test_the_working_folder_is_filled_where_it_is_empty(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    with new_folder(Path()) as folder:
        (folder / "a").write_text("1")
    monkeypatch.chdir(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["out", "out/a"]
