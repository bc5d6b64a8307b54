import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.images import normalize, read_image
from datamodules.seed_cache import SeedCache
from datamodules.source_revision import SEED_PACKAGES, source_revision
from datamodules.transforms import Transform
from seeds.background_saliency import background_saliency
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from seeds.crf_refinement import refined
from seeds.cues import label_map
from seeds.evaluation.evaluate_seeds import evaluate_seeds
from seeds.generate import generate_seeds, thresholded
from seeds.gradcam import GradCAM
from seeds.making import source
from seeds.making.asking import CamSettings, extract_cams
from seeds.making.batches import Batches, BatchLoader
from seeds.making.resize import ResizePolicy
from tests.seeds.conftest import IDS, data_of

LABELS = [[0], [1], [0, 1], [0], [1], [0, 1]]


def to_grid(maps, grid):
    return functional.interpolate(maps, (grid, grid), mode="bilinear")


def test_seeds_are_grad_cam_of_each_pictures_own_labels(voc, checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "cache")
    cache = SeedCache(tmp_path / "cache")
    assert cache.ids == tuple(IDS)
    model = load_task(checkpoint, ClassifierTask).model
    for name, labels in zip(IDS, LABELS, strict=True):
        picture = Transform(64)(read_image(voc / f"JPEGImages/{name}.jpg"))["image"]
        image = normalize(torch.from_numpy(picture).permute(2, 0, 1)[None])
        wanted = torch.zeros(1, 2)
        wanted[0, labels] = 1
        maps = to_grid(GradCAM(model, "features")(image, wanted), 8)[0, labels].numpy()
        saliency = background_saliency(model, "features.encoder.layer2.1", image, wanted)[0].numpy()
        classes, stored = cache.maps(name)
        assert classes.tolist() == labels
        np.testing.assert_allclose(stored, maps, rtol=1e-2, atol=2e-3 * maps.max())
        np.testing.assert_allclose(cache.saliency(name), saliency, rtol=1e-2, atol=2e-3 * saliency.max())
        # the cues kept are those that the kept maps give, to the cell
        np.testing.assert_array_equal(cache.cues(name), label_map(classes, stored, cache.saliency(name), 0.2, 0.1))
        assert set(np.unique(cache.cues(name))) - {0, 255} == {c + 1 for c in labels}


def test_scales_and_the_mirrored_picture_are_averaged(voc, checkpoint, tmp_path):
    generate_seeds(
        checkpoint, tmp_path / "cache", split="val", scales=[1.0, 1.5], flip=True, layer="features.encoder.layer3"
    )
    cache = SeedCache(tmp_path / "cache")
    assert len(cache) == 2
    model = load_task(checkpoint, ClassifierTask).model
    method = GradCAM(model, "features.encoder.layer3")
    picture = read_image(voc / "JPEGImages/p0.jpg")
    found = []
    for size in (64, 96):
        warped = torch.from_numpy(Transform(size)(picture)["image"]).permute(2, 0, 1)[None]
        image, wanted = normalize(warped), torch.tensor([[1.0, 0.0]])
        found += [to_grid(method(image, wanted), 8), to_grid(method(image.flip(3), wanted).flip(3), 8)]
    expected = torch.stack(found).mean(0)[0, :1].numpy()
    np.testing.assert_allclose(cache.maps("p0")[1], expected, rtol=1e-2, atol=2e-3 * expected.max())


def test_the_manifest_says_how_it_was_made(voc, checkpoint, tmp_path, capsys):
    generate_seeds(checkpoint, tmp_path / "cache", fg_threshold=0.3, cue_stride=16)
    manifest = SeedCache(tmp_path / "cache").manifest
    expected = {
        "checkpoint_sha256": file_sha256(checkpoint), "backbone": "resnet18", "layer": "features", "method": "gradcam",
        "saliency_layer": "features.encoder.layer2.1", "scales": [1.0], "flip": False, "size": 64, "grid": [4, 4],
        "fg_threshold": 0.3, "bg_fraction": 0.1, "classes": ["red", "blue"], "label_source": "imagesets",
        "split": "train", "version": 2,
    }  # fmt: skip
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["data"]["root"] == str(voc)
    assert {"torch", "python", "numpy"} <= set(manifest["packages"])
    assert {"command", "date", "images_sha256"} <= set(manifest)
    assert re.search(r"^seeds: 6/6 images in \d+ s, \d+(\.\d+)? images/s$", capsys.readouterr().err, re.MULTILINE)


