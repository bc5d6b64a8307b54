"""`tag2mask seeds threshold`: other thresholds give the cues of a new `seeds generate`."""

import numpy as np
import pytest

from datamodules.seed_cache import SeedCache
from seeds.cues import threshold_cues
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS
from training.cli import main


@pytest.fixture(scope="module")
def caches(voc, checkpoint, tmp_path_factory):
    """One cache by the paper's thresholds, one by others, in shards of four."""
    folder = tmp_path_factory.mktemp("threshold")
    words = ["--checkpoint", str(checkpoint), "--root", str(voc), "--shard_size", "4", "--num_workers", "0"]
    words += ["--accelerator", "cpu"]
    assert main(["seeds", "generate", *words, "--output", str(folder / "first")]) == 0
    other = ["--fg_threshold", "0.5", "--bg_fraction", "0.3"]
    assert main(["seeds", "generate", *words, *other, "--output", str(folder / "other")]) == 0
    return folder


def test_the_cues_of_a_new_generation(caches, tmp_path):
    words = ["--fg_threshold", "0.5", "--bg_fraction", "0.3", "--output", str(tmp_path / "new")]
    assert main(["seeds", "threshold", "--cache", str(caches / "first"), *words]) == 0
    new, first = SeedCache(tmp_path / "new"), SeedCache(caches / "first")
    other = SeedCache(caches / "other")
    assert (new.ids, new.num_shards) == (other.ids, 2)
    for name in new.ids:
        for one, same in ((new.cues, other.cues), (new.saliency, other.saliency)):
            np.testing.assert_array_equal(one(name), same(name))
        for one, same in zip(new.maps(name), other.maps(name), strict=True):
            np.testing.assert_array_equal(one, same)
    assert (new.settings["fg_threshold"], new.settings["bg_fraction"]) == (0.5, 0.3)
    assert new.settings["thresholded"]["cache"] == first.fingerprint
    assert new.settings["checkpoint_sha256"] == first.settings["checkpoint_sha256"]
    assert any((new.cues(name) != first.cues(name)).any() for name in IDS)
    maps, saliency = first.maps(IDS[2]), first.saliency(IDS[2])
    assert np.array_equal(new.cues(IDS[2]), threshold_cues(*maps, saliency, 0.5, 0.3))
    assert main(["seeds", "verify", "--cache", str(tmp_path / "new")]) == 0


def test_images_left_out_stay_recorded(caches, tmp_path):
    first = SeedCache(caches / "first")
    with CacheWriter(tmp_path / "few", first.classes, {}, left_out={"torn": "it is torn"}) as writer:
        maps = first.maps("p0")
        writer.add("p0", first.cues("p0"), map_classes=maps[0], maps=maps[1], saliency=first.saliency("p0"))
    assert main(["seeds", "threshold", "--cache", str(tmp_path / "few"), "--output", str(tmp_path / "new")]) == 0
    assert SeedCache(tmp_path / "new").left_out == {"torn": "it is torn"}


def test_mistakes(caches, tmp_path, capsys):
    with CacheWriter(tmp_path / "labels", ("a",), {}) as writer:
        writer.add("p0", np.zeros((4, 4), np.uint8))
    first = str(caches / "first")
    for words, message in (
        (["--cache", first, "--fg_threshold", "1"], "fg_threshold 1.0 must be at least 0 and below 1"),
        (["--cache", first, "--bg_fraction", "-0.1"], "bg_fraction -0.1 must be at least 0 and below 1"),
        (["--cache", str(tmp_path / "labels")], "has no saliency of image p0"),
        (["--cache", str(tmp_path)], "is not a seed cache"),
    ):
        assert main(["seeds", "threshold", "--output", str(tmp_path / "new"), *words]) == 1
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"labels"}
    assert main(["seeds", "threshold", "--cache", first, "--output", str(tmp_path / "labels")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["seeds", "threshold", "--cache", first, "--output", first, "--overwrite=true"]) == 1
    assert "is an input of the new seed cache" in capsys.readouterr().err
    assert SeedCache(first).ids == tuple(IDS)


def test_a_resumed_command(caches, tmp_path):
    """Finished shards are kept, and the result is that of one run."""
    words = ["seeds", "threshold", "--cache", str(caches / "first"), "--fg_threshold", "0.5"]
    for output in ("one", "two"):
        assert main([*words, "--output", str(tmp_path / output)]) == 0
    (tmp_path / "two/shard-00000.safetensors").unlink()
    kept = (tmp_path / "two/shard-00001.safetensors").stat().st_mtime_ns
    assert main([*words, "--output", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two/shard-00001.safetensors").stat().st_mtime_ns == kept
    for name in ("shard-00000.safetensors", "shard-00001.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_cues_by_thresholds_are_not_recorded_as_those_of_the_crf(tmp_path):
    """The cache that the maps come from records the CRF of the cues in it."""
    crf = {"method": "crf", "conf_fg": 0.3}
    with CacheWriter(tmp_path / "crf", ("a",), {"refinement": crf, "fg_threshold": 0.2}) as writer:
        saliency = np.arange(16, dtype=np.float32).reshape(4, 4)
        maps = np.ones((1, 4, 4), np.float32)
        writer.add("p0", np.zeros((4, 4), np.uint8), map_classes=np.array([0]), maps=maps, saliency=saliency)
    assert main(["seeds", "threshold", "--cache", str(tmp_path / "crf"), "--output", str(tmp_path / "new")]) == 0
    assert (SeedCache(tmp_path / "crf").settings["refinement"], SeedCache(tmp_path / "new").settings["refinement"]) == (
        crf,
        None,
    )


def test_images_whose_tags_are_not_known_stay_without_cues(tmp_path):
    """Their maps are missing, as those of an image without a tag, whose cues are background."""
    saliency = np.arange(16, dtype=np.float32).reshape(4, 4)
    nothing = {"map_classes": np.zeros(0, int), "maps": np.zeros((0, 4, 4), np.float32), "saliency": saliency}
    with CacheWriter(tmp_path / "old", ("a",), {}) as writer:
        writer.add("known", np.where(saliency < 1, 0, 255).astype(np.uint8), **nothing)
        writer.add("unknown", np.full((4, 4), 255, np.uint8), **nothing)
    assert main(["seeds", "threshold", "--cache", str(tmp_path / "old"), "--output", str(tmp_path / "new")]) == 0
    new = SeedCache(tmp_path / "new")
    assert (new.cues("unknown") == 255).all()
    assert (new.cues("known") == 0).any()
