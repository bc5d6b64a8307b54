"""`tag2mask seeds show`: a page of images with the maps and cues of seed caches."""

import re
import shutil
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datamodules.masks import read_class_mask
from datamodules.seed_cache import SeedCache
from datamodules.transforms import resize_nearest
from datamodules.voc import VOCDataModule
from tests.seed_caches import CacheWriter
from tests.training.html_pages import HOSTILE, check_page
from training.cli import main
from training.image_overlays import heat_overlay, label_overlay


@pytest.fixture(scope="module")
def data(voc):
    return VOCDataModule(str(voc))


@pytest.fixture(scope="module")
def truths(data, tmp_path_factory):
    """A cache in which every other image's cues are its mask; the cues of the others are a class that is not there."""
    path = tmp_path_factory.mktemp("truths") / "labels"
    with CacheWriter(path, data.classes, {}) as writer:
        for index, sample in enumerate(data.samples("train")):
            mask = read_class_mask(sample.mask, data.mask_lut)
            wrong = np.full((24, 24), 1 + (mask == 1).any(), np.uint8)
            writer.add(sample.id, wrong if index % 2 else resize_nearest(mask, 96, 96))
    return path


def test_best_and_worst_images_with_maps_cues_prediction_and_truth(data, voc, cues, truths, checkpoint, tmp_path):
    words = ["seeds", "show", str(cues), str(truths), "--root", str(voc), "--split", "train", "--num_images", "6"]
    assert main([*words, "--checkpoint", str(checkpoint), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    check_page(page)
    best, worst, drawn = (page.split("<h2>")[i] for i in (1, 2, 3))
    assert (best.startswith("Best"), worst.startswith("Worst"), drawn.startswith("Random images")) == (True,) * 3
    tags = {sample.id: sample.tags for sample in data.samples("train")}
    for article in re.findall("<article>(.*?)</article>", best, re.DOTALL):
        name, *captions = re.findall("<figcaption>(.*?)</figcaption>", article)
        own = [each for each in data.classes if each in tags[name]]
        assert captions[: len(own)] == [f"map of {each}" for each in own]
        assert re.fullmatch(r"cache, IoU \d+ %", captions[len(own)])
        assert captions[len(own) + 1 :] == ["labels, IoU 100 %", "prediction", "truth"]
    assert best.count("<article>") == 2
    assert re.findall(r"<figcaption>labels, IoU (\d+) %", worst) == ["0", "0"]
    shown = re.findall("<article>.*?<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    assert len(set(shown)) == len(shown) == 6


def test_maps_prediction_after_the_crf_and_truth_are_drawn(data, voc, checkpoint, tmp_path, monkeypatch):
    samples, wanted, generator = data.samples("train")[:2], [], np.random.default_rng(0)
    with CacheWriter(tmp_path / "cache", data.classes, {}) as writer:
        for sample in samples:
            tags = [data.classes.index(name) for name in sorted(sample.tags, key=data.classes.index)]
            maps = generator.random((len(tags), 8, 8), np.float32)
            writer.add(sample.id, np.zeros((8, 8), np.uint8), map_classes=np.array(tags), maps=maps)
    heats, labels, root = [], [], shutil.copytree(voc, tmp_path / "voc")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{sample.id}\n" for sample in samples))

    def spy(drawn, draw):
        return lambda image, given: drawn.append(given) or draw(image, given)

    monkeypatch.setattr("training.show_seeds.heat_overlay", spy(heats, heat_overlay))
    monkeypatch.setattr("training.show_seeds.label_overlay", spy(labels, label_overlay))
    monkeypatch.setattr("training.inference.crf_label_map", lambda _, image: torch.ones(image.shape[:2]))
    words = ["seeds", "show", str(tmp_path / "cache"), "--root", str(root), "--split", "train"]
    assert main([*words, "--checkpoint", str(checkpoint), "--output", str(tmp_path / "page")]) == 0
    for sample in samples:
        truth = read_class_mask(sample.mask, data.mask_lut)
        maps = torch.from_numpy(SeedCache(tmp_path / "cache").maps(sample.id)[1])
        wanted.extend(functional.interpolate(maps[None], truth.shape, mode="bilinear")[0].numpy())
        np.testing.assert_array_equal(labels.pop(0), np.ones_like(truth))
        np.testing.assert_array_equal(labels.pop(0), truth)
    assert not labels
    assert len(wanted) >= 2
    for heat, cam in zip(heats, wanted, strict=True):
        np.testing.assert_allclose(heat, cam, atol=1e-6)


def test_images_of_any_size_are_shown(voc, cues, tmp_path, monkeypatch):
    words = ["seeds", "show", str(cues), "--root", str(voc), "--split", "train", "--num_images", "3"]
    assert main([*words, "--output", str(tmp_path / "a")]) == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice that is Pillow's limit
    assert main([*words, "--output", str(tmp_path / "b")]) == 0
    assert (tmp_path / "a/index.html").read_bytes() == (tmp_path / "b/index.html").read_bytes()


def test_the_name_of_a_cache_is_not_markup(voc, cues, tmp_path):
    cache = tmp_path / HOSTILE.replace("/", "")
    cache.symlink_to(cues)
    words = ["seeds", "show", str(cache), "--root", str(voc), "--split", "train", "--num_images", "1"]
    assert main([*words, "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    check_page(page)
    captions = [unescape(caption) for caption in re.findall("<figcaption>(.*?)</figcaption>", page)]
    assert any(caption.startswith(cache.name) for caption in captions)


def test_mistakes(voc, cues, tmp_path, capsys):
    with CacheWriter(tmp_path / "other", ("zebra",), {}) as writer:
        writer.add("a", np.zeros((4, 4), np.uint8))
    out = tmp_path / "page"
    given = ["--root", str(voc), "--split", "train", "--output", str(out)]
    for words, message in (
        ([], "required: caches"), ([str(tmp_path)], "is not a seed cache"),
        ([str(cues), str(tmp_path / "other")], "classes zebra"),
        ([str(cues), "--split", "night"], "night"),
        ([str(cues), "--output", str(voc / "JPEGImages")], "JPEGImages is a folder of the images"),
    ):  # fmt: skip
        assert main(["seeds", "show", *given, *words]) in (1, 2)
        assert message in capsys.readouterr().err
    assert not out.exists()
