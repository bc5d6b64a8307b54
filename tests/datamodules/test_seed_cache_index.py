"""The index of a seed cache: it finds what the headers of the shards contain, at any size, and nothing else."""

import os
import pickle
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from upath import UPath

from datamodules import files
from datamodules.errors import InputError
from datamodules.files import CACHE, read_bytes, write_atomically
from datamodules.image_ids import is_valid_id
from datamodules.seed_cache import index as module
from datamodules.seed_cache import shard as seed_shard
from datamodules.seed_cache.cache import SeedCache, verify_cache
from datamodules.seed_cache.index import INDEX, CacheIndex, ShardEntry, Texts, merge_cache, write_index
from datamodules.seed_cache.shard import FIRST_REQUEST, DamagedError, Shard, ShardBuilder, shard_name
from datamodules.seed_cache.writer import SeedCacheWriter
from tests.seed_caches import CacheWriter
from training.cli import main

ROOT = Path(__file__).resolve().parents[2]
HEADER = {"classes": ["cat"], "settings": {"method": "gradcam"}, "inputs": {"data": "x"}}


def write(path, count=8, *, value=0, left_out=None):
    """A cache of three images a shard, whose i-th image has cues of width 1 + i."""
    with CacheWriter(path, ["cat", "dog"], {"made": value}, shard_size=3, left_out=left_out) as writer:
        for number in range(count):
            writer.add(f"id{number}", np.full((1, 1 + number), number % 3, np.uint8))
    return path


def bytes_of(entries):
    output = BytesIO()
    write_index(output, entries, HEADER)
    return output.getvalue()


def index_of(entries):
    return CacheIndex(bytes_of(entries), None)


def contents(cache):
    return (
        tuple(cache.ids), dict(cache.left_out), cache.classes, cache.settings, cache.inputs, cache.num_shards,
        cache.fingerprint, [cache.cues(name).tolist() for name in cache.ids],
    )  # fmt: skip


@pytest.fixture
def cache(tmp_path):
    """Eight images in three shards, with an index."""
    merge_cache(write(tmp_path / "c"))
    return tmp_path / "c"


def test_a_cache_is_the_same_with_its_index_and_without(tmp_path, capsys):
    path = write(tmp_path / "c", left_out={"torn": "it is torn", "ü": "\ud800"})
    before = contents(SeedCache(path))
    assert before[1] == {"torn": "it is torn", "ü": "\ud800"}
    assert main(["seeds", "merge", "--cache", str(path)]) == 0
    assert "index.safetensors: 8 images in 3 shards, 2 left out" in capsys.readouterr().out
    assert sorted(file.name for file in path.iterdir()) == [INDEX, *map(shard_name, range(3))]
    cache = SeedCache(path)
    assert contents(cache) == before
    assert contents(pickle.loads(pickle.dumps(cache))) == before
    assert "id3" in cache
    assert not [name for name in ("torn", "ü", "id", "id8", "", 3, None) if name in cache]
    assert [name for name in ("id3", "torn", "id8") if name in cache.left_out] == ["torn"]
    with pytest.raises(
        InputError, match="has no image torn: it was left out when the cache was made, because it is torn"
    ):
        cache.cues("torn")
    with pytest.raises(InputError, match=r"has no image id8$"):
        cache.cues("id8")
    (path / INDEX).unlink()
    assert contents(SeedCache(path)) == before


def test_nothing_but_the_index_is_read_at_the_start(cache):
    before = tuple(SeedCache(cache).ids)
    for number in range(3):
        (cache / shard_name(number)).unlink()
    again = SeedCache(cache)
    assert tuple(again.ids) == before
    with pytest.raises(InputError, match=r"shard-00001\.safetensors is missing"):
        again.cues("id4")


def test_shards_in_any_order_of_names(tmp_path):
    path = write(tmp_path / "c")
    before = contents(SeedCache(path))
    for number, name in enumerate(("z", "train-0007", "a b")):
        (path / shard_name(number)).rename(path / f"{name}.safetensors")
    merge_cache(path)
    assert contents(SeedCache(path)) == before


class Widths:
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, number):
        return self.cache.cues(self.cache.ids[number]).shape[1]


