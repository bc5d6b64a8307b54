import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.masks import read_mask
from seeds.evaluation.confusion_matrix import ConfusionMatrix
from seeds.evaluation.evaluate_seeds import CueScore, Sweep, evaluate_seeds
from seeds.evaluation.threshold_sweep import otsus_threshold
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.15, 0.2, 0.123456, 0.0, 1.0]))
@example(420, 0.15)  # neither image has a map
def test_one_pass_equals_a_confusion_matrix_for_each_threshold(seed, fixed):
    generator = np.random.default_rng(seed)
    sweep, confusions, found = Sweep(4, fixed), None, 0
    for _ in range(2):
        classes = np.flatnonzero(generator.random(3) < 0.6)
        found += len(classes)
        maps = np.maximum(generator.normal(size=(len(classes), 3, 4)), 0).astype(np.float32)
        truth = generator.choice([0, 1, 2, 3, 255], (9, 13)).astype(np.uint8)
        sweep.update(classes, maps, truth)
        confusions = confusions or [ConfusionMatrix(4) for _ in sweep.thresholds]
        for confusion, threshold in zip(confusions, sweep.thresholds, strict=True):
            scores = np.full((4, 9, 13), -1.0, np.float32)
            scores[0] = threshold
            for c, one in zip(classes, maps, strict=True):
                share = torch.from_numpy(one / one.max() if one.max() else one)[None, None]
                scores[c + 1] = functional.interpolate(share, (9, 13), mode="bilinear")[0, 0].numpy()
            confusion.update(scores.argmax(0), truth)  # of equals the first: the background, then the lower class
    matrices = sweep.matrices()
    for confusion, matrix in zip(confusions, matrices, strict=True):
        np.testing.assert_array_equal(matrix, confusion.matrix.numpy())
    result = sweep.result(("background", "a", "b", "c"))
    if not found:  # all background at every threshold, which says nothing of maps
        assert result["miou_fixed"] is result["miou_oracle"] is result["threshold_fixed"] is None
        return
    means = [confusion.miou() for confusion in confusions]
    at = int(np.argmin(abs(sweep.thresholds - fixed)))
    assert result["miou_fixed"] == pytest.approx(means[at])
    assert result["miou_oracle"] == pytest.approx(
        max(
            m
            for m, t in zip(means, sweep.thresholds, strict=True)
            if abs(t * 100 - round(t * 100)) < 1e-4 and t < 0.995
        )
    )
    assert result["threshold_fixed"] == fixed


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=2, max_size=60).filter(lambda values: len(set(values)) > 1))
def test_otsus_threshold_parts_as_opencv_does(values):
    picture = np.array([values], np.uint8)
    found = round(otsus_threshold(np.bincount(picture[0], minlength=256)) * 256)
    theirs, _ = cv2.threshold(picture, 0, 255, cv2.THRESH_OTSU)
    assert spread_between(picture[0], found) == pytest.approx(spread_between(picture[0], int(theirs) + 1))


def spread_between(values, limit):
    """The weighted gap between the means below a limit and above it, which the method makes large."""
    below, above = values[values < limit].astype(float), values[values >= limit].astype(float)
    return len(below) * len(above) * (below.mean() - above.mean()) ** 2


def test_otsus_threshold_of_one_number():
    assert otsus_threshold(np.array([0, 5, 0])) == 0


def test_the_threshold_of_the_maps_alone(tmp_path):
    """Cells of 0.1 and of 0.9, two classes of two scales: 0.11 is the first bin's edge between them."""
    sweep = Sweep(3, 0.2)
    weak = np.array([[0.1, 0.1], [0.9, 1.0]], np.float32)
    sweep.update(np.array([0, 1]), np.stack([weak, 5 * weak]), np.full((2, 2), 255, np.uint8))
    sweep.update(np.array([], int), np.zeros((0, 2, 2), np.float32), np.zeros((2, 2), np.uint8))
    assert sweep.result(("background", "a", "b"))["threshold_otsu"] == pytest.approx(0.11)


def test_cue_figures_by_hand():
    score = CueScore(3)
    cues = np.array([[0, 1], [255, 2]], np.uint8)
    truth = np.array([[0, 0, 1, 255], [0, 1, 1, 1], [0, 0, 0, 2], [0, 0, 2, 2]], np.uint8)
    score.update(cues, truth)  # a cell covers 2 x 2 pixels
    result = score.result(("background", "a", "b"))
    # cued: background 4 (3 right), a 3 (3 right; one pixel is not scored), b 4 (3 right)
    assert result["precision"] == pytest.approx(9 / 11)
    assert result["recall"] == pytest.approx(9 / 15)
    assert result["coverage"] == pytest.approx(3 / 4)
    assert result["cues"]["background"] == {"precision": 3 / 4, "recall": 3 / 8, "coverage": 1 / 4}
    # as a segmentation, the 4 pixels without a cue are background, all 4 truly so: 7 right of 8 cued and 8 true
    assert result["iou_cues"]["background"] == pytest.approx(7 / 9)
    assert result["iou_cues"]["a"] == pytest.approx(3 / 4)
    assert result["cues"]["foreground"] == {"precision": 6 / 7, "recall": 6 / 7, "coverage": 1 / 2}
    assert result["cues_by_class"]["a"] == {"precision": 1.0, "recall": 3 / 4, "coverage": 1 / 4}


