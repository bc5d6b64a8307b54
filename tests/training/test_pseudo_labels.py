"""Labels of a network for its training images: from tags, scores and the CRF; a cache to train on again."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datamodules.files import file_sha256
from datamodules.images import normalize, read_image
from datamodules.masks import read_class_mask, write_mask
from datamodules.sample import multi_hot
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE, as_stored
from datamodules.source_revision import ALL_PACKAGES, source_revision
from datamodules.transforms import Transform, resize_nearest
from seeds.cache_job import Seed
from seeds.job_options import JobOptions
from tests.seed_caches import CacheWriter
from tests.tars import voc_tars
from tests.training.conftest import SIZE, data_of
from tests.training.fits import fit
from training.cli import main
from training.inference import load_trained
from training.pseudo_labels import PseudoLabelModule, pseudo_label

SETTINGS = {"size": 8, "cue_stride": 4, "scales": [1.0], "flip": False, "min_confidence": 0.0, "crf": None}

ROUNDED = next(  # a value that the cache rounds to less than one half
    value
    for value in np.linspace(0.5, 0.501, 1000, dtype=np.float32)
    if as_stored(np.float32([[[0.65, value]]]))[0, 0, 1] < 0.5 < value
)


class Scores(torch.nn.Module):
    """Scores that are the image's mean colours."""

    def forward(self, images):
        return functional.avg_pool2d(images, 4)


def test_absent_classes_are_left_out_of_the_softmax():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randint(0, 256, (2, 3, 8, 8), generator=generator, dtype=torch.uint8))
    batch = {"id": ["a", "b"], "image": images, "labels": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    first, second = PseudoLabelModule(Scores(), SETTINGS).predict_seeds(batch)
    scores = functional.avg_pool2d(images, 4).double()
    expected = scores[0, :2].exp() / scores[0, :2].exp().sum(0)
    np.testing.assert_allclose(first.maps, expected[1:], rtol=1e-5)
    np.testing.assert_allclose(second.maps, scores[1].softmax(0)[1:], rtol=1e-5)
    assert (first.classes.tolist(), second.classes.tolist()) == ([0], [0, 1])
    # a network that looks at each position alone predicts the same for a mirrored image
    mirrored = PseudoLabelModule(Scores(), SETTINGS | {"flip": True}).predict_seeds(batch)
    for one, other in zip(mirrored, (first, second), strict=True):
        np.testing.assert_allclose(one.maps, other.maps, rtol=1e-5)


def test_scores_that_are_not_finite():
    network = torch.nn.Conv2d(3, 2, 1)
    network.weight.data[0, 0] = torch.nan
    module = PseudoLabelModule(network, SETTINGS)
    with torch.no_grad():
        assert module.predict_step({"id": ["a"], "image": torch.zeros(1, 3, 8, 8), "labels": torch.ones(1, 1)}) == []
    assert module.problem == "the network's scores of image a or its neighbours are not finite"


def seed_of(maps):
    classes = np.arange(0, 2 * len(maps), 2)
    return Seed("a", classes, np.asarray(maps, np.float32), None, torch.zeros(3, 16, 16, dtype=torch.uint8))


def label_map(seed, *, crf=False, min_confidence=0.0):
    return PseudoLabelModule(Scores(), SETTINGS | {"min_confidence": min_confidence, "crf": crf}).cues(seed)


def test_labels_by_hand():
    seed = seed_of([[[0.75, 0.25], [0.5, 0.0]], [[0.0, 0.25], [0.25, 0.125]]])  # background 0.25 0.5 / 0.25 0.875
    assert label_map(seed, crf=False, min_confidence=0.0).tolist() == [[1, 0], [1, 0]]
    assert label_map(seed, crf=False, min_confidence=0.7).tolist() == [[1, NO_CUE], [NO_CUE, 0]]
    assert label_map(seed_of(np.zeros((0, 2, 2))), crf=False, min_confidence=0.5).tolist() == [[0, 0], [0, 0]]


def test_the_crf_follows_the_image():
    """A weak map on the left half, an edge a position further right: the label reaches the edge."""
    maps = np.full((1, 8, 8), 0.4)
    maps[0, :, :4] = 0.9
    photo = torch.zeros(3, 32, 32, dtype=torch.uint8)
    photo[:, :, :20] = 255
    seed = Seed("a", np.array([1]), maps.astype(np.float32), None, photo)
    assert (label_map(seed, crf=False, min_confidence=0.0) == 2).sum() == 32
    found = label_map(seed, crf=True, min_confidence=0.0)
    assert (found[:, :5] == 2).all()
    assert (found[:, 5:] == 0).all()


def test_the_crf_does_not_remove_small_classes(tmp_path):
    """A position of another class in a uniform image; in the consensus it is a small class, or not."""
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 3, 3], maps[0, 6, 6] = 0.7, 0.6
    seed = Seed("a", np.array([1]), maps, None, torch.full((3, 64, 64), 90, dtype=torch.uint8))
    wanted = (maps[0] > 0.5) * 2
    assert (label_map(seed) == wanted).all()
    settings, labels = SETTINGS | {"crf": True}, {}
    for small in ([], ["y"]):
        path = tmp_path / f"other-{len(small)}"
        with CacheWriter(path, ["x", "y"], {"small_classes": small}) as writer:
            writer.add("a", wanted.astype(np.uint8))
        module = PseudoLabelModule(Scores(), settings, SeedCache(path))
        labels[len(small)] = module.cues(seed)
        unsure = PseudoLabelModule(Scores(), settings | {"min_confidence": 0.65}, SeedCache(path)).cues(seed)
        assert (unsure == 2).sum() == len(small)  # of 0.7 and 0.6
    assert not (labels[0] == 2).any()
    assert (labels[1] == wanted).all()


