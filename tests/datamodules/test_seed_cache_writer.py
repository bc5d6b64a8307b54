"""Writing a cache shard by shard: what is kept, what is written again, what is refused; killed, and several at once."""

import os
import time

import numpy as np
import pytest
from upath import UPath

from datamodules.errors import InputError
from datamodules.seed_cache.cache import SeedCache, verify_cache
from datamodules.seed_cache.shard import ShardBuilder, shard_name
from datamodules.seed_cache.writer import STALE, SeedCacheWriter
from tests.processes import child, kill
from tests.seed_caches import CacheWriter

BLOCKS = [["a", "b"], ["c", "d"], ["e"]]
SETTINGS = {
    "fg_threshold": 0.2, "packages": {"torch": "2.1"}, "source": {"seeds": "0123"}, "scales": (1.0,), "extra": None
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """A killed process loses nothing that it wrote; waiting for the disk is for a loss of power."""
    monkeypatch.setattr(os, "fsync", lambda _handle: None)


def make(
    path, numbers=None, *, settings=SETTINGS, classes=("cat",), blocks=BLOCKS, inputs=None, left_out=(), known=(), **how
):
    """Write the missing ones of some shards, or of all; return which they were."""
    output = SeedCacheWriter(path, classes, settings, blocks, inputs or {}, dict.fromkeys(known, "it is broken"))
    missing = output.missing(range(len(blocks)) if numbers is None else numbers, **how)
    for number in missing:
        shard = ShardBuilder(classes)
        for name in blocks[number]:
            if name not in left_out:
                shard.add(name, np.full((2, 2), ord(name) % 2, np.uint8))
        output.write(number, shard, {name: "it is broken" for name in blocks[number] if name in left_out})
    return missing


def shards(path):
    return {file.name: file.read_bytes() for file in path.glob("shard-*")} if path.exists() else {}


def test_a_cache_written_in_one_go(tmp_path):
    assert make(tmp_path / "c") == [0, 1, 2]
    cache = SeedCache(tmp_path / "c")
    assert cache.ids == tuple("abcde")
    assert cache.settings["fg_threshold"] == 0.2
    assert cache.settings["scales"] == [1.0]
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [shard_name(i) for i in range(3)]
    verify_cache(tmp_path / "c")
    with CacheWriter(tmp_path / "w", ["cat"], SETTINGS, shard_size=2) as writer:
        for name in "abcde":
            writer.add(name, np.full((2, 2), ord(name) % 2, np.uint8))
    assert shards(tmp_path / "c") == shards(tmp_path / "w")


def test_finished_shards_are_kept(tmp_path):
    make(tmp_path / "whole")
    make(tmp_path / "c", [0, 2])
    with pytest.raises(InputError, match=r"lacks 1 of 3 shards: 1; run"):
        SeedCache(tmp_path / "c")
    kept = (tmp_path / "c" / shard_name(0)).stat().st_mtime_ns
    for overwrite in (False, True):
        assert make(tmp_path / "c", overwrite=overwrite) == ([] if overwrite else [1])
        assert (tmp_path / "c" / shard_name(0)).stat().st_mtime_ns == kept
        assert shards(tmp_path / "c") == shards(tmp_path / "whole")


def test_where_the_inputs_are_does_not_count(tmp_path):
    make(tmp_path / "c", [0], inputs={"checkpoint": "here"})
    assert make(tmp_path / "c", inputs={"checkpoint": "there"}) == [1, 2]
    assert SeedCache(tmp_path / "c").inputs == {"checkpoint": "here"}


def test_a_damaged_shard_is_written_again(tmp_path):
    """Wherever it is damaged."""
    make(tmp_path / "whole")
    make(tmp_path / "c")
    content = (tmp_path / "c" / shard_name(1)).read_bytes()
    for offset in (0, 20, len(content) // 2, len(content) - 1):
        damaged = bytearray(content)
        damaged[offset] ^= 4
        (tmp_path / "c" / shard_name(1)).write_bytes(damaged)
        assert make(tmp_path / "c") == [1]
        assert shards(tmp_path / "c") == shards(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"fg_threshold": 0.3}, "fg_threshold 0.2, not 0.3"), ({"new": 1}, "new None, not 1"),
     ({"scales": (1.0, 2.0)}, r"scales \[1.0\], not \[1.0, 2.0\]"),
     ({"packages": {"torch": "2.2"}}, r"packages.torch '2.1', not '2.2'"),
     ({"packages": {}}, r"packages.torch '2.1', not None"),
     ({"source": {"seeds": "4567"}}, "another revision of the code in seeds/; overwrite it"),
     ({"packages": None}, r"packages {'torch': '2.1'}, not None")],
)  # fmt: skip
def test_other_settings_are_refused_by_name(tmp_path, change, words):
    for numbers in ([1], None):
        make(tmp_path / "c", numbers)
        before = shards(tmp_path / "c")
        with pytest.raises(InputError, match=f"exists already, made with {words}") as caught:
            make(tmp_path / "c", settings=SETTINGS | change)
        assert len(str(caught.value).splitlines()) == 1
        assert shards(tmp_path / "c") == before


