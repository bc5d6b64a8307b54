"""CAM methods compared by `tag2mask seeds evaluate --faithfulness`."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.annotations.shapes import Box
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.masks import read_mask
from seeds.evaluation import cam_metrics
from seeds.evaluation import evaluate_seeds as evaluate_module
from seeds.evaluation.compare_cam_methods import MethodMetrics, compare_cam_methods
from seeds.evaluation.evaluate_seeds import evaluate_seeds
from seeds.explainer import Explainer, resized_maps
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS, data_of


@pytest.fixture
def cache(voc, checkpoint, tmp_path):
    path = tmp_path / "cache"
    inputs = {"data": {"root": str(voc), "train_split": "train"}, "checkpoint": str(checkpoint)}
    with CacheWriter(path, ("red", "blue"), {}, inputs=inputs) as writer:
        for name in IDS:
            writer.add(name, read_mask(voc / f"SegmentationClass/{name}.png"))
    return path


def test_every_metric_of_every_method(voc, checkpoint, cache, capsys):
    metrics = evaluate_seeds(cache, faithfulness=["gradcam", "gradient"], num_images=1)
    assert json.loads((cache / "metrics.json").read_text()) == metrics
    found = metrics["faithfulness"]
    assert (found["images"], found["size"], list(found["methods"])) == (1, 64, ["gradcam", "gradient"])
    explainer = Explainer(checkpoint, ["gradcam", "gradient"])
    pixels = explainer.preprocess(read_image(voc / "JPEGImages/p0.jpg"))
    inside = read_mask(voc / "SegmentationClass/p0.png") == 1
    for method, own in found["methods"].items():
        (cam,) = resized_maps(explainer.maps(method, pixels, [0]), inside.shape)
        assert own["energy_inside"] == pytest.approx(cam[inside].sum() / cam.sum(), rel=1e-4)
        peak = np.unravel_index(cam.argmax(), cam.shape)
        nearest = np.linalg.norm(np.argwhere(inside) - peak, axis=1).min()
        assert own["pointing"] == own["pointing_by_class"]["red"] == (nearest <= 15)
        red = cam > 0.2 * cam.max()
        by_class = [(red & inside).sum() / (red | inside).sum(), (~red & ~inside).sum() / (~red | ~inside).sum()]
        assert own["miou_fixed"] == pytest.approx(np.mean(by_class), abs=1e-3)
        assert own["miou_oracle"] >= own["miou_fixed"]
        (resized,) = torch.nn.functional.interpolate(torch.tensor(cam)[None, None], (64, 64), mode="bilinear")[0]
        wanted = cam_metrics.deletion_insertion(explainer.scores, 0, pixels, resized)
        assert (own["deletion"], own["insertion"]) == pytest.approx(wanted)
        assert own["pairs"] == 1  # the first image shows red alone
        assert set(own["pointing_by_class"]) == {"red"}
        fractions = ["pointing", "localization_error_top1", "localization_error_top5", "localization_error_given",
                     "deletion", "insertion", "energy_inside", "miou_fixed", "miou_oracle"]  # fmt: skip
        assert all(0 <= own[key] <= 1 for key in fractions)
        assert -1 <= own["occlusion_rank_correlation"] <= 1
    assert "methods on 1 images" in capsys.readouterr().out
    assert "faithfulness" not in evaluate_seeds(cache)


def test_images_of_any_size_where_seeds_were_made_in_tiles(voc, checkpoint, cache, tmp_path, monkeypatch):
    whole = evaluate_seeds(cache, faithfulness=["gradcam"], num_images=1)["faithfulness"]
    inputs = {"data": {"root": str(voc), "train_split": "train"}, "checkpoint": str(checkpoint)}
    with CacheWriter(tmp_path / "tiles", ("red", "blue"), {"tile": 64, "overlap": 0.25}, inputs=inputs) as writer:
        for name in IDS:
            writer.add(name, read_mask(voc / f"SegmentationClass/{name}.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # twice that is Pillow's limit
    assert evaluate_seeds(tmp_path / "tiles", faithfulness=["gradcam"], num_images=1)["faithfulness"] == whole


class Oracle(Explainer):
    """Its maps are the masks themselves, and its scores count the pixels of a class's colour."""

    def __init__(self, voc):
        self.classes, self.size, self.methods = ("red", "blue"), 64, {"truth": None, "lie": None}
        self.truth, self.in_channels = None, 3
        self._masks = [read_mask(voc / f"SegmentationClass/{name}.png") for name in IDS]

    def preprocess(self, image):
        self.truth = next(mask for mask in self._masks if mask.shape == image.shape[:2])
        small = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 128 - 1
        return torch.nn.functional.interpolate(small, (64, 64))[0]

    def scores(self, images):
        red, green, blue = images.unbind(1)
        count = torch.stack([(red - torch.maximum(green, blue) > 0.5), (blue - torch.maximum(green, red) > 0.5)], 1)
        return count.float().sum((2, 3)) / 50 - 2

    def maps(self, method, _image, classes):
        inside = torch.from_numpy(np.stack([self.truth == c + 1 for c in classes]).astype(np.float32))
        return inside if method == "truth" else 1 - inside


