"""Images, masks, lists, tag files, caches and checkpoints by URI: in memory, in a zip file, and on an S3 server."""

import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import CACHE, read_bytes, write_atomically


def test_a_file_is_read_by_path_and_by_uri(s3: str, tmp_path: Path) -> None:
    """The same bytes from a path, memory, a zip file on the disk and one in a bucket, and an object of a bucket."""
    content = bytes(range(256))
    (tmp_path / "a.bin").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/a.bin", content)
    write_atomically(UPath("memory://read/a.bin"), content)
    write_atomically(UPath(f"{s3}/read/a.bin"), content)
    write_atomically(UPath(f"{s3}/read/z.zip"), (tmp_path / "z.zip").read_bytes())
    uris = (
        "memory://read/a.bin",
        f"{s3}/read/a.bin",
        f"zip://in/a.bin::{tmp_path}/z.zip",
        f"zip://in/a.bin::{s3}/read/z.zip",
    )
    for path in (tmp_path / "a.bin", *uris, *map(UPath, uris)):
        assert read_bytes(path) == content, path


def test_a_forked_process_reads_after_its_parent_did(s3: str) -> None:
    """The connections of the parent process cannot be used; those of the child are its own."""
    write_atomically(UPath(f"{s3}/fork/a.bin"), b"content")
    assert read_bytes(f"{s3}/fork/a.bin") == b"content"
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(read_bytes, [f"{s3}/fork/a.bin"] * 8)) == [b"content"] * 8


def test_errors_are_one_sentence(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bucket, a missing key, a server that is not there, an unknown protocol, and no credentials."""
    for uri, kind, reason in (
        ("s3://nobucket/a.jpg", FileNotFoundError, "there is no bucket nobucket"),
        (f"{s3}/none.jpg", FileNotFoundError, "there is no such file"),
        ("memory://none.jpg", FileNotFoundError, "there is no such file"),
    ):
        with pytest.raises(kind) as caught:
            read_bytes(uri)
        assert (caught.value.strerror, caught.value.filename) == (reason, uri)
    with pytest.raises(InputError, match=r"^foo://a cannot be read: Protocol not known: foo\.$"):
        read_bytes("foo://a")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(
        PermissionError, match=r"access is denied, check the credentials \(Unable to locate credentials\)"
    ):
        read_bytes(f"{s3}/a.jpg")
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("error", "failures", "attempts", "raised"),
    [
        (ConnectionError("reset by peer"), 2, 3, None),
        (RuntimeError("slow down."), 3, 3, r"slow down: 'memory://retry/a\.bin'"),
        (PermissionError("no"), 1, 1, r"access is denied, check the credentials \(no\)"),
        (FileNotFoundError("/retry/a.bin"), 1, 1, "there is no such file"),
    ],
)
def test_transient_errors_are_tried_again(
    error: Exception, failures: int, attempts: int, raised: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third attempt may succeed; what is missing or not allowed is tried once."""
    monkeypatch.setattr("datamodules.files.PAUSES", (0.0, 0.0))
    write_atomically(UPath("memory://retry/a.bin"), b"content")
    storage = type(fsspec.filesystem("memory"))
    cat_file, calls = storage.cat_file, list[str]()

    def unreliable(self: Any, path: str, **options: Any) -> bytes:
        calls.append(path)
        if len(calls) <= failures:
            raise error
        return bytes(cat_file(self, path, **options))

    monkeypatch.setattr(storage, "cat_file", unreliable)
    if raised is None:
        assert read_bytes("memory://retry/a.bin") == b"content"
    else:
        with pytest.raises(OSError, match=raised):
            read_bytes("memory://retry/a.bin")
    assert len(calls) == attempts


def test_copies_stay_in_the_cache_folder(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object is read once; one that changed is read again, and nothing else is in the folder."""
    monkeypatch.setenv(CACHE, str(tmp_path / "new" / "copies"))
    uri = f"{s3}/cache/a.bin"
    write_atomically(UPath(uri), b"first")
    assert read_bytes(uri) == b"first"
    (copy,) = (tmp_path / "new" / "copies").iterdir()
    assert copy.read_bytes() == b"first"
    copy.write_bytes(b"the copy")  # it is read in place of the object
    assert read_bytes(uri) == b"the copy"
    write_atomically(UPath(uri), b"second")
    assert read_bytes(uri) == b"second"
    assert len(list((tmp_path / "new" / "copies").iterdir())) == 2