def test_in_workers(cache):
    loader = DataLoader(Widths(SeedCache(cache)), batch_size=None, num_workers=2)
    assert list(loader) == list(range(1, 9))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.text("aé/._😀 ", min_size=1, max_size=5).filter(is_valid_id), max_size=40, unique=True),
    st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(0, 5), st.sampled_from([8, 1, 0]),
)  # fmt: skip
def test_each_id_is_found_and_nothing_else(names, sizes, left, hashed):
    """In shards of any sizes, and with ids whose hashes are equal."""
    left_out, images = names[:left], names[left:]
    shards, start = [], 0
    for number, size in enumerate([*sizes, len(images)]):
        reasons = {name: f"{name} is broken" for name in left_out} if number == 1 else {}
        shards.append(ShardEntry(f"{number}.safetensors", bytes([number] * 32), images[start : start + size], reasons))
        start += size
    with pytest.MonkeyPatch.context() as patch:
        hash_id = module.hash_id
        patch.setattr(module, "hash_id", lambda name: hash_id(name)[:hashed].rjust(8, b"\0"))
        index = index_of(shards)
        assert [index.find(name) for name in images] == list(range(len(images)))
        assert [index.find(name) for name in left_out] == [-1 - i for i in range(len(left_out))]
        assert not [name for name in ("", "b", "\ud800", *(f"{n}b" for n in names)) if index.find(name) is not None]
        assert dict(index.left_out) == {name: f"{name} is broken" for name in left_out}
    assert index.ids == tuple(images)
    where = [number for number, shard in enumerate(shards) for _ in shard.ids]
    assert [index.shard_of(number) for number in range(len(images))] == where
    assert [index.digest(number) for number in range(len(shards))] == [shard.digest for shard in shards]


def test_ids_are_a_sequence():
    names = ["a", "", "käse", "😀", "b/c"]
    encoded = [name.encode() for name in names]
    content = np.frombuffer(b"".join(encoded), np.uint8)
    texts = Texts(content, np.cumsum([0, *map(len, encoded)]))
    assert texts == names
    assert tuple(names) == texts
    assert texts != names[:-1]
    assert texts != [*names[:-1], "x"]
    assert texts != "a"
    assert list(texts) == names
    assert list(reversed(texts)) == names[::-1]
    for place in (slice(None), slice(1, 4), slice(-2, None), slice(None, None, -2), slice(4, 1)):
        assert texts[place] == tuple(names[place])
    assert [texts[i] for i in range(-5, 5)] == [*names, *names]
    for place in (5, -6):
        with pytest.raises(IndexError):
            texts[place]


def test_the_file(monkeypatch):
    """It is a safetensors file that follows from the shards, however little of it is in memory at a time."""
    names = [f"train/{number}" for number in range(1000)]
    entries = [
        ShardEntry(f"{first}.safetensors", bytes(32), names[first : first + 7], {f"x{first}": "torn"})
        for first in range(0, 1000, 7)
    ]
    content = bytes_of(entries)
    columns = safetensors.numpy.load(content)
    assert columns["ids"].tobytes() == "".join(names).encode()
    assert columns["first"].tolist() == [*range(0, 1000, 7), 1000]
    assert (np.diff(columns["hashes"].astype(object)) >= 0).all()
    assert sorted(columns["entries"].tolist()) == list(range(-len(entries), 1000))
    monkeypatch.setattr(module, "SPOOL", 64)
    monkeypatch.setattr(module, "CHUNK", 10)
    assert bytes_of(iter(entries)) == content
    monkeypatch.setattr(module, "hash_id", lambda _: bytes(8))
    with pytest.raises(InputError, match="image train/500 occurs twice"):
        bytes_of([*entries, ShardEntry("more", bytes(32), ["train/500"], {})])


def test_temporary_files_lie_in_the_folder_only_where_the_index_is_written_there(tmp_path, monkeypatch):
    """A cache on a read-only disk opens, however large the index is that is made in memory."""
    folders, make = [], module.SpooledTemporaryFile

    def spool(*arguments, dir, **options):  # noqa: A002
        folders.append(dir)
        return make(*arguments, dir=dir, **options)

    monkeypatch.setattr(module, "SpooledTemporaryFile", spool)
    path = write(tmp_path / "c")
    assert len(SeedCache(path)) == 8
    assert set(folders) == {None}
    folders.clear()
    merge_cache(path)
    assert set(folders) == {str(path)}


