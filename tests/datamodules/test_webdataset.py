"""WebDataset tars: samples and tags by hand, images by path and URI, what is wrong with an archive."""

import gzip
import io
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import CACHE, write_atomically
from datamodules.images import read_image
from datamodules.sample import multi_hot
from datamodules.tar_files import find_tars, read_tar
from datamodules.webdataset import WebDatasetDataModule, tar_samples
from tests.tars import tar_bytes


def png(value):
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


MEMBERS = {
    "a.png": png(1), "a.json": '{"tags": ["cat", "dog"], "width": 6}',
    "in/b.v1.txt": "no tags: the extension is v1.txt", "in/b.PNG": png(2), "in/b.txt": "dog\n\n cow ;sheep\n",
    "c.cls": "2", "c.png": png(3),
    "d.png": png(4), "d.cls": "cat\n", "d.txt": "dog",
    "e.png": png(5),
    "./f.png": png(6), "f.json": '{"caption": "a dog"}', "f.cls": "0",
    "g.png": png(7), "g.json": '{"label": "cat|cow"}',
    "h.png": png(8), "h.json": "[]",
    "h.npy": b"ignored",
}  # fmt: skip
TAGS = {
    "a": {"cat", "dog"}, "in/b": {"dog", "cow", "sheep"}, "c": {"cow"}, "d": {"cat"}, "e": None, "f": {"cat"},
    "g": {"cat", "cow"}, "h": set(),
}  # fmt: skip


@pytest.mark.parametrize("storage", ["local", "memory", "s3", "copies of s3"])
def test_samples_by_hand(storage, tmp_path, s3, monkeypatch):
    folder = {"local": tmp_path, "memory": UPath("memory://tars/one")}.get(storage, UPath(f"{s3}/tars/one"))
    if storage == "copies of s3":
        monkeypatch.setenv(CACHE, str(tmp_path / "copies"))
    write_atomically(folder / "x.tar", tar_bytes(MEMBERS))
    samples = tar_samples(folder / "x.tar", ("cat", "dog", "cow"))
    assert {sample.id: sample.tags for sample in samples} == TAGS
    assert [sample.id for sample in samples] == list(TAGS)
    for number, sample in enumerate(samples, start=1):
        assert (read_image(sample.image) == number).all()
        assert read_image(sample.image).shape == (4, 6, 3)
    assert {sample.tags for sample in tar_samples(folder / "x.tar", tags=False)} == {None}
    assert (storage == "copies of s3") == (tmp_path / "copies").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_tar_in_another_archive(tmp_path, kind):
    """Members are read from the inner archive; colons in their names separate no archives."""
    inner = tar_bytes({"a.png": png(1), "b::c:.png": png(2), ":d::.PNG": png(3)})
    if kind == "tar":
        (tmp_path / "outer.tar").write_bytes(tar_bytes({"train.tar": inner}))
    else:
        with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
            archive.writestr("train.tar", inner)
    samples = tar_samples(UPath(f"{kind}://train.tar::{tmp_path}/outer.{kind}"))
    assert [sample.id for sample in samples] == ["a", "b::c:", ":d::"]
    for number, sample in enumerate(samples, start=1):
        assert (read_image(sample.image) == number).all()


def test_images_without_tags_are_no_examples_of_background(tmp_path, capsys):
    """Not in the training of a classifier, nor in its validation: their classes are not known."""
    for name in ("train", "val"):
        (tmp_path / f"{name}-0.tar").write_bytes(tar_bytes(MEMBERS))
    data = WebDatasetDataModule(str(tmp_path), classes=["cat", "dog", "cow"], size=8, batch_size=2, num_workers=0)
    data.setup("fit")
    names = {name for batch in data.val_dataloader() for name in batch["id"]}
    assert names == {name for name, tags in TAGS.items() if tags is not None}
    assert {name for batch in data.train_dataloader() for name in batch["id"]} <= names
    printed = capsys.readouterr().err
    assert "1 of 8 training images are left out because their tags are not known; first e" in printed
    assert "1 of 8 val images are left out because their tags are not known; first e" in printed


WHOLE = tar_bytes({"a.png": png(1), "a.txt": "cat", "b.png": png(2)})
LONG = tar_bytes({"a.png": png(1), "b.tif": bytes(5000)})


