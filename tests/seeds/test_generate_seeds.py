import errno
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from upath import UPath

from datamodules.dataset import image_loader
from datamodules.errors import InputError
from datamodules.files import file_sha256, write_atomically
from datamodules.images import image_size, normalize, read_image
from datamodules.seed_cache.cache import SeedCache, verify_cache
from datamodules.seed_cache.irn_maps import read_irn
from datamodules.seed_cache.shard import as_stored
from datamodules.source_revision import SEED_PACKAGES, source_revision
from datamodules.transforms import Transform, resize_nearest
from seeds import cache_job, crf_refinement
from seeds.backbones import build_backbone
from seeds.background_saliency import background_saliency
from seeds.cache_job import Seed
from seeds.cam_methods.input_gradients import channel_maximum
from seeds.cam_methods.registry import method_class
from seeds.checkpoints import load_task
from seeds.classifier import Classifier, ClassifierTask
from seeds.crf_refinement import refined_cues
from seeds.cues import threshold_cues
from seeds.evaluation.evaluate_seeds import evaluate_seeds
from seeds.export_seeds import export_seeds
from seeds.generate_seeds import CamModule
from seeds.gradcam import GradCAM
from seeds.provenance import ids_sha256
from tests.seed_caches import CacheWriter, generate
from tests.seeds.conftest import IDS, data_of
from tests.storage import upload

LABELS = [[0], [1], [0, 1], [0], [1], [0, 1]]


def to_grid(maps, grid):
    return functional.interpolate(maps, (grid, grid), mode="bilinear", antialias=True)


def test_seeds_are_grad_cam_of_the_labels_of_each_image(voc, checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "cache")
    cache = SeedCache(tmp_path / "cache")
    assert cache.ids == tuple(IDS)
    model = load_task(checkpoint, ClassifierTask)[0].model
    for name, labels in zip(IDS, LABELS, strict=True):
        photo = Transform(64)(read_image(voc / f"JPEGImages/{name}.jpg"))["image"]
        image = normalize(torch.from_numpy(photo).permute(2, 0, 1)[None])
        wanted = torch.zeros(1, 2)
        wanted[0, labels] = 1
        maps = to_grid(GradCAM(model, "features")(image, wanted), 8)[0, labels].numpy()
        saliency = background_saliency(model, "features.encoder.layer2.1", image, wanted)[0].numpy()
        classes, stored = cache.maps(name)
        assert classes.tolist() == labels
        np.testing.assert_allclose(stored, maps, rtol=1e-2, atol=2e-3 * maps.max())
        np.testing.assert_allclose(cache.saliency(name), saliency, rtol=1e-2, atol=2e-3 * saliency.max())
        # the cues kept are those that the kept maps give, to the position
        np.testing.assert_array_equal(cache.cues(name), threshold_cues(classes, stored, cache.saliency(name), 0.2, 0.1))
        assert set(np.unique(cache.cues(name))) - {0, 255} == {c + 1 for c in labels}


def test_scales_and_the_mirrored_image_are_averaged(voc, checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "cache", split="val", scales=(1.0, 1.5), flip=True, layer="features.encoder.layer3")
    cache = SeedCache(tmp_path / "cache")
    assert len(cache) == 2
    method = GradCAM(load_task(checkpoint, ClassifierTask)[0].model, "features.encoder.layer3")
    np.testing.assert_allclose(cache.maps("p0")[1], averaged_maps(method, voc, "p0", [1.0, 0.0]), rtol=1e-2, atol=5e-4)


