"""Views, the CRF at test time, and loading of checkpoints."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import normalize, read_image
from datamodules.masks import read_class_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.unreadable_images import UnreadableImages
from seeds.crf import dense_crf
from seeds.score_maps import label_map
from seeds.tiles import Tiling
from tests.benchmarks.measure import ROOT
from tests.training.conftest import SIZE
from training import inference
from training.inference import (
    Views,
    crf_label_map,
    crf_probabilities,
    load_trained,
    predictions,
    tiled_label_maps,
    view_scores,
)

LARGER = SIZE + 32


def pointwise(images: torch.Tensor) -> torch.Tensor:
    """A network that looks at single pixels, on a grid of a quarter."""
    return torch.cat([images, -images[:, :1]], 1)[..., ::4, ::4]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_one_plain_view_is_the_network_alone_and_flipping_back_is_right(seed):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(view_scores(pointwise, images, Views()), pointwise(images))
    even = torch.nn.functional.interpolate(
        images[..., ::4, ::4], scale_factor=4
    )  # a flip moves whole positions of the grid
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


@pytest.mark.parametrize("scales", [(0.5, 1.0), (1.0, 0.5)])
def test_views_are_averaged_on_the_finest_grid_in_any_order(scales):
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half = functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    small = functional.interpolate(pointwise(half).softmax(1), (8, 8), mode="bilinear")
    found = view_scores(pointwise, images, Views(scales))
    torch.testing.assert_close(found.softmax(1), (small + pointwise(images).softmax(1)) / 2)


@pytest.mark.parametrize(("multiple", "side"), [(1, 3), (8, 8)])
def test_a_scaled_side_is_at_least_one_multiple(multiple, side):
    """A tenth of 32 pixels are 3.2, and the nearest multiple of 8 is 0."""
    sides = []

    def network(seen):
        sides.append(seen.shape[-1])
        return pointwise(seen)

    view_scores(network, torch.zeros(1, 3, 32, 32), Views((0.1,)), multiple=multiple)
    assert sides == [side]


def confident(images):
    """Scores on a grid of a quarter, beside whose largest the probabilities of the others are 0 in float32."""
    bright = 200 * functional.avg_pool2d(images[:, :1], 4).sign()
    return torch.cat([-bright, bright], dim=1)


@pytest.mark.parametrize("tiled", [False, True])
def test_probabilities_of_zero_leave_a_boundary_in_the_middle_of_two_positions(tiled):
    """Their logarithm is finite: bilinear between the two positions it changes its sign half way."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 255
    if tiled:
        labels, _ = tiled_label_maps(image, confident, Tiling(32), size=32, grid=(8, 8), batch_size=1, crf=False)
    else:
        pixels = normalize(torch.from_numpy(image).permute(2, 0, 1)[None])
        labels = label_map(view_scores(confident, pixels, Views(flip=True))[0], (32, 32)).numpy()
    assert labels.tolist() == [[0] * 16 + [1] * 16] * 32


def test_scores_in_bfloat16_are_float32_and_nearly_those_of_float32(checkpoint):
    images = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    full, half = (load_trained(checkpoint, precision).scores(images) for precision in ("32-true", "bf16-mixed"))
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert (half - full).abs().mean() < 0.05 * full.std()


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (1, 4, SIZE, SIZE)])
def test_images_of_another_shape_are_refused(checkpoint, shape):
    with pytest.raises(InputError, match=re.escape(f"must have shape (B, 3, H, W), not {shape}")):
        load_trained(checkpoint).scores(torch.zeros(shape))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, float("nan")), (-1.0,)])
def test_scales_that_are_none(scales):
    with pytest.raises(InputError, match="scales"):
        Views(scales)


def test_a_network_of_one_size_is_named():
    def rigid(images):
        assert images.shape[-1] == 32
        return pointwise(images)

    with pytest.raises(InputError, match="16x16"):
        view_scores(rigid, torch.zeros(1, 3, 32, 32), Views((0.5,)))


def test_the_crf_at_test_time_is_the_papers():
    """Softmax, bilinear, floor 1e-5, logarithm, scale 1, ten iterations."""
    generator = torch.Generator().manual_seed(0)
    scores = 4 * torch.randn(3, 5, 6, generator=generator)
    image = torch.randint(0, 256, (23, 31, 3), generator=generator).to(torch.uint8)
    probs = torch.nn.functional.interpolate(scores.softmax(0)[None], (23, 31), mode="bilinear", align_corners=False)
    unary = torch.log(torch.clamp(probs, min=1e-5))
    expected = dense_crf(image.permute(2, 0, 1)[None].contiguous(), unary, iterations=10, scale=1.0)[0].argmax(0)
    assert torch.equal(crf_label_map(scores, image.numpy()), expected)