def test_other_classes_or_more_shards_are_refused(tmp_path):
    make(tmp_path / "c")
    with pytest.raises(InputError, match=r"made with classes \['cat'\], not \['dog'\]"):
        make(tmp_path / "c", classes=("dog",))
    with pytest.raises(InputError, match="made with shards 3, not 2"):
        make(tmp_path / "c", blocks=BLOCKS[:2])
    (tmp_path / "c" / shard_name(0)).unlink()
    (tmp_path / "c" / shard_name(1)).unlink()
    with pytest.raises(InputError, match="made with shards 3, not 2"):  # the one beyond the last
        make(tmp_path / "c", blocks=BLOCKS[:2])
    assert make(tmp_path / "c", blocks=BLOCKS[:2], overwrite=True) == [0, 1]
    assert SeedCache(tmp_path / "c").ids == tuple("abcd")


def test_partitions_of_different_lists_or_settings_are_refused(tmp_path):
    """Though neither would write the shards of the other."""
    make(tmp_path / "c", [0])
    for change in ({"settings": SETTINGS | {"fg_threshold": 0.3}}, {"blocks": [*BLOCKS, ["f"]]}):
        with pytest.raises(InputError, match=r"c exists already, made with (fg_threshold|shards) "):
            make(tmp_path / "c", [1], **change)
    assert make(tmp_path / "c", [1], settings=SETTINGS | {"fg_threshold": 0.3}, overwrite=True) == [1]
    assert sorted(shards(tmp_path / "c")) == [shard_name(0), shard_name(1)]


def test_names_of_shards(tmp_path):
    """A cache with other names than the default; a shard of a third name does not count."""
    blocks, names = [["a"], ["b"]], ["t-1.safetensors", "t-0.safetensors"]
    output = SeedCacheWriter(tmp_path / "c", ("cat",), SETTINGS, blocks, names=names)
    assert output.missing(range(2)) == [0, 1]
    for number, name in enumerate("ab"):
        shard = ShardBuilder(("cat",))
        shard.add(name, np.zeros((2, 2), np.uint8))
        output.write(number, shard, {})
    assert SeedCache(tmp_path / "c").ids == ("a", "b")
    assert output.missing(range(2)) == []
    (tmp_path / "c/t-0.safetensors").rename(tmp_path / "c/t-2.safetensors")
    assert output.missing(range(2)) == [1]
    (tmp_path / "c/t-2.safetensors").write_bytes(b"weights of a network")
    with pytest.raises(InputError, match=r"t-2\.safetensors is damaged: .*, or is not part of a seed cache: remove it"):
        output.missing(range(2))


def test_overwriting(tmp_path):
    other = SETTINGS | {"fg_threshold": 0.3}
    make(tmp_path / "c", [0])
    assert make(tmp_path / "c", [0, 1], settings=other, overwrite=True) == [0, 1]
    assert make(tmp_path / "c", settings=other, overwrite=True) == [2]  # its own work is kept
    assert SeedCache(tmp_path / "c").settings["fg_threshold"] == 0.3
    verify_cache(tmp_path / "c")


def test_metrics_of_the_cache(tmp_path):
    """An evaluation in the folder does not hinder the same command, and is removed together with its shards."""
    make(tmp_path / "c")
    (tmp_path / "c" / "metrics.json").write_text("{}")
    assert make(tmp_path / "c") == []
    assert (tmp_path / "c" / "metrics.json").exists()
    make(tmp_path / "c", settings={**SETTINGS, "fg_threshold": 0.3}, overwrite=True)
    assert not (tmp_path / "c" / "metrics.json").exists()