def averaged_maps(method, voc, name, labels, sides=(64, 96), power=1):
    """Maps of an image that is read at the larger side, and resized to the smaller one; with its mirror image.

    Grad-CAM divides by the number of positions: its maps are multiplied by the area, so that each scale counts as much.
    Guided Grad-CAM divides twice, and has a power of 2.
    """
    large = normalize(read_at(voc / f"JPEGImages/{name}.jpg", max(sides)))
    wanted, found = torch.tensor([labels]), []
    grid = -(-sides[0] // 8)
    for side in sides:
        image = functional.interpolate(large, (side, side), mode="bilinear", antialias=True)
        both = [to_grid(method(image, wanted), grid), to_grid(method(image.flip(3), wanted).flip(3), grid)]
        found += [(side / sides[0]) ** (2 * power) * maps for maps in both]
    return torch.stack(found).mean(0)[0, torch.tensor(labels) > 0].numpy()


def test_scales_of_grad_cam_count_as_those_of_cam(voc, checkpoint):
    """The classifier ends in global average pooling: there, Grad-CAM is CAM divided by the number of positions."""
    scales = (1.0, 0.5, 1.5, 2.0)
    _, expected = in_memory(voc, checkpoint, 6, method="cam", scales=scales)
    for method in ("gradcam", "hirescam"):
        _, found = in_memory(voc, checkpoint, 6, method=method, scales=scales)
        for seed, wanted in zip(found, expected, strict=True):
            tops = seed.maps.max(axis=(1, 2), keepdims=True), wanted.maps.max(axis=(1, 2), keepdims=True)
            assert (tops[1] > 0).all()
            np.testing.assert_allclose(seed.maps / tops[0], wanted.maps / tops[1], atol=1e-5)


def read_at(path, side):
    """An image as a square of that side, uint8 (1, 3, side, side)."""
    return torch.from_numpy(Transform(side)(read_image(path))["image"]).permute(2, 0, 1)[None]


@pytest.mark.parametrize("method", ["cam", "layercam", "gradcam++", "counterfactual", "gradient", "guided-gradcam"])
def test_every_registered_method(voc, checkpoint, tmp_path, method):
    """Maps are averaged before any normalisation, and negative evidence counts as none."""
    generate(checkpoint, tmp_path / "cache", method=method, flip=True)
    cache, model = SeedCache(tmp_path / "cache"), load_task(checkpoint, ClassifierTask)[0].model
    assert cache.settings["method"] == method

    def positive(images, labels):
        return channel_maximum(method_class(method)(model, "features")(images, labels)).clamp(min=0)

    expected = averaged_maps(positive, voc, "p2", [1.0, 1.0], sides=(64,))
    np.testing.assert_allclose(cache.maps("p2")[1], expected, rtol=1e-2, atol=2e-3 * expected.max())
    plain = tmp_path / "plain"
    generate(checkpoint, plain)
    np.testing.assert_array_equal(cache.saliency("p2"), SeedCache(plain).saliency("p2"))


def test_maps_of_small_classes_are_those_of_guided_grad_cam(voc, checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "small", small_classes=["blue"], scales=(1.0, 1.5), flip=True)
    generate(checkpoint, tmp_path / "plain", scales=(1.0, 1.5), flip=True)
    small, plain = SeedCache(tmp_path / "small"), SeedCache(tmp_path / "plain")
    assert (small.settings["small_classes"], small.small_labels) == (["blue"], [2])
    assert "small_classes" not in plain.settings
    model = load_task(checkpoint, ClassifierTask)[0].model

    def guided(images, labels):
        return channel_maximum(method_class("guided-gradcam")(model, "features")(images, labels)).clamp(min=0)

    for name, labels in zip(IDS, LABELS, strict=True):
        classes, maps = small.maps(name)
        assert classes.tolist() == labels
        for label, found, other in zip(labels, maps, plain.maps(name)[1], strict=True):
            wanted = averaged_maps(guided, voc, name, [0.0, 1.0], power=2)[0] if label == 1 else other
            np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=2e-3 * wanted.max())
        np.testing.assert_array_equal(small.saliency(name), plain.saliency(name))
    with pytest.raises(InputError, match="there is no class 'bleu'; did you mean 'blue'"):
        generate(checkpoint, tmp_path / "none", small_classes=["bleu"])


