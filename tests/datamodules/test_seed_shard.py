"""Caches that are damaged, or made to do harm: one sentence, and nothing is read beyond what is there."""

import json
import resource
import struct

import numpy as np
import pytest
import safetensors.numpy

from datamodules.errors import InputError
from datamodules.seed_cache import shard as seed_shard
from datamodules.seed_cache.cache import SeedCache, print_info, verify_cache
from datamodules.seed_cache.shard import VERSION, Shard, plain_json, shard_name
from tests.seed_caches import CacheWriter

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


def tensors(path):
    return safetensors.numpy.load((path / SHARD).read_bytes())


def header(path):
    content = (path / SHARD).read_bytes()
    return json.loads(json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]["seeds"])


def signed(path, tensors, content):
    """Write a shard of other contents whose checksum is right."""
    content["checksum"] = seed_shard._checksums(content)[1]
    (path / SHARD).write_bytes(safetensors.numpy.save(tensors, {"seeds": plain_json(content)}))


def with_header(**values):
    return lambda path: signed(path, tensors(path), header(path) | values)


def with_tensors(change):
    return lambda path: signed(path, change(tensors(path)), header(path))


def with_image(**values):
    """Other metadata and tensors of the first image; its CRC is right."""

    def change(path):
        content, arrays = header(path), tensors(path)
        image = content["images"][0]
        for key, value in values.items():
            if key in ("cues", "maps", "saliency"):
                arrays[f"a:{key}"] = value(arrays[f"a:{key}"])
                image["crc"][key] = seed_shard._crc("a", key, arrays[f"a:{key}"])
            else:
                image[key] = value
        signed(path, arrays, content)

    return change


def with_metadata(text):
    return lambda path: (path / SHARD).write_bytes(safetensors.numpy.save(tensors(path), {"seeds": text}))