def test_foreign_files(tmp_path):
    make(tmp_path / "c")
    for name, folder in (("mine", tmp_path / "mine"), ("c", tmp_path / "c")):
        folder.mkdir(exist_ok=True)
        (folder / "letter.txt").write_text("dear")
        before = sorted(folder.iterdir())
        with pytest.raises(InputError, match=f"{name} exists already and contains letter.txt, which is not part of"):
            make(folder, overwrite=True)
        assert sorted(folder.iterdir()) == before
    (tmp_path / "file").write_text("dear")
    with pytest.raises(InputError, match="file cannot be written: File exists"):
        make(tmp_path / "file", overwrite=True)


def test_a_shard_of_another_version(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.seed_cache.shard.VERSION", 2)
        make(tmp_path / "c")
    with pytest.raises(InputError, match="is of version 2, older than 3"):
        make(tmp_path / "c")
    assert make(tmp_path / "c", overwrite=True) == [0, 1, 2]


def test_temporary_files_of_killed_processes(tmp_path):
    """They are removed once nobody has written to them for an hour."""
    make(tmp_path / "c", [0])
    old, new = (tmp_path / "c" / f".{shard_name(1)}.{i}.part" for i in range(2))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * STALE,) * 2)
    make(tmp_path / "c")
    assert not old.exists()
    assert new.exists()
    assert SeedCache(tmp_path / "c").ids == tuple("abcde")


def test_hidden_files_of_other_programs_hinder_nothing(tmp_path):
    """Of Finder, of a network file system and of an editor; temporary files of our own alone are removed."""
    make(tmp_path / "c", [0])
    foreign = (".DS_Store", "._" + shard_name(0), ".nfs0000000012", ".ipynb_checkpoints/a", ".download.part")
    (tmp_path / "c/.ipynb_checkpoints").mkdir()
    own = tmp_path / "c/.metrics.json.123.0123abcd.part"
    for file in (*(tmp_path / "c" / name for name in foreign), own):
        file.write_bytes(b"other")
        os.utime(file, (time.time() - 2 * STALE,) * 2)
    assert make(tmp_path / "c") == [1, 2]
    assert all((tmp_path / "c" / name).read_bytes() == b"other" for name in foreign)
    assert not own.exists()
    assert SeedCache(tmp_path / "c").ids == tuple("abcde")
    verify_cache(tmp_path / "c")


def test_a_missing_bucket_is_found_before_the_first_shard(s3):
    assert SeedCacheWriter(UPath(f"{s3}/nothing/yet"), ["cat"], {}, [["a"]]).missing(range(1)) == [0]
    with pytest.raises(InputError, match="seed cache s3://nobucket/c cannot be written: there is no bucket nobucket"):
        SeedCacheWriter(UPath("s3://nobucket/c"), ["cat"], {}, [["a"]]).missing(range(1))


def test_images_left_out(tmp_path):
    make(tmp_path / "c", [1], left_out=("d",))
    with pytest.raises(InputError, match="d was left out before: it is broken"):
        make(tmp_path / "c", strict=True)
    make(tmp_path / "c", strict=True, known=("d",), left_out=("a", "b"))
    cache = SeedCache(tmp_path / "c")
    assert cache.ids == ("c", "e")
    assert cache.left_out == dict.fromkeys("abd", "it is broken")
    verify_cache(tmp_path / "c")
    with pytest.raises(InputError, match="has no image d: it was left out when the cache was made, because it is b"):
        cache.cues("d")


def test_an_image_that_was_left_out_is_tried_again_by_overwriting_strictly(tmp_path):
    make(tmp_path / "c", left_out=("d",))
    assert make(tmp_path / "c", overwrite=True) == []  # so a recipe resumes
    assert make(tmp_path / "c", overwrite=True, strict=True, known=("d",), left_out=("d",)) == []
    assert make(tmp_path / "c", overwrite=True, strict=True) == [1]
    assert SeedCache(tmp_path / "c").ids == ("a", "b", "c", "d", "e")