def test_the_cache_records_its_settings(voc, checkpoint, tmp_path, capsys):
    generate(checkpoint, tmp_path / "cache", fg_threshold=0.3, cue_stride=16)
    cache = SeedCache(tmp_path / "cache")
    expected = {
        "checkpoint_sha256": file_sha256(checkpoint), "backbone": "resnet18", "layer": "features", "method": "gradcam",
        "saliency_layer": "features.encoder.layer2.1", "scales": [1.0], "flip": False, "size": 64, "cue_stride": 16,
        "fg_threshold": 0.3, "bg_fraction": 0.1, "split": "train", "refinement": None,
    }  # fmt: skip
    assert {key: cache.settings[key] for key in expected} == expected
    assert cache.classes == ("red", "blue")
    assert cache.inputs["checkpoint"] == str(checkpoint)
    assert (cache.inputs["data"]["root"], cache.inputs["data"]["labels"]) == (str(voc), "imagesets")
    assert cache.inputs["data"].keys().isdisjoint({"num_workers", "max_unreadable", "strict"})
    assert {"torch", "python", "numpy"} <= set(cache.settings["packages"])
    assert cache.settings["ids_sha256"] == ids_sha256(IDS)
    assert cache.cues("p0").shape == (4, 4)
    assert re.search(
        r"^seeds: 6/6 images in \d:\d\d:\d\d, \d+(\.\d+)? images/s$", capsys.readouterr().err, re.MULTILINE
    )


def test_evaluation_finds_the_images_again(checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "cache")
    metrics = evaluate_seeds(tmp_path / "cache")
    assert metrics["images"] == 6
    assert 0 < metrics["miou_fixed"] <= metrics["miou_oracle"] < 1


def nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_a_broken_image_stops_a_strict_run(voc, checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    (root / "JPEGImages/p4.jpg").write_bytes((voc / "JPEGImages/p4.jpg").read_bytes()[:700])
    out = tmp_path / "out"
    out.mkdir()
    for workers in (0, 1):
        with pytest.raises(InputError, match=r"p4\.jpg") as caught:
            generate(checkpoint, out / "cache", root=str(root), num_workers=workers, strict=True)
        assert len(str(caught.value).splitlines()) == 1
    assert nothing_left(out)


def test_a_broken_image_is_left_out_and_reported(voc, checkpoint, tmp_path, capsys):
    """In the cache, on the terminal, and in training and scoring with the cache."""
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    (root / "JPEGImages/p4.jpg").write_bytes((voc / "JPEGImages/p4.jpg").read_bytes()[:700])
    with pytest.raises(InputError, match=r"1 of 6 images cannot be read, and max_unreadable allows a share of 0.01"):
        generate(checkpoint, tmp_path / "cache", root=str(root))
    generate(checkpoint, tmp_path / "cache", root=str(root), max_unreadable=0.2)
    printed = capsys.readouterr().err
    assert "left out: p4: image" in printed
    assert "1 images were left out; tag2mask seeds info lists all" in printed
    cache = SeedCache(tmp_path / "cache")
    assert cache.ids == tuple(name for name in IDS if name != "p4")
    assert "p4.jpg cannot be read" in cache.left_out["p4"]
    with pytest.raises(InputError, match="it was left out when the cache was made, because image"):
        cache.cues("p4")
    assert evaluate_seeds(tmp_path / "cache")["images"] == 5
    assert "1 of 6 images are left out because the seed cache has no cues of them; first p4" in capsys.readouterr().err
    data = data_of(voc, targets="cues", cues=str(tmp_path / "cache"))
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 5
    assert "1 of 6 images are left out" in capsys.readouterr().err


def test_no_image_can_be_read(voc, checkpoint, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    for name in IDS:
        (root / f"JPEGImages/{name}.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no image could be used; first p0: image"):
        generate(checkpoint, tmp_path / "cache", root=str(root), max_unreadable=1.0)


def in_memory(voc, checkpoint, batch_size, **settings):
    """The module, and its seeds of the six images, without a disk in between."""
    given = {
        "method": "gradcam", "layer": "features", "saliency_layer": "features.encoder.layer2.1", "scales": (1.0,),
        "flip": False, "size": 64, "cue_stride": 8, "fg_threshold": 0.2, "bg_fraction": 0.1, "refinement": None,
    }  # fmt: skip
    module = CamModule(load_task(checkpoint, ClassifierTask)[0].model, given | settings)
    data = data_of(voc, eval_size=64)
    dataset = data.eval_loader(data.samples("train")).dataset
    loader = image_loader(dataset, batch_size=batch_size, num_workers=0)
    return module, [seed for batch in loader for seed in module.predict_seeds(batch)]


def test_cues_of_the_cache_are_the_cues_of_memory(voc, checkpoint, tmp_path):
    """Rounding is part of the rule."""
    generate(checkpoint, tmp_path / "cache", batch_size=3)
    cache, names, differ = SeedCache(tmp_path / "cache"), [], 0
    module, seeds = in_memory(voc, checkpoint, 3)
    for seed in seeds:
        np.testing.assert_array_equal(cache.cues(seed.id), module.cues(seed))
        differ += (cache.cues(seed.id) != threshold_cues(seed.classes, seed.maps, seed.saliency, 0.2, 0.1)).sum()
        names.append(seed.id)
    assert tuple(names) == cache.ids
    assert differ <= 1  # of 384 positions, for a value that rounding moves over a threshold


def test_maps_that_are_not_finite(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["model.head.weight"][1] = float("nan")
    torch.save(content, tmp_path / "broken.ckpt")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="maps of image p0 are not finite"):
        generate(tmp_path / "broken.ckpt", tmp_path / "out/cache")
    assert nothing_left(tmp_path / "out")


def test_a_full_disk(checkpoint, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        generate(checkpoint, tmp_path / "cache")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"layer": "feature"}, "no layer 'feature'; did you mean 'features'"), ({"split": "night"}, "night"),
     ({"root": "/no/where"}, "/no/where"), ({"scales": []}, "scales"), ({"scales": [1.0, -1.0]}, "scales"),
     ({"fg_threshold": 1.0}, "fg_threshold 1.0"), ({"cue_stride": 0}, "cue_stride"), ({"conf_bg": 2.0}, "conf_bg"),
     ({"threads": 0}, "threads"), ({"shard_size": 1 << 20}, "shard_size"), ({"devices": 0}, "devices 0"),
     ({"accelerator": "toaster"}, "toaster"), ({"refine": "CRF"}, "refine is .CRF., and must be none or crf"),
     ({"conf_fg": 0.05, "conf_bg": 0.3}, "conf_bg 0.3 must not exceed conf_fg 0.05"),
     ({"saliency_layer": "head"}, "layer head gives no map"), ({"layer": "features,head"}, "no layer 'features,head'"),
     ({"saliency_layer": "features"}, "saliency at layer features is the same everywhere")],
)  # fmt: skip
def test_bad_arguments(checkpoint, tmp_path, arguments, words):
    with pytest.raises(InputError, match=words):
        generate(checkpoint, tmp_path / "cache", **arguments)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("arguments", [{"bg_fraction": 0}, {"refine": "crf"}])
