"""`fit` on affinities and `tag2mask seeds refine`: a cache whose maps have walked."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import InputError
from datamodules.images import normalize
from datamodules.masks import read_class_mask
from datamodules.sample import Sample, multi_hot
from datamodules.sample_blocks import consecutive_blocks
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE, as_stored
from datamodules.transforms import resize_nearest
from seeds.affinity.affinity_task import AffinityTask
from seeds.affinity.random_walk import random_walk
from seeds.cache_job import Seed
from seeds.checkpoints import load_task
from seeds.job_options import JobOptions
from seeds.refine_seeds import RandomWalkModule, automatic_threshold, within_boxes
from tests.seed_caches import CacheWriter
from tests.training.conftest import data_of
from tests.training.fits import fit
from training.cli import main

SETTINGS = {"size": 64, "cue_stride": 4, "radius": 5, "beta": 10.0, "steps": 10, "fg_threshold": 0.25, "crf": None}

ROUNDED = next(  # a value that the cache rounds to less than one half
    value
    for value in np.linspace(0.5, 0.501, 1000, dtype=np.float32)
    if as_stored(np.float32([[[0.65, value]]]))[0, 0, 1] < 0.5 < value
)


def refined_label_map(seed, *, fg_threshold, crf):
    start = SimpleNamespace(small_labels=[])
    return RandomWalkModule(torch.nn.Identity(), SETTINGS | {"fg_threshold": fg_threshold, "crf": crf}, start).cues(
        seed
    )


def test_labels_by_hand():
    maps = np.array([[[2.0, 1.0], [0.5, 0.0]], [[0.0, 0.75], [0.25, 0.1]]], np.float32)  # of maxima 2 and 0.75
    seed = Seed("a", np.array([0, 2]), maps, None, torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert refined_label_map(seed, fg_threshold=0.3, crf=False).tolist() == [[1, 3], [3, 0]]
    assert refined_label_map(seed, fg_threshold=0.6, crf=False).tolist() == [[1, 3], [0, 0]]
    none = Seed("a", np.zeros(0, int), np.zeros((0, 2, 2), np.float32), None, seed.image)
    assert refined_label_map(none, fg_threshold=0.3, crf=True).tolist() == [[0, 0], [0, 0]]


def test_the_crf_follows_the_image():
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, :, :4] = 1
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8)
    photo[:, :, :20] = 255
    found = refined_label_map(Seed("a", np.array([1]), maps, None, photo), fg_threshold=0.25, crf=True)
    assert (found == np.where(np.arange(8) < 5, 2, 0)).all()


def test_the_threshold_counts_with_the_crf_too():
    """A left half of one colour, whose map is 1 in its first two columns and 0.5 in the other two."""
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, :, :2], maps[0, :, 2:4] = 1, 0.5
    seed = Seed("a", np.array([1]), maps, None, torch.full((3, 32, 32), 90, dtype=torch.uint8))
    positions = [(refined_label_map(seed, fg_threshold=t, crf=True) == 2).sum() for t in (0.3, 0.7)]
    assert positions[0] > positions[1] + 8


class Edges(torch.nn.Module):
    """Boundaries that are the image's mean colour by four pixels, stronger to the right."""

    def forward(self, images):
        grey = torch.nn.functional.avg_pool2d(images, 4).mean(1).sigmoid()
        return grey * torch.linspace(0.2, 0.9, grey.shape[-1])


def test_each_image_walks_with_its_own_maps_and_boundary(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    maps = generator.random((3, 4, 4), dtype=np.float32)
    with CacheWriter(tmp_path / "c", ["x", "y", "z"], {}) as writer:
        writer.add("a", np.zeros((4, 4), np.uint8), map_classes=np.array([0, 2]), maps=maps[:2])
        writer.add("b", np.zeros((4, 4), np.uint8), map_classes=np.array([1]), maps=maps[2:])
    images = torch.from_numpy(generator.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8))
    batch = {"id": ["a", "b"], "labels": torch.tensor([[1.0, 0, 1], [0, 1, 0]]), "image": normalize(images)}
    monkeypatch.setattr("seeds.refine_seeds.random_walk", lambda own, edge, steps, **_: own + steps * edge)
    module = RandomWalkModule(Edges(), SETTINGS, SeedCache(tmp_path / "c"))
    found = module.predict_seeds(batch)
    grey = torch.nn.functional.avg_pool2d(normalize(images), 4).mean(1).sigmoid().double().numpy()
    ramp = np.linspace(0.2, 0.9, 8)
    boundary = torch.from_numpy(grey * (ramp + ramp[::-1]) / 2)  # of the image and its mirror image
    edges, large = (
        torch.nn.functional.interpolate(each[:, None], (16, 16), mode="bilinear")[:, 0].numpy()
        for each in (boundary, torch.from_numpy(maps.astype(np.float64)))
    )
    assert [seed.classes.tolist() for seed in found] == [[0, 2], [1]]
    np.testing.assert_allclose(found[0].maps, large[:2] + 10 * edges[0], atol=2e-3)
    np.testing.assert_allclose(found[1].maps, large[2:] + 10 * edges[1], atol=2e-3)
    assert [seed.image.tolist() for seed in found] == images.tolist()


