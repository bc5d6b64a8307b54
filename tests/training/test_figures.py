"""The figures against hand-worked tables, torchmetrics, the boundary IoU authors' own way, and slow counts."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from datamodules.errors import InputError
from training.evaluation.boundary_iou import boundary_counts
from training.evaluation.metrics import RESAMPLES, SEED, Tally, confused_pairs, figures, miou_interval
from training.inference import Views, view_scores

NAMES = ("background", "cat", "dog", "owl")


def blobs(seed: int, size: tuple[int, int] = (60, 80), void: bool = False) -> torch.Tensor:
    """A label map of a few smooth regions; with ``void``, 255 along their borders."""
    noise = np.random.default_rng(seed).random((*size, 4)).astype(np.float32)
    labels = cv2.GaussianBlur(noise, (0, 0), 6).argmax(2).astype(np.uint8)
    if void:
        labels[cv2.morphologyEx(labels, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0] = 255
    return torch.from_numpy(labels.astype(np.int64))


def tally_of(pairs) -> Tally:
    tally = Tally(NAMES)
    for pred, truth in pairs:
        tally.add(pred, truth)
    return tally


def test_worked_by_hand():
    pred = torch.tensor([[0, 0, 1, 1], [2, 1, 1, 0]])
    truth = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 255]])
    tally = Tally(NAMES)
    # background: 1 hit of {3}; cat: 3 of {6}; dog: called once, never there; owl: nowhere
    assert tally.add(pred, truth) == pytest.approx((1 / 3 + 1 / 2 + 0) / 3)
    found = figures(tally)
    assert found["iou"] == pytest.approx({"background": 1 / 3, "cat": 1 / 2, "dog": 0})
    assert found["miou"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert found["background_iou"] == pytest.approx(1 / 3)
    assert found["precision"] == pytest.approx({"background": 1 / 2, "cat": 3 / 4, "dog": 0})
    assert found["recall"] == pytest.approx({"background": 1 / 2, "cat": 3 / 5})
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)
    assert found["mean_accuracy"] == pytest.approx((1 / 2 + 3 / 5) / 2)
    assert found["confusion"]["pixels"] == [[1, 1, 0, 0], [1, 3, 1, 0], [0] * 4, [0] * 4]
    assert found["miou_interval"] is None  # one image says nothing of others
    assert [(pair["truth"], pair["predicted"], pair["pixels"], pair["share"]) for pair in found["confused"]] == [
        ("background", "cat", 1, 0.5), ("cat", "background", 1, 0.2), ("cat", "dog", 1, 0.2),
    ]  # fmt: skip


def test_iou_is_torchmetrics():
    """Per class and over the set; the mean over classes that occur, which torchmetrics' own mean is not."""
    pairs = [(blobs(i), blobs(i + 100, void=True)) for i in range(4)]
    settings = {"num_classes": 4, "ignore_index": 255}
    jaccard, counts = MulticlassJaccardIndex(average=None, **settings), MulticlassConfusionMatrix(**settings)
    for pred, truth in pairs:
        jaccard.update(pred[None], truth[None])
        counts.update(pred[None], truth[None])
    tally = tally_of(pairs)
    assert tally.matrix.tolist() == counts.compute().tolist()
    assert list(figures(tally)["iou"].values()) == pytest.approx(jaccard.compute().tolist(), abs=1e-7)  # float32 there
    assert figures(tally)["miou"] == pytest.approx(np.mean(list(figures(tally)["iou"].values())), abs=1e-12)


