"""Images, masks, lists, tag files, caches and checkpoints by URI: in memory, in a zip file, and on an S3 server."""

import json
import os
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from upath import UPath

from datamodules.base_datamodule import BaseDataModule
from datamodules.coco import COCODataModule
from datamodules.dataset import ImageDataset
from datamodules.errors import InputError, UnreadableError
from datamodules.files import CACHE, folder_fingerprint, list_folder, read_bytes, write_atomically
from datamodules.folder import FolderDataModule
from datamodules.images import read_image
from datamodules.voc import VOCDataModule
from tests.datamodules.conftest import IDS
from tests.storage import upload


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
        (f"{s3}/none.jpg", FileNotFoundError, "there is no such file or folder"),
        ("memory://none.jpg", FileNotFoundError, "there is no such file or folder"),
    ):
        with pytest.raises(kind) as caught:
            read_bytes(uri)
        assert (caught.value.strerror, caught.value.filename) == (reason, uri)
    with pytest.raises(InputError, match=r"^foo://a cannot be accessed: Protocol not known: foo$"):
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
        (FileNotFoundError("/retry/a.bin"), 1, 1, "there is no such file or folder"),
    ],
)
def test_transient_errors_are_tried_again(
    error: Exception, failures: int, attempts: int, raised: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third attempt may succeed; what is missing or not allowed is tried once."""
    monkeypatch.setattr("datamodules.files.RETRY_SECONDS", (0.0, 0.0))
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


def test_the_cache_folder_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is written in a file of settings, where no shell replaces ``~``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, "~/copies")
    write_atomically(UPath("memory://home/a.bin"), b"content")
    assert read_bytes("memory://home/a.bin") == b"content"
    assert [copy.read_bytes() for copy in (tmp_path / "copies").iterdir()] == [b"content"]


def test_what_another_process_writes_is_noticed(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage keeps listings, which outdate; another instance stands for the other process."""
    monkeypatch.setenv(CACHE, str(tmp_path))
    other, folder = fsspec.filesystem("s3", skip_instance_cache=True), f"{s3}/others"
    for content in (b"one", b"another"):
        other.pipe_file(f"{folder}/read/a.bin", content)
        assert read_bytes(f"{folder}/read/a.bin") == content
        assert list_folder(UPath(f"{folder}/read")) == ([], ["a.bin"])
    for names in (["a.bin"], ["a.bin", "b.bin"]):
        other.pipe_file(f"{folder}/listed/{names[-1]}", b"")
        assert list_folder(UPath(f"{folder}/listed")) == ([], names)
    other.pipe_file(f"{folder}/listed/", b"")  # consoles of object stores make such an object for a folder
    assert list_folder(UPath(f"{folder}/listed")) == ([], ["a.bin", "b.bin"])


STORAGES = ("memory://{name}", "s3://bucket/{name}", "zip://::s3://bucket/{name}.zip")


def batches_of(data: BaseDataModule, split: str) -> list[dict[str, Any]]:
    """Return the items of a split, with tags and mask."""
    samples = data.samples(split)
    return [ImageDataset(samples, data.classes, 32, mask_lut=data.mask_lut)[index] for index in range(len(samples))]


def assert_same(data: BaseDataModule, local: BaseDataModule, splits: Sequence[str]) -> None:
    """Compare classes, ids, labels, images and masks of two data modules."""
    assert data.classes == local.classes
    for split in splits:
        for item, expected in zip(batches_of(data, split), batches_of(local, split), strict=True):
            assert item.keys() == expected.keys()
            for key, value in expected.items():
                np.testing.assert_array_equal(item[key], value, err_msg=f"{split} {expected['id']} {key}")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("labels", ["imagesets", "xml", "masks", "npy"])
def test_a_voc_folder_by_uri(s3: str, voc: Path, storage: str, labels: str) -> None:
    """Lists, tags of every kind, images and masks are those of the local folder; one mask is missing."""
    assert s3 == "s3://bucket"
    (voc / "SegmentationClass/p6.png").unlink()
    if labels == "masks":
        for split in ("train", "val"):
            (voc / f"ImageSets/Segmentation/{split}.txt").write_text("p0\np2\n")
    np.save(voc / "tags.npy", {name: np.arange(3) == index % 3 for index, name in enumerate(IDS)}, allow_pickle=True)
    root = upload(voc, storage.format(name=f"voc-{labels}"))
    of_npy = str(UPath(root) / "tags.npy"), str(voc / "tags.npy")
    sources = of_npy if labels == "npy" else (labels, labels)
    data, local = (VOCDataModule(str(each), labels=source) for each, source in zip((root, voc), sources, strict=True))
    assert_same(data, local, ("train", "val"))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("table", ["tags.csv", "metadata.jsonl", None])
def test_a_folder_of_images_by_uri(s3: str, voc: Path, tmp_path: Path, storage: str, table: str | None) -> None:
    """A table of tags and masks, or one folder a tag; images of several folders."""
    assert s3 == "s3://bucket"
    root, rows = tmp_path / "photos", list[tuple[str, list[str]]]()
    for index, name in enumerate(IDS):
        folder = root / ("ant", "bat")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jpg").write_bytes((voc / f"JPEGImages/{name}.jpg").read_bytes())
        rows.append((f"./{folder.name}/{name}.jpg" if index == 1 else f"{folder.name}/{name}.jpg", ["ant"]))
    (root / "bat" / "p0.jpg").write_bytes((root / "ant" / "p0.jpg").read_bytes())  # one image with both tags
    rows.append(("bat/p0.jpg", ["bat"]))
    for name in ("ant/p2", "bat/p3"):
        mask = root / "masks" / f"{name}.png"
        mask.parent.mkdir(parents=True)
        mask.write_bytes((voc / f"SegmentationClass/{mask.name}").read_bytes())
    (root / "classes.txt").write_text("ant\nbat\ncow\n")
    if table == "tags.csv":
        (root / table).write_text("file,tags\n" + "".join(f"{name},{';'.join(tags)}\n" for name, tags in rows))
    elif table:
        lines = (json.dumps({"file_name": name, "tags": tags}) for name, tags in rows)
        (root / table).write_text("\n".join(lines))
    uri = upload(root, storage.format(name=f"photos-{table}"))
    data, local = (FolderDataModule(str(each), val_fraction=0.3) for each in (uri, root))
    assert_same(data, local, ("train", "val", "all"))
    if table is None:
        assert next(sample.tags for sample in data.samples("all") if sample.id == "ant/p0") == {"ant", "bat"}


@pytest.mark.parametrize("storage", STORAGES)
def test_files_of_a_neighbouring_folder(s3: str, voc: Path, tmp_path: Path, storage: str) -> None:
    """An object store knows no folder ``..``; a table, a JSON of COCO and the options may name it all the same."""
    assert s3 == "s3://bucket"
    names = [f"../VOC/JPEGImages/{name}.jpg" for name in IDS]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/tags.csv").write_text("file,tags\n" + "".join(f"{name},ant\n" for name in names))
    images = [{"id": number, "file_name": name, "height": 48, "width": 64} for number, name in enumerate(names)]
    coco = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ant"}]}
    (tmp_path / "lists/result.json").write_text(json.dumps(coco))
    uri = upload(tmp_path, storage.format(name="neighbours"))
    open_folder = partial(FolderDataModule, tags="../lists/tags.csv", masks="../VOC/SegmentationClass")
    for module in (FolderDataModule, open_folder, COCODataModule):
        data, local = (module(str(UPath(each) / "lists")) for each in (uri, tmp_path))
        assert [each.id for each in data.samples("all")] == [each.id for each in local.samples("all")]
        for found, expected in zip(data.samples("all"), local.samples("all"), strict=True):
            np.testing.assert_array_equal(read_image(found.image), read_image(expected.image))


def test_workers_read_from_a_bucket(s3: str, voc: Path) -> None:
    """Forked workers have their own connections, also when the main process has read from the bucket."""
    data = VOCDataModule(upload(voc, f"{s3}/workers"), num_workers=2, batch_size=2, size=32, augment=None)
    data.setup("fit")
    read_bytes(f"{s3}/workers/classes.txt")
    for _ in range(2):
        assert sorted(name for batch in data.train_dataloader() for name in batch["id"]) == list(IDS[:6])
    assert [name for batch in data.val_dataloader() for name in batch["id"]] == list(IDS[6:])


def test_what_is_wrong_in_a_bucket_is_one_sentence(s3: str, voc: Path) -> None:
    """A missing bucket or folder, wrong credentials, a missing image, one that is cut short, and a missing list."""
    root = f"{s3}/wrong"
    (voc / "JPEGImages/p3.jpg").unlink()
    content = (voc / "JPEGImages/p7.jpg").read_bytes()
    (voc / "JPEGImages/p7.jpg").write_bytes(content[: len(content) // 2])
    upload(voc, root)
    none = "there is no such file or folder"
    data = VOCDataModule(root, size=32, num_workers=0)
    with pytest.raises(InputError, match=rf"contains p3, and there is no image {root}/JPEGImages/p3\.jpg$"):
        data.samples("train")
    with pytest.raises(
        InputError, match=rf"^there is no list {root}/.*/all\.txt; the existing splits are: train, val$"
    ):
        data.samples("all")
    with pytest.raises(UnreadableError, match=rf"^image {root}/JPEGImages/p7\.jpg cannot be read, it is truncated"):
        read_image(f"{root}/JPEGImages/p7.jpg")
    with pytest.raises(UnreadableError, match=rf"^image {root}/JPEGImages/p3\.jpg cannot be read: {none}$"):
        read_image(f"{root}/JPEGImages/p3.jpg")
    for module in (VOCDataModule, FolderDataModule):
        with pytest.raises(InputError, match=r"^folder s3://nobucket/a cannot be read: there is no bucket nobucket$"):
            module("s3://nobucket/a")
        with pytest.raises(InputError, match=rf"^folder {s3}/nowhere cannot be read: {none}$"):
            module(f"{s3}/nowhere")
    with pytest.raises(InputError, match=rf"^folder {root}/ImageSets contains no JPEGImages: give the folder"):
        VOCDataModule(f"{root}/ImageSets").samples("train")


@pytest.mark.parametrize("storage", ["memory://fingerprint", "s3://bucket/fingerprint"])
def test_the_fingerprint_of_a_folder(s3: str, storage: str) -> None:
    """It changes with the content of a file, with its name, and with the files of folders below."""
    assert s3 == "s3://bucket"
    root, found = UPath(storage), list[str | None]()
    for name, content in (("a.jpg", b"1"), ("b/c.txt", b"1"), ("a.jpg", b"2"), ("a.png", b"2")):
        write_atomically(root / name, content)
        found.append(folder_fingerprint(root))
        assert folder_fingerprint(UPath(storage)) == found[-1]
    (root / "a.png").unlink()
    assert folder_fingerprint(root) == found[2]
    assert None not in found
    assert len(set(found)) == 4
    assert folder_fingerprint(root / "nowhere") is None
    assert folder_fingerprint(root / "a.jpg") is not None


@pytest.fixture
def refused(s3: str) -> Iterator[str]:
    """The bucket, whose server refuses the keys in the environment."""

    def accept(requests: str) -> None:
        fsspec.filesystem("s3").clear_instance_cache()
        url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        urllib.request.urlopen(urllib.request.Request(url, requests.encode(), {"Content-Type": "text/plain"})).close()

    accept("0")
    yield s3
    accept("inf")


def test_wrong_credentials_are_one_sentence(refused: str) -> None:
    """The server's reason is in brackets."""
    reason = "access is denied, check the credentials"
    with pytest.raises(UnreadableError, match=rf"^image {refused}/a\.jpg cannot be read: {reason} \(.*\)$"):
        read_image(f"{refused}/a.jpg")
    for module in (VOCDataModule, FolderDataModule):
        with pytest.raises(InputError, match=rf"^folder {refused}/voc cannot be read: {reason} \(.*\)$"):
            module(f"{refused}/voc")
    with pytest.raises(InputError, match=rf"^{refused}/a\.bin cannot be written: {reason} \(.*\)$"):
        write_atomically(UPath(f"{refused}/a.bin"), b"")