def test_boundaries_that_are_not_finite(tmp_path):
    with CacheWriter(tmp_path / "c", ["x"], {}) as writer:
        writer.add("a", np.zeros((4, 4), np.uint8), map_classes=np.array([0]), maps=np.ones((1, 4, 4), np.float32))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1), torch.nn.Flatten(1, 2))
    network[0].weight.data[0, 0] = torch.nan
    module = RandomWalkModule(network, SETTINGS, SeedCache(tmp_path / "c"))
    batch = {"id": ["a"], "labels": torch.ones(1, 1), "image": torch.zeros(1, 3, 32, 32)}
    with torch.no_grad():
        assert module.predict_step(batch) == []
    assert module.problem == "the network's boundaries of image a or its neighbours are not finite"


def test_nothing_is_computed_for_an_image_in_which_nothing_is_spread(tmp_path):
    """Of three images the first has a tag. Where there are annotations, each image may have some."""
    with CacheWriter(tmp_path / "c", ["x"], {}) as writer:
        for name in "abc":
            maps = {"map_classes": np.array([0]), "maps": np.ones((1, 16, 16), np.float32)} if name == "a" else {}
            writer.add(name, np.zeros((16, 16), np.uint8), **maps)
    sizes = []

    class Counted(Walls):
        def forward(self, images):
            sizes.append(len(images))
            return super().forward(images)

    batch = {"id": ["a", "b", "c"], "labels": torch.tensor([[1.0], [0], [0]]), "image": torch.zeros(3, 3, 64, 64)}
    module = RandomWalkModule(Counted(), SETTINGS, SeedCache(tmp_path / "c"))
    seeds = module.predict_seeds(batch)
    assert sizes == [1, 1]
    assert [len(seed.maps) for seed in seeds] == [1, 0, 0]
    assert not module.cues(seeds[1]).any()
    module.predict_seeds(batch | {"mask": torch.full((3, 64, 64), 255), "boxes": [torch.zeros(0, 5)] * 3})
    assert sizes[2:] == [3, 3]


def test_a_batch_without_readable_images_has_no_seeds(tmp_path):
    with CacheWriter(tmp_path / "c", ["x"], {}) as writer:
        writer.add("a", np.zeros((4, 4), np.uint8))
    module = RandomWalkModule(Edges(), SETTINGS, SeedCache(tmp_path / "c"))
    empty = {"id": [], "labels": torch.zeros(0, 1), "image": torch.zeros(0), "unreadable": [("a", "torn")]}
    assert module.predict_step(empty) == []
    assert not module.problem


def test_small_classes_do_not_walk_and_keep_their_cues(tmp_path, monkeypatch):
    """Class 2 (y) is small: in image a beside x, in b alone. Image c has none: its cues do not count."""
    cues = np.full((16, 16), NO_CUE, np.uint8)
    cues[:, :2], cues[:, 8], cues[:, 12:] = 1, 2, 0  # x at the left, y in the middle, background at the right
    x, y = np.zeros((2, 16, 16), np.float32)
    x[:, :6], y[:, 7:10] = 1, 1
    with CacheWriter(tmp_path / "c", ["x", "y"], {"small_classes": ["y"]}) as writer:
        writer.add("a", cues, map_classes=np.array([0, 1]), maps=np.stack([x, y]))
        writer.add("b", np.where(cues == 1, NO_CUE, cues), map_classes=np.array([1]), maps=y[None])
        writer.add("c", cues, map_classes=np.array([0]), maps=x[None])
    batch = {
        "id": ["a", "b", "c"], "labels": torch.tensor([[1.0, 1], [0, 1], [1, 0]]), "image": torch.zeros(3, 3, 64, 64),
    }  # fmt: skip
    monkeypatch.setattr("seeds.refine_seeds.random_walk", lambda maps, *_, **__: np.roll(maps, 2, axis=2))
    module = RandomWalkModule(Edges(), SETTINGS, SeedCache(tmp_path / "c"))
    a, b, c = module.predict_seeds(batch)
    np.testing.assert_array_equal(a.maps, np.stack([np.roll(x, 2, axis=1), y]))
    np.testing.assert_array_equal(b.maps, y[None])
    assert module.cues(a)[5].tolist() == [0, 0, *[1] * 6, 2, *[NO_CUE] * 3, 0, 0, 0, 0]  # x has walked two positions
    assert module.cues(b)[5].tolist() == [*[NO_CUE] * 8, 2, *[NO_CUE] * 3, 0, 0, 0, 0]
    assert module.cues(c)[5].tolist() == [0, 0, *[1] * 6, *[0] * 8]


