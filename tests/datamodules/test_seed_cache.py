import pickle
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from datamodules.errors import InputError
from datamodules.image_ids import is_valid_id
from datamodules.seed_cache import cache as module
from datamodules.seed_cache.cache import SeedCache, cache_fingerprint
from datamodules.seed_cache.index import list_shards, missing_ranges
from datamodules.seed_cache.shard import as_stored, shard_name
from tests.seed_caches import CacheWriter

CLASSES = ("cat", "dog", "person")


def image(seed: int, shape=None):
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
            entry = image(i)
            cache.add(f"id{i}", **{part: value for part, value in entry.items() if value is not None})
    return SeedCache(path)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 9), st.integers(1, 5))
def test_what_is_read_is_what_was_written(tmp_path_factory, count, shard_size):
    path = tmp_path_factory.mktemp("cache") / "deep" / "cache"
    cache = write(path, count, shard_size=shard_size)
    assert cache.ids == tuple(f"id{i}" for i in range(count))
    assert len(cache) == count
    assert cache.classes == CLASSES
    assert cache.settings["made"] == "by a test"
    assert cache.num_shards == len(list(path.glob("shard-*"))) == max(1, -(-count // shard_size))
    for i in reversed(range(count)):
        entry = image(i)
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
    tiny = np.array([[[1e-20, 0], [3e-21, 5e-21]]], np.float32)
    np.testing.assert_allclose(as_stored(tiny), tiny, rtol=1e-3)


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
        loader = DataLoader(Cues(cache), batch_size=None, num_workers=1, multiprocessing_context=context)
        assert list(loader) == sums
    again = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(again.cues("id3"), cache.cues("id3"))


def shards(path):
    return {file.name: file.read_bytes() for file in path.glob("shard-*")}


def test_files_are_the_same_for_the_same_images(tmp_path):
    write(tmp_path / "a", 5)
    write(tmp_path / "b", 5)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


@pytest.mark.parametrize(
    ("entry", "words"),
    [({"cues": np.zeros((2, 2), np.int64)}, "not a label map"),
     ({"cues": np.full((2, 2), 4, np.uint8)}, "not a label map"),
     ({"cues": np.zeros(4, np.uint8)}, "not a label map"),
     ({"maps": np.full((1, 2, 2), np.nan, np.float32), "map_classes": np.array([0])}, "not all finite"),
     ({"saliency": np.full((2, 2), np.inf, np.float32)}, "not all finite"),
     ({"maps": -np.ones((1, 2, 2), np.float32), "map_classes": np.array([0])}, "not all finite, or a map is negative"),
     ({"maps": np.ones((1, 2, 2), np.float32), "map_classes": np.array([3])}, "maps"),
     ({"maps": np.ones((1, 2, 2), np.float32), "map_classes": np.array([0, 1])}, "maps"),
     ({"maps": np.ones((1, 0, 2), np.float32), "map_classes": np.array([0])}, "maps"),
     ({"saliency": np.ones(4, np.float32)}, r"saliency \(4,\)")],
)  # fmt: skip
def test_entries_that_are_refused(tmp_path, entry, words):
    with pytest.raises(InputError, match=words), CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        cache.add("a", **({"cues": np.zeros((2, 2), np.uint8)} | entry))


def test_an_image_twice(tmp_path):
    for names in ("aa", "aba"):
        with CacheWriter(tmp_path / names, CLASSES, {}, shard_size=1) as cache:
            for name in names:
                cache.add(name, np.zeros((2, 2), np.uint8))
        with pytest.raises(InputError, match="image a occurs twice"):
            SeedCache(tmp_path / names)
    with CacheWriter(tmp_path / "one shard", CLASSES, {}) as cache:
        cache.add("a", np.zeros((2, 2), np.uint8))
        with pytest.raises(InputError, match="image a occurs twice"):
            cache.add("a", np.zeros((2, 2), np.uint8))


@settings(max_examples=20, deadline=None)
@given(st.sets(st.text("abcé/._:", min_size=1, max_size=4).filter(is_valid_id), max_size=40))
def test_each_id_is_found_and_nothing_else(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("ids") / "cache"
    with CacheWriter(path, CLASSES, {}, shard_size=7) as writer:
        for number, name in enumerate(sorted(names)):
            writer.add(name, np.full((1, 1 + number), number % 4, np.uint8))
    cache = SeedCache(path)
    assert cache.ids == tuple(sorted(names))
    for number, name in enumerate(sorted(names)):
        assert cache.cues(name).tolist() == [[number % 4] * (1 + number)]
    assert not [name for name in ("ab", "a", "", "\ud800", "abcab", *(f"{n}c" for n in names))
                if (name in cache) != (name in names)]  # fmt: skip


def test_a_missing_shard(tmp_path):
    write(tmp_path / "c", 5, shard_size=2, left_out={"torn": "it is torn"}, inputs={"data": {"root": "x"}})
    assert SeedCache(tmp_path / "c").inputs == {"data": {"root": "x"}}
    assert SeedCache(tmp_path / "c").left_out == {"torn": "it is torn"}
    (tmp_path / "c" / shard_name(1)).unlink()
    with pytest.raises(InputError, match=r"lacks 1 of 3 shards: 1; run the command"):
        SeedCache(tmp_path / "c")


def test_shards_may_have_any_names(tmp_path):
    """Their headers number them, and files of other kinds are no shards."""
    cache = write(tmp_path / "c", 5, shard_size=2)
    ids, fingerprint = cache.ids, cache.fingerprint
    for number, name in enumerate(("z", "train-0007", "a b")):
        (tmp_path / "c" / shard_name(number)).rename(tmp_path / "c" / f"{name}.safetensors")
    for name in (".hidden.safetensors", "metrics.json", ".z.safetensors.12.part"):
        (tmp_path / "c" / name).write_bytes(b"no shard")
    assert list_shards(tmp_path / "c") == ["a b.safetensors", "train-0007.safetensors", "z.safetensors"]
    named = SeedCache(tmp_path / "c")
    assert (named.ids, named.fingerprint) == (ids, fingerprint)
    assert [named.shard(number).path.stem for number in range(3)] == ["z", "train-0007", "a b"]
    np.testing.assert_array_equal(named.cues("id3"), image(3)["cues"])


@pytest.mark.parametrize(
    ("numbers", "text"), [((), "0-4"), ((0, 1, 2, 3, 4), ""), ((4, 0, 2), "1, 3"), ((3,), "0-2, 4"), ((0,), "1-4")]
)
def test_missing_ranges(numbers, text):
    assert missing_ranges(numbers, 5) == text


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", ".", "", "a\nb", "a\x00", "..\\a", "a/", "\ud800"])
def test_invalid_ids(tmp_path, name):
    with pytest.raises(InputError, match=r"valid id|name"), CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        cache.add(name, np.zeros((2, 2), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_names_with_folders_and_letters_of_all_kinds(tmp_path):
    names = ["a/b", "a/..b", "Käse", "…", "2007_000032", "a b"]
    with CacheWriter(tmp_path / "c", CLASSES, {}) as cache:
        for value, name in enumerate(names):
            cache.add(name, np.full((1, 1), value % 4, np.uint8))
    read = SeedCache(tmp_path / "c")
    assert read.ids == tuple(names)
    assert [int(read.cues(name)[0, 0]) for name in names] == [0, 1, 2, 3, 0, 1]


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    cache = write(tmp_path / "c", 8, shard_size=1)
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    for i in (*range(8), *reversed(range(8))):
        np.testing.assert_array_equal(cache.cues(f"id{i}"), image(i)["cues"])
        assert cache._open.cache_info().currsize <= 2
    if before:
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2


def test_a_shard_replaced_while_the_cache_is_open(tmp_path):
    cache = write(tmp_path / "c", 2)
    with CacheWriter(tmp_path / "other", CLASSES, {}) as writer:
        writer.add("id0", np.zeros((2, 2), np.uint8))
    (tmp_path / "other" / shard_name(0)).replace(tmp_path / "c" / shard_name(0))
    with pytest.raises(InputError, match="has been replaced since the seed cache was opened"):
        cache.cues("id0")


def test_shards_of_different_settings(tmp_path):
    for name, value in (("a", 1), ("b", 2)):
        with CacheWriter(tmp_path / name, CLASSES, {"threshold": value}, shard_size=1) as writer:
            writer.add("x", np.zeros((1, 1), np.uint8))
            writer.add("y", np.zeros((1, 1), np.uint8))
    (tmp_path / "b" / shard_name(1)).replace(tmp_path / "a" / shard_name(1))
    with pytest.raises(InputError, match=r"different settings: threshold is 1 in shard-00000.*2 in shard-00001"):
        SeedCache(tmp_path / "a")


def test_the_fingerprint(tmp_path):
    """It depends on the result and not on where the inputs were or when the cache was made."""

    def cache(name, value, inputs="x.ckpt", **settings):
        with CacheWriter(tmp_path / name, ("a",), settings, inputs={"checkpoint": inputs}) as writer:
            writer.add("p", np.full((2, 2), value, np.uint8))
        return cache_fingerprint(tmp_path / name)

    first = cache("first", 0)
    time.sleep(0.01)
    assert cache("later", 0, inputs="y.ckpt") == first == SeedCache(tmp_path / "later").fingerprint
    assert cache("cues", 1) != first
    assert cache("settings", 0, fg_threshold=0.3) != first
    (tmp_path / "later" / shard_name(0)).write_bytes(b"damaged")
    assert cache_fingerprint(tmp_path / "later") is None
    (tmp_path / "empty").mkdir()
    assert cache_fingerprint(tmp_path / "empty") is None
    assert cache_fingerprint(tmp_path / "nowhere") is None


def test_an_image_that_is_not_there(tmp_path):
    cache = write(tmp_path / "c", 1)
    assert "id0" in cache
    assert "other" not in cache
    with pytest.raises(InputError, match="has no image other"):
        cache.cues("other")
    with pytest.raises(InputError, match="nowhere is not a seed cache: No such file"):
        SeedCache(tmp_path / "nowhere")