def test_evaluation_finds_the_pictures_again(checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "cache")
    metrics = evaluate_seeds(tmp_path / "cache")
    assert metrics["images"] == 6
    assert 0 < metrics["miou_fixed"] <= metrics["miou_oracle"] < 1


def nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_a_broken_picture_stops_a_strict_run(voc, checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    (root / "JPEGImages/p4.jpg").write_bytes((voc / "JPEGImages/p4.jpg").read_bytes()[:700])
    out = tmp_path / "out"
    out.mkdir()
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"p4\.jpg") as caught:
            generate_seeds(checkpoint, out / "cache", root=str(root), num_workers=workers, strict=True)
        assert len(str(caught.value).splitlines()) == 1
    assert nothing_left(out)


def test_a_broken_picture_is_left_out_and_told(voc, checkpoint, tmp_path, capsys):
    """By the manifest, the terminal, whoever asks the cache for it, and who trains or scores with the cache."""
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    (root / "JPEGImages/p4.jpg").write_bytes((voc / "JPEGImages/p4.jpg").read_bytes()[:700])
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read, and max_unreadable allows a share of 0.01"):
        generate_seeds(checkpoint, tmp_path / "cache", root=str(root))
    generate_seeds(checkpoint, tmp_path / "cache", root=str(root), max_unreadable=0.2)
    told = capsys.readouterr().err
    assert "left out: p4: image" in told
    assert "1 images were left out; the manifest names each" in told
    cache = SeedCache(tmp_path / "cache")
    assert cache.ids == tuple(name for name in IDS if name != "p4")
    assert "p4.jpg cannot be read" in cache.settings["left_out"]["p4"]
    with pytest.raises(InputError, match="it was left out when the cache was made, because image"):
        cache.cues("p4")
    assert evaluate_seeds(tmp_path / "cache")["images"] == 5
    assert "1 of 6 images are left out, of which the seed cache has no cues; first p4: " in capsys.readouterr().err
    data = data_of(voc, targets="cues", cues=str(tmp_path / "cache"))
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 5
    assert "1 of 6 images are left out" in capsys.readouterr().err