def refine(cache, boundaries, output, *words):
    given = ["--cache", str(cache), "--checkpoint", str(boundaries), "--output", str(output)]
    return main(["seeds", "refine", *given, "--num_workers", "0", "--accelerator", "cpu", *words])


def copied(old, path, *, maps_of=None, left_out=None):
    """A cache as another; some maps under other classes, some images left out."""
    left_out = left_out or {}
    with CacheWriter(path, old.classes, old.settings, left_out=left_out) as writer:
        for name in old.ids:
            if name not in left_out:
                classes, maps = old.maps(name)
                classes, maps = (maps_of or (lambda _name, *own: own))(name, classes, maps)
                writer.add(name, old.cues(name), map_classes=classes, maps=maps)
    return path


def uneven(generator, maps):
    return generator.random(maps.shape, dtype=np.float32) ** 4


def test_the_maps_of_a_cache_walk(voc, cues, boundaries, tmp_path, capsys):
    words = ["--steps", "8", "--crf", "false", "--shard_size", "4", "--radius", "3", "--beta", "2"]
    words += ["--fg_threshold", "0.6"]
    generator = np.random.default_rng(1)
    varied = copied(
        SeedCache(cues), tmp_path / "set out", maps_of=lambda _name, own, maps: (own, uneven(generator, maps))
    )
    assert refine(varied, boundaries, tmp_path / "walked", *words) == 0
    new, old, samples = SeedCache(tmp_path / "walked"), SeedCache(varied), data_of(voc).samples("train")
    assert new.ids == tuple(sample.id for sample in samples)
    assert (new.settings["steps"], new.settings["cache"]) == (8, old.fingerprint)
    task = load_task(boundaries, AffinityTask)[0]
    name = samples[4].id
    image = next(iter(data_of(voc).eval_loader([samples[4]])))["image"]
    with torch.no_grad():
        boundary = ((task(image) + task(image.flip(-1)).flip(-1)) / 2)[0].numpy()
    classes, maps = old.maps(name)
    large = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], (16, 16), mode="bilinear")[0].numpy()
    wanted = random_walk(large, boundary, steps=8, radius=3, beta=2)
    np.testing.assert_allclose(new.maps(name)[1], wanted, atol=2e-3)
    assert new.maps(name)[0].tolist() == classes.tolist()
    wanted = refined_label_map(
        Seed(name, classes, new.maps(name)[1], None, torch.zeros(0)), fg_threshold=0.6, crf=False
    )
    assert np.array_equal(new.cues(name), wanted)
    assert set(np.unique(wanted)) == {0, *(classes + 1)}
    assert main(["seeds", "verify", "--cache", str(tmp_path / "walked")]) == 0
    shutil.copytree(tmp_path / "walked", tmp_path / "copy")
    others = {"steps": "9", "radius": "4", "beta": "3", "fg_threshold": "0.5", "crf": "true", "precision": "bf16-mixed"}
    others |= {"size": "32", "cue_stride": "8", "cache": str(tmp_path / "copy")}
    for option, value in others.items():
        assert refine(varied, boundaries, tmp_path / "walked", *words, f"--{option}", value) == 1
        assert f"exists already, made with {option}" in capsys.readouterr().err