@pytest.mark.parametrize("first", [False, True])
def test_an_image_twice(tmp_path, first):
    with CacheWriter(tmp_path / "c", ["cat"], {}, shard_size=1, left_out={"a": "torn"} if first else {}) as writer:
        for name in ("b", "a") if first else ("a", "b", "a"):
            writer.add(name, np.zeros((1, 1), np.uint8))
    where = "shard-00001.safetensors and the images left out" if first else "shard-0000(0.* and shard-00002)"
    with pytest.raises(InputError, match=f"c: image a occurs twice, in {where}"):
        merge_cache(tmp_path / "c")
    with pytest.raises(InputError, match=f"c: image a occurs twice, in {where}"):
        verify_cache(tmp_path / "c")
    assert not (tmp_path / "c" / INDEX).exists()


def test_an_incomplete_cache(tmp_path, capsys):
    path = write(tmp_path / "c", 30)
    for number in (0, 4, 5, 6, 8):
        (path / shard_name(number)).unlink()
    for command in ("merge", "verify"):
        assert main(["seeds", command, "--cache", str(path)]) == 1
        message = "c lacks 5 of 10 shards: 0, 4-6, 8; run the command that makes it again"
        assert message in capsys.readouterr().err.splitlines()[-1]
    content = bytearray((path / shard_name(9)).read_bytes())
    content[-1] ^= 1
    (path / shard_name(9)).write_bytes(content)
    (path / shard_name(3)).write_bytes(b"")
    assert main(["seeds", "verify", "--cache", str(path)]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "2 of 5 shards are damaged: " in message
    assert "shard-00003.safetensors is damaged" in message
    assert "shard-00009.safetensors is damaged: image id" in message
    assert message.endswith("; of 10 shards these are missing or have no header: 0, 3-6, 8")
    assert sorted(file.name for file in path.iterdir()) == [shard_name(number) for number in (1, 2, 3, 7, 9)]


@pytest.mark.parametrize("command", ["merge", "verify", "info"])
def test_a_folder_that_does_not_exist(command, tmp_path, capsys):
    assert main(["seeds", command, f"--cache={tmp_path / 'none'}"]) == 1
    assert "none is not a seed cache: No such file or directory" in capsys.readouterr().err


def test_partitions_of_different_lists(tmp_path):
    """They have different numbers of shards, or images in common."""
    write(tmp_path / "few", 4)
    path = write(tmp_path / "c")
    (tmp_path / "few" / shard_name(1)).replace(path / shard_name(1))
    for function in (merge_cache, verify_cache, SeedCache):
        with pytest.raises(InputError, match=r"different settings: shards is 3 in shard-00000.* and 2 in shard-00001"):
            function(path)


def test_a_shard_that_was_replaced(cache, tmp_path):
    opened = SeedCache(cache)
    other = write(tmp_path / "other", 4, value=1)
    (other / shard_name(1)).replace(cache / shard_name(1))
    assert opened.cues("id0").shape == (1, 1)
    with pytest.raises(
        InputError, match=r"00001\.safetensors has been replaced since its index .*run seeds merge again"
    ):
        opened.cues("id3")


def test_writing_shards_removes_the_index(cache):
    blocks = [["id0", "id1", "id2"], ["id3", "id4", "id5"], ["id6", "id7"]]
    output = SeedCacheWriter(cache, ["cat", "dog"], {"made": 0}, blocks)
    assert output.missing(range(3)) == []
    assert (cache / INDEX).exists()
    (cache / shard_name(2)).unlink()
    (cache / f".{INDEX}.1.ab.part").write_bytes(b"of a killed process")
    assert output.missing(range(3)) == [2]
    assert not (cache / INDEX).exists()
    shard = ShardBuilder(["cat", "dog"])
    shard.add("id6", np.zeros((1, 1), np.uint8))
    output.write(2, shard, {"id7": "torn"})
    assert SeedCache(cache).left_out == {"id7": "torn"}


def test_damage(cache):
    """A damaged index is reported; without it, the cache is what it was."""
    content = (cache / INDEX).read_bytes()
    other = content.replace(b'\\"version\\":1', b'\\"version\\":2')
    damages = [content[:length] for length in (*range(0, len(content), 97), len(content) - 1)]
    damages += [content + b"\0", b"\xff" * 100, content.replace(b"U64", b"U61")]
    for damaged in (*damages, other):
        (cache / INDEX).write_bytes(damaged)
        words = "is of another version:" if damaged is other else "is damaged: delete it, or"
        for function in (SeedCache, verify_cache):
            with pytest.raises(InputError, match=rf"index\.safetensors {words} run seeds merge again"):
                function(cache)
    merge_cache(cache)
    assert (cache / INDEX).read_bytes() == content


def test_a_flipped_bit_is_found_by_verify(cache, capsys):
    verify_cache(cache)
    assert "8 images in 3 shards; every byte is sound" in capsys.readouterr().out
    content = (cache / INDEX).read_bytes()
    for offset in range(0, len(content), 13):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << (offset % 8)
        (cache / INDEX).write_bytes(flipped)
        with pytest.raises(InputError, match=INDEX):
            verify_cache(cache)


def uploaded(path, uri):
    """Copy a cache to a URI; return its new path."""
    folder = UPath(uri)
    for file in path.iterdir():
        write_atomically(folder / file.name, file.read_bytes())
    return folder


@pytest.fixture(params=["memory://caches/c", "s3"])
def remote(request, tmp_path):
    """A path for a cache in memory, or on an S3 server."""
    uri = f"{request.getfixturevalue('s3')}/{tmp_path.name}/c" if request.param == "s3" else request.param
    yield uri
    UPath(uri).rmdir(recursive=True)


@pytest.mark.parametrize("copies", [False, True])
def test_a_cache_at_a_uri(remote, copies, tmp_path, capsys, monkeypatch):
    """It is read, merged and verified as a local one, with local copies or without."""
    if copies:
        monkeypatch.setenv(CACHE, str(tmp_path / "copies"))
    generator = np.random.default_rng(0)
    with CacheWriter(tmp_path / "c", ["cat", "dog"], {}, shard_size=2, left_out={"x": "torn"}) as writer:
        for name in ("a/b", "ü", "c"):
            maps = {"map_classes": [0, 1], "maps": generator.random((2, 3, 4), np.float32)} if name != "c" else {}
            saliency = None if name == "ü" else generator.random((3, 4), np.float32)
            writer.add(name, generator.choice([0, 1, 2, 255], (3, 4)).astype(np.uint8), saliency=saliency, **maps)
    local, path = SeedCache(tmp_path / "c"), uploaded(tmp_path / "c", remote)
    merge_cache(path.parent / "c")
    for cache in (SeedCache(remote), pickle.loads(pickle.dumps(SeedCache(path)))):
        assert contents(cache) == contents(local)
        assert [cache.maps(name)[1].tolist() for name in cache.ids] == [
            local.maps(name)[1].tolist() for name in local.ids
        ]
        assert [np.array(cache.saliency(name)).tolist() for name in cache.ids] == [
            np.array(local.saliency(name)).tolist() for name in local.ids
        ]
    assert main(["seeds", "verify", "--cache", remote]) == 0
    assert main(["seeds", "info", "--cache", remote]) == 0
    assert '"left_out": {\n    "x": "torn"\n  }' in capsys.readouterr().out
    (path / INDEX).unlink()
    assert contents(SeedCache(path)) == contents(local)
    merge_cache(tmp_path / "c")
    assert main(["seeds", "merge", "--cache", remote]) == 0
    assert (path / INDEX).read_bytes() == (tmp_path / "c" / INDEX).read_bytes()
    (path / shard_name(0)).unlink()
    for command in ("merge", "verify"):
        if command == "verify":
            (path / INDEX).unlink()
        assert main(["seeds", command, "--cache", remote]) == 1
        assert f"{remote} lacks 1 of 2 shards: 0; run" in capsys.readouterr().err.splitlines()[-1]
    assert not (path / INDEX).exists()


def test_a_shard_at_a_uri_is_read_by_ranges(cache, monkeypatch):
    """The header by one request or two, and one request for each tensor."""
    path = uploaded(cache, "memory://ranges/c") / shard_name(0)
    requests = []

    def recorded(uri, start=0, end=None):
        requests.append((start, end))
        return read_bytes(uri, start, end)

    monkeypatch.setattr(seed_shard, "read_bytes", recorded)
    shard = Shard(path)
    assert requests == [(0, FIRST_REQUEST)]
    assert shard.cues("id2").shape == (1, 3)
    assert [end - start for start, end in requests[1:]] == [3]
    monkeypatch.setattr(seed_shard, "FIRST_REQUEST", 100)
    requests.clear()
    assert Shard(path).ids == ["id0", "id1", "id2"]
    assert [start for start, _ in requests] == [0, 100]


def test_damage_and_failures_at_a_uri(cache, monkeypatch):
    path = uploaded(cache, "memory://damage/c") / shard_name(0)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << (offset % 8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=path.name):
            Shard(path).verify()
    for content in (b"", whole[:5], whole[:100], whole[:-1], whole + b"x", (1 << 60).to_bytes(8, "little") + whole[8:]):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=path.name):
            Shard(path).verify()
    monkeypatch.setattr(files, "RETRY_SECONDS", (0, 0))
    monkeypatch.setattr(type(path.fs), "cat_file", Mock(side_effect=PermissionError("no")))
    with pytest.raises(InputError, match=r"shard-00000\.safetensors cannot be read: access is denied") as caught:
        Shard(path)
    assert not isinstance(caught.value, DamagedError)
    with pytest.raises(InputError, match=r"index\.safetensors cannot be read: access is denied"):
        SeedCache(path.parent)
    monkeypatch.undo()
    with pytest.raises(InputError, match="memory://damage/nowhere is not a seed cache: there is no such file"):
        SeedCache("memory://damage/nowhere")


