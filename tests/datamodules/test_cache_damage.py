"""Caches that are damaged, or made to do harm: one sentence, and nothing read beyond what is there."""

import hashlib
import json
import resource
import struct

import numpy as np
import pytest
import safetensors.numpy

from datamodules.cache import CacheWriter, SeedCache
from datamodules.cache.check import print_info, verify_cache
from datamodules.cache.format import FORMAT, VERSION, read_signed, signed
from datamodules.errors import InputError

SHARD = "shard-00000.safetensors"


@pytest.fixture
def cache(tmp_path):
    """Three images in two shards."""
    generator = np.random.default_rng(0)
    with CacheWriter(tmp_path / "c", ["cat", "dog"], {"made": "by a test"}, shard_size=2) as writer:
        for name in ("a", "b", "c"):
            maps, saliency = (generator.random(shape, np.float32) for shape in ((2, 3, 4), (3, 4)))
            cues = generator.choice([0, 1, 2, 255], (3, 4)).astype(np.uint8)
            writer.add(name, cues, map_classes=np.array([0, 1]), maps=maps, saliency=saliency)
    return tmp_path / "c"


def read_all(path):
    """Whatever a reader of all images gets."""
    cache = SeedCache(path)
    for name in ("a", "b", "c"):
        cache.cues(name)
        cache.maps(name)
        cache.saliency(name)


def change(path, **values):
    """Another manifest, which says of itself that it is sound."""
    manifest = read_signed(path / "manifest.json", version=VERSION, kind=FORMAT)
    (path / "manifest.json").write_bytes(signed(manifest | values))


def shard_says(path, **values):
    manifest = json.loads((path / "manifest.json").read_text())
    change(path, shards=[manifest["shards"][0] | values, *manifest["shards"][1:]])


