"""A cache in the making: who may work on it, what is kept, what is refused."""

import json
import os
import signal
import time

import numpy as np
import pytest

from datamodules.cache import CacheWriter, SeedCache
from datamodules.cache.check import verify_cache
from datamodules.cache.making import Making
from datamodules.cache.shard import ShardBuilder
from datamodules.errors import InputError

BLOCKS = [["a", "b"], ["c", "d"], ["e"]]
PLAN = {"classes": ["cat"], "fg_threshold": 0.2, "packages": {"torch": "2.1"}, "date": "today", "scales": (1.0,)}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A killed process loses nothing that it wrote; waiting for the disk is for a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def shard(names):
    builder = ShardBuilder(1)
    for name in names:
        builder.add(name, np.full((2, 2), ord(name) % 2, np.uint8))
    return builder


def make(path, numbers=None, *, plan=PLAN, left_out=(), **how):
    """Make some shards, or all that are still to be made, and finish; which they were."""
    making = Making(path, plan, BLOCKS)
    todo = making.begin(**how)
    try:
        for number in (todo or []) if numbers is None else numbers:
            block = BLOCKS[number]
            making.write(number, shard([n for n in block if n not in left_out]),
                         {name: "it is broken" for name in block if name in left_out})  # fmt: skip
        if numbers is None and todo is not None:
            making.finish()
    finally:
        making.release()
    return todo


def files(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_cache_made_in_one_go(tmp_path):
    assert make(tmp_path / "c") == [0, 1, 2]
    cache = SeedCache(tmp_path / "c")
    assert cache.ids == tuple("abcde")
    assert cache.manifest["fg_threshold"] == 0.2
    shards = [f"shard-0000{i}.safetensors" for i in range(3)]
    assert sorted(files(tmp_path / "c")) == ["index.safetensors", "manifest.json", *shards]
    verify_cache(tmp_path / "c")
    with CacheWriter(tmp_path / "w", ["cat"], {}, shard_size=2) as writer:
        for name in "abcde":
            writer.add(name, np.full((2, 2), ord(name) % 2, np.uint8))
    same, other = files(tmp_path / "c"), files(tmp_path / "w")
    assert all(same[name] == other[name] for name in other if name != "manifest.json")


def test_finished_shards_are_kept(tmp_path):
    make(tmp_path / "whole")
    make(tmp_path / "c", [0, 2])
    with pytest.raises(InputError, match="not a finished seed cache"):
        SeedCache(tmp_path / "c")
    kept = (tmp_path / "c/shard-00000.safetensors").stat().st_mtime_ns
    assert make(tmp_path / "c", plan=PLAN | {"date": "tomorrow", "command": "another"}) == [1]
    assert (tmp_path / "c/shard-00000.safetensors").stat().st_mtime_ns == kept
    assert files(tmp_path / "c") == files(tmp_path / "whole")  # of the day it was begun, too
    assert make(tmp_path / "c") is None


@pytest.mark.parametrize("spoil", ["shard-00000.safetensors", "shard-00000.json"])
def test_a_shard_that_is_not_what_was_written_is_made_again(tmp_path, spoil):
    make(tmp_path / "whole")
    make(tmp_path / "c", [0, 1])
    content = bytearray((tmp_path / "c" / spoil).read_bytes())
    content[len(content) // 2] ^= 4
    (tmp_path / "c" / spoil).write_bytes(content)
    (tmp_path / "c/.shard-00002.safetensors.1234.part").write_bytes(b"half")
    (tmp_path / "c/stopped").write_text("an old reason")
    assert make(tmp_path / "c") == [0, 2]
    assert files(tmp_path / "c") == files(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"fg_threshold": 0.3}, "fg_threshold 0.2, not 0.3"), ({"new": 1}, "new None, not 1"),
     ({"scales": (1.0, 2.0)}, r"scales \[1.0\], not \[1.0, 2.0\]"),
     ({"packages": {"torch": "2.2"}}, r"packages.torch '2.1', not '2.2'"),
     ({"packages": {}}, r"packages.torch '2.1', not None"),
     ({"packages": None}, r"packages {'torch': '2.1'}, not None")],
)  # fmt: skip
def test_another_plan_is_refused_by_name(tmp_path, change, words):
    make(tmp_path / "c", [0])
    before = files(tmp_path / "c")
    with pytest.raises(InputError, match=f"is being made with {words}"):
        make(tmp_path / "c", plan=PLAN | change)
    assert files(tmp_path / "c") == before
    make(tmp_path / "c")
    before = files(tmp_path / "c")
    with pytest.raises(InputError, match=f"exists already, made with {words}"):
        make(tmp_path / "c", plan=PLAN | change)
    assert files(tmp_path / "c") == before