def test_saliency_that_makes_no_cues_may_be_the_same_everywhere(checkpoint, tmp_path, arguments):
    generate(checkpoint, tmp_path / "cache", split="val", saliency_layer="features", **arguments)
    assert SeedCache(tmp_path / "cache").settings["saliency_layer"] == "features"


def test_another_setting_is_refused_by_name(voc, checkpoint, tmp_path):
    """Whichever it is: the cache that is there is not the one requested."""
    tags = tmp_path / "other tags"
    shutil.copytree(voc, tags)
    (tags / "ImageSets/Main/red_train.txt").write_text("".join(f"{name} 1\n" for name in IDS))
    generate(checkpoint, tmp_path / "cache", refine="crf")
    for change, name in (
        ({"refine": "none"}, "refinement"), ({"conf_fg": 0.4}, "refinement.conf_fg"),
        ({"conf_bg": 0.1}, "refinement.conf_bg"), ({"fg_threshold": 0.3}, "fg_threshold"),
        ({"bg_fraction": 0.2}, "bg_fraction"), ({"precision": "bf16-mixed"}, "precision"), ({"flip": True}, "flip"),
        ({"scales": (1.5,)}, "scales"), ({"size": 32}, "size"), ({"cue_stride": 4}, "cue_stride"),
        ({"layer": "features.encoder.layer3"}, "layer"), ({"saliency_layer": "features"}, "saliency_layer"),
        ({"split": "val"}, "split"), ({"root": str(tags)}, "labels_sha256"), ({"threads": 2}, "threads"),
        ({"batch_size": 2}, "batch_size"), ({"shard_size": 4}, "shard_size"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"exists already, made with ({name}|labels_sha256) "):
            generate(checkpoint, tmp_path / "cache", **{"refine": "crf"} | change)


def test_refined_cues_are_those_of_the_scores_asked_for(voc, checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "cache", refine="crf", conf_fg=0.5, conf_bg=0.2)
    cache, different = SeedCache(tmp_path / "cache"), 0
    for seed in in_memory(voc, checkpoint, 6, refinement={"conf_fg": 0.5, "conf_bg": 0.2})[1]:
        classes, maps = cache.maps(seed.id)
        assert np.array_equal(cache.cues(seed.id), refined_cues(classes, maps, seed.image, 0.5, 0.2))
        different += (cache.cues(seed.id) != refined_cues(classes, maps, seed.image)).sum()
    assert different


def test_bfloat16_is_computed_in(checkpoint, tmp_path):
    """The maps are other ones, and nearly the same."""
    generate(checkpoint, tmp_path / "32")
    generate(checkpoint, tmp_path / "bf16", precision="bf16-mixed")
    full, half = SeedCache(tmp_path / "32"), SeedCache(tmp_path / "bf16")
    for name in full.ids:
        one, other = full.maps(name)[1], half.maps(name)[1]
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one, other, atol=0.1 * one.max())