@pytest.mark.parametrize(
    ("content", "words"),
    [(LONG[: 512 * 5], "is truncated in b.tif"),
     (LONG[:1000], "is truncated"),
     (WHOLE[: 512 * 6], r"is truncated or damaged after b\.png"),
     (WHOLE[:2048] + b"?" * 512 + WHOLE[2560:], "is truncated or damaged after"),
     (b"", "is not a tar archive"),
     (b"no tar" * 200, "is not a tar archive"),
     (gzip.compress(WHOLE), "is not a tar archive, or is compressed"),
     (tar_bytes({}), "contains no image"),
     (tar_bytes({"a.txt": "cat", "b.png": png(2)}), "contains tags of 'a' and no image"),
     (tar_bytes({"a.png": png(1), "a.jpg": png(1)}), "contains two images of the key 'a'"),
     (tar_bytes({"../a.png": png(1)}), r"contains the image '\.\./a\.png', which is no path inside a folder"),
     (tar_bytes({"/a/b.png": png(1)}), "contains the image '/a/b.png', which is no path inside a folder"),
     (tar_bytes({"a.png": png(1), "a.json": "{"}), r"a\.json in tar file .* cannot be read as tags"),
     (tar_bytes({"a.png": png(1), "a.json": "[" * 100_000}), r"a\.json in tar file .* cannot be read as tags"),
     (tar_bytes({"a.png": png(1), "a.json": "1" * 5000}), r"a\.json in tar file .* cannot be read as tags: Exceeds"),
     (tar_bytes({"a.png": png(1), "a.cls": "1" * 5000}), r"a\.cls in tar file .* cannot be read as tags: Exceeds"),
     (tar_bytes({"a.png": png(1), "a.txt": b"\xff"}), r"a\.txt in tar file .* cannot be read as tags"),
     (tar_bytes({"a.png": png(1), "a.json": '{"tags": [0.5]}'}), "neither names nor classes"),
     (tar_bytes({"a.png": png(1), "a.json": '"cat"' + " " * (1 << 20)}), r"a\.json in .* is larger than 1 MiB"),
     (tar_bytes({"a.png": png(1), "a.cls": "2"}), "contains the class 2, and there are 2 classes")],
)  # fmt: skip
def test_what_is_wrong_with_a_tar_is_one_sentence(content, words, tmp_path):
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        tar_samples(tmp_path / "x.tar", ("cat", "dog"))
    assert "x.tar" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_name_that_occurs_twice(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"))
    with pytest.raises(InputError, match=r"contains a\.png twice"):
        tar_samples(tmp_path / "x.tar")


@pytest.mark.parametrize("storage", ["local", "memory", "s3"])
def test_patterns(storage, tmp_path, s3):
    folder = {"local": tmp_path, "memory": UPath("memory://tars/two"), "s3": UPath(f"{s3}/tars/two")}[storage]
    for number in range(8, 12):
        write_atomically(folder / f"t-{number:02d}.tar", bytes(number))
    write_atomically(folder / "t-08.txt", b"no tar")
    write_atomically(folder / "._t-08.tar", b"of macOS")
    every = {"t-08.tar": 8, "t-09.tar": 9, "t-10.tar": 10, "t-11.tar": 11}
    assert find_tars(folder, "t-{08..11}.tar") == find_tars(folder, "*.tar") == find_tars(folder, "t-*.tar") == every
    assert list(find_tars(folder, "t-{1..1}{0..1}.tar")) == ["t-10.tar", "t-11.tar"]
    assert find_tars(folder, "t-09.tar") == {"t-09.tar": 9}
    write_atomically(folder / "v [1].tar", b"1")
    assert find_tars(folder, "v [1].tar") == {"v [1].tar": 1}
    for pattern, name in (("t-{08..12}.tar", r"t-12\.tar"), ("u*.tar", r"u\*\.tar"), ("t-{9..8}.tar", r"t-\{9\.\.8\}")):
        with pytest.raises(InputError, match=f"there is no tar file .*/{name}"):
            find_tars(folder, pattern)
    with pytest.raises(InputError, match=r"the folder of tar files .*none cannot be read"):
        find_tars(folder / "none", "*.tar")


def test_sizes_on_a_web_server(tmp_path):
    """Its list of files has no sizes; they tell another list of tar files apart."""
    pytest.importorskip("aiohttp")
    for number in (8, 9):
        (tmp_path / f"t-{number}.tar").write_bytes(bytes(number))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = find_tars(UPath(f"http://127.0.0.1:{server.server_port}"), "t-*.tar")
        server.shutdown()
    assert found == {"t-8.tar": 8, "t-9.tar": 9}


def test_a_web_server_that_sends_whole_files_only(tmp_path, monkeypatch):
    """Python's server sends the whole file for a request of a part."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr("datamodules.tar_files._REQUEST", 512)
    (tmp_path / "a.tar").write_bytes(tar_bytes({"a.png": png(99)}))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=r"a\.tar cannot be accessed: The HTTP server doesn't appear to support"):
            read_tar(UPath(f"http://127.0.0.1:{server.server_port}/a.tar"))
        server.shutdown()


@pytest.fixture
def shards(tmp_path):
    tags = {"train-0": "cat\ndog", "train-1": "1", "val-0": "dog"}
    for name, text in tags.items():
        member = "cls" if text == "1" else "txt"
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes({f"{name}.png": png(9), f"{name}.{member}": text}))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def test_a_data_module_of_tars(shards):
    data = WebDatasetDataModule(str(shards), size=8, batch_size=2, num_workers=0)
    assert data.classes == ("cat", "dog")
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert dict(zip(batch["id"], batch["labels"].tolist(), strict=True)) == {"train-0": [1, 1], "train-1": [0, 1]}
    assert [sample.id for sample in data.samples("val")] == ["val-0"]
    assert [sample.id for sample in data.samples("train-{0..0}.tar")] == ["train-0"]
    (shards / "classes.txt").write_text("cat\ncow\n")
    with pytest.raises(InputError, match=r"train-0\.tar: train-0 has the tag 'dog', not in classes\.txt"):
        WebDatasetDataModule(str(shards)).samples("train")
    (shards / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"contains the class 1, and no classes are listed: write classes\.txt"):
        WebDatasetDataModule(str(shards))
    assert WebDatasetDataModule(str(shards), train_split="val").classes == ("dog",)
    assert WebDatasetDataModule(str(shards), classes=["dog", "cow"]).samples("train")[0].tags == {"cat", "dog"}


def test_a_training_reads_each_tar_once(shards, monkeypatch):
    """Also where the classes are its tags."""
    (shards / "classes.txt").unlink()
    (shards / "train-1.tar").write_bytes(tar_bytes({"a.png": png(1), "a.txt": "cow"}))
    opened = []
    monkeypatch.setattr(
        "datamodules.webdataset.read_tar", lambda tar, suffixes: opened.append(tar.name) or read_tar(tar, suffixes)
    )
    data = WebDatasetDataModule(str(shards), size=8, num_workers=0)
    data.setup()
    assert data.classes == ("cat", "cow", "dog")
    assert sorted(opened) == ["train-0.tar", "train-1.tar", "val-0.tar"]
    assert {sample.tags for sample in data.samples("train", tags=False)} == {None}


@pytest.mark.parametrize("count", [254, 300])
def test_more_tags_than_a_mask_has_indices(tmp_path, count):
    (tmp_path / "train.tar").write_bytes(tar_bytes({"a.png": png(1), "a.txt": "\n".join(map(str, range(count)))}))
    words = f"there are {count} classes in the tar files 'train' of {tmp_path}, and an 8-bit mask has at most 253"
    with pytest.raises(InputError, match=words):
        WebDatasetDataModule(str(tmp_path))


def test_a_tar_whose_tags_are_no_classes_is_reported(shards, capsys):
    (shards / "classes.txt").unlink()
    (shards / "train-1.tar").write_bytes(tar_bytes({"a.png": png(1), "a.txt": "Cat", "b.png": png(2)}))
    (shards / "train-2.tar").write_bytes(tar_bytes({"a.png": png(1), "a.txt": ""}))
    blocks = WebDatasetDataModule(str(shards), classes=["cat", "cow"]).blocks("train", 1)
    assert [sample.tags for sample in blocks.read(0) + blocks.read(2)] == [{"cat", "dog"}, set()]
    assert capsys.readouterr().err == ""
    blocks.read(1)
    assert (
        "train-1.tar: none of the tags is a class, such as 'Cat'; the classes are cat, cow" in capsys.readouterr().err
    )


def test_a_block_for_each_tar(shards):
    """A tar file is not opened before its block is read; its name and size identify it."""
    data = WebDatasetDataModule(str(shards))
    whole = data.blocks("train", 1)
    (shards / "train-0.tar").write_bytes(bytes((shards / "train-0.tar").stat().st_size))
    blocks = data.blocks("train", 100)
    assert list(blocks.names) == ["train-0.safetensors", "train-1.safetensors"]
    assert blocks.files_sha256 == whole.files_sha256 != data.blocks("train-{0..0}.tar", 1).files_sha256
    assert [sample.id for sample in blocks.read(1)] == ["train-1"]
    with pytest.raises(InputError, match=r"train-0\.tar contains no image"):
        blocks.read(0)
    (shards / "classes.txt").write_text("dog\ncat\n")  # the meaning of numbers
    assert WebDatasetDataModule(str(shards)).blocks("train", 1).files_sha256 != whole.files_sha256
    (shards / "train-1.tar").write_bytes(tar_bytes({"a.png": png(1)}))
    with pytest.raises(InputError, match=r"train-1\.tar gives no image tags \(\.json, \.cls, \.txt\)"):
        data.blocks("train", 1).read(1)
    (shards / "index.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"index\.tar cannot be a shard"):
        data.blocks("*.tar", 1)


def test_classes_with_accents_in_another_form(tmp_path):
    (tmp_path / "train-0.tar").write_bytes(tar_bytes({"a.png": png(1), "a.txt": "K\u00fche;dog"}))
    for name in ("K\u00fche", "Ku\u0308he", " K\u00fche"):
        data = WebDatasetDataModule(str(tmp_path), classes=[name, "dog"])
        assert multi_hot(data.samples("train"), data.classes).tolist() == [[1, 1]], name


def test_tags_are_written_as_in_a_table(tmp_path):
    """A JSON list in a text is a list, and null means that the tags are not known."""
    members = {"a.png": png(1), "a.txt": '["cat", "dog"]', "b.png": png(2), "b.json": '{"tags": null}'}
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    assert [sample.tags for sample in tar_samples(tmp_path / "a.tar")] == [{"cat", "dog"}, None]


def test_images_whose_names_have_several_dots_are_reported(tmp_path, capsys):
    """An image with the key of another one, such as a.mask.png, belongs to that one."""
    members = {"a.png": png(1), "a.mask.png": png(2), "in/b.v1.PNG": png(3), "c.v2.png": png(4), "d.v2.npy": b""}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    assert [sample.id for sample in tar_samples(tmp_path / "x.tar")] == ["a"]
    message = "x.tar: 2 images are left out because their names have several dots, first in/b.v1.PNG"
    assert message in capsys.readouterr().err
    (tmp_path / "x.tar").write_bytes(tar_bytes({"v1.0.png": png(1), "v1.1.png": png(2)}))
    message = r"x\.tar contains no image: 2 images are left out because their names have several dots, first v1\.0\.png"
    with pytest.raises(InputError, match=message):
        tar_samples(tmp_path / "x.tar")


def test_numbers_are_classes_in_cls_and_json_alone(tmp_path):
    """In a text, 2 is a name, as it is in a table of tags."""
    members = {
        "a.png": png(1), "a.txt": "2", "b.png": png(2), "b.cls": "2", "c.png": png(3), "c.json": '{"tags": [2, 0]}',
        "d.png": png(4), "d.json": "1",
    }  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    samples = tar_samples(tmp_path / "a.tar", ("cat", "dog", "cow"))
    assert [sample.tags for sample in samples] == [{"2"}, {"cow"}, {"cow", "cat"}, {"dog"}]
    (tmp_path / "b.tar").write_bytes(tar_bytes({"a.png": png(1), "a.json": '{"tags": true}'}))
    with pytest.raises(InputError, match=r"contains 'True', which is neither names nor classes"):
        tar_samples(tmp_path / "b.tar", ("cat", "dog"))
