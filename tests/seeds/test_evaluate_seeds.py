"""Seeds compared with masks: metrics of cues by hand, whole caches, and refused input."""

import json
import shutil
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.masks import read_mask, write_mask
from datamodules.seed_cache import SeedCache
from seeds.evaluation.evaluate_seeds import CueMetrics, evaluate_seeds, print_seed_metrics
from seeds.evaluation.threshold_sweep import ThresholdSweep
from seeds.export_seeds import export_seeds
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS


def test_cue_metrics_by_hand():
    score = CueMetrics(3)
    cues = np.array([[0, 1], [255, 2]], np.uint8)
    truth = np.array([[0, 0, 1, 255], [0, 1, 1, 1], [0, 0, 0, 2], [0, 0, 2, 2]], np.uint8)
    score.update(cues, truth)  # a cue covers 2 x 2 pixels
    result = score.compute(("background", "a", "b"))
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


def test_memory_does_not_grow_with_the_images():
    """81 classes: the counts of all images take some megabytes, which further images do not add to."""
    generator = np.random.default_rng(0)
    sweep, score = ThresholdSweep(81, 0.2), CueMetrics(81)

    def add(images):
        for _ in range(images):
            truth = generator.integers(0, 81, (12, 16)).astype(np.uint8)
            sweep.update(np.array([3, 70]), generator.random((2, 3, 4), np.float32), truth)
            score.update(truth[::4, ::4], truth)

    add(1)
    tracemalloc.start()
    add(200)
    grown, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 8_000_000  # the sum of the counts, int64 (81, 81, 102), is allocated anew
    assert peak < 24_000_000
    assert score.confusion.matrix.sum() == 201 * 12 * 16


def test_no_cue_has_no_precision():
    score = CueMetrics(2)
    score.update(np.full((2, 2), 255, np.uint8), np.ones((4, 4), np.uint8))
    result = score.compute(("background", "a"))
    assert (result["precision"], result["recall"], result["coverage"]) == (None, 0.0, 0.0)
    assert result["cues"]["background"]["recall"] is None


@pytest.fixture
def perfect(voc, tmp_path):
    """A cache whose maps and cues are the masks themselves."""
    path = tmp_path / "perfect"
    settings = {"root": str(voc), "train_split": "train", "labels": "imagesets", "num_workers": 0}
    with CacheWriter(path, ("red", "blue"), {"fg_threshold": 0.2}, inputs={"data": settings}) as cache:
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


def test_the_columns_of_the_table(capsys):
    metrics = {
        "images": 3, "split": "train", "threshold_fixed": None, "precision": 0.1, "recall": 0.2, "coverage": 0.3,
        "miou_fixed": 0.6, "miou_oracle": 0.61, "miou_cues": 0.62, "iou_fixed": {"background": 0.7, "cat": 0.5},
        "iou_oracle": {"background": 0.71, "cat": 0.51}, "iou_cues": {"background": 0.72, "cat": 0.52},
        "cues": {"background": {"precision": 0.4, "recall": 0.5, "coverage": 0.6}},
        "cues_by_class": {"cat": {"precision": 0.7, "recall": 0.8, "coverage": 0.9}},
    }  # fmt: skip
    print_seed_metrics(metrics)
    lines = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[text.strip() for text in line] for line in lines] == [
        ["background", "70.0", "71.0", "72.0", "40.0", "50.0", "60.0"],
        ["cat", "50.0", "51.0", "52.0", "70.0", "80.0", "90.0"],
        ["all", "60.0", "61.0", "62.0", "10.0", "20.0", "30.0"],
    ]


def test_the_threshold_is_recorded_in_the_cache(voc, tmp_path):
    settings = {"root": str(voc), "train_split": "val", "labels": "imagesets", "num_workers": 0}
    with CacheWriter(tmp_path / "c", ("red", "blue"), {"fg_threshold": 0.35}, inputs={"data": settings}) as cache:
        for name in IDS[:2]:
            cache.add(name, read_mask(voc / f"SegmentationClass/{name}.png"))
    assert evaluate_seeds(tmp_path / "c")["threshold_fixed"] is None  # there is no map to score
    maps = np.array([[[1.0, 0.3], [0.4, 0.0]]], np.float32)
    with CacheWriter(tmp_path / "maps", ("red", "blue"), {"fg_threshold": 0.35}, inputs={"data": settings}) as cache:
        for c, name in enumerate(IDS[:2]):
            cache.add(name, np.zeros((2, 2), np.uint8), map_classes=np.array([c]), maps=maps)
    own, same, other = (evaluate_seeds(tmp_path / "maps", threshold=t) for t in (None, 0.35, 0.25))
    assert own["threshold_fixed"] == 0.35
    assert own["miou_fixed"] == same["miou_fixed"] != other["miou_fixed"]