def test_no_cue_has_no_precision():
    score = CueScore(2)
    score.update(np.full((2, 2), 255, np.uint8), np.ones((4, 4), np.uint8))
    result = score.result(("background", "a"))
    assert (result["precision"], result["recall"], result["coverage"]) == (None, 0.0, 0.0)
    assert result["cues"]["background"]["recall"] is None


@pytest.fixture
def perfect(voc, tmp_path):
    """A cache whose maps and cues are the masks themselves."""
    path = tmp_path / "perfect"
    settings = {"root": str(voc), "train_split": "train", "labels": "imagesets", "num_workers": 0}
    with CacheWriter(path, ("red", "blue"), {"data": settings, "fg_threshold": 0.2}) as cache:
        for name in IDS:
            mask = read_mask(voc / f"SegmentationClass/{name}.png")
            classes = np.unique(mask[mask > 0]) - 1
            maps = np.stack([(mask == c + 1) * 3.0 for c in classes]).astype(np.float32)
            cache.add(name, mask, map_classes=classes, maps=maps)
    return path


def test_perfect_seeds_score_one(perfect, tmp_path, capsys):
    metrics = evaluate_seeds(perfect, output=tmp_path / "out")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    for key in ("miou_fixed", "miou_oracle", "precision", "recall", "coverage"):
        assert metrics[key] == 1
    assert metrics["threshold_fixed"] == 0.2
    assert metrics["images"] == 6
    assert metrics["iou_fixed"] == {"background": 1, "red": 1, "blue": 1}
    shown = capsys.readouterr().out
    assert "chosen by looking at the masks" in shown.replace("\n", " ")


def test_the_threshold_is_the_caches_own(voc, tmp_path):
    settings = {"root": str(voc), "train_split": "val", "labels": "imagesets", "num_workers": 0}
    with CacheWriter(tmp_path / "c", ("red", "blue"), {"data": settings, "fg_threshold": 0.35}) as cache:
        for name in IDS[:2]:
            cache.add(name, read_mask(voc / f"SegmentationClass/{name}.png"))
    assert evaluate_seeds(tmp_path / "c")["threshold_fixed"] is None  # there is no map to score
    maps = np.array([[[1.0, 0.3], [0.4, 0.0]]], np.float32)
    with CacheWriter(tmp_path / "maps", ("red", "blue"), {"data": settings, "fg_threshold": 0.35}) as cache:
        for c, name in enumerate(IDS[:2]):
            cache.add(name, np.zeros((2, 2), np.uint8), map_classes=np.array([c]), maps=maps)
    own, same, other = (evaluate_seeds(tmp_path / "maps", threshold=t) for t in (None, 0.35, 0.25))
    assert own["threshold_fixed"] == 0.35
    assert own["miou_fixed"] == same["miou_fixed"] != other["miou_fixed"]


def test_another_split_and_threshold(perfect):
    metrics = evaluate_seeds(perfect, split="val", threshold=0.15)
    assert (metrics["images"], metrics["split"], metrics["threshold_fixed"]) == (2, "val", 0.15)
    assert (perfect / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"split": "test"}, "test"), ({"threshold": 1.5}, "threshold 1.5"), ({"root": "/no/where"}, "/no/where")],
)
def test_bad_input(perfect, arguments, words):
    with pytest.raises(InputError, match=words):
        evaluate_seeds(perfect, **arguments)
    assert not (perfect / "metrics.json").exists()


def test_a_cache_that_lacks_pictures(voc, tmp_path):
    with CacheWriter(tmp_path / "few", ("red", "blue"), {"data": {"root": str(voc), "train_split": "train"}}) as cache:
        cache.add("p0", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="lacks 5 of the 6"):
        evaluate_seeds(tmp_path / "few")


def test_a_cache_that_does_not_say_where_its_pictures_are(tmp_path):
    with CacheWriter(tmp_path / "c", ("red", "blue"), {}) as cache:
        cache.add("p0", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="say so with 'root'"):
        evaluate_seeds(tmp_path / "c")


def test_masks_that_score_nothing(voc, perfect, tmp_path):
    """All pixels are 255: one sentence, and nothing is written."""
    root = tmp_path / "VOC2012"
    shutil.copytree(voc, root)
    for path in (root / "SegmentationClass").glob("*.png"):
        cv2.imwrite(str(path), np.full((8, 8), 255, np.uint8))
    with pytest.raises(InputError, match="score no pixel"):
        evaluate_seeds(perfect, root=str(root), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
