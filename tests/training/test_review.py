"""`tag2mask review`: which images come first, why, and the page."""

import csv
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from datamodules.files import write_csv
from datamodules.images import read_image
from datamodules.masks import read_class_mask
from datamodules.sample import Sample
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Transform
from datamodules.voc import VOCDataModule
from tests.seed_caches import CacheWriter
from tests.training.html_pages import HOSTILE, check_page, run_chromium
from training.cli import main
from training.doubtful_labels import REASONS, ImageScores, ReviewedImage, review_images, score_image
from training.reports.review_report import render_review
from training.review import review_rows, with_identical


def rows_of(folder):
    with (folder / "review.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ranked(name, *identical, doubt=0.0):
    return ImageScores(name, doubt, dict.fromkeys(REASONS, 0.0), {}, {}, identical, f"{name}.jpg", 0.0)


# --- positions and tags


class SureOfTwoClasses:
    """Scores of a tagged class left of the middle of each view, and of another one near the upper right corner."""

    def __init__(self, classes, tagged, untagged):
        self.classes, self.tagged, self.untagged = classes, tagged, untagged

    def scores(self, images):
        scores = torch.zeros(len(images), self.classes + 1, 24, 24)
        scores[:, 0] = 20
        scores[:, 1 + self.tagged, :, :12] = 40
        scores[:, 1 + self.untagged, 1:4, -4:-1] = 60
        return scores


def test_positions_are_doubtful_where_labels_views_or_crf_differ(voc, tmp_path, monkeypatch):
    """The two views contradict each other, so that the CRF decides; it is replaced by a map that is known."""
    data = VOCDataModule(str(voc), eval_size=96, num_workers=0)
    sample = next(each for each in data.samples("train") if len(each.tags) == 1)
    (tagged,) = (index for index, name in enumerate(data.classes) if name in sample.tags)
    untagged = (tagged + 1) % len(data.classes)
    labels = np.zeros((24, 24), np.uint8)
    labels[:6] = 1 + tagged
    labels[:, 18:] = 255
    for name, settings in (("labels", {}), ("consensus", {"consensus": "a fingerprint"})):
        with CacheWriter(tmp_path / name, data.classes, settings) as writer:
            writer.add(sample.id, labels)

    shown = Transform(96)(read_image(sample.image))["image"]

    def top_half(image, logits, **_numbers):
        assert image.dtype == torch.uint8  # the image's own colours, not the normalised ones
        assert np.array_equal(image[0].permute(1, 2, 0), shown)
        assert logits.shape == (1, 2, 96, 96)  # the background and the tag
        probs = torch.zeros_like(logits)
        probs[:, 1, :48] = probs[:, 0, 48:] = 1
        return probs

    monkeypatch.setattr("training.inference.dense_crf", top_half)
    network = SureOfTwoClasses(len(data.classes), tagged, untagged)
    (found,) = review_images(network, data, [sample], SeedCache(tmp_path / "labels"))
    wanted = np.zeros((24, 24), np.uint8)
    wanted[:12] = 1 + tagged
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.prediction, wanted)
    np.testing.assert_array_equal(found.doubtful["labels"], (labels != 255) & (labels != wanted))  # no label, no doubt
    assert found.doubtful["views"].all()  # left is the class in one view and background in the other
    assert set(found.doubtful) == set(REASONS)
    # both views are as sure: before the CRF the background, which comes first, wins everywhere
    np.testing.assert_array_equal(found.doubtful["CRF"], wanted > 0)
    assert found.doubt == 1
    assert found.shares() == {"labels": pytest.approx(108 / 576), "views": 1, "CRF": 0.5}
    assert found.class_probability[tagged] == pytest.approx(0.5, abs=1e-3)
    assert found.class_probability[untagged] == pytest.approx(
        0.5, abs=1e-3
    )  # sure in one view, though not among the tags
    assert np.delete(found.class_probability, [tagged, untagged]).max() < 1e-3
    (found,) = review_images(network, data, [sample], SeedCache(tmp_path / "consensus"))
    np.testing.assert_array_equal(found.doubtful["labels"], labels != wanted)  # the label was dropped as doubtful