def test_an_existing_folder_is_kept(checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "cache")
    with pytest.raises(InputError, match="exists already"):
        generate(checkpoint, tmp_path / "cache", fg_threshold=0.5)
    assert SeedCache(tmp_path / "cache").settings["fg_threshold"] == 0.2
    generate(checkpoint, tmp_path / "cache", fg_threshold=0.5, overwrite=True)
    assert SeedCache(tmp_path / "cache").settings["fg_threshold"] == 0.5


def test_a_cache_of_other_code_is_refused(checkpoint, tmp_path, monkeypatch):
    generate(checkpoint, tmp_path / "cache")
    before = [file.read_bytes() for file in (tmp_path / "cache").iterdir()]
    assert SeedCache(tmp_path / "cache").settings["source"] == source_revision(SEED_PACKAGES)
    monkeypatch.setattr(cache_job, "source_revision", lambda packages: dict.fromkeys(packages, "another"))
    with pytest.raises(InputError, match="made with another revision of the code in datamodules/"):
        generate(checkpoint, tmp_path / "cache")
    assert [file.read_bytes() for file in (tmp_path / "cache").iterdir()] == before
    generate(checkpoint, tmp_path / "cache", overwrite=True)
    assert SeedCache(tmp_path / "cache").settings["source"] == dict.fromkeys(SEED_PACKAGES, "another")