def test_the_automatic_threshold_keeps_the_area_of_the_maps(voc, cues, boundaries, tmp_path, monkeypatch, capsys):
    """Its cache is that of the threshold given as a number, for which float64 finds the area of the maps, too.

    The area of these maps grows little in the walk, which would give irn's threshold.
    """
    monkeypatch.setattr("seeds.refine_seeds.MAX_GROWTH", 0)
    generator, words = np.random.default_rng(1), ["--steps=8", "--radius=3", "--beta=2", "--crf=false"]
    auto = [*words, "--fg_threshold=auto"]
    start = copied(SeedCache(cues), tmp_path / "start", maps_of=lambda _name, own, maps: (own, uneven(generator, maps)))
    assert refine(start, boundaries, tmp_path / "auto", *auto) == 0
    old, new = SeedCache(start), SeedCache(tmp_path / "auto")
    threshold, before, after = new.settings["fg_threshold"], 0, list[float]()
    for name in new.ids:
        for map_before, map_after in zip(old.maps(name)[1], new.maps(name)[1], strict=True):
            large = torch.nn.functional.interpolate(
                torch.from_numpy(map_before)[None, None].double(), (16, 16), mode="bilinear"
            )
            before += int((large > 0.2 * large.max()).sum())
            after += (map_after.astype(float) / map_after.max()).flatten().tolist()
    differences = {each: abs((np.array(after) >= each).sum() - before) for each in np.arange(1, 100) / 100}
    assert differences[threshold] <= min(differences.values()) + 2
    assert sorted(differences.values())[10] > differences[threshold] + 10  # others do not
    printed = capsys.readouterr().err
    assert f"fg_threshold {threshold}: labels cover as many positions as the maps" in printed
    assert printed.count("precision: ") == 1
    assert refine(start, boundaries, tmp_path / "number", *words, f"--fg_threshold={threshold}") == 0
    for shard in sorted((tmp_path / "auto").glob("*.safetensors")):
        assert shard.read_bytes() == (tmp_path / "number" / shard.name).read_bytes()
    assert refine(start, boundaries, tmp_path / "auto", *auto) == 0  # a second time, the cache is kept
    assert "is there already" in capsys.readouterr().err


def test_no_cache_is_begun_if_no_threshold_can_be_chosen(cues, boundaries, tmp_path, monkeypatch, capsys):
    content = torch.load(boundaries, weights_only=True)
    content["state_dict"] = {key: value * torch.nan for key, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "nan.ckpt")
    assert refine(cues, tmp_path / "nan.ckpt", tmp_path / "out", "--fg_threshold=auto") == 1
    assert capsys.readouterr().err.count("are not finite") == 1
    monkeypatch.setattr("pytorch_lightning.Trainer.received_sigterm", True)
    assert refine(cues, boundaries, tmp_path / "out", "--fg_threshold=auto") == 143
    assert not (tmp_path / "out").exists()


def test_the_area_of_maps_by_hand(tmp_path, monkeypatch):
    """Three positions of four exceed 0.2 before the walk, and 0.35 after it; the map of a small class does not count.

    Untagged images, and images whose maps are missing, are not predicted.
    """
    with CacheWriter(tmp_path / "c", ["x", "y"], {"small_classes": ["y"], "fg_threshold": 0.2}) as writer:
        before = np.array([[[2, 1], [0.5, 0.3]], [[1, 1], [1, 1]]], np.float32)
        writer.add("a", np.zeros((2, 2), np.uint8), map_classes=np.array([0, 1]), maps=before)
        for name in ("small", "none", "lacking"):
            writer.add(name, np.zeros((2, 2), np.uint8))
    tags = {"a": {"x", "y"}, "small": {"y"}, "none": set(), "lacking": {"x"}, "not in the cache": {"x"}}
    samples = [Sample(name, f"{name}.png", frozenset(own)) for name, own in tags.items()]
    predicted = []

    def walked(_module, _source, _job, chosen):
        predicted.extend(sample.id for sample in chosen)
        return [Seed("a", np.array([0, 1]), np.array([[[4, 2], [1.6, 1.2]], [[1, 1], [1, 1]]], np.float32))]

    monkeypatch.setattr("seeds.refine_seeds.predict_some", walked)
    settings = SETTINGS | {"size": 8}
    module = RandomWalkModule(torch.nn.Identity(), settings, SeedCache(tmp_path / "c"))
    for blocks in (consecutive_blocks(samples, 2), replace(consecutive_blocks(samples, 2), samples=None)):
        predicted.clear()
        source = SimpleNamespace(blocks=blocks, data=SimpleNamespace(classes=("x", "y")))
        monkeypatch.setattr("seeds.refine_seeds.MAX_GROWTH", 1.5)  # 4 positions exceed 0.25, and 3 exceeded 0.2
        assert automatic_threshold(module, source, JobOptions()) == 0.25
        monkeypatch.setattr("seeds.refine_seeds.MAX_GROWTH", 1.3)
        assert 0.3 < automatic_threshold(module, source, JobOptions()) <= 0.4
        assert predicted == ["a", "a"]
    empty = SimpleNamespace(blocks=consecutive_blocks(samples[1:3], 2), data=source.data)
    assert automatic_threshold(module, empty, JobOptions()) == 0.25