def replace_shard(path, content):
    """Another first shard, with its size and checksum in the manifest."""
    (path / SHARD).write_bytes(content)
    shard_says(path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def tensors(path, **values):
    return safetensors.numpy.load((path / SHARD).read_bytes()) | values


def with_tensors(**changes):
    def damage(path):
        arrays = tensors(path)
        replace_shard(path, safetensors.numpy.save({name: changes[name](value) if name in changes else value
                                                    for name, value in arrays.items()}))  # fmt: skip

    return damage


def with_row(column, value):
    def change_rows(rows):
        rows = rows.copy()
        rows[0, column] = value
        return rows

    return with_tensors(pictures=change_rows)


def replace_index(**changes):
    def damage(path):
        arrays = safetensors.numpy.load((path / "index.safetensors").read_bytes()) | changes
        content = safetensors.numpy.save(arrays)
        (path / "index.safetensors").write_bytes(content)
        change(path, index={"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()})

    return damage


def ids(text):
    return np.frombuffer(text, np.uint8)


def declared(shape, size=None):
    """A safetensors header that declares a tensor, and behind it nothing, or as much as it says without a byte."""

    def damage(path):
        span = int(np.prod(shape)) if size is None else size
        header = json.dumps({"cues": {"dtype": "U8", "shape": shape, "data_offsets": [0, span]}}).encode()
        with (path / SHARD).open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            if size is not None:
                file.truncate(8 + len(header) + size)
        shard_says(path, bytes=(path / SHARD).stat().st_size)

    return damage


def ten_gigabytes(file):
    """A file of nothing that is as long as the manifest says, and none of it on the disk."""

    def damage(path):
        with (path / file).open("r+b") as content:
            content.truncate(10_000_000_000)
        if file != "manifest.json":
            change(path, index={"bytes": 10_000_000_000, "sha256": "0" * 64})

    return damage


DAMAGES = {
    "no manifest": (lambda p: (p / "manifest.json").unlink(), "not a finished seed cache"),
    "half a manifest": (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "a list": (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "nested": (lambda p: (p / "manifest.json").write_text("[" * 100_000), "manifest.json is damaged"),
    "newer": (lambda p: change(p, version=VERSION + 1), f"version {VERSION + 1}, newer than {VERSION}"),
    "older": (lambda p: change(p, version=1), f"version 1, older than {VERSION}"),
    "other format": (lambda p: change(p, format="other"), "of another kind"),
    "edited": (lambda p: (p / "manifest.json").write_text((p / "manifest.json").read_text().replace("cat", "cow")),
               "not what was written"),
    "numbers": (lambda p: change(p, pictures=4), "do not add up"),
    "negative": (lambda p: shard_says(p, pictures=-2), "do not add up"),
    "no number": (lambda p: shard_says(p, bytes="many"), "manifest.json is damaged"),
    "no index": (lambda p: (p / "index.safetensors").unlink(), "index.safetensors is missing"),
    "no shard": (lambda p: (p / SHARD).unlink(), "missing or cut short"),
    "truncated": (lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-1]), "missing or cut short"),
    "noise": (lambda p: (p / SHARD).write_bytes(b"\xff" * (p / SHARD).stat().st_size), "is damaged"),
    "swapped": (lambda p: replace_shard(p, safetensors.numpy.save(tensors(p, ids=ids(b"x\ny\n")))), "other images"),
    "other type": (with_tensors(cues=lambda v: v.astype(np.int8)), "other types"),
    "not flat": (with_tensors(cues=lambda v: v[:, None]), "not flat"),
    "fewer rows": (with_tensors(pictures=lambda v: v[:1]), "does not hold the 2 images"),
    "huge": (with_row(1, 1 << 40), "image a is not what was written"),
    "overflowing": (with_row(4, (1 << 63) - 1), "image a is not what was written"),
    "negative side": (with_row(2, -4), "image a is not what was written"),
    "before the start": (with_row(0, -1), "image a is not what was written"),
    "wrong class": (with_tensors(map_classes=lambda v: v + 2), "image a is not what was written"),
    "traversal": (replace_index(ids=ids(b"a\n../../etc/passwd\nc\n")), "'../../etc/passwd' is no name of an image"),
    "absolute": (replace_index(ids=ids(b"/etc/passwd\nb\nc\n")), "'/etc/passwd' is no name of an image"),
    "not text": (replace_index(ids=ids(b"\xff\nb\nc\n")), "index.safetensors is damaged"),
    "too few ids": (replace_index(ids=ids(b"a\nb\n")), "does not hold the 3 images"),
    "wild order": (replace_index(order=np.array([0, 1, 1 << 30], np.int32)), "does not hold the 3 images"),
    "10 GB of index": (ten_gigabytes("index.safetensors"), "10000000000 bytes are more than any index has"),
    "10 GB of manifest": (ten_gigabytes("manifest.json"), "manifest.json is damaged"),
    "absurd shape": (declared([1 << 40, 1 << 40], 16), "is damaged"),
    "10 GB, not there": (declared([10_000_000_000]), "is damaged"),
    "10 GB of nothing": (declared([10_000_000_000], 10_000_000_000), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_told_in_one_sentence(cache, kind):
    damage, words = DAMAGES[kind]
    damage(cache)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in cache.iterdir())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words) as caught:
        verify_cache(cache)
    assert len(str(caught.value).splitlines()) == 1
    if kind != "swapped":  # whose parts a reader that asks for a, b and c still finds as they were
        with pytest.raises(InputError):
            read_all(cache)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 1 << 17  # kB: no 10 GB
    assert sorted((file.name, file.stat().st_mtime_ns) for file in cache.iterdir()) == before


def test_a_flipped_bit_is_found_wherever_it_is(cache):
    """In each of 50 places of all files; by verifying all of them, and most by reading, too."""
    generator = np.random.default_rng(1)
    verify_cache(cache)
    sizes = {file: file.stat().st_size for file in sorted(cache.iterdir())}
    read = 0
    for place in generator.choice(sum(sizes.values()), 50, replace=False):
        file, offset = None, int(place)
        for file, size in sizes.items():  # noqa: B007
            if offset < size:
                break
            offset -= size
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << int(generator.integers(8))
        file.write_bytes(flipped)
        with pytest.raises(InputError):
            verify_cache(cache)
        try:
            read_all(cache)
        except InputError:
            read += 1
        file.write_bytes(whole)
    assert read > 40  # the others are in a shard's own list of ids, which readers do without, or between its arrays
    verify_cache(cache)


def test_a_flipped_bit_of_what_is_read_is_found_by_the_reader(cache):
    """Every byte of a shard's arrays but its list of ids."""
    whole = (cache / SHARD).read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    spans = {name: entry["data_offsets"] for name, entry in json.loads(whole[8:header]).items()}
    for offset in range(*spans.pop("ids")):
        assert whole[header + offset] in b"ab\n"
    for start, end in spans.values():
        for offset in range(header + start, header + end):
            flipped = bytearray(whole)
            flipped[offset] ^= 1 << (offset % 8)
            (cache / SHARD).write_bytes(flipped)
            with pytest.raises(InputError, match=r"image \w is not what was written"):
                read_all(cache)
    assert len(spans) == 8


def test_what_verify_and_info_say_of_a_sound_cache(cache, capsys):
    verify_cache(cache)
    assert "3 images in 2 shards; all as written" in capsys.readouterr().out
    print_info(cache)
    told = json.loads(capsys.readouterr().out)
    assert (told["made"], told["pictures"], told["shards"], told["classes"]) == ("by a test", 3, 2, ["cat", "dog"])
    assert told["bytes"] == sum(f.stat().st_size for f in cache.glob("*.safetensors"))