def test_thresholds_of_a_cache_without_a_threshold(perfect, tmp_path):
    """0.2 is that of SEC; 0 is a threshold, too."""
    seeds = SeedCache(perfect)
    with CacheWriter(tmp_path / "c", seeds.classes, {}, inputs=seeds.inputs) as writer:
        for name in seeds.ids:
            classes, maps = seeds.maps(name)
            writer.add(name, seeds.cues(name), map_classes=classes, maps=maps)
    assert evaluate_seeds(tmp_path / "c")["threshold_fixed"] == 0.2
    assert evaluate_seeds(tmp_path / "c", threshold=0)["threshold_fixed"] == 0


def test_another_split_and_threshold(perfect):
    metrics = evaluate_seeds(perfect, split="val", threshold=0.15)
    assert (metrics["images"], metrics["split"], metrics["threshold_fixed"]) == (2, "val", 0.15)
    assert (perfect / "metrics.json").is_file()


def test_images_without_a_mask_are_not_scored(voc, perfect, tmp_path, capsys):
    root = shutil.copytree(voc, tmp_path / "VOC2012")
    for name in IDS[2:4]:
        (root / f"SegmentationClass/{name}.png").unlink()
    metrics = evaluate_seeds(perfect, root=str(root), output=tmp_path / "out")
    assert (metrics["images"], metrics["miou_fixed"]) == (4, 1)
    assert "4 of 6 images of 'train' have a mask; the others are not scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"split": "test"}, "test"), ({"threshold": 1.5}, "threshold 1.5"), ({"root": "/no/where"}, "/no/where")],
)
def test_bad_input(perfect, arguments, words):
    with pytest.raises(InputError, match=words):
        evaluate_seeds(perfect, **arguments)
    assert not (perfect / "metrics.json").exists()


def test_an_output_that_cannot_be_written(perfect, monkeypatch):
    """It is reported before the images are scored."""
    monkeypatch.setattr(CueMetrics, "update", lambda *_: pytest.fail("an image was scored"))
    manifest = next(file for file in perfect.iterdir() if file.is_file())
    with pytest.raises(InputError, match=f"{manifest.name} is a file"):
        evaluate_seeds(perfect, output=manifest / "scores")


def test_a_cache_that_lacks_images(voc, tmp_path):
    inputs = {"data": {"root": str(voc), "train_split": "train"}}
    with CacheWriter(tmp_path / "few", ("red", "blue"), {}, inputs=inputs) as cache:
        cache.add("p0", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="lacks 5 of the 6"):
        evaluate_seeds(tmp_path / "few")


def test_a_cache_without_the_folder_of_its_images(tmp_path):
    with CacheWriter(tmp_path / "c", ("red", "blue"), {}) as cache:
        cache.add("p0", np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="give it as 'root'"):
        evaluate_seeds(tmp_path / "c")


def test_a_mask_of_another_size_than_its_image(voc, perfect, tmp_path):
    shutil.copytree(voc, tmp_path / "VOC2012")
    path = next((tmp_path / "VOC2012/SegmentationClass").glob(f"{IDS[0]}.png"))
    write_mask(path, read_mask(path)[:-1])
    with pytest.raises(InputError, match=rf"{IDS[0]}\.png is \d+x\d+, and its image .* is \d+x\d+$"):
        evaluate_seeds(perfect, root=str(tmp_path / "VOC2012"), output=tmp_path / "a.json")
    assert not (tmp_path / "a.json").exists()


def test_masks_that_score_nothing(voc, perfect, tmp_path):
    """All pixels are 255: one sentence, and nothing is written."""
    root = tmp_path / "VOC2012"
    shutil.copytree(voc, root)
    for path in (root / "SegmentationClass").glob("*.png"):
        cv2.imwrite(str(path), np.full(read_mask(path).shape, 255, np.uint8))
    with pytest.raises(InputError, match="score no pixel"):
        evaluate_seeds(perfect, root=str(root), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["irn", "coco"])
def test_images_of_any_size_are_scored_and_exported_where_seeds_were_made_in_tiles(
    voc, perfect, tmp_path, monkeypatch, form
):
    seeds = SeedCache(perfect)
    with CacheWriter(tmp_path / "tiles", seeds.classes, {"tile": 64, "overlap": 0.25}, inputs=seeds.inputs) as cache:
        for name in seeds.ids:
            classes, maps = seeds.maps(name)
            cache.add(name, seeds.cues(name), map_classes=classes, maps=maps)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert evaluate_seeds(tmp_path / "tiles")["miou_cues"] == 1
    export_seeds(tmp_path / "tiles", tmp_path / form, form)
    with pytest.raises(InputError, match="1 of 6 images cannot be read"):
        evaluate_seeds(perfect)