def test_mistakes(cues, boundaries, checkpoint, tmp_path, capsys):
    with CacheWriter(tmp_path / "lacking", SeedCache(cues).classes, {}) as writer:
        writer.add(SeedCache(cues).ids[0], np.zeros((2, 2), np.uint8))
    for given, message in (
        ((cues, boundaries, "--steps", "0"), "steps 0"), ((cues, boundaries, "--fg_threshold", "1"), "fg_threshold 1"),
        ((cues, boundaries, "--radius", "1"), "radius 1"), ((cues, boundaries, "--size", "-8"), "size must be"),
        ((cues, boundaries, "--beta", "0"), "beta 0.0"),
        ((cues, checkpoint), "checkpoint of the task 'segmentation'; one of 'boundary network'"),
        ((tmp_path / "lacking", boundaries), "lacks"), ((tmp_path / "none", boundaries), "is not a seed cache"),
    ):  # fmt: skip
        assert refine(given[0], given[1], tmp_path / "out", *given[2:]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_labels_only_have_no_maps_to_walk(cues, boundaries, tmp_path, capsys):
    old = SeedCache(cues)
    with CacheWriter(tmp_path / "labels", old.classes, {}) as writer:
        for name in old.ids:
            writer.add(name, old.cues(name))
    assert refine(tmp_path / "labels", boundaries, tmp_path / "out") == 1
    assert "has no maps" in capsys.readouterr().err


def test_images_left_out_stay_so(cues, boundaries, checkpoint, tmp_path, capsys):
    """They could not be read when the first cache was made, and now they can."""
    old = SeedCache(cues)
    lost = {old.ids[1]: "it was on the moon"}
    copied(old, tmp_path / "fewer", left_out=lost)
    assert refine(tmp_path / "fewer", boundaries, tmp_path / "walked", "--steps", "2", "--crf", "false") == 0
    words = [
        "--checkpoint",
        str(checkpoint),
        "--consensus",
        str(tmp_path / "fewer"),
        "--output",
        str(tmp_path / "labels"),
    ]
    assert main(["pseudo-label", *words, "--num_workers", "0", "--accelerator", "cpu"]) == 0
    for name in ("walked", "labels"):
        new = SeedCache(tmp_path / name)
        assert new.left_out == lost
        assert new.ids == tuple(each for each in old.ids if each not in lost)
    assert "the moon" in capsys.readouterr().err


def test_the_tags_of_today_decide(cues, boundaries, voc, tmp_path, capsys):
    """Maps of classes that an image is not tagged with stay behind; without the map of one that it is, none walks."""
    old, data = SeedCache(cues), data_of(voc)
    labels = multi_hot(data.samples("train"), data.classes)
    number = len(old.classes)

    def more(_name, _classes, maps):
        return np.arange(number), np.ones((number, *maps.shape[1:]), np.float32)

    copied(old, tmp_path / "more", maps_of=more)
    assert refine(tmp_path / "more", boundaries, tmp_path / "walked", "--steps", "2", "--crf", "false") == 0
    new = SeedCache(tmp_path / "walked")
    for name, own in zip(new.ids, labels, strict=True):
        assert new.maps(name)[0].tolist() == np.flatnonzero(own).tolist()

    def other(_name, classes, maps):
        return (classes + 1) % number, maps

    copied(old, tmp_path / "other", maps_of=other)
    assert refine(tmp_path / "other", boundaries, tmp_path / "out") == 1
    assert "has no map of class" in capsys.readouterr().err


def test_maps_belong_to_class_ids_not_to_an_order(voc, boundaries, tmp_path):
    """Imported maps, refined and trained on: another order of the classes changes names of classes and nothing else."""
    data = data_of(voc)
    names, samples = data.classes, data.samples("train")
    ids, labels = [sample.id for sample in samples], multi_hot(samples, data.classes)
    order = [names[i] for i in (3, 1, 4, 0, 2)]
    generator = np.random.default_rng(2)
    (tmp_path / "irn").mkdir()
    (tmp_path / "irn/classes.txt").write_text("".join(f"{name}\n" for name in names))
    for name, own in zip(ids, labels, strict=True):
        classes = np.flatnonzero(own)
        maps = generator.random((len(classes), 8, 8), dtype=np.float32) ** 4
        np.save(tmp_path / "irn" / f"{name}.npy", {"keys": classes, "cam": maps}, allow_pickle=True)
    assert (labels.sum(1) > 1).any()  # an image of one class cannot have its maps exchanged
    content = torch.load(boundaries, weights_only=True)
    found = {}
    for key, classes in (("same", list(names)), ("other", order)):
        content["hyper_parameters"]["classes"] = classes
        torch.save(content, tmp_path / f"{key}.ckpt")
        imported, refined = tmp_path / f"{key}-imported", tmp_path / f"{key}-refined"
        words = ["--format=irn", f"--source={tmp_path / 'irn'}", f"--output={imported}", f"--classes={classes}"]
        assert main(["seeds", "import", *words, "--grid=8"]) == 0
        words = ["--steps=8", "--radius=3", "--beta=2", "--fg_threshold=0.6", "--crf=false"]
        assert refine(imported, tmp_path / f"{key}.ckpt", refined, *words) == 0
        assert fit(voc, refined, tmp_path / f"{key}-run", f"--data.classes={classes}") == 0  # sets the seed, too
        data = data_of(voc, classes=classes, targets="cues", cues=str(refined), cue_stride=4)
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
        found[key] = SeedCache(refined), batch
    back = np.array([0, *(names.index(name) + 1 for name in order)] + [255] * 250, np.uint8)
    for name in ids:
        classes, maps = found["same"][0].maps(name)
        others, other_maps = found["other"][0].maps(name)
        place = {order[i]: row for row, i in enumerate(others)}
        np.testing.assert_array_equal(other_maps[[place[names[i]] for i in classes]], maps)
        top = np.sort(maps / maps.max(axis=(1, 2), keepdims=True), axis=0)[-2:]
        tie = (top[0] == top[-1]) if len(classes) > 1 else np.zeros(maps.shape[1:], bool)  # the first class wins then
        same = back[found["other"][0].cues(name)] == found["same"][0].cues(name)
        assert (same | tie).all()
        assert tie.mean() < 0.05
    channels = [0, *(order.index(name) + 1 for name in names)]
    assert found["other"][1]["id"] == found["same"][1]["id"]
    assert (found["other"][1]["cues"][:, channels] == found["same"][1]["cues"]).float().mean() > 0.97  # but for ties


def test_boxes_bound_the_maps_and_each_contains_its_class():
    maps = np.array([[[4.0, 2.0, 0.0, 1.0]], [[1.0, 3.0, 3.0, 3.0]]], np.float32)
    boxes = np.array([[1, 0.25, 0, 0.5, 1], [1, 0.5, 0, 0.75, 1], [3, 0, 0, 1, 1]], np.float32)
    found = within_boxes(np.array([0, 1]), maps, boxes)  # the class 2 (index 3) is not among the maps
    assert found.tolist() == [[[0, 1, 1, 0]], [[1, 3, 3, 3]]]
    assert within_boxes(np.array([0, 1]), maps, boxes[:0]).tolist() == maps.tolist()


class Walls(torch.nn.Module):
    """A boundary between the left and the right half."""

    def forward(self, images):
        walls = torch.zeros(len(images), 16, 16)
        walls[:, :, 7:9] = 1
        return walls


def test_drawn_pixels_keep_their_labels_and_spread(tmp_path):
    """A point of class y in a region that the map of x covers; the walls between the regions hold all walks up."""
    with CacheWriter(tmp_path / "c", ["x", "y"], {}) as writer:
        maps = np.zeros((2, 16, 16), np.float32)
        maps[0], maps[1, 2, 2] = 1, 0.1
        writer.add("a", np.zeros((16, 16), np.uint8), map_classes=np.array([0, 1]), maps=maps)
    mask = np.full((64, 64), 255)
    mask[30, 50], mask[2, 2] = 2, 0  # y in the right half, background in the left one
    batch = {"id": ["a"], "labels": torch.ones(1, 2), "image": torch.zeros(1, 3, 64, 64)}
    batch |= {"mask": torch.from_numpy(mask)[None].long(), "boxes": [torch.zeros(0, 5)]}
    module = RandomWalkModule(Walls(), SETTINGS | {"steps": 400}, SeedCache(tmp_path / "c"))
    (seed,) = module.predict_seeds(batch)
    labels = module.cues(seed)
    assert labels[7, 12] == 2
    assert labels[0, 0] == 0
    assert (labels[5:10, 10:15] == 2).mean() > 0.9, "the point's label spreads in its region"
    assert not (labels[:, :7] == 2).any(), "and does not cross the wall"
    assert (labels[:, :7] == 1).mean() > 0.9
    assert seed.maps[0, 7, 12] == seed.maps[:, 0, 0].max() == 0
    del batch["mask"], batch["boxes"]
    assert not (module.cues(module.predict_seeds(batch)[0])[:, 9:] == 2).any()


def test_the_threshold_is_a_fraction_of_the_maximum_without_drawn_pixels(tmp_path):
    """A point left of the wall, where the map is low; right of it, 0.3 of the maximum exceeds the threshold 0.25."""
    with CacheWriter(tmp_path / "c", ["x"], {}) as writer:
        maps = np.full((1, 16, 16), 0.1, np.float32)
        maps[0, :4, 9:], maps[0, 4:, 9:] = 1, 0.3
        writer.add("a", np.zeros((16, 16), np.uint8), map_classes=np.array([0]), maps=maps)
    mask = torch.full((1, 64, 64), 255)
    batch = {"id": ["a"], "labels": torch.ones(1, 1), "image": torch.zeros(1, 3, 64, 64), "boxes": [torch.zeros(0, 5)]}
    module = RandomWalkModule(Walls(), SETTINGS | {"steps": 1, "fg_threshold": 0.25}, SeedCache(tmp_path / "c"))
    mask[0, 30, 10] = 1
    (seed,) = module.predict_seeds(batch | {"mask": mask})
    labels = module.cues(seed)
    assert labels[7, 2] == 1
    assert (labels[12:, 12:] == 1).all()
    assert (labels[12:, :6] == 0).all()


def test_a_whole_mask_is_the_label_map(voc, cues, boundaries, tmp_path):
    """By the command; images that are not in the list keep their labels."""
    (tmp_path / "some.txt").write_text("train_00001\ntrain_00004\n")
    words = ["--steps", "4", "--size", "64", "--cue_stride", "4", "--crf", "false"]
    assert refine(cues, boundaries, tmp_path / "plain", *words) == 0
    drawn = ["--annotations", str(tmp_path / "some.txt")]
    assert refine(cues, boundaries, tmp_path / "drawn", *words, *drawn) == 0
    plain, own = SeedCache(tmp_path / "plain"), SeedCache(tmp_path / "drawn")
    assert own.settings["mask_classes"] == list(data_of(voc).mask_classes)  # the meaning of the masks' indices
    assert len(own.settings["annotations_sha256"]) == 64
    assert "annotations_sha256" not in plain.settings
    data = data_of(voc)
    for sample in data.samples("train"):
        if sample.id in ("train_00001", "train_00004"):
            mask = read_class_mask(sample.mask, data.mask_lut)
            small = resize_nearest(resize_nearest(mask, 64, 64), 16, 16)
            known = small != 255
            assert (own.cues(sample.id)[known] == small[known]).all()
            assert (own.cues(sample.id) != plain.cues(sample.id)).any()
        else:
            assert (own.cues(sample.id) == plain.cues(sample.id)).all()


def test_an_object_too_small_for_the_resized_mask_stops_no_walk(voc, cues, boundaries, tmp_path):
    """Its class is a tag from the mask alone, other pixels are unknown, and resizing loses its single pixel."""
    data = data_of(voc)
    sample = data.samples("train")[0]
    other = next(index for index, name in enumerate(data.classes) if name not in sample.tags)
    mask = read_class_mask(sample.mask, data.mask_lut)
    mask[:2] = 255
    numbered = np.arange(mask.size).reshape(mask.shape)
    lost = np.setdiff1d(numbered, resize_nearest(numbered.astype(np.float32), 64, 64))[-1]
    mask.flat[int(lost)] = 1 + other
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "drawn.csv").write_text(f"id,mask\n{sample.id},mask.png\n")
    words = ["--steps", "4", "--size", "64", "--cue_stride", "4", "--crf", "false"]
    assert refine(cues, boundaries, tmp_path / "out", *words, "--annotations", str(tmp_path / "drawn.csv")) == 0
    assert other in SeedCache(tmp_path / "out").maps(sample.id)[0]