def test_cams_are_resized_bilinearly(voc, checkpoint):
    """Bilinear between the centres of positions, at the image's own size; nothing below 0."""
    explainer = Explainer(checkpoint, ["gradcam"])
    image = explainer.preprocess(read_image(voc / "JPEGImages/p2.jpg"))
    maps = explainer.maps("gradcam", image, [1, 0])
    torch.testing.assert_close(maps, explainer.maps("gradcam", image, [0, 1]).flip(0))  # in the order of the classes
    found = resized_maps(maps, (50, 70))
    wanted = torch.nn.functional.interpolate(maps[None], (50, 70), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(found, wanted.detach().clamp(min=0), rtol=1e-5, atol=1e-8)
    assert found.shape == (2, 50, 70)
    assert found.max() > 0


def test_cams_of_pixels_are_averaged_where_a_side_shrinks():
    """A single high pixel must not vanish, or stay as high, because only the narrow side shrinks."""
    maps = torch.zeros(1, 64, 64)
    maps[0, 32, 32] = 1.0
    found = resized_maps(maps, (65, 16))
    assert found.max() < 0.5
    assert found.sum() == pytest.approx(65 * 16 / 64**2, rel=0.1)


def test_classes_in_the_image_are_explained_without_others(voc):
    """A map of CLIP-ES depends on the classes beside it: those in the image, as for seeds."""
    oracle, calls = Oracle(voc), []
    maps = oracle.maps

    def recorded(method, image, classes):
        calls.append((set(np.unique(oracle.truth)) - {0, 255}, {c + 1 for c in classes}))
        return maps(method, image, classes)

    oracle.maps = recorded
    data = data_of(voc)
    compare_cam_methods(oracle, data.samples("train", tags=False), data.mask_lut, 0.2)
    assert all(classes == present or not classes & present for present, classes in calls)
    assert any(classes == present for present, classes in calls)
    assert any(not classes & present for present, classes in calls)


def test_the_truth_wins(voc):
    data = data_of(voc)
    found = compare_cam_methods(Oracle(voc), data.samples("train", tags=False), data.mask_lut, 0.2)
    truth, lie = found["truth"], found["lie"]
    assert (truth["pointing"], truth["energy_inside"], truth["miou_fixed"]) == (1, 1, 1)
    assert (truth["localization_error_top1"], truth["localization_error_given"]) == (0, 0)
    assert (lie["energy_inside"], lie["miou_fixed"]) == (0, pytest.approx(0, abs=0.01))
    assert lie["localization_error_given"] == 1
    assert truth["deletion"] < lie["deletion"] - 0.2
    assert all(0 < own[name] < 1 for own in (truth, lie) for name in ("deletion", "insertion"))
    assert truth["occlusion_rank_correlation"] > 0.3 > -0.3 > lie["occlusion_rank_correlation"]
    assert truth["pairs"] == 8
    assert truth["pointing_difficult"] == 1  # both classes, each small, in two images


def test_images_whose_classes_are_all_ignored_are_skipped(voc):
    """As in VOC animals, where all other classes are 255."""
    data = data_of(voc)
    lut = data.mask_lut.copy()
    lut[1] = 255  # red
    found = compare_cam_methods(Oracle(voc), data.samples("train", tags=False), lut, 0.2)["truth"]
    assert (found["pairs"], found["pointing_by_class"]) == (4, {"blue": 1})
    lut[2] = 255
    with pytest.raises(InputError, match="none of the images shows any of the classes"):
        compare_cam_methods(Oracle(voc), data.samples("train", tags=False), lut, 0.2)


def test_boxes_of_the_five_classes_with_the_highest_scores_count(voc):
    """Blue has the lowest of six scores; two images show blue alone."""
    data, oracle = data_of(voc), Oracle(voc)
    oracle.classes = ("red", "blue", "c", "d", "e", "f")
    oracle.scores = lambda images: torch.tensor([[1.0, 0, 5, 4, 3, 2]]).expand(len(images), 6)
    found = compare_cam_methods(oracle, data.samples("train", tags=False), data.mask_lut, 0.2)["truth"]
    assert (found["localization_error_top1"], found["localization_error_top5"]) == (1, pytest.approx(2 / 6))


def test_the_images_compared_are_spread_over_the_split(cache, monkeypatch):
    seen = []
    monkeypatch.setattr(evaluate_module, "compare_cam_methods", lambda _, samples, *__: seen.extend(samples) or {})
    monkeypatch.setattr(evaluate_module, "print_seed_metrics", lambda _: None)
    for count in (3, None):
        evaluate_seeds(cache, faithfulness=["gradcam"], num_images=count)
    assert [sample.id for sample in seen] == ["p0", "p2", "p5", *IDS]


def test_a_class_of_the_second_highest_score_is_among_the_first_five(voc):
    """Scores of the wrong sign: of the four images of one class, the other class has the highest score."""
    oracle, data = Oracle(voc), data_of(voc)
    scores = oracle.scores
    oracle.scores = lambda images: -scores(images)
    found = compare_cam_methods(oracle, data.samples("train", tags=False), data.mask_lut, 0.2)["truth"]
    assert (found["localization_error_top1"], found["localization_error_top5"]) == (pytest.approx(4 / 6), 0)


def test_a_classifier_of_other_classes(voc, checkpoint, tmp_path):
    """Maps would be those of other classes."""
    inputs = {"data": {"root": str(voc), "train_split": "train"}, "checkpoint": str(checkpoint)}
    with CacheWriter(tmp_path / "c", ("blue", "red"), {}, inputs=inputs) as writer:
        for name in IDS:
            writer.add(name, read_mask(voc / f"SegmentationClass/{name}.png"))
    with pytest.raises(InputError, match="has the classes red, blue, not blue, red"):
        evaluate_seeds(tmp_path / "c", faithfulness=["gradcam"])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"faithfulness": ["gradcamm"]}, "did you mean 'gradcam'"), ({"checkpoint": "/no/where"}, "no checkpoint"),
     ({"num_images": 0}, "num_images 0 must be at least 1")],
)  # fmt: skip
def test_bad_input(cache, options, words):
    with pytest.raises(InputError, match=words):
        evaluate_seeds(cache, **{"faithfulness": ["gradcam"]} | options)
    assert not (cache / "metrics.json").exists()


