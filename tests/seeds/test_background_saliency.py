import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import median_filter
from torch import nn

from datamodules.errors import InputError
from seeds.background_saliency import background_saliency, check_saliency, saliency_map


@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.floats(0, 10, width=32)))
def test_median_is_scipys(maps):
    expected = np.stack([median_filter(one, size=3, mode="nearest") for one in maps])
    slopes = torch.from_numpy(maps)
    activation = torch.zeros_like(slopes)[:, None].requires_grad_()
    scores = (activation[:, 0] * slopes).sum(dim=(1, 2))[:, None]
    np.testing.assert_array_equal(saliency_map(scores, activation, torch.ones(len(maps), 1)).numpy(), expected)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def test_is_the_largest_slope_of_the_summed_scores():
    model, images = network(), torch.randn(3, 3, 9, 8)
    labels = torch.tensor([[1, 0, 2], [0, -1, 0], [0, 0, 0]])  # any number but 0
    saliency = background_saliency(model, "1", images, labels)
    counted = [[0, 2], [1], [0, 1, 2]]  # an image without labels: all classes
    for image, classes in enumerate(counted):
        activation = model[:2](images[image : image + 1]).detach().requires_grad_()
        model[2:](activation)[0, classes].sum().backward()
        slope = activation.grad[0].abs().amax(0).numpy()
        np.testing.assert_allclose(saliency[image], median_filter(slope, size=3, mode="nearest"), rtol=1e-5)
    assert saliency.shape == (3, 9, 8)


def test_leaves_the_model_alone():
    model = network().train()
    with torch.inference_mode():
        saliency = background_saliency(model, "1", torch.randn(1, 3, 5, 5), torch.ones(1, 3))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not saliency.requires_grad


def test_bad_layer():
    with pytest.raises(InputError, match="no layer '11'"):
        background_saliency(network(), "11", torch.zeros(1, 3, 5, 5), torch.ones(1, 3))


def test_class_indices_are_no_labels():
    with pytest.raises(InputError, match=r"labels must have shape \(2, C\), not \(2,\)"):
        background_saliency(network(), "1", torch.zeros(2, 3, 5, 5), torch.tensor([0, 1]))


def test_a_layer_whose_every_position_counts_alike_is_refused():
    check_saliency(network(), "1", 3)
    with pytest.raises(InputError, match="layer 3 is the same everywhere"):
        check_saliency(network(), "3", 3)  # the average over the map follows