def declared(shape, size=None):
    """A safetensors header that declares a tensor, and after it nothing, or a sparse file of that size."""

    def damage(path):
        span = int(np.prod(shape)) if size is None else size
        text = {"__metadata__": {"seeds": plain_json(header(path))}}
        content = json.dumps(text | {"cues": {"dtype": "U8", "shape": shape, "data_offsets": [0, span]}}).encode()
        with (path / SHARD).open("wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            if size is not None:
                file.truncate(8 + len(content) + size)

    return damage


def ten_gigabytes(path):
    """A file that is mostly a hole: none of it is on the disk."""
    with (path / SHARD).open("r+b") as content:
        content.truncate(10_000_000_000)


def long_header(path):
    """A header that claims to be 10 GB long, in a file as large."""
    ten_gigabytes(path)
    with (path / SHARD).open("r+b") as content:
        content.write((9_999_000_000).to_bytes(8, "little"))


DAMAGES = {
    "no shard": (lambda p: (p / SHARD).unlink(), "lacks 1 of 2 shards: 0; run the command"),
    "no shards": (lambda p: [f.unlink() for f in p.iterdir()], "is not a seed cache: it contains no shards"),
    "long": (with_metadata("[" + "[]," * 12_000_000 + "[]]"), "has no header of a shard"),
    "half a header": (with_metadata("{"), "shard-00000.safetensors is damaged"),
    "a list": (with_metadata("[]"), "shard-00000.safetensors is damaged"),
    "nested": (with_metadata("[" * 100_000), "shard-00000.safetensors is damaged"),
    "no header": (lambda p: (p / SHARD).write_bytes(safetensors.numpy.save(tensors(p))), "has no header of a shard"),
    "newer": (with_header(version=VERSION + 1), f"version {VERSION + 1}, newer than {VERSION}"),
    "older": (with_header(version=1), f"version 1, older than {VERSION}"),
    "other format": (with_header(format="other"), "not what was written"),
    "edited": (lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes().replace(b"cat", b"cow")), "not what was"),
    "other spaces": (lambda p: with_metadata(json.dumps(header(p)))(p), "not what was written"),
    "another number": (with_header(shard=1), "contains shard 1 twice: shard-00000.* and shard-00001"),
    "number too large": (with_header(shard=2), "contradicts itself"),
    "endless cache": (with_header(shards=1 << 60), "shards is"),
    "no number": (with_header(shard="many"), "its header is incomplete"),
    "settings of a list": (with_header(settings=[1]), "its header is incomplete"),
    "truncated": (lambda p: (p / SHARD).write_bytes((p / SHARD).read_bytes()[:-1]), "is damaged"),
    "empty": (lambda p: (p / SHARD).write_bytes(b""), "is damaged"),
    "noise": (lambda p: (p / SHARD).write_bytes(b"\xff" * (p / SHARD).stat().st_size), "is damaged"),
    "swapped": (with_header(ids=["b", "a"]), "image b is not what was written"),
    "renamed": (with_header(ids=["x", "y"]), "contradicts itself"),
    "exchanged": (with_tensors(lambda t: t | {"a:cues": t["b:cues"], "b:cues": t["a:cues"]}), "image a is not what"),
    "other sides": (with_tensors(lambda t: t | {"a:cues": t["a:cues"].reshape(4, 3)}), "image a is not what was"),
    "other type": (with_image(cues=lambda v: v.astype(np.int8)), "image a is not what was written"),
    "type of torch": (with_image(maps=lambda v: v.view(np.uint16)), "image a is not what was written"),
    "flat": (with_image(cues=lambda v: v.ravel()), "image a is not what was written"),
    "no such class": (with_image(cues=lambda v: v * 0 + 3), "image a is not what was written"),
    "a tensor less": (with_tensors(lambda t: {k: v for k, v in t.items() if k != "a:maps"}), "contradicts itself"),
    "a tensor more": (with_tensors(lambda t: t | {"x": t["a:cues"]}), "contradicts itself"),
    "more ids": (with_header(ids=["a", "b", "x"]), "its header is incomplete"),
    "no images": (with_header(images=None), "its header is incomplete"),
    "no checks": (with_image(crc={}), "contradicts itself"),
    "checks of no number": (with_image(crc={"cues": "x", "maps": [], "saliency": None}), "image a is not what was"),
    "wrong class": (with_image(classes=[0, 2]), "image a is not what was written"),
    "no class": (with_image(classes=["cat", "dog"]), "is damaged"),
    "one class": (with_image(classes=[0]), "image a is not what was written"),
    "one maximum": (with_image(maxima=[1.0]), "image a is not what was written"),
    "no maximum": (with_image(saliency_maximum="high"), "is damaged"),
    "traversal": (with_header(ids=["a", "../../etc/passwd"]), "contradicts itself|is not a valid id of an image"),
    "two ids in one": (with_header(ids=["a\nx", "b"]), "contradicts itself|is not a valid id"),
    "surrogate": (with_header(ids=["a", "\ud800"]), "contradicts itself|incomplete"),
    "twice": (with_header(ids=["a", "a"]), "contradicts itself"),
    "10 GB": (ten_gigabytes, "is damaged"),
    "10 GB of header": (long_header, "has no header of a shard"),
    "absurd shape": (declared([1 << 40, 1 << 40], 16), "is damaged"),
    "10 GB, not there": (declared([10_000_000_000]), "is damaged"),
    "10 GB of nothing": (declared([10_000_000_000], 10_000_000_000), "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_reported_in_one_sentence(cache, kind):
    damage, words = DAMAGES[kind]
    damage(cache)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in cache.glob("shard-*"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=words) as caught:
        verify_cache(cache)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError):
        read_all(cache)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 1 << 17  # kB: no 10 GB
    assert sorted((file.name, file.stat().st_mtime_ns) for file in cache.glob("shard-*")) == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\nx"])
def test_ids_that_leave_the_folder_are_refused(cache, name):
    content, arrays = header(cache), tensors(cache)
    arrays = {key.replace("b:", f"{name}:"): value for key, value in arrays.items()}
    signed(cache, arrays, content | {"ids": ["a", name]})
    with pytest.raises(InputError, match=r"is refused: .* is not a valid id of an image"):
        SeedCache(cache)


def test_a_flipped_bit_of_a_shard_is_found_and_the_shard_named(cache):
    """In each byte of a shard: by verifying it, and by reading its images."""
    whole = (cache / SHARD).read_bytes()
    for offset in range(len(whole)):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << (offset % 8)
        (cache / SHARD).write_bytes(flipped)
        with pytest.raises(InputError, match=SHARD):
            Shard(cache / SHARD).verify()
        if offset % 10 == 0:
            with pytest.raises(InputError, match=SHARD):
                verify_cache(cache)
            with pytest.raises(InputError, match=SHARD):
                read_all(cache)


def test_every_damaged_shard_is_named(cache):
    for shard in cache.glob("shard-*"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    with pytest.raises(InputError, match=r"2 of 2 shards are damaged: .*shard-00000\.s.*; .*shard-00001\.s"):
        verify_cache(cache)


def test_what_verify_and_info_print_of_a_sound_cache(cache, capsys):
    verify_cache(cache)
    assert "3 images in 2 shards; every byte is sound" in capsys.readouterr().out
    print_info(cache)
    info = json.loads(capsys.readouterr().out)
    assert (info["settings"], info["images"], info["shards"], info["classes"]) == (
        {"made": "by a test"}, 3, 2, ["cat", "dog"],
    )  # fmt: skip
    assert info["bytes"] == sum(f.stat().st_size for f in cache.glob("shard-*"))
    assert info["left_out"] == {}


def test_a_changed_input_in_a_header_is_found(tmp_path):
    with CacheWriter(tmp_path / "c", ["cat"], {}, inputs={"data": "here"}) as writer:
        writer.add("a", np.zeros((2, 2), np.uint8))
    path = tmp_path / "c" / shard_name(0)
    path.write_bytes(path.read_bytes().replace(b"here", b"hero"))
    with pytest.raises(InputError, match="its header is not what was written"):
        Shard(path)