def test_large_photos_come_out_at_their_own_size():
    image = np.zeros((1100, 1300, 3), np.uint8)
    image[:, 650:] = 255
    scores = torch.tensor([[[3.0, -3.0]], [[-3.0, 3.0]]])
    labels = crf_label_map(scores, image)
    assert labels.shape == (1100, 1300)
    assert (labels[:, :600] == 0).all()
    assert (labels[:, 700:] == 1).all()


def test_images_have_the_size_of_the_validation(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["eval_size"] = LARGER
    torch.save(content, tmp_path / "larger.ckpt")
    trained = load_trained(tmp_path / "larger.ckpt")
    assert trained.size == LARGER
    data = datamodule_from_settings(trained.data)
    assert next(iter(data.eval_loader(data.samples("val"))))["image"].shape[-2:] == (LARGER, LARGER)


def quantized_network(images):
    """Scores of single pixels on a grid of a quarter, so that tiles at the same scale have the scores of the image."""
    return 3 * torch.nn.functional.avg_pool2d(torch.cat([images, images.mean(1, keepdim=True)], 1), 4)


@settings(max_examples=8, deadline=None)
@given(st.integers(10, 50), st.integers(10, 50), st.sampled_from([0.0, 0.25, 0.6]), st.booleans())
def test_every_pixel_of_an_image_in_tiles_has_the_label_of_the_whole_image(rows, columns, overlap, crf):
    """Windows of 60 pixels, several in most images; the margin of the CRF is as large as the image."""
    image = np.random.default_rng(rows).integers(0, 256, (-(-rows // 5), -(-columns // 5), 3), dtype=np.uint8)
    image = np.ascontiguousarray(image.repeat(20, axis=0).repeat(20, axis=1)[: 4 * rows, : 4 * columns])
    size, pixels = image.shape[:2], torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    scores = quantized_network(normalize(pixels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "WINDOW", 60)
        patch.setattr(inference, "MARGIN", 200)
        plain, final = tiled_label_maps(
            image, quantized_network, Tiling(40, overlap), size=40, grid=(10, 10), batch_size=3, crf=crf
        )
    assert (plain == label_map(scores[0], size).numpy()).mean() > 0.999  # but for ties
    if crf:
        probs = torch.nn.functional.interpolate(scores.softmax(1), size, mode="bilinear")
        smoothed = dense_crf(pixels, probs.clamp_min(1e-5).log(), iterations=10, scale=1.0)[0].argmax(0)
        assert (final == smoothed.numpy()).mean() > 0.999
    else:
        assert final is plain


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([0.0, 0.4, 0.9]))
def test_every_pixel_of_any_size_is_labelled(height, width, overlap):
    """One class everywhere: a pixel that is left out would be background."""

    def network(images):
        return torch.tensor([0.0, 0.0, 5.0]).view(1, 3, 1, 1).expand(len(images), 3, 7, 7)

    image = np.zeros((height, width, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "WINDOW", 33)
        patch.setattr(inference, "MARGIN", 5)
        plain, final = tiled_label_maps(
            image, network, Tiling(37, overlap), size=32, grid=(7, 7), batch_size=4, crf=True
        )
    assert (plain == 2).all()
    assert (final == 2).all()


@pytest.mark.parametrize("crf", [False, True])
def test_images_up_to_a_tile_are_predicted_as_without_tiles(voc, checkpoint, crf):
    trained = load_trained(checkpoint)
    data = datamodule_from_settings(trained.data, num_workers=0)
    samples = data.samples("val")
    plain = list(predictions(trained.scores, data.eval_loader(samples), UnreadableImages(0.0), crf=crf))
    loader = data.eval_loader(samples, largest=96)
    tiled = predictions(trained.scores, loader, UnreadableImages(0.0), crf=crf, tiling=Tiling(96))
    assert len(plain) == len(samples)
    for one, other in zip(plain, tiled, strict=True):
        assert one.id == other.id
        for field in ("image", "plain", "final", "truth"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


@pytest.mark.parametrize("tiling", [None, Tiling(64)])
@pytest.mark.parametrize("crf", [False, True])
def test_nothing_is_computed_that_nobody_reads(voc, checkpoint, crf, tiling):
    """The labels without the CRF of images without masks; a blank tile for each image, which gives the grid of all."""
    trained = load_trained(checkpoint)
    data = datamodule_from_settings(trained.data, num_workers=0, batch_size=1)
    samples = data.samples("val")
    calls = []

    def network(images):
        calls.append(len(images))
        return trained.scores(images)

    found = []
    for masked in (True, False):
        calls.clear()
        chosen = samples if masked else [replace(sample, mask=None) for sample in samples]
        loader = data.eval_loader(chosen, largest=None if tiling is None else 64)
        found.append(list(predictions(network, loader, UnreadableImages(0.0), crf=crf, tiling=tiling)))
    tiles = sum(2 ** sum(side > 64 for side in read_image(sample.image).shape[:2]) for sample in samples)
    assert sum(calls) == (len(samples) if tiling is None else tiles + (tiles > len(samples)))
    for scored, one in zip(*found, strict=True):
        assert scored.plain is not None
        assert (one.plain is None) == crf
        np.testing.assert_array_equal(one.final, scored.final)


@pytest.mark.parametrize("tiling", [None, Tiling(32)])
@pytest.mark.parametrize("crf", [False, True])
def test_scores_that_are_no_numbers(voc, checkpoint, crf, tiling):
    """Their maximum would be background."""
    trained = load_trained(checkpoint)
    data = datamodule_from_settings(trained.data, num_workers=0)
    (sample, *_) = data.samples("val")
    loader = data.eval_loader([sample], largest=None if tiling is None else 32)

    def broken(images):
        scores = trained.scores(images).clone()
        scores[-1, 1, -1, -1] = torch.nan
        return scores

    with pytest.raises(InputError, match=f"scores of image {sample.id} are not a number"):
        list(predictions(broken, loader, UnreadableImages(0.0), crf=crf, tiling=tiling))


def test_larger_images_are_predicted_in_tiles_beside_the_others(voc, checkpoint, tmp_path):
    """In one batch; with truth and a reduced image; an unreadable one is listed."""
    root = tmp_path / "voc"
    shutil.copytree(voc, root)
    data = datamodule_from_settings(load_trained(checkpoint).data, num_workers=0, batch_size=4, root=str(root))
    samples = data.samples("val")
    for sample, factor in zip(samples[:2], (2, 3), strict=True):
        for path, flag in ((sample.image, Image.Resampling.BICUBIC), (sample.mask, Image.Resampling.NEAREST)):
            with Image.open(path) as image:
                enlarged = image.resize((image.width * factor, image.height * factor), flag)
            enlarged.save(path)
    Path(samples[2].image).write_bytes(Path(samples[1].image).read_bytes()[:-500])
    trained, unreadable = load_trained(checkpoint), UnreadableImages(1.0)
    loader = data.eval_loader(samples, largest=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "PREVIEW", 100)
        found = {
            each.id: each for each in predictions(trained.scores, loader, unreadable, crf=True, tiling=Tiling(100, 0.5))
        }
    assert set(unreadable.reasons) == {samples[2].id}
    assert set(found) == {sample.id for sample in samples} - {samples[2].id}
    for sample, factor in ((samples[0], 2), (samples[1], 3), (samples[3], 1)):
        each = found[sample.id]
        assert each.final.shape == each.plain.shape == each.truth.shape == read_image(sample.image).shape[:2]
        assert max(each.image.shape) <= 100
        assert each.image.shape[0] * factor == pytest.approx(each.final.shape[0], abs=factor)
        assert len(np.unique(each.plain)) > 1
        np.testing.assert_array_equal(each.truth, read_class_mask(sample.mask, data.mask_lut))
    shutil.copy(samples[3].mask, samples[0].mask)
    with pytest.raises(InputError, match=rf"mask .*{samples[0].id}\.png is 72x96, and its image .* is 192x144"):
        list(predictions(trained.scores, loader, unreadable, crf=False, tiling=Tiling(100, 0.5)))


MEMORY = """
import numpy as np, torch
from seeds.tiles import Tiling
from tests.benchmarks.measure import peak_memory
from training.inference import tiled_label_maps

class Drawn:  # pixels that are made as they are read
    def __init__(self, side):
        self.shape = (side, side, 3)
    def __getitem__(self, window):
        height, width = (len(range(*each.indices(self.shape[0]))) for each in window)
        return np.full((height, width, 3), (window[0].start + window[1].start) % 251, np.uint8)

def network(images):
    return torch.nn.functional.avg_pool2d(images, 4).repeat(1, 7, 1, 1)

for side in (800, 2500):
    tiled_label_maps(Drawn(side), network, Tiling(512), size=512, grid=(128, 128), batch_size=1, crf=False)
    print(peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_memory_is_bounded_by_a_row_of_tiles():
    """Scores of 21 classes at every pixel of the larger image would take 525 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=100, cwd=ROOT
    )
    small, large = (float(line) * 1024**2 for line in done.stdout.split())
    assert large - small < 2500**2 + 170e6


def test_the_numbers_at_test_time(monkeypatch):
    """Floor 1e-5 under the logarithm, ten iterations, scale 1."""
    seen = {}

    def recorded(_image, logits, **numbers):
        seen.update(numbers)
        return logits

    monkeypatch.setattr("training.inference.dense_crf", recorded)
    found = crf_probabilities(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    assert found.flatten().tolist() == pytest.approx([0, np.log(1e-5)])
    assert seen == {"iterations": 10, "scale": 1.0}


def test_the_crf_of_a_window_sees_the_pixels_around_it(monkeypatch):
    """An image of nearly one colour: a quarter of a weak class, a whole window, becomes background."""
    image = np.full((64, 64, 3), 100, np.uint8)
    image[:32, :32] = 102
    limit = normalize(torch.full((1, 3, 1, 1), 101, dtype=torch.uint8))[0, 0, 0, 0]

    def network(images):
        weak = functional.avg_pool2d(images[:, :1], 4) > limit
        return torch.cat([torch.zeros(weak.shape), torch.where(weak, 0.5, -4.0)], dim=1)

    monkeypatch.setattr(inference, "WINDOW", 32)
    found = {}
    for margin in (0, 64):
        monkeypatch.setattr(inference, "MARGIN", margin)
        plain, found[margin] = tiled_label_maps(
            image, network, Tiling(64), size=64, grid=(16, 16), batch_size=1, crf=True
        )
        assert plain[:28, :28].all()
        assert not plain[36:].any()
    assert found[0][:28, :28].all()
    assert not found[64].any()


@pytest.mark.parametrize(("shape", "wanted"), [((1500, 1500), (1000, 1000)), ((800, 1250), (800, 1250))])
def test_the_crf_sees_a_million_pixels(monkeypatch, shape, wanted):
    seen = []
    monkeypatch.setattr(inference, "dense_crf", lambda image, logits, **_: seen.append(image.shape[2:]) or logits)
    assert crf_label_map(torch.zeros(2, 4, 4), np.zeros((*shape, 3), np.uint8)).shape == shape
    assert seen == [wanted]


def test_the_crf_of_a_large_image_is_computed_on_its_mean_at_the_limit_of_pixels(monkeypatch):
    """40x96 pixels, and a quarter is allowed: 20x48. With a sixteenth each pixel is the mean of four columns."""
    seen = {}

    def recorded(image, logits, **_numbers):
        seen.update(image=image, logits=logits)
        return logits.softmax(dim=1)

    monkeypatch.setattr(inference, "CRF_PIXELS", 20 * 48)
    monkeypatch.setattr(inference, "dense_crf", recorded)
    image = np.zeros((40, 96, 3), np.uint8)
    image[:, ::4] = 200  # columns 0, 4, 8, …
    scores = torch.tensor([[[2.0, -2.0]], [[-2.0, 2.0]]])
    labels = crf_label_map(scores, image)
    assert seen["image"].shape == (1, 3, 20, 48)
    assert seen["logits"].shape == (1, 2, 20, 48)
    assert labels.tolist() == [[0] * 48 + [1] * 48] * 40
    monkeypatch.setattr(inference, "CRF_PIXELS", 10 * 24)
    crf_label_map(scores, image)
    assert seen["image"].shape == (1, 3, 10, 24)
    assert (seen["image"][..., 1:-1].int() - 50).abs().max() <= 2  # 200 0 0 0
    monkeypatch.setattr(inference, "CRF_PIXELS", 40 * 96)
    crf_label_map(scores, image)
    assert torch.equal(seen["image"][0].permute(1, 2, 0), torch.from_numpy(image))