def authors_boundary(mask: np.ndarray) -> np.ndarray:
    """``mask_to_boundary`` as Cheng et al. released it: a binary mask less its erosion, step by step."""
    height, width = mask.shape
    dilation = max(1, round(0.02 * np.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - eroded[1:-1, 1:-1]


@pytest.mark.parametrize("size", [(60, 80), (150, 200), (9, 7)])
def test_boundary_is_the_authors(size):
    pred, truth = blobs(1, size), blobs(2, size, void=True)
    counts = boundary_counts(pred.numpy(), truth.numpy(), 4)
    for c in range(4):
        guess = authors_boundary(((pred == c) & (truth != 255)).numpy().astype(np.uint8)) > 0
        true = authors_boundary((truth == c).numpy().astype(np.uint8)) > 0
        assert counts[:, c].tolist() == [(guess & true).sum(), guess.sum(), true.sum()]


def test_boundary_is_one_for_a_perfect_prediction_and_below_iou_for_a_dented_one():
    truth = blobs(3, (150, 200), void=True)
    perfect = torch.where(truth == 255, 2, truth)  # whatever it says of the void
    assert set(figures(tally_of([(perfect, truth)]))["boundary_iou"].values()) == {1.0}
    square, dented = torch.zeros(2, 150, 200, dtype=torch.int64)
    square[20:130, 20:180] = 1
    dented[24:126, 24:176] = 1
    found = figures(tally_of([(dented, square)]))
    assert found["boundary_iou"]["cat"] < 0.3
    assert found["iou"]["cat"] > 0.85
    assert found["boundary_miou"] == pytest.approx(np.mean(list(found["boundary_iou"].values())))


def test_the_interval_is_that_of_a_slow_bootstrap():
    pairs = [(blobs(i, (20, 24)), blobs(i % 3 + 50, (20, 24), void=True)) for i in range(7)]
    tally = tally_of(pairs)
    matrices = [tally_of([pair]).matrix for pair in pairs]
    found = miou_interval(tally.sums)
    draws = np.random.default_rng(SEED).multinomial(7, np.full(7, 1 / 7), size=RESAMPLES)
    means = []
    for draw in draws:
        counts = sum(times * matrix for times, matrix in zip(draw, matrices, strict=True))
        hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
        means.append(np.mean(hits[union > 0] / union[union > 0]))
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)
    assert found["low"] < figures(tally)["miou"] < found["high"]
    assert found["level"] == 0.95


def test_the_interval_of_equal_pictures_is_a_point_and_void_pictures_do_not_count():
    pred, truth = blobs(1), blobs(2)
    blank = torch.full_like(truth, 255)
    found = miou_interval(tally_of([(pred, truth), (pred, truth), (pred, blank)]).sums)
    assert found["low"] == found["high"] == pytest.approx(figures(tally_of([(pred, truth)]))["miou"])
    assert figures(tally_of([(pred, blank)]))["miou"] is None


def test_confused_pairs_go_by_their_share():
    matrix = np.array([[900, 90, 10], [1, 5, 4], [0, 0, 0]])
    pairs = confused_pairs(matrix, NAMES[:3], wanted=3)
    assert [(pair["truth"], pair["predicted"]) for pair in pairs] == [
        ("cat", "dog"), ("cat", "background"), ("background", "cat"),
    ]  # fmt: skip
    assert [pair["share"] for pair in pairs] == pytest.approx([0.4, 0.1, 0.09])


# --- several views


def pointwise(images: torch.Tensor) -> torch.Tensor:
    """A network that looks at single pixels, on a grid of a quarter."""
    return torch.cat([images, -images[:, :1]], 1)[..., ::4, ::4]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_one_plain_view_is_the_network_alone_and_flipping_back_is_right(seed):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(view_scores(pointwise, images, Views()), pointwise(images))
    even = torch.nn.functional.interpolate(images[..., ::4, ::4], scale_factor=4)  # a flip moves whole cells
    flipped = view_scores(pointwise, even, Views(flip=True)).softmax(1)
    torch.testing.assert_close(flipped, pointwise(even).softmax(1))


def test_views_are_averaged_as_probabilities_on_the_finest_grid():
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    sides = []

    def network(seen):
        sides.append(seen.shape[-1])
        return pointwise(seen)

    found = view_scores(network, images, Views((0.7, 1.0)), multiple=8)
    assert sides == [24, 32]  # 22.4 to the nearest multiple
    half = torch.nn.functional.interpolate(images, (24, 24), mode="bilinear", antialias=True)
    small = torch.nn.functional.interpolate(pointwise(half).softmax(1), (8, 8), mode="bilinear")
    torch.testing.assert_close(found.softmax(1), (small + pointwise(images).softmax(1)) / 2)
    assert found.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, float("nan")), (-1.0,)])
def test_scales_that_are_none(scales):
    with pytest.raises(InputError, match="scales"):
        Views(scales)


def test_a_network_of_one_size_says_so():
    def rigid(images):
        assert images.shape[-1] == 32
        return pointwise(images)

    with pytest.raises(InputError, match="16x16"):
        view_scores(rigid, torch.zeros(1, 3, 32, 32), Views((0.5,)))


def test_memory_does_not_grow_with_images_times_squared_classes():
    """81 classes, as of COCO: two matrices an image of 5,000 would be 525 MB."""
    tally = Tally([str(number) for number in range(81)])
    generator = np.random.default_rng(0)
    pred, truth = (torch.from_numpy(generator.integers(0, 81, (8, 8))) for _ in range(2))
    tally.add(pred, truth)
    tracemalloc.start()
    for _ in range(500):
        tally.add(pred, truth)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 500 * 4 * 81 * 8
    assert tally.matrix.sum() == 501 * 64


def test_the_interval_of_many_images_needs_little_memory():
    generator = np.random.default_rng(0)
    sums = [generator.integers(1, 9, (3, 3)) for _ in range(4000)]
    tracemalloc.start()
    assert miou_interval(sums) is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000  # all draws at once: 64 MB