WILD = ("strip", "large", "gray", "cmyk", "turned", "upright")
LAYERS = {"layer": "features", "saliency_layer": "features.encoder.layer2.1"}


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A VOC folder of a strip 1x500, an image of 3000x4000, gray, CMYK, one to be turned by its EXIF, a tall one."""
    root = tmp_path_factory.mktemp("wild") / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)

    def photo(height, width):
        coarse = generator.integers(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)

    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    photos = {
        "strip": (photo(1, 500), {}), "large": (photo(3000, 4000), {}), "gray": (photo(40, 100).convert("L"), {}),
        "cmyk": (photo(90, 60).convert("CMYK"), {}), "turned": (photo(50, 100), {"exif": turned}),
        "upright": (photo(100, 50), {}),
    }  # fmt: skip
    for name, (image, extra) in photos.items():
        path = root / f"JPEGImages/{name}.jpg"
        image.save(path, **extra)
        Image.fromarray(np.ones(image_size(path), np.uint8)).save(root / f"SegmentationClass/{name}.png")
    (root / "classes.txt").write_text("red\nblue\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in WILD))
    for label in ("red", "blue"):
        (root / f"ImageSets/Main/{label}_train.txt").write_text("".join(f"{name} 1\n" for name in WILD))
    return root


def test_images_of_wildly_different_sizes(wild, checkpoint, tmp_path, capsys):
    """None is lost, and the maps of each are those of the image alone."""
    given = {"scales": (1.0, 1.5), "flip": True, "size": 128}
    generate(checkpoint, tmp_path / "c", root=str(wild), batch_size=4, **given, **LAYERS)
    assert "left out" not in capsys.readouterr().err
    verify_cache(tmp_path / "c")
    cache = SeedCache(tmp_path / "c")
    method = GradCAM(load_task(checkpoint, ClassifierTask)[0].model, "features")
    for name in WILD:
        expected = averaged_maps(method, wild, name, [1.0, 1.0], sides=(128, 192))
        np.testing.assert_allclose(cache.maps(name)[1], expected, rtol=1e-2, atol=2e-3 * expected.max())
        assert cache.cues(name).shape == cache.saliency(name).shape == (16, 16)
        assert set(np.unique(cache.cues(name))) & {1, 2}


def of_many_shapes(old, path):
    """A cache as another, but each image has another grid, as imported caches may have."""
    with CacheWriter(path, old.classes, old.settings, inputs=old.inputs) as writer:
        for number, name in enumerate(old.ids):
            grid, (classes, maps) = (16 - number, 14 + number), old.maps(name)
            larger = functional.interpolate(torch.from_numpy(maps)[None], grid, mode="bilinear")[0].numpy()
            saliency = torch.from_numpy(old.saliency(name))[None, None]
            saliency = functional.interpolate(saliency, grid, mode="bilinear")[0, 0].numpy()
            cues = resize_nearest(old.cues(name), *grid)
            writer.add(name, cues, map_classes=classes, maps=larger, saliency=saliency)


def test_readers_of_a_cache_of_many_shapes(voc, checkpoint, tmp_path):
    """Scoring, exporting and training: none expects one shape."""
    generate(checkpoint, tmp_path / "square", size=128)
    of_many_shapes(SeedCache(tmp_path / "square"), tmp_path / "c")
    cache = SeedCache(tmp_path / "c")
    assert len({cache.cues(name).shape for name in IDS}) > 1
    assert evaluate_seeds(tmp_path / "c")["images"] == len(IDS)
    export_seeds(tmp_path / "c", tmp_path / "irn", "irn")
    for name in IDS:
        height, width = image_size(voc / f"JPEGImages/{name}.jpg")
        assert read_irn(tmp_path / f"irn/{name}.npy", 2)[1].shape[1:] == (-(-height // 4), -(-width // 4))
    with pytest.raises(InputError, match=r"cues of [2-6] different sizes, and a file of SEC has one size"):
        export_seeds(tmp_path / "c", tmp_path / "sec", "sec")
    data = data_of(voc, targets="cues", cues=str(tmp_path / "c"))
    data.setup("fit")
    assert [batch["cues"].shape for batch in data.train_dataloader()] == [(4, 3, 8, 8)]


def test_refined_cues_have_the_shape_of_the_maps(wild, checkpoint, tmp_path):
    generate(checkpoint, tmp_path / "c", root=str(wild), refine="crf", size=128, **LAYERS)
    cache = SeedCache(tmp_path / "c")
    for name in WILD:
        assert cache.cues(name).shape == cache.maps(name)[1].shape[1:]


def test_seeds_in_tiles_are_those_of_the_tiles_blended(voc, checkpoint, tmp_path):
    """Two tiles side by side: the outer parts are the maps of one tile alone, the middle lies between both."""
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    sides = np.random.default_rng(0).integers(0, 256, (64, 112, 3), dtype=np.uint8)
    sides[10:40, 10:30] = (200, 30, 30)
    sides[20:60, 80:100] = (30, 30, 200)
    Image.fromarray(sides).save(root / "large.png")
    (root / "JPEGImages/p2.jpg").write_bytes((root / "large.png").read_bytes())  # tags red and blue
    for scales in ((1.0,), (1.0, 1.5)):
        out = tmp_path / str(len(scales))
        generate(
            checkpoint, out, root=str(root), tile=64, overlap=0.25, size=64, scales=scales, flip=True, batch_size=4
        )
        cache = SeedCache(out)
        classes, maps = cache.maps("p2")
        assert cache.ids == tuple(IDS)
        assert (classes.tolist(), maps.shape, cache.cues("p2").shape) == ([0, 1], (2, 8, 14), (8, 14))
        tiles = []
        for number, left in enumerate((0, 48)):
            Image.fromarray(sides[:, left : left + 64]).save(root / "large.png")
            (root / "JPEGImages/p2.jpg").write_bytes((root / "large.png").read_bytes())
            generate(checkpoint, tmp_path / f"{len(scales)}{number}", root=str(root), size=64, scales=scales, flip=True)
            alone = SeedCache(tmp_path / f"{len(scales)}{number}")
            tiles.append(np.concatenate([alone.maps("p2")[1], alone.saliency("p2")[None]]))
        found = np.concatenate([maps, cache.saliency("p2")[None]])
        near = {"rtol": 0.02, "atol": 0.02 * found.max(axis=(1, 2), keepdims=True).min()}  # float16 in the cache
        np.testing.assert_allclose(found[..., :6], tiles[0][..., :6], **near)
        np.testing.assert_allclose(found[..., 8:], tiles[1][..., 2:], **near)
        between = 0.75 * tiles[0][..., 6] + 0.25 * tiles[1][..., 0]
        np.testing.assert_allclose(found[..., 6], between, **near)
        Image.fromarray(sides).save(root / "JPEGImages/p2.jpg", "png")


def test_the_crf_of_an_image_in_tiles_has_the_numbers_of_a_tile(voc, checkpoint, tmp_path, monkeypatch):
    """Objects have the size that they have in a tile, so the reach of the CRF does not grow with the image."""
    root = shutil.copytree(voc, tmp_path / "copy")
    with Image.open(root / "JPEGImages/p2.jpg") as image:
        image.resize((300, 200)).save(root / "JPEGImages/p2.jpg")
    reaches = set()

    def spy(_image, logits, *, bilateral_sxy, **_numbers):
        reaches.add(bilateral_sxy)
        return logits.softmax(dim=1)

    monkeypatch.setattr(crf_refinement, "dense_crf", spy)
    generate(checkpoint, tmp_path / "c", root=str(root), refine="crf", tile=80, size=64, num_workers=0, threads=1)
    assert SeedCache(tmp_path / "c").cues("p2").shape == (20, 30)
    assert len(reaches) == 1


@pytest.mark.parametrize("refine", ["none", "crf"])
def test_seeds_of_images_up_to_a_tile_do_not_depend_on_the_option(voc, checkpoint, tmp_path, refine):
    """Their order and a larger image among them do not matter; an unreadable large image is left out."""
    root = tmp_path / "copy"
    shutil.copytree(voc, root)
    for name in ("p1", "p3"):
        with Image.open(root / f"JPEGImages/{name}.jpg") as image:
            image.resize((150, 250)).save(root / f"JPEGImages/{name}.jpg")
    broken = root / "JPEGImages/p1.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    how = {"root": str(root), "max_unreadable": 0.5, "batch_size": 6, "refine": refine}
    generate(checkpoint, tmp_path / "tiles", tile=80, **how)
    generate(checkpoint, tmp_path / "whole", **how)
    tiles, whole = SeedCache(tmp_path / "tiles"), SeedCache(tmp_path / "whole")
    assert tiles.ids == whole.ids == ("p0", "p2", "p3", "p4", "p5")
    assert list(tiles.left_out) == ["p1"]
    assert tiles.cues("p3").shape == (25, 15)
    assert set(np.unique(tiles.cues("p3"))) > {255}
    for name in ("p0", "p2", "p4", "p5"):
        np.testing.assert_array_equal(tiles.cues(name), whole.cues(name))
    assert (tiles.settings["tile"], tiles.settings["overlap"]) == (80, 0.25)
    assert "tile" not in whole.settings
    assert "overlap" not in whole.settings
    settings = {"targets": "cues", "cues": str(tmp_path / "tiles"), "max_unreadable": 0.5, "val_split": None}
    data = data_of(root, **settings)
    data.setup("fit")
    assert all(batch["cues"].shape[1:] == (3, 8, 8) for batch in data.train_dataloader())  # a grid of any size serves
    with pytest.raises(InputError, match="a tile has at least 32 pixels"):
        generate(checkpoint, tmp_path / "none", tile=20)
    assert not (tmp_path / "none").exists()


def test_the_seeds_of_a_bucket_are_those_of_a_folder(s3, voc, checkpoint, tmp_path):
    """Images, checkpoint and the new cache by URI, two workers: the same shards but for the names of inputs."""
    root = upload(voc, f"{s3}/generate/voc")
    remote = UPath(f"{s3}/generate/classifier.ckpt")
    write_atomically(remote, checkpoint.read_bytes())
    generate(checkpoint, tmp_path / "local", num_workers=0, shard_size=4)
    generate(remote, UPath(f"{s3}/generate/cache"), root=root, num_workers=2, shard_size=4)
    local, found = SeedCache(tmp_path / "local"), SeedCache(f"{s3}/generate/cache")
    assert found.fingerprint == local.fingerprint
    assert found.inputs["checkpoint"] == str(remote)
    assert found.inputs["data"]["root"] == root
    for name in IDS:
        assert (found.cues(name) == local.cues(name)).all()
    (tmp_path / "copy").mkdir()
    for path in remote.with_name("cache").iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    verify_cache(tmp_path / "copy")


def test_the_crf_of_the_generator_sees_the_images_own_colours(voc, checkpoint):
    for seed in in_memory(voc, checkpoint, 6, refinement={"conf_fg": 0.3, "conf_bg": 0.05})[1]:
        assert torch.equal(seed.image, read_at(voc / f"JPEGImages/{seed.id}.jpg", 64)[0])


def test_cues_are_those_of_the_maps_and_the_saliency_as_the_cache_returns_them():
    """A value above the threshold that the cache rounds below it; two saliencies that it rounds to one: the first."""
    value = next(
        value
        for value in np.linspace(0.5, 0.501, 1000, dtype=np.float32)
        if as_stored(np.float32([[[0.65, value]]]))[0, 0, 1] < value
    )
    maps, saliency = np.float32([[[0.65, value, 0]]]), np.float32([[0.50005, 0.5, 1]])
    threshold = float(as_stored(maps)[0, 0, 1] / as_stored(maps).max() + value / np.float32(0.65)) / 2
    assert maps[0, 0, 1] > threshold * maps.max()
    settings = {"refinement": None, "fg_threshold": threshold, "bg_fraction": 2 / 3}
    seed = Seed("a", np.array([4]), maps, saliency)
    assert CamModule.cues(SimpleNamespace(settings=settings), seed).tolist() == [[5, 0, 255]]
    settings["fg_threshold"], settings["bg_fraction"] = 0.9, 1 / 3
    seed = seed._replace(maps=np.float32([[[0, 0, 1]]]))
    assert CamModule.cues(SimpleNamespace(settings=settings), seed).tolist() == [[0, 255, 5]]


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_the_saliency_is_that_of_the_first_scale(voc, checkpoint, method):
    module, seeds = in_memory(voc, checkpoint, 6, method=method, scales=(1.0, 1.5))
    for seed in seeds:
        image, labels = normalize(read_at(voc / f"JPEGImages/{seed.id}.jpg", 64)), torch.zeros(1, 2)
        labels[0, seed.classes] = 1
        (wanted,) = background_saliency(module.network, "features.encoder.layer2.1", image, labels)
        np.testing.assert_allclose(seed.saliency, wanted, rtol=1e-3, atol=1e-3 * float(wanted.max()))


def test_saliency_of_images_of_four_channels_is_checked():
    """The image of noise has as many channels as the classifier's images."""
    network = Classifier(build_backbone("resnet18", 16, in_channels=4), 2)
    given = {
        "method": "gradcam", "layer": "features", "saliency_layer": network.saliency_layer, "scales": (1.0,),
        "flip": False, "size": 64, "cue_stride": 8, "bg_fraction": 0.1, "refinement": None,
    }  # fmt: skip
    CamModule(network, given)
    with pytest.raises(InputError, match="saliency at layer features is the same everywhere"):
        CamModule(network, given | {"saliency_layer": "features"})