def test_a_class_that_only_a_mask_shows_needs_no_map(tmp_path):
    """The mask of an image corrects its tags; the cache was made of the tags before."""
    with CacheWriter(tmp_path / "c", ["x", "y"], {}) as writer:
        writer.add("a", np.zeros((16, 16), np.uint8), map_classes=np.array([0]), maps=np.ones((1, 16, 16), np.float32))
    mask = np.full((1, 64, 64), 255)
    mask[0, 32:, 32:], mask[0, :8] = 2, 0
    batch = {"id": ["a"], "labels": torch.ones(1, 2), "image": torch.zeros(1, 3, 64, 64)}
    drawn = {"mask": torch.from_numpy(mask).long(), "boxes": [torch.zeros(0, 5)]}
    module = RandomWalkModule(Walls(), SETTINGS | {"steps": 4}, SeedCache(tmp_path / "c"))
    (seed,) = module.predict_seeds(batch | drawn)
    assert seed.maps.shape == (2, 16, 16)
    assert (module.cues(seed)[8:, 8:] == 2).all()
    mask[mask == 2] = 1
    with pytest.raises(InputError, match="has no map of class y of image a"):
        module.predict_seeds(batch | drawn)
    mask[mask == 255] = 0  # no pixel is unknown: an object of class y was lost when the mask was resized
    (seed,) = module.predict_seeds(batch | drawn)
    assert (module.cues(seed) == mask[0, ::4, ::4]).all()


