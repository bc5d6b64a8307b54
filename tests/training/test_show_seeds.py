"""`tag2mask seeds show`: images by stages."""

import re

import numpy as np
import pytest

from datamodules.masks import read_class_mask
from datamodules.transforms import resize_nearest
from tests.seed_caches import CacheWriter
from tests.training.conftest import data_of
from training.cli import main


@pytest.fixture(scope="module")
def truths(voc, tmp_path_factory):
    """A cache in which every other image's cues are its mask, and the others' are all of the first class."""
    photos = data_of(voc).photos("train", labels=False)
    path = tmp_path_factory.mktemp("truths") / "labels"
    with CacheWriter(path, photos.classes, {}) as writer:
        for index, (name, file) in enumerate(zip(photos.ids, photos.masks, strict=True)):
            mask = read_class_mask(file, photos.lut)
            wrong = np.full((24, 24), 1 + (mask == 1).any(), np.uint8)  # a class that is not there
            writer.add(name, wrong if index % 2 else resize_nearest(mask, 96, 96))
    return path


def test_the_best_and_the_worst_with_what_each_cache_says(voc, cues, truths, checkpoint, tmp_path):
    words = ["seeds", "show", str(cues), str(truths), "--root", str(voc), "--split", "train", "--num_images", "6"]
    assert main([*words, "--checkpoint", str(checkpoint), "--output", str(tmp_path)]) == 0
    page = (tmp_path / "index.html").read_text()
    best, worst, drawn = (page.split("<h2>")[i] for i in (1, 2, 3))
    assert (best.startswith("Best"), worst.startswith("Worst"), drawn.startswith("Images drawn")) == (True,) * 3
    photos = data_of(voc).photos("train")
    for article in re.findall("<article>(.*?)</article>", best, re.DOTALL):
        name, *captions = re.findall("<figcaption>(.*?)</figcaption>", article)
        own = np.flatnonzero(photos.labels[photos.ids.index(name)])
        assert captions[: len(own)] == [f"map of {photos.classes[index]}" for index in own]
        assert re.fullmatch(r"cache, IoU \d+", captions[len(own)])
        assert captions[len(own) + 1 :] == ["labels, IoU 100", "prediction", "truth"]
    assert best.count("<article>") == 2
    assert re.findall(r"<figcaption>labels, IoU (\d+)", worst) == ["0", "0"]
    shown = re.findall("<article>.*?<figcaption>(.*?)</figcaption>", page)
    assert len(set(shown)) == len(shown) == 6
    assert not re.search(r"(src|href)=(?![\"']?data:)", page)


def test_mistakes(voc, cues, tmp_path, capsys):
    with CacheWriter(tmp_path / "other", ("zebra",), {}) as writer:
        writer.add("a", np.zeros((4, 4), np.uint8))
    out = tmp_path / "page"
    given = ["--root", str(voc), "--split", "train", "--output", str(out)]
    for words, says in (
        ([], "required: caches"), ([str(tmp_path)], "is not a finished seed cache"),
        ([str(cues), str(tmp_path / "other")], "classes zebra"), ([str(cues), "--num_images", "0"], "num_images 0"),
        ([str(cues), "--split", "night"], "night"),
    ):  # fmt: skip
        assert main(["seeds", "show", *given, *words]) in (1, 2)
        assert says in capsys.readouterr().err
    assert not out.exists()
