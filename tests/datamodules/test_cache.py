import errno
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules import cache as module
from datamodules.cache import CacheWriter, SeedCache, as_stored
from datamodules.errors import InputError

CLASSES = ("cat", "dog", "person")
SHARD = "shard-00000.safetensors"


def picture(seed: int, shape=None):
    generator = np.random.default_rng(seed)
    h, w = shape or generator.integers(1, 7, 2)
    k = int(generator.integers(0, 4))
    return {
        "cues": generator.choice([0, 1, 2, 3, 255], (h, w)).astype(np.uint8),
        "map_classes": np.sort(generator.choice(3, k, replace=False)),
        "maps": (generator.random((k, h, w)) * 10.0 ** generator.integers(-6, 6)).astype(np.float32),
        "saliency": generator.random((h, w)).astype(np.float32) if seed % 2 else None,
    }


def write(path, count, **settings):
    with CacheWriter(path, CLASSES, {"made": "by a test"}, **settings) as cache:
        for i in range(count):
            entry = picture(i)
            cache.add(f"id{i}", entry.pop("cues"), **entry)
    return SeedCache(path)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9), st.integers(1, 5))
def test_what_is_read_is_what_was_written(tmp_path_factory, count, shard_size):
    path = tmp_path_factory.mktemp("cache") / "deep" / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_SIZE", shard_size)
        cache = write(path, count)
    assert cache.ids == tuple(f"id{i}" for i in range(count))
    assert len(cache) == count
    assert cache.classes == CLASSES
    assert cache.manifest["made"] == "by a test"
    assert len(list(path.glob("shard-*"))) == -(-count // shard_size)
    for i in reversed(range(count)):
        entry = picture(i)
        np.testing.assert_array_equal(cache.cues(f"id{i}"), entry["cues"])
        classes, maps = cache.maps(f"id{i}")
        np.testing.assert_array_equal(classes, entry["map_classes"])
        np.testing.assert_array_equal(maps, as_stored(entry["maps"]))
        np.testing.assert_allclose(maps, entry["maps"], atol=6e-4 * entry["maps"].max(initial=0))
        saliency = cache.saliency(f"id{i}")
        if entry["saliency"] is None:
            assert saliency is None
        else:
            np.testing.assert_allclose(saliency, entry["saliency"], atol=6e-4)


def test_a_map_of_nothing_stays_zero():
    assert not as_stored(np.zeros((1, 2, 2), np.float32)).any()


def test_label_maps_alone(tmp_path):
    with CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        cache.add("a", np.full((2, 3), 255, np.uint8))
    read = SeedCache(tmp_path / "c")
    assert (read.cues("a") == 255).all()
    classes, maps = read.maps("a")
    assert classes.shape == (0,)
    assert maps.shape == (0, 2, 3)
    assert read.saliency("a") is None


class Cues:
    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __getitem__(self, i):
        return int(self.cache.cues(self.cache.ids[i]).astype(int).sum())


def test_in_workers_and_through_pickle(tmp_path):
    cache = write(tmp_path / "c", 6)
    sums = [int(cache.cues(f"id{i}").astype(int).sum()) for i in range(6)]  # opens the shard before the fork
    for context in ("fork", "spawn"):
        loader = DataLoader(Cues(cache), batch_size=None, num_workers=2, multiprocessing_context=context)
        assert list(loader) == sums
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.cues("id3"), cache.cues("id3"))


def test_files_are_the_same_for_the_same_pictures(tmp_path):
    write(tmp_path / "a", 5)
    write(tmp_path / "b", 5)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
def test_an_error_leaves_nothing(tmp_path, error, monkeypatch):
    monkeypatch.setattr(module, "SHARD_SIZE", 1)
    writer = CacheWriter(tmp_path / "c", CLASSES, {})

    def fail():
        with writer:
            writer.add("a", np.zeros((2, 2), np.uint8))
            raise error

    with pytest.raises(type(error)):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    write(tmp_path / "c", 2)

    def full(_self, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        write(tmp_path / "c", 3, overwrite=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert len(SeedCache(tmp_path / "c")) == 2


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        write(tmp_path / "c", 1)


def test_overwriting(tmp_path):
    write(tmp_path / "c", 2)
    with pytest.raises(InputError, match="exists already; ask for it to be overwritten"):
        write(tmp_path / "c", 3)
    assert len(write(tmp_path / "c", 3, overwrite=True)) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not a seed cache"):
        write(tmp_path / "mine", 1, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "mine"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"cues": np.zeros((2, 2), np.int64)}, "no label map"), ({"cues": np.full((2, 2), 4, np.uint8)}, "no label map"),
     ({"cues": np.zeros(4, np.uint8)}, "no label map"),
     ({"maps": np.full((1, 2, 2), np.nan, np.float32), "map_classes": np.array([0])}, "not all finite"),
     ({"saliency": np.full((2, 2), np.inf, np.float32)}, "not all finite"),
     ({"maps": -np.ones((1, 2, 2), np.float32), "map_classes": np.array([0])}, "not all finite and positive"),
     ({"maps": np.ones((1, 2, 2), np.float32), "map_classes": np.array([3])}, "maps"),
     ({"maps": np.ones((1, 2, 2), np.float32), "map_classes": np.array([0, 1])}, "maps")],
)  # fmt: skip
def test_entries_that_are_refused(tmp_path, entry, words):
    with pytest.raises(InputError, match=words), CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        cache.add("a", **({"cues": np.zeros((2, 2), np.uint8)} | entry))
    assert list(tmp_path.iterdir()) == []


def test_a_picture_twice(tmp_path):
    with CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        cache.add("a", np.zeros((2, 2), np.uint8))
        with pytest.raises(InputError, match="picture a comes twice"):
            cache.add("a", np.zeros((2, 2), np.uint8))


def change(path, **values):
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | values))


def shard(**values):
    return lambda path: change(path, shards=[json.loads((path / "manifest.json").read_text())["shards"][0] | values])


@pytest.mark.parametrize(
    ("damage", "words"),
    [(lambda path: (path / "manifest.json").unlink(), "not a finished seed cache"),
     (lambda path: (path / "manifest.json").write_text("{"), "manifest.json is damaged"),
     (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is damaged"),
     (lambda path: change(path, version=2), "version 2; this program reads 1"),
     (lambda path: change(path, format="other"), "not the manifest of a seed cache"),
     (shard(file="../../secret"), "names a shard outside its folder"),
     (lambda path: (path / SHARD).unlink(), "missing or cut short"),
     (lambda path: (path / SHARD).write_bytes((path / SHARD).read_bytes()[:-1]), "missing or cut short"),
     (lambda path: (path / SHARD).write_bytes(b"\xff" * (path / SHARD).stat().st_size), "is damaged"),
     (shard(ids=["id0", "id1"]), "does not hold the 2 pictures")],
)  # fmt: skip
def test_damaged_caches(tmp_path, damage, words):
    write(tmp_path / "c", 3)
    damage(tmp_path / "c")
    with pytest.raises(InputError, match=words):
        SeedCache(tmp_path / "c").cues("id1")


def test_a_picture_that_is_not_there(tmp_path):
    cache = write(tmp_path / "c", 1)
    assert "id0" in cache
    assert "other" not in cache
    with pytest.raises(InputError, match="has no picture other"):
        cache.cues("other")
    with pytest.raises(InputError, match="nowhere is not a finished seed cache"):
        SeedCache(tmp_path / "nowhere")