@pytest.fixture(scope="module")
def labels(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "cache"
    words = ["--checkpoint", str(checkpoint), "--output", str(path), "--num_workers", "0", "--shard_size", "4"]
    assert main(["pseudo-label", *words, "--accelerator", "cpu"]) == 0
    assert main(["pseudo-label", *words, "--accelerator", "cpu"]) == 0  # is there already
    return path


def test_scaled_images_have_sides_that_the_network_takes():
    """As in `training.inference.TrainedNetwork.scores`: half of 24 pixels are rounded to 8 with a multiple of 8."""
    sides = []

    class Sides(Scores):
        def forward(self, images):
            sides.append(images.shape[-1])
            return super().forward(images)

    batch = {"id": ["a"], "image": torch.zeros(1, 3, 24, 24), "labels": torch.ones(1, 2)}
    PseudoLabelModule(Sides(), SETTINGS | {"size": 24, "scales": [1.0, 0.4]}, multiple=8).predict_seeds(batch)
    assert sides == [24, 8]


def test_another_setting_is_refused_by_name(labels, checkpoint, voc, tmp_path, capsys):
    """What was made with the CRF is not what was requested without; and so on."""
    words = ["--checkpoint", str(checkpoint), "--num_workers", "0", "--shard_size", "4", "--accelerator", "cpu"]
    shutil.copytree(labels, tmp_path / "copy")
    tags = tmp_path / "other tags"
    shutil.copytree(voc, tags)
    first = next((tags / "ImageSets/Main").glob("*_train.txt"))
    first.write_text(first.read_text().replace("-1", "1", 1))
    others = {
        "min_confidence": "0.5",
        "crf": "false",
        "flip": "true",
        "scales": "[0.5]",
        "precision": "bf16-mixed",
        "size": "32",
    }
    others |= {"cue_stride": "8", "consensus": str(tmp_path / "copy"), "root": str(tags)}
    for option, value in others.items():
        assert main(["pseudo-label", *words, "--output", str(labels), f"--{option}", value]) == 1
        setting = "labels_sha256" if option == "root" else option
        assert f"exists already, made with {setting} " in capsys.readouterr().err


def labelled(voc):
    """The training samples and their labels (N, C)."""
    data = data_of(voc)
    samples = data.samples("train")
    return samples, multi_hot(samples, data.classes)


def test_every_option_counts(labels, voc, checkpoint, tmp_path):
    """A cache of other options beside the predictions of the same network, view by view."""
    given = {"scales": (1.0, 1.5), "flip": True, "crf": False, "min_confidence": 0.5, "size": 32}
    pseudo_label(checkpoint, tmp_path / "c", **given, job=JobOptions(num_workers=0, accelerator="cpu"))
    cache, trained = SeedCache(tmp_path / "c"), load_trained(checkpoint)
    samples, labels = labelled(voc)
    index = next(i for i, own in enumerate(labels) if own.sum() > 1)
    absent = torch.tensor([False, *(labels[index] == 0)])
    found = []
    image = Transform(32)(read_image(samples[index].image))["image"]
    read = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
    for size in (32, 48):  # scaled from the image as it was read
        image = functional.interpolate(read, (size, size), mode="bilinear", antialias=True)
        for mirrored in (False, True):
            scores = trained.scores(image.flip(-1) if mirrored else image)[0].masked_fill(absent[:, None, None], -1e9)
            probs = (scores.flip(-1) if mirrored else scores).softmax(0)[None]
            found.append(functional.interpolate(probs, (8, 8), mode="bilinear")[0])
    probs = torch.stack(found).mean(0)
    name = samples[index].id
    np.testing.assert_allclose(cache.maps(name)[1], probs[~absent][1:], atol=2e-3)
    wanted = np.where(probs.amax(0) < 0.5, NO_CUE, probs.argmax(0))
    assert (cache.cues(name) == wanted).mean() > 0.95
    assert (wanted == NO_CUE).any()
    assert cache.settings["crf"] is None


def test_the_crf_is_asked_for(labels, checkpoint, tmp_path):
    pseudo_label(checkpoint, tmp_path / "c", crf=False, job=JobOptions(num_workers=0, shard_size=4, accelerator="cpu"))
    plain, smoothed = SeedCache(tmp_path / "c"), SeedCache(labels)
    assert any((plain.cues(name) != smoothed.cues(name)).any() for name in plain.ids)
    for name in plain.ids:
        assert np.array_equal(plain.maps(name)[1], smoothed.maps(name)[1])


def test_a_cache_of_the_networks_own_labels(labels, voc, checkpoint):
    cache, trained = SeedCache(labels), load_trained(checkpoint)
    samples, labels_of_images = labelled(voc)
    assert cache.ids == tuple(sample.id for sample in samples)
    assert cache.settings["checkpoint_sha256"] == file_sha256(checkpoint)
    assert cache.settings["source"] == source_revision(ALL_PACKAGES)  # also of training/, unlike those of other caches
    assert cache.cues(cache.ids[0]).shape == (SIZE // 4, SIZE // 4)
    for name, own in zip(cache.ids, labels_of_images, strict=True):
        present = np.flatnonzero(own)
        assert cache.maps(name)[0].tolist() == present.tolist()
        assert set(np.unique(cache.cues(name))) <= {0, *(present + 1)}
    index = next(i for i, own in enumerate(labels_of_images) if own.sum() == 1)
    loader = data_of(voc).eval_loader([samples[index]])
    scores = trained.scores(next(iter(loader))["image"])[0]
    keep = torch.tensor([True, *(labels_of_images[index] > 0)])
    probs = functional.interpolate(scores[keep].softmax(0)[None], (SIZE // 4, SIZE // 4), mode="bilinear")[0, 1:]
    np.testing.assert_allclose(cache.maps(cache.ids[index])[1], probs, atol=2e-3)


def test_it_is_trained_on_again(labels, voc, checkpoint, tmp_path, capsys):
    words = ["--model.expand_weight=0", "--model.constrain_weight=0", "--data.cue_stride=4"]
    assert fit(voc, labels, tmp_path / "again", *words, f"--data.cues_checkpoint={checkpoint}") == 0
    assert main(["seeds", "evaluate", "--cache", str(labels), "--output", str(tmp_path / "quality")]) == 0
    assert "coverage" in capsys.readouterr().out


def test_only_what_another_cache_contains_too(labels, checkpoint, tmp_path, capsys):
    """Of each image the upper half as it will be labelled, of another class below; on a grid of half the positions."""
    first = SeedCache(labels)
    with CacheWriter(tmp_path / "other", first.classes, {}) as writer:
        for name in first.ids:
            cues = first.cues(name)[::2, ::2].copy()
            cues[len(cues) // 2 :] = NO_CUE
            writer.add(name, cues)
    words = ["pseudo-label", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "new"), "--num_workers", "0"]
    words += ["--accelerator", "cpu", "--consensus"]
    assert main([*words, str(tmp_path / "other")]) == 0
    new, other = SeedCache(tmp_path / "new"), SeedCache(tmp_path / "other")
    assert new.settings["consensus"] == other.fingerprint
    for name in first.ids:
        coarse = other.cues(name).repeat(2, axis=0).repeat(2, axis=1)
        assert np.array_equal(new.cues(name), np.where(first.cues(name) == coarse, first.cues(name), NO_CUE))
        assert (new.cues(name)[SIZE // 8 :] == NO_CUE).all()
    with CacheWriter(tmp_path / "lacking", first.classes, {}) as writer:
        writer.add(first.ids[0], first.cues(first.ids[0]))
    for bad, message in (("lacking", "lacks"), ("nothing", "is not a seed cache")):
        assert main([*words, str(tmp_path / bad), "--overwrite", "true"]) == 1
        assert message in capsys.readouterr().err


def test_labels_of_tar_files(labels, voc, checkpoint, tmp_path):
    """A shard for each tar file, with the labels of the images; what a cache has left out is left out."""
    first, samples = SeedCache(labels), data_of(voc).samples("train")
    for name, content in voc_tars(voc, samples, 4).items():
        (tmp_path / name).write_bytes(content)
    with CacheWriter(tmp_path / "other", first.classes, {}, left_out={samples[5].id: "it is torn"}) as writer:
        for name in first.ids:
            if name != samples[5].id:
                writer.add(name, first.cues(name))
    words = ["pseudo-label", f"--checkpoint={checkpoint}", f"--images={tmp_path}/train-{{000..001}}.tar"]
    words += [f"--output={tmp_path / 'new'}", f"--consensus={tmp_path / 'other'}", "--num_workers=0"]
    for partition in ("1/2", "0/2"):
        assert main([*words, "--accelerator=cpu", f"--partition={partition}"]) == 0
    new = SeedCache(tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir())[:2] == [
        "train-000.safetensors",
        "train-001.safetensors",
    ]
    assert list(new.ids) == [sample.id for sample in samples[:8] if sample != samples[5]]
    assert dict(new.left_out) == {samples[5].id: "it is torn"}
    for name in new.ids:
        assert np.array_equal(new.cues(name), first.cues(name))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--size", "0"], "size must be"), (["--scales", "[.nan]"], "scales"), (["--num_workers", "-1"], "num_workers"),
     (["--min_confidence", "1.0"], "min_confidence 1.0 must be at least 0 and below 1"), (["--scales", "[]"], "scales"),
     (["--cue_stride", "0"], "cue_stride"),
     (["--split", "night"], "night"), (["--threads", "0"], "threads")],
)  # fmt: skip
def test_bad_arguments(checkpoint, tmp_path, words, message, capsys):
    command = ["pseudo-label", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "x"), "--num_workers", "0"]
    assert main([*command, *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "x.ckpt").write_bytes(b"nothing")
    assert main(["pseudo-label", "--checkpoint", str(tmp_path / "x.ckpt"), "--output", str(tmp_path / "x")]) == 1
    assert "x.ckpt" in capsys.readouterr().err


def annotated_checkpoint(checkpoint, path, annotations):
    """The checkpoint, as if it had been trained with annotations."""
    stored = torch.load(checkpoint, weights_only=True)
    stored["datamodule_hyper_parameters"]["annotations"] = annotations
    torch.save(stored, path)
    return path


def test_drawn_pixels_keep_their_labels_and_boxes_bound_their_class(labels, voc, checkpoint, tmp_path):
    """A mask of one image and a box of another; the other images are labelled as without annotations."""
    samples, _ = labelled(voc)
    first, second = samples[0], samples[1]
    (tmp_path / "few.txt").write_text(f"{first.id}\n")
    width, height = Image.open(second.image).size
    tag = min(second.tags)
    row = {"id": second.id, "boxes": [[tag, 0, 0, width / 2, height / 4]]}
    (tmp_path / "boxes.jsonl").write_text(json.dumps(row))
    annotations = [str(tmp_path / "few.txt"), str(tmp_path / "boxes.jsonl")]
    network = annotated_checkpoint(checkpoint, tmp_path / "a.ckpt", annotations)
    job = JobOptions(num_workers=0, shard_size=4, accelerator="cpu")
    pseudo_label(network, tmp_path / "c", consensus=labels, job=job)
    cache, plain = SeedCache(tmp_path / "c"), SeedCache(labels)
    data = data_of(voc)
    mask = read_class_mask(first.mask, data.mask_lut)
    side = SIZE // 4
    small = resize_nearest(resize_nearest(mask, SIZE, SIZE), side, side)
    assert (cache.cues(first.id)[small != 255] == small[small != 255]).all()
    index = data.classes.index(tag)
    outside = np.ones((side, side), bool)
    outside[: side // 4, : side // 2] = False
    classes, maps = cache.maps(second.id)
    assert maps[classes.tolist().index(index)][outside].max() == 0
    assert not (cache.cues(second.id)[outside] == index + 1).any()
    for sample in samples[2:]:
        assert (cache.cues(sample.id) == plain.cues(sample.id)).all()


def test_a_changed_mask_makes_labels_anew(voc, checkpoint, tmp_path, capsys):
    root = shutil.copytree(voc, tmp_path / "voc")
    samples, _ = labelled(root)
    (tmp_path / "few.txt").write_text(f"{samples[0].id}\n")
    network = annotated_checkpoint(checkpoint, tmp_path / "a.ckpt", [str(tmp_path / "few.txt")])
    words = ["pseudo-label", "--checkpoint", str(network), "--output", str(tmp_path / "c"), "--root", str(root)]
    words += ["--num_workers", "0", "--accelerator", "cpu", "--crf", "false"]
    assert main(words) == 0
    assert main(words) == 0
    assert "is there already" in capsys.readouterr().err
    write_mask(samples[0].mask, np.zeros_like(np.array(Image.open(samples[0].mask))))
    assert main(words) != 0
    assert "annotations_sha256" in capsys.readouterr().err
    assert main([*words, "--overwrite", "true"]) == 0
    assert not SeedCache(tmp_path / "c").cues(samples[0].id).any()


def test_cues_are_those_of_the_maps_as_the_cache_returns_them():
    maps = np.array([[[0.65, ROUNDED]]], np.float32)
    assert label_map(seed_of(maps)).tolist() == [[1, 0]]


def test_a_probability_of_min_confidence_is_enough():
    seed = seed_of([[[0.75, 0.25], [0.5, 0.0]]])
    assert label_map(seed, min_confidence=0.75).tolist() == [[1, 0], [NO_CUE, 0]]


def batch_of(**more):
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return pixels, {"id": ["a"], "image": normalize(pixels), "labels": torch.ones(1, 2)} | more


def test_the_crf_gets_the_images_own_colours():
    """Not the mean-subtracted image cast to uint8, which wraps."""
    pixels, batch = batch_of()
    (seed,) = PseudoLabelModule(Scores(), SETTINGS).predict_seeds(batch)
    assert torch.equal(seed.image, pixels[0])


def test_outside_of_the_boxes_of_a_class_the_probabilities_are_those_of_the_others():
    boxes = [torch.tensor([[1, 0, 0, 0.5, 1.0]])]
    _, batch = batch_of(mask=torch.full((1, 8, 8), 255), boxes=boxes)
    (seed,) = PseudoLabelModule(Scores(), SETTINGS).predict_seeds(batch)
    scores = functional.avg_pool2d(batch["image"], 4)[0]
    wanted = scores.softmax(0)[1:]
    wanted[0, :, 1], wanted[1, :, 1] = 0, scores[[0, 2], :, 1].softmax(0)[1]
    np.testing.assert_allclose(seed.maps, wanted, rtol=1e-5)


def test_drawn_pixels_count_in_the_crf():
    """An image of one colour, whose left half is drawn: the CRF carries its label to the right half."""
    maps = np.full((1, 8, 8), 0.45, np.float32)
    mask = np.full((32, 32), 255, np.uint8)
    drawn = SimpleNamespace(mask=mask, boxes=np.zeros((0, 5), np.float32))
    seed = Seed("a", np.array([1]), maps, None, torch.full((3, 32, 32), 90, dtype=torch.uint8), drawn)
    assert (label_map(seed, crf=True) == 0).all()
    mask[:, :16] = 2
    assert (label_map(seed, crf=True) == 2).all()


def test_drawn_pixels_have_one_label_alone_before_the_crf(monkeypatch):
    """Class y above, background at the lower left, and the network's probabilities at the lower right."""
    seen = []
    monkeypatch.setattr("training.pseudo_labels.crf_probabilities", lambda _image, probs: seen.append(probs) or probs)
    mask = np.full((32, 32), 255, np.uint8)
    mask[:16], mask[16:, :16] = 2, 0
    drawn = SimpleNamespace(mask=mask, boxes=np.zeros((0, 5), np.float32))
    maps, image = np.full((1, 8, 8), 0.25, np.float32), torch.full((3, 32, 32), 90, dtype=torch.uint8)
    label_map(Seed("a", np.array([1]), maps, None, image, drawn), crf=True)
    ((probs,),) = seen
    found = [probs[:, y, x].tolist() for y, x in ((0, 31), (31, 0), (31, 31))]
    assert found == [[0, 1], [1, 0], [0.75, 0.25]]


def test_scaled_sides_and_the_size_are_those_of_the_network_and_the_validation(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["eval_size"] = 96
    torch.save(content, tmp_path / "a.ckpt")
    job = JobOptions(num_workers=0, accelerator="cpu")
    pseudo_label(tmp_path / "a.ckpt", tmp_path / "c", scales=(0.55, 1.0), crf=False, job=job)  # 52.8 is 48
    cache = SeedCache(tmp_path / "c")
    assert cache.settings["size"] == 96
    assert cache.cues(cache.ids[0]).shape == (24, 24)


def test_a_network_that_gives_probability_1_to_a_class_outside_of_its_boxes():
    """In float32 the probabilities of all others are 0 there: what is left is background."""
    network = torch.nn.Conv2d(3, 2, 4, 4)
    torch.nn.init.zeros_(network.weight)
    network.bias.data = torch.tensor([0.0, 1000.0])
    boxes = [torch.tensor([[1, 0, 0, 0.5, 1.0]])]
    batch = {"id": ["a"], "image": torch.zeros(1, 3, 8, 8), "labels": torch.ones(1, 1), "boxes": boxes}
    with torch.no_grad():
        module = PseudoLabelModule(network, SETTINGS)
        (seed,) = module.predict_seeds(batch | {"mask": torch.full((1, 8, 8), 255)})
    assert seed.maps.tolist() == [[[1, 0], [1, 0]]]
    assert module.cues(seed).tolist() == [[1, 0], [1, 0]]


def test_small_classes_of_the_consensus_stay_recorded(labels, checkpoint, tmp_path):
    first = SeedCache(labels)
    with CacheWriter(tmp_path / "small", first.classes, {"small_classes": [first.classes[1]]}) as writer:
        for name in first.ids:
            writer.add(name, first.cues(name))
    job = JobOptions(num_workers=0, accelerator="cpu")
    pseudo_label(checkpoint, tmp_path / "new", consensus=tmp_path / "small", crf=False, job=job)
    assert SeedCache(tmp_path / "new").small_labels == [2]