def test_doubtful_tags():
    flat = np.zeros((2, 2), np.uint8)
    nothing = dict.fromkeys(REASONS, flat > 0)
    sample = Sample("a", "a.jpg", frozenset({"cat", "cow"}))
    image = np.zeros((2, 2, 3), np.uint8)
    each = ReviewedImage(sample, image, flat, flat, nothing, np.array([0.25, 0.8125, 0.875, 0.125], np.float32))
    found = score_image(each, ["cat", "cow", "dog", "horse"], ["b"])
    assert (found.tags_to_add, found.tags_to_remove) == ({"dog": 0.875}, {"cat": 0.75})
    assert (found.doubt, found.identical, found.image) == (0, ["b"], "a.jpg")
    assert found.wrong_tags == 0.75 + 0.1875 + 0.875 + 0.125


def test_nearly_identical_images_follow_each_other():
    images = [ranked("a"), ranked("b", "d", "gone"), ranked("c"), ranked("d", "b", "gone"), ranked("e")]
    assert [each.id for each in with_identical(images, 3)] == ["a", "b", "d", "c"]
    assert [each.id for each in with_identical(images, 9)] == ["a", "b", "d", "c", "e"]


def test_the_table(tmp_path):
    row = ImageScores(
        "a,b",
        0.5,
        dict(zip(REASONS, (0.25, 0.125, 0), strict=True)),
        {"cat": 0.9},
        {"dog": 1.0},
        ["c", "d"],
        "/x.jpg",
        1.9,
    )
    write_csv(tmp_path / "review.csv", review_rows([row]))
    assert (tmp_path / "review.csv").read_text().splitlines() == [
        "id,doubt,labels,views,CRF,wrong_tags,tags_to_add,tags_to_remove,identical,image",
        '"a,b",0.5000,0.2500,0.1250,0.0000,1.9000,cat 0.9000,dog 1.0000,c;d,/x.jpg',
    ]  # fmt: skip


# --- the command


@pytest.fixture(scope="module")
def wrong_labels(voc, tmp_path_factory):
    """Labels from masks; those of the first two images name the class of the other one."""
    data = VOCDataModule(str(voc))
    path = tmp_path_factory.mktemp("wrong") / "labels"
    with CacheWriter(path, data.classes, {}) as writer:
        for sample in data.samples("train"):
            mask = cv2.resize(read_class_mask(sample.mask, data.mask_lut), (24, 24), interpolation=cv2.INTER_NEAREST)
            writer.add(sample.id, mask)
    return path