def test_cues_of_the_walk_are_those_of_the_maps_as_the_cache_returns_them():
    value = ROUNDED
    maps = np.float32([[[0.65, value]]])
    threshold = float(as_stored(maps)[0, 0, 1] / as_stored(maps).max() + value / 0.65) / 2
    start = SimpleNamespace(small_labels=[])
    module = RandomWalkModule(torch.nn.Identity(), SETTINGS | {"fg_threshold": threshold}, start)
    assert module.cues(Seed("a", np.array([0]), maps, None, None)).tolist() == [[1, 0]]


def test_boxes_bound_the_maps_before_the_walk_and_afterwards(tmp_path, monkeypatch):
    """A walk of two positions to the right: from outside the box none enters it, and none leaves it."""
    maps = np.zeros((1, 16, 16), np.float32)
    maps[:, :, 3], maps[:, :, 4:8] = 9, 1
    with CacheWriter(tmp_path / "c", ["x"], {}) as writer:
        writer.add("a", np.zeros((16, 16), np.uint8), map_classes=np.array([0]), maps=maps)
    monkeypatch.setattr("seeds.refine_seeds.random_walk", lambda own, *_, **__: np.roll(own, 2, axis=2))
    batch = {"id": ["a"], "labels": torch.ones(1, 1), "image": torch.zeros(1, 3, 64, 64)}
    batch |= {"mask": torch.full((1, 64, 64), 255), "boxes": [torch.tensor([[1, 0.25, 0, 0.5, 1.0]])]}
    (seed,) = RandomWalkModule(Edges(), SETTINGS, SeedCache(tmp_path / "c")).predict_seeds(batch)
    assert seed.maps[0, 5].tolist() == [*[0] * 6, 1, 1, *[0] * 8]