def test_no_picture_can_be_read(voc, checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    for name in IDS:
        (root / f"JPEGImages/{name}.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no image could be used; first p0: image"):
        generate_seeds(checkpoint, tmp_path / "cache", root=str(root), max_unreadable=1.0)


def in_memory(voc, checkpoint, batch_size):
    """What the classifier says of the six images, without a disk in between."""
    policy = ResizePolicy(64, (1.0,), 8)
    batches = Batches(data_of(voc).photos("train"), [0], 6, batch_size, policy)
    cams = CamSettings("features", "features.encoder.layer2.1", flip=False)
    model = load_task(checkpoint, ClassifierTask).model
    return [seed for batch in BatchLoader(batches, 0, lambda: False) for seed in extract_cams(model, batch, cams)]


def test_cues_of_the_cache_are_the_cues_of_memory(voc, checkpoint, tmp_path):
    """Rounding is part of the rule."""
    generate_seeds(checkpoint, tmp_path / "cache", batch_size=3)
    cache, names, differ = SeedCache(tmp_path / "cache"), [], 0
    for seed in in_memory(voc, checkpoint, 3):
        np.testing.assert_array_equal(cache.cues(seed.name), thresholded(seed, fg_threshold=0.2, bg_fraction=0.1))
        differ += (cache.cues(seed.name) != label_map(seed.classes, seed.maps, seed.saliency, 0.2, 0.1)).sum()
        names.append(seed.name)
    assert tuple(names) == cache.ids
    assert differ <= 1  # of 384 cells, for a value that rounding moves over a threshold


def test_maps_that_are_not_finite(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.head.weight"][1] = float("nan")
    torch.save(content, tmp_path / "broken.ckpt")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="maps of image p0 are not finite"):
        generate_seeds(tmp_path / "broken.ckpt", tmp_path / "out/cache")
    assert nothing_left(tmp_path / "out")


def test_a_full_disk(checkpoint, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        generate_seeds(checkpoint, tmp_path / "cache")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"layer": "feature"}, "no layer 'feature'; did you mean features"), ({"split": "night"}, "night"),
     ({"root": "/no/where"}, "/no/where"), ({"scales": []}, "scales"), ({"scales": [1.0, -1.0]}, "scales"),
     ({"fg_threshold": 1.0}, "fg_threshold 1.0"), ({"cue_stride": 0}, "cue_stride"), ({"conf_bg": 2.0}, "conf_bg"),
     ({"threads": 0}, "threads"), ({"shard_size": 1 << 20}, "shard_size"), ({"devices": 0}, "devices 0"),
     ({"accelerator": "toaster"}, "toaster"),
     ({"saliency_layer": "head"}, "layer head gives no map"), ({"layer": "features,head"}, "no layer 'features,head'")],
)  # fmt: skip
def test_bad_arguments(checkpoint, tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        generate_seeds(checkpoint, tmp_path / "cache", **arguments)
    assert nothing_left(tmp_path)


def test_another_setting_is_refused_by_name(voc, checkpoint, tmp_path):
    """Whichever it is: the cache that is there is not the one asked for."""
    tags = tmp_path / "other tags"
    shutil.copytree(voc, tags)
    (tags / "ImageSets/Main/red_train.txt").write_text("".join(f"{name} 1\n" for name in IDS))
    generate_seeds(checkpoint, tmp_path / "cache", refine="crf")
    for change, name in (
        ({"refine": "none"}, "refinement"), ({"conf_fg": 0.4}, "refinement.conf_fg"),
        ({"conf_bg": 0.1}, "refinement.conf_bg"), ({"fg_threshold": 0.3}, "fg_threshold"),
        ({"bg_fraction": 0.2}, "bg_fraction"), ({"precision": "bf16-mixed"}, "precision"), ({"flip": True}, "flip"),
        ({"scales": (1.5,)}, "scales"), ({"size": 32}, "size"), ({"cue_stride": 4}, "cue_stride"),
        ({"layer": "features.encoder.layer3"}, "layer"), ({"saliency_layer": "features"}, "saliency_layer"),
        ({"split": "val"}, "split"), ({"root": str(tags)}, "labels_sha256"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"exists already, made with ({name}|labels_sha256) "):
            generate_seeds(checkpoint, tmp_path / "cache", **{"refine": "crf"} | change)


def test_refined_cues_are_those_of_the_scores_asked_for(voc, checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "cache", refine="crf", conf_fg=0.5, conf_bg=0.2)
    cache, different = SeedCache(tmp_path / "cache"), 0
    for seed in in_memory(voc, checkpoint, 6):
        classes, maps = cache.maps(seed.name)
        assert np.array_equal(cache.cues(seed.name), refined(classes, maps, seed.image, 0.5, 0.2))
        different += (cache.cues(seed.name) != refined(classes, maps, seed.image)).sum()
    assert different


def test_bfloat16_is_computed_in(checkpoint, tmp_path):
    """The maps are other ones, and nearly the same."""
    generate_seeds(checkpoint, tmp_path / "32")
    generate_seeds(checkpoint, tmp_path / "bf16", precision="bf16-mixed")
    full, half = SeedCache(tmp_path / "32"), SeedCache(tmp_path / "bf16")
    for name in full.ids:
        one, other = full.maps(name)[1], half.maps(name)[1]
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one, other, atol=0.1 * one.max())


def test_an_existing_folder_is_kept(checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "cache")
    with pytest.raises(InputError, match="exists already"):
        generate_seeds(checkpoint, tmp_path / "cache", fg_threshold=0.5)
    assert SeedCache(tmp_path / "cache").settings["fg_threshold"] == 0.2
    generate_seeds(checkpoint, tmp_path / "cache", fg_threshold=0.5, overwrite=True)
    assert SeedCache(tmp_path / "cache").settings["fg_threshold"] == 0.5


def test_a_cache_of_other_code_is_not_taken_for_one_of_this(voc, checkpoint, tmp_path, monkeypatch):
    generate_seeds(checkpoint, tmp_path / "cache")
    before = (tmp_path / "cache/manifest.json").read_bytes()
    assert SeedCache(tmp_path / "cache").settings["source"] == source_revision(SEED_PACKAGES)
    monkeypatch.setattr(source, "source_revision", lambda packages: dict.fromkeys(packages, "another"))
    with pytest.raises(InputError, match="made with another revision of the code in datamodules/"):
        generate_seeds(checkpoint, tmp_path / "cache")
    assert (tmp_path / "cache/manifest.json").read_bytes() == before
    generate_seeds(checkpoint, tmp_path / "cache", overwrite=True)
    assert SeedCache(tmp_path / "cache").settings["source"] == dict.fromkeys(SEED_PACKAGES, "another")