def test_the_command_ranks_all_images_and_writes_a_page(voc, wrong_labels, checkpoint, tmp_path, capsys):
    words = ["review", "--checkpoint", str(checkpoint), "--cues", str(wrong_labels), "--num_workers", "0"]
    assert main([*words, "--output", str(tmp_path / "out"), "--num_images", "4"]) == 0
    rows = rows_of(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == sorted(sample.id for sample in VOCDataModule(str(voc)).samples("train"))
    assert all(Path(row["image"]).is_absolute() for row in rows)
    doubts = [float(row["doubt"]) for row in rows]
    assert doubts == sorted(doubts, reverse=True)
    for row, doubt in zip(rows, doubts, strict=True):
        shares = [float(row[reason]) for reason in REASONS]
        assert max(shares) - 1e-4 <= doubt <= sum(shares) + 1e-3
    page = (tmp_path / "out/index.html").read_text()
    check_page(page)
    first = page.split("<h2>")[1]
    names = VOCDataModule(str(voc)).classes
    for classes, tags in re.findall(r'data-classes="([\d ]*)".*?tags: ([^<"]*)', page, re.DOTALL):
        wanted = {1 + names.index(tag) for tag in tags.split(", ") if tag in names}
        assert wanted <= set(map(int, classes.split()))
    assert re.findall(r"<h3><span>(.*?)</span>", first)[:4] == [row["id"] for row in rows[:4]]
    assert f"{len(rows)} images, " in capsys.readouterr().err


def test_images_with_masks_are_left_out(voc, cues, checkpoint, tmp_path, capsys):
    """The checkpoint records the annotations of its training: here a list of one image."""
    content = torch.load(checkpoint, weights_only=True)
    names = [sample.id for sample in VOCDataModule(str(voc)).samples("train")]
    (tmp_path / "drawn.txt").write_text(names[0] + "\n")
    content["datamodule_hyper_parameters"]["annotations"] = str(tmp_path / "drawn.txt")
    torch.save(content, tmp_path / "corrected.ckpt")
    words = ["review", "--num_workers", "0", "--output", str(tmp_path / "out")]
    assert main([*words, "--checkpoint", str(tmp_path / "corrected.ckpt")]) == 0
    assert sorted(row["id"] for row in rows_of(tmp_path / "out")) == sorted(names[1:])
    assert "images with masks are left out: 1" in capsys.readouterr().err
    (tmp_path / "drawn.txt").write_text("\n".join(names) + "\n")
    assert main([*words, "--checkpoint", str(tmp_path / "corrected.ckpt")]) == 1
    assert "all images of the split 'train' have masks: there is nothing to review" in capsys.readouterr().err
    (tmp_path / "drawn.txt").write_text(names[0] + "\n")
    content["datamodule_hyper_parameters"]["labels"] = None
    torch.save(content, tmp_path / "untagged.ckpt")
    assert main([*words, "--checkpoint", str(tmp_path / "untagged.ckpt")]) == 1
    problem = "all images of the split 'train' have masks or tags that are not known: there is nothing to review"
    assert problem in capsys.readouterr().err


def test_an_unreadable_image_is_left_out_where_the_data_module_allows_it(voc, cues, checkpoint, tmp_path, capsys):
    shutil.copytree(voc, tmp_path / "voc")
    names = [sample.id for sample in VOCDataModule(str(voc)).samples("train")]
    next((tmp_path / "voc/JPEGImages").glob(f"{names[0]}.*")).write_bytes(b"no image")
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["max_unreadable"] = 0.2
    torch.save(content, tmp_path / "lenient.ckpt")
    words = ["review", "--num_workers", "0", "--root", str(tmp_path / "voc"), "--output", str(tmp_path / "out")]
    assert main([*words, "--checkpoint", str(checkpoint)]) == 1
    assert f"1 of {len(names)} images cannot be read" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    assert main([*words, "--checkpoint", str(tmp_path / "lenient.ckpt")]) == 0
    assert sorted(row["id"] for row in rows_of(tmp_path / "out")) == sorted(names[1:])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num_images", "0"], "num_images must be at least 1, not 0"),
        (["--cues", "nowhere"], "nowhere"),
        (["--split", "none"], "none"),
        (["--checkpoint", "nothing.ckpt"], "nothing.ckpt"),
        (["--output", "VOC/JPEGImages"], "JPEGImages is a folder of the images"),
    ],
)
def test_mistakes(checkpoint, voc, words, message, tmp_path, capsys):
    words = [word.replace("VOC", str(voc)) for word in words]
    given = [] if "--checkpoint" in words else ["--checkpoint", str(checkpoint)]
    assert main(["review", "--output", str(tmp_path / "out"), *given, *words]) == 1
    err = capsys.readouterr().err
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


# --- in a browser

PROBE = """
<script>
addEventListener("load", () => {
  const get = (selector) => document.querySelector(selector);
  const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const at = () => document.activeElement.querySelector("h3 span")?.textContent ?? null;
  const cards = [...document.querySelectorAll("article")];
  const visible = () => cards.filter((card) => card.checkVisibility()).length;
  const seen = {keys: []};
  for (const key of ["j", "j", "k", "k"]) { press(key); seen.keys.push(at()); }
  press("2");
  seen.layer = document.activeElement.querySelector("input:checked").value;
  get("button[data-reason=views]").click();
  seen.views = visible();
  get("button[data-class='1']").click();
  seen.both = visible();
  get("button[data-reason=views]").click();
  seen.label = visible();
  get("button[data-class='1']").click();
  seen.all = visible();
  seen.injected = window.injected ?? null;
  document.title = JSON.stringify(seen);
});
</script>
"""