def test_a_job_without_a_shard_does_no_harm_to_those_that_run(tmp_path):
    """It removes the folder that is still empty, as a job that is stopped does."""
    one, other = (SeedCacheWriter(tmp_path / "c", ["cat"], {}, [["a"], ["b"]]) for _ in range(2))
    assert one.missing([0]) == [0]
    assert other.missing([]) == []
    other.remove_empty_folder()
    shard = ShardBuilder(["cat"])
    shard.add("a", np.zeros((2, 2), np.uint8))
    one.write(0, shard, {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == [shard_name(0)]


def test_killed_at_any_moment(tmp_path):
    """Forty attempts, seeded; each resumes the one before, and the result equals that of an undisturbed run."""
    start = time.monotonic()
    os.waitpid(child(lambda: make(tmp_path / "whole")), 0)
    seconds = time.monotonic() - start  # longer on a busy machine, and so are the attempts
    whole, counts = shards(tmp_path / "whole"), set()
    for delay in np.random.default_rng(0).uniform(0, seconds, 40):
        pid = child(lambda: make(tmp_path / "c"))
        time.sleep(delay)
        kill(pid)
        found = shards(tmp_path / "c")
        counts.add(len(found))
        assert found.items() <= whole.items()  # what there is is finished
        if found == whole:
            assert make(tmp_path / "c") == []
            for file in (tmp_path / "c").iterdir():
                file.unlink()
    make(tmp_path / "c")
    assert shards(tmp_path / "c") == whole
    verify_cache(tmp_path / "c")
    assert len(counts) > 1


def test_an_overwriting_that_is_killed(tmp_path):
    """At every file operation: the next run with the new settings ends as an undisturbed one."""
    new = SETTINGS | {"fg_threshold": 0.3}
    make(tmp_path / "whole", settings=new)
    for step in range(9):
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
            make(tmp_path / f"c{step}", settings=new, overwrite=True)

        os.waitpid(child(die_at), 0)
        make(tmp_path / f"c{step}", settings=new, overwrite=True)
        assert shards(tmp_path / f"c{step}") == shards(tmp_path / "whole")
        assert SeedCache(tmp_path / f"c{step}").settings["fg_threshold"] == 0.3


def test_several_processes_write_the_same_shards_at_once(tmp_path):
    """As two machines that are given the same command: neither waits for the other, and readers see whole shards."""
    make(tmp_path / "whole")
    whole = shards(tmp_path / "whole")
    for _ in range(10):
        pids = [child(lambda: make(tmp_path / "c")) for _ in range(4)]
        while any(os.waitpid(pid, os.WNOHANG)[0] == 0 for pid in pids[-1:]):
            assert shards(tmp_path / "c").items() <= whole.items()
        for pid in pids[:-1]:
            os.waitpid(pid, 0)
        assert shards(tmp_path / "c") == whole
        assert not list((tmp_path / "c").glob("*.part"))
        for file in (tmp_path / "c").iterdir():
            file.unlink()


def test_finished_shards_are_kept_however_old_they_are(tmp_path):
    """Temporary files alone are removed after an hour."""
    make(tmp_path / "c", [0])
    (tmp_path / "c" / "metrics.json").write_text("{}")
    for file in (tmp_path / "c").iterdir():
        os.utime(file, (time.time() - 2 * STALE,) * 2)
    assert SeedCacheWriter(tmp_path / "c", ("cat",), SETTINGS, [["a", "b"], ["c", "d"], ["e"]]).missing([0]) == []
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == ["metrics.json", shard_name(0)]


def test_a_relative_output_that_is_an_input(tmp_path, monkeypatch):
    make(tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="c exists already and is an input of the new seed cache"):
        SeedCacheWriter(UPath("c"), ("cat",), SETTINGS, [["a"]], {"cache": str(tmp_path / "c")})


def test_shards_of_unknown_ids_under_each_others_names_are_written_again(tmp_path):
    output = SeedCacheWriter(tmp_path, ("cat",), SETTINGS, [None, None], names=["x.safetensors", "y.safetensors"])
    for number, name in enumerate("ab"):
        shard = ShardBuilder(("cat",))
        shard.add(name, np.zeros((2, 2), np.uint8))
        output.write(number, shard, {})
    assert output.missing(range(2)) == []
    (tmp_path / "x.safetensors").rename(tmp_path / "z")
    (tmp_path / "y.safetensors").rename(tmp_path / "x.safetensors")
    (tmp_path / "z").rename(tmp_path / "y.safetensors")
    assert output.missing(range(2)) == [0, 1]