def test_overwriting(tmp_path):
    make(tmp_path / "c", [0])
    assert make(tmp_path / "c", [1], plan=PLAN | {"fg_threshold": 0.3}, overwrite=True) == [0, 1, 2]
    assert make(tmp_path / "c", plan=PLAN | {"fg_threshold": 0.3}, overwrite=True) == [0, 2]  # its own work is kept
    assert SeedCache(tmp_path / "c").manifest["fg_threshold"] == 0.3
    assert make(tmp_path / "c", plan=PLAN | {"fg_threshold": 0.3}, overwrite=True) == [0, 1, 2]
    verify_cache(tmp_path / "c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    with pytest.raises(InputError, match="file cannot be written: File exists"):
        make(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="not a seed cache"):
        make(tmp_path / "mine", overwrite=True)
    assert files(tmp_path / "mine") == {"letter.txt": b"dear"}


def test_pictures_left_out(tmp_path):
    make(tmp_path / "c", [1], left_out=("d",))
    with pytest.raises(InputError, match="d was left out before: it is broken"):
        make(tmp_path / "c", strict=True)
    make(tmp_path / "c", left_out=("a", "b"))
    cache = SeedCache(tmp_path / "c")
    assert cache.ids == ("c", "e")
    assert cache.left_out == dict.fromkeys("abd", "it is broken")
    verify_cache(tmp_path / "c")
    with pytest.raises(InputError, match="has no image d: it was left out when the cache was made, because it is b"):
        cache.cues("d")
    with pytest.raises(InputError, match="no image could be used; first a: it is broken"):
        make(tmp_path / "none", left_out=tuple("abcde"))


def test_a_shard_that_is_lacking(tmp_path):
    making = Making(tmp_path / "c", PLAN, BLOCKS)
    making.begin()
    making.write(0, shard("ab"), {})
    with pytest.raises(InputError, match="lacks shard 1: a process was stopped; run the same command again"):
        making.finish()
    making.release()
    assert make(tmp_path / "c") == [1, 2]


def test_nothing_finished_leaves_nothing(tmp_path):
    make(tmp_path / "c", [])
    assert list(tmp_path.iterdir()) == []


def child(work):
    """Run something in a forked process; its id."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_two_at_once(tmp_path):
    def hold():
        making = Making(tmp_path / "c", PLAN, BLOCKS)
        making.begin()
        (tmp_path / "ready").touch()
        time.sleep(60)

    pid = child(hold)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    for overwrite in (False, True):
        with pytest.raises(InputError, match="c is being made by another process; wait for it, or stop it"):
            make(tmp_path / "c", overwrite=overwrite)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert make(tmp_path / "c") == [0, 1, 2]  # the lock died with its holder


def test_a_killed_holder_whose_worker_lives_on(tmp_path):
    """The lock is the holder's alone: a process forked from it, as data-loading workers are, does not keep it."""

    def hold():
        making = Making(tmp_path / "c", PLAN, BLOCKS)
        making.begin()
        (tmp_path / "worker").write_text(str(child(lambda: time.sleep(60))))
        (tmp_path / "ready").touch()
        time.sleep(60)

    pid = child(hold)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        assert make(tmp_path / "c") == [0, 1, 2]
    finally:
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_killed_at_any_moment(tmp_path):
    """Forty times, seeded; each time the next goes on where it was, and the end is that of an undisturbed run."""
    make(tmp_path / "whole")
    whole, generator, finished, kept = files(tmp_path / "whole"), np.random.default_rng(0), 0, 0
    for delay in generator.uniform(0, 0.02, 40):
        pid = child(lambda: make(tmp_path / "c"))
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kept += len(list((tmp_path / "c").glob("shard-*.json"))) if (tmp_path / "c").exists() else 0
        if (tmp_path / "c/manifest.json").is_file():
            finished += 1
            assert make(tmp_path / "c") is None
            assert files(tmp_path / "c") == whole
            assert make(tmp_path / "c", overwrite=True) == [0, 1, 2]
            for file in (tmp_path / "c").iterdir():
                file.unlink()
    make(tmp_path / "c")
    assert files(tmp_path / "c") == whole
    assert finished + kept > 0


def test_an_overwriting_that_is_killed(tmp_path):
    """At every file operation: the folder is at each moment the old cache, or of the new plan."""
    new = PLAN | {"fg_threshold": 0.3}
    make(tmp_path / "whole", plan=new)
    for step in range(12):
        make(tmp_path / f"c{step}")

        def die_at(step=step):
            count = 0

            def counted(real):
                def call(*args, **kwargs):
                    nonlocal count
                    if count == step:
                        os._exit(1)
                    count += 1
                    return real(*args, **kwargs)

                return call

            os.replace, os.unlink = counted(os.replace), counted(os.unlink)
            make(tmp_path / f"c{step}", plan=new, overwrite=True)

        os.waitpid(child(die_at), 0)
        make(tmp_path / f"c{step}", plan=new, overwrite=True)
        assert files(tmp_path / f"c{step}") == files(tmp_path / "whole")


def test_the_plan_is_plain_json(tmp_path):
    make(tmp_path / "c", [0])
    plan = json.loads((tmp_path / "c/plan.json").read_text())
    assert plan["scales"] == [1.0]
    assert plan["format"] == "tag2mask-seeds-plan"