def test_keys_and_filters_in_a_browser(tmp_path):
    flat, image = np.zeros((4, 4), np.uint8), np.full((8, 8, 3), 90, np.uint8)
    images, drawn = [], {}
    for name, label, shares in (("a", 1, (0.5, 0, 0)), (HOSTILE, 1, (0, 0.4, 0)), ("c", 2, (0, 0.3, 0.1))):
        by_reason = dict(zip(REASONS, shares, strict=True))
        images.append(ImageScores(name, max(shares), by_reason, {}, {}, [HOSTILE], f"{name}.jpg", 0.0))
        nothing = dict.fromkeys(REASONS, flat > 0)
        drawn[name] = ReviewedImage(
            Sample(name, "", frozenset()), image, flat + label, flat, nothing, np.zeros(2, np.float32)
        )
    page = render_review(
        {"labels": images, "tags": []}, drawn.values(), ("x", HOSTILE), facts=[("checkpoint", HOSTILE)]
    )
    check_page(page)
    (tmp_path / "page.html").write_text(page.replace("<body>", "<body>" + PROBE))
    document = run_chromium("--virtual-time-budget=2000", str(tmp_path / "page.html"), folder=tmp_path / "profile")
    seen = json.loads(
        re.search(r"<title>(.*?)</title>", document, re.DOTALL).group(1).replace("&lt;", "<").replace("&gt;", ">")
    )
    assert seen == {
        "keys": ["a", HOSTILE, "a", "a"], "layer": "labels", "views": 2, "both": 1, "label": 2, "all": 3,
        "injected": None,
    }  # fmt: skip


def test_a_network_that_was_not_trained_on_a_cache_has_no_labels(checkpoint, tmp_path, capsys):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["cues"] = None
    torch.save(content, tmp_path / "masks.ckpt")
    assert main(["review", "--checkpoint", str(tmp_path / "masks.ckpt"), "--output", str(tmp_path / "out")]) == 1
    assert "was not trained on a seed cache: give the labels to review as --cues" in capsys.readouterr().err


def test_a_tag_is_doubtful_from_a_quarter_on():
    flat = np.zeros((2, 2), np.uint8)
    each = ReviewedImage(
        Sample("a", "a.jpg", frozenset({"cat"})), np.zeros((2, 2, 3), np.uint8), flat, flat,
        dict.fromkeys(REASONS, flat > 0), np.array([0.75, 0.25], np.float32),
    )  # fmt: skip
    found = score_image(each, ["cat", "dog"], [])
    assert (found.tags_to_remove, found.tags_to_add) == ({"cat": 0.25}, {"dog": 0.25})


def test_images_with_the_most_mistakes_among_their_tags_come_first(voc, cues, checkpoint, tmp_path, monkeypatch):
    """As many images as `num_images`; those without a doubtful tag are not among them."""
    names, seen = [sample.id for sample in VOCDataModule(str(voc)).samples("train")], {}
    wrong_tags = dict(zip(names, (0.5, 1.5, 0.25, 3.0, 1.0, 9.0, *[0.0] * len(names)), strict=False))

    def scored(each, _classes, _identical):
        tags = {} if each.sample.id == names[5] else {"cat": 0.5}
        return ranked(each.sample.id)._replace(tags_to_add=tags, wrong_tags=wrong_tags[each.sample.id])

    monkeypatch.setattr("training.review.score_image", scored)
    monkeypatch.setattr("training.review.render_review", lambda sections, *_, **__: seen.update(sections) or "")
    words = ["review", "--checkpoint", str(checkpoint), "--num_workers", "0", "--num_images", "3"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    assert [each.id for each in seen["tags"]] == [names[3], names[1], names[4]]