class Open(torch.nn.Module):
    """No boundary anywhere."""

    def forward(self, images):
        return torch.zeros(len(images), 16, 16)


def walked(tmp_path, maps, points, steps):
    """Walk from maps (k, 16, 16) and from drawn pixels of an image of 64x64; return the module and the seed."""
    names = ["x", "y"][: len(maps)]
    with CacheWriter(tmp_path / "c", names, {}) as writer:
        writer.add("a", np.zeros((16, 16), np.uint8), map_classes=np.arange(len(maps)), maps=maps)
    mask = torch.full((1, 64, 64), 255)
    for (y, x), label in points.items():
        mask[0, y, x] = label
    batch = {"id": ["a"], "labels": torch.ones(1, len(maps)), "image": torch.zeros(1, 3, 64, 64), "mask": mask}
    module = RandomWalkModule(Open(), SETTINGS | {"steps": steps}, SeedCache(tmp_path / "c"))
    return module, module.predict_seeds(batch | {"boxes": [torch.zeros(0, 5)]})[0]


def test_maps_between_drawn_pixels_of_two_others_are_not_negative(tmp_path):
    """Beside points of y and of the background, x has no more than nothing."""
    _, seed = walked(tmp_path, np.ones((2, 16, 16), np.float32), {(30, 26): 2, (30, 38): 0}, 3)
    assert seed.maps.min() >= 0


def test_a_point_spreads_in_a_few_steps(tmp_path):
    """Its walk is divided by its maximum beside the point: the walk itself carries little of one pixel."""
    module, seed = walked(tmp_path, np.zeros((1, 16, 16), np.float32), {(30, 30): 1}, 4)
    assert (module.cues(seed)[6:9, 6:9] == 1).all()


def test_small_classes_stay_recorded(cues, boundaries, tmp_path):
    old = SeedCache(cues)
    with CacheWriter(tmp_path / "small", old.classes, {"small_classes": [old.classes[1]]}) as writer:
        for name in old.ids:
            classes, maps = old.maps(name)
            writer.add(name, old.cues(name), map_classes=classes, maps=maps)
    assert refine(tmp_path / "small", boundaries, tmp_path / "walked", "--steps", "2", "--crf", "false") == 0
    assert SeedCache(tmp_path / "walked").small_labels == [2]