def peak(code, *words):
    """Numbers that a program prints, and the peak memory in MB of its process above that after its imports."""
    usage = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss would have the parent's
    imports = "import sys\nimport numpy as np\nfrom datamodules.seed_cache import SeedCache\n"
    imports += "from datamodules.seed_cache.index import CacheIndex, ShardEntry, read_index, write_index\n"
    program = f"{imports}start = {usage}\n{code}\nprint(({usage} - start) // 1024)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *map(str, words)]
    return [int(word) for word in subprocess.check_output(command, text=True, env=environment).split()]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_of_a_million_images(tmp_path):
    """Less than 100 MB to write the index, and to open it and find a thousand images."""
    code = """
def shards():
    for first in range(0, 1_000_000, 256):
        numbers = range(first, min(first + 256, 1_000_000))
        yield ShardEntry(f"{first}.safetensors", bytes(32), [f"train/{i % 1000:03d}/{i:012d}" for i in numbers], {})
with open(sys.argv[1], "wb") as file:
    write_index(file, shards(), {"classes": ["cat"], "settings": {}, "inputs": {}})
"""
    assert peak(code, tmp_path / INDEX)[-1] < 100
    code = """
cache = SeedCache(sys.argv[1])
numbers = np.random.default_rng(0).integers(0, 1_000_000, 1000).tolist()
print(len(cache), sum(f"train/{i % 1000:03d}/{i:012d}" in cache for i in numbers))
print(sum(f"test/{i:012d}" in cache for i in numbers))
"""
    images, found, others, memory = peak(code, tmp_path)
    assert (images, found, others) == (1_000_000, 1000, 0)
    assert memory < 100


def test_ids_are_iterated_in_parts(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    names = [f"id{number}" for number in range(8)]
    index = index_of([ShardEntry("0.safetensors", bytes(32), names, {"x": "torn"})])
    assert list(index.ids) == names


def test_more_shards_at_a_uri_than_are_requested_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REQUESTS", 1)
    path = uploaded(write(tmp_path / "c", 20), "memory://many/c")  # 7 shards, four at a time
    assert tuple(SeedCache(path).ids) == tuple(f"id{number}" for number in range(20))
