"""Views, the CRF at test time, and loading of checkpoints."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.base_datamodule import datamodule_from_settings
from datamodules.errors import InputError
from seeds.crf import dense_crf
from tests.training.conftest import SIZE
from training.inference import Views, crf_label_map, load_trained, view_scores

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