def test_the_pointing_game_is_a_mean_over_classes_and_its_difficult_part_one_of_small_objects_beside_others():
    """Red is 1/16 of both images, in the first alone; blue is half of the second one. All are hit but one of red."""
    alone = np.zeros((8, 8), np.uint8)
    alone[:2, :2] = 1
    both = np.where(np.arange(8) < 4, alone, 2).astype(np.uint8)
    now = {}

    def maps(_method, _image, classes):
        return torch.from_numpy(np.stack([now["shown"] == c + 1 for c in classes]).astype(np.float32))

    scores = SimpleNamespace(classes=("red", "blue"), maps=maps, scores=lambda images: torch.zeros(len(images), 2))
    metrics = MethodMetrics("any", scores, 0.2)
    for truth, shown in ((alone, alone * 0), (both, both)):  # a map of zeros misses
        now["shown"] = shown
        metrics.update(torch.zeros(3, 8, 8), truth, [], [0, 1], torch.zeros(2, 2, 2))
    found = metrics.compute()
    assert found["pointing_by_class"] == {"red": 0.5, "blue": 1}
    assert (found["pointing"], found["pairs"]) == (0.75, 3)
    assert {c: list(hits) for c, hits in metrics.hits["pointing_difficult"].items()} == {0: [True]}
    assert found["pointing_difficult"] == 1


def test_localization_errors_by_hand():
    """Six classes; maps are boxes of 4 x 4 pixels. The class that is shown has the second highest score."""
    truth, shown = np.zeros((16, 16), np.uint8), torch.zeros(6, 16, 16)
    truth[:4, :4] = 3
    shown[:, 8:12, 8:12] = 1
    shown[2], shown[2, :4, :4] = 0, 1
    explainer = SimpleNamespace(
        classes=tuple("abcdef"), maps=lambda _method, _image, classes: shown[classes],
        scores=lambda images: torch.zeros(len(images), 6),
    )  # fmt: skip
    metrics = MethodMetrics("any", explainer, 0.2)
    box, occlusion = Box("c", 0, 0, 4, 4), torch.zeros(6, 2, 2)
    metrics.update(torch.zeros(3, 16, 16), truth, [box], [1, 2, 0, 3, 4], occlusion)
    found = metrics.compute()
    assert (found["localization_error_top1"], found["localization_error_top5"]) == (1, 0)
    assert found["localization_error_given"] == 0
    metrics.update(torch.zeros(3, 16, 16), truth, [box], [1, 0, 3, 4, 5], occlusion)
    assert metrics.compute()["localization_error_top5"] == 0.5


def test_the_rank_correlation_with_occlusion_is_that_of_the_means_of_patches():
    """A map of one pixel in a corner: the ranks 4 2 2 2 of its patches beside 4 3 2 1 of the drops of the score."""
    truth, cam = np.ones((16, 16), np.uint8), torch.zeros(1, 16, 16)
    cam[0, 0, 0] = 1
    scores = SimpleNamespace(classes=("a",), maps=lambda *_: cam, scores=lambda images: torch.zeros(len(images), 1))
    metrics = MethodMetrics("any", scores, 0.2)
    metrics.update(torch.zeros(3, 16, 16), truth, [], [0], torch.tensor([[[4.0, 3], [2, 1]]]))
    assert metrics.compute()["occlusion_rank_correlation"] == pytest.approx(3 / 15**0.5)
