"""`tag2mask seeds threshold`: other thresholds, the same bytes as a network asked again."""

import numpy as np
import pytest
from datamodules.fingerprints import fingerprint

from datamodules.seed_cache import SeedCache
from seeds.cues import label_map
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


def test_the_same_bytes_as_a_network_asked_again(caches, tmp_path):
    words = ["--fg_threshold", "0.5", "--bg_fraction", "0.3", "--output", str(tmp_path / "new")]
    assert main(["seeds", "threshold", "--cache", str(caches / "first"), *words]) == 0
    new, first = SeedCache(tmp_path / "new"), SeedCache(caches / "first")
    for number in range(2):
        name = f"shard-0000{number}.safetensors"
        assert (tmp_path / "new" / name).read_bytes() == (caches / "other" / name).read_bytes()
    assert (new.settings["fg_threshold"], new.manifest["bg_fraction"]) == (0.5, 0.3)
    assert new.settings["thresholded"]["from"] == fingerprint(caches / "first")
    assert new.settings["checkpoint_sha256"] == first.manifest["checkpoint_sha256"]
    assert any((new.cues(name) != first.cues(name)).any() for name in IDS)
    maps, saliency = first.maps(IDS[2]), first.saliency(IDS[2])
    assert np.array_equal(new.cues(IDS[2]), label_map(*maps, saliency, 0.5, 0.3))
    assert main(["seeds", "verify", "--cache", str(tmp_path / "new")]) == 0


def test_pictures_left_out_stay_told(caches, tmp_path):
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
    for words, says in (
        (["--cache", first, "--fg_threshold", "1"], "fg_threshold 1.0 is outside"),
        (["--cache", first, "--bg_fraction", "-0.1"], "bg_fraction -0.1 is outside"),
        (["--cache", str(tmp_path / "labels")], "has no saliency of image p0"),
        (["--cache", str(tmp_path)], "is not a finished seed cache"),
    ):
        assert main(["seeds", "threshold", "--output", str(tmp_path / "new"), *words]) == 1
        assert says in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"labels"}
    assert main(["seeds", "threshold", "--cache", first, "--output", str(tmp_path / "labels")]) == 1
    assert "exists already" in capsys.readouterr().err
