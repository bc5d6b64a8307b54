"""Guided backpropagation, deconvolution and their products with Grad-CAM, by hand and against captum."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.cam_methods.input_gradients import (
    Deconvolution,
    DeconvolutionGradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    InputGradient,
    channel_maximum,
)
from seeds.gradcam import GradCAM
from tests.seeds.networks import network

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]])


def out_of_place(model: nn.Module) -> nn.Module:
    """Captum's hooks cannot stand ReLUs that work in place."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), np.zeros((1, 3, 64, 64), np.float32)])
@pytest.mark.parametrize("method", [InputGradient, GuidedBackprop])
def test_images_that_have_no_gradient(method, images):
    with pytest.raises(InputError, match=r"images must be a tensor of floating point, not (torch\.uint8|ndarray)"):
        method(network("resnet18"))(images, torch.ones(1, 4))


@pytest.mark.parametrize("name", ["vgg", "resnet18"])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(InputGradient, "Saliency"), (GuidedBackprop, "GuidedBackprop"), (Deconvolution, "Deconvolution")],
)
def test_equals_captum(name, ours, theirs):
    captum = pytest.importorskip("captum.attr")
    model = network(name)
    maps = ours(model)(IMAGES, LABELS)
    assert maps.shape == (2, 4, 3, 64, 64)
    peer = getattr(captum, theirs)(out_of_place(model))
    options = {"abs": False} if theirs == "Saliency" else {}
    for image, label in LABELS.nonzero().tolist():
        single = IMAGES[image : image + 1].clone().requires_grad_()
        expected = peer.attribute(single, target=label, **options)[0]
        torch.testing.assert_close(maps[image, label], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not maps[LABELS == 0].any()


class Rectified(nn.Module):
    """y = v · f(w x), one number a channel."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        w, v = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 5.0, -1.0])
        return (v * self.function(w * x.flatten(1))).sum(1, keepdim=True)


@pytest.mark.parametrize(
    "function",
    [
        functional.relu,
        torch.relu,
        lambda x: functional.relu(x, inplace=True),
        lambda x: x.relu_(),
        nn.ReLU(),
        nn.ReLU6(),
    ],
)
def test_by_hand(function):
    model, single = Rectified(function), torch.tensor([1.0, 2.0, 1.0]).view(1, 3, 1, 1)
    label = torch.ones(1, 1)
    # w x = 1, -4, 3: the second is off; the third's weight above is negative
    hand = {InputGradient: [2.0, 0.0, -3.0], GuidedBackprop: [2.0, 0.0, 0.0], Deconvolution: [2.0, -10.0, 0.0]}
    for method, expected in hand.items():
        assert method(model)(single, label).flatten().tolist() == expected


def test_a_symmetric_hardtanh_is_no_rectifier():
    model, single = Rectified(nn.Hardtanh(-5.0, 5.0)), torch.tensor([1.0, 2.0, 1.0]).view(1, 3, 1, 1)
    for method in (InputGradient, GuidedBackprop, Deconvolution):
        assert method(model)(single, torch.ones(1, 1)).flatten().tolist() == [2.0, -10.0, -3.0]


def test_a_smooth_rectifier_keeps_its_own_gradient():
    model, single = Rectified(functional.gelu), torch.tensor([1.0, 2.0, 1.0]).view(1, 3, 1, 1)
    found = GuidedBackprop(model)(single, torch.ones(1, 1)).flatten()
    plain = InputGradient(model)(single, torch.ones(1, 1)).flatten()
    assert found[:2].tolist() == plain[:2].tolist()
    assert found[2] == 0


@pytest.mark.parametrize(
    ("ours", "pixel_method"), [(GuidedGradCAM, GuidedBackprop), (DeconvolutionGradCAM, Deconvolution)]
)
def test_products(ours, pixel_method):
    model = network("resnet18")
    found = ours(model, "layer3")(IMAGES, LABELS)
    large = functional.interpolate(GradCAM(model, "layer3")(IMAGES, LABELS), (64, 64), mode="bilinear")
    torch.testing.assert_close(found, pixel_method(model)(IMAGES, LABELS) * large[:, :, None])
    assert found.any()


def test_equals_captum_guided_grad_cam():
    captum = pytest.importorskip("captum.attr")
    model = network("resnet18")
    ours = GuidedGradCAM(model, "layer3")(IMAGES, LABELS)
    peer = captum.GuidedGradCam(out_of_place(model), model.layer3)
    for image, label in LABELS.nonzero().tolist():
        single = IMAGES[image : image + 1].clone().requires_grad_()
        expected = peer.attribute(single, target=label, interpolate_mode="bilinear")[0].detach()
        torch.testing.assert_close(ours[image, label], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_channel_maximum():
    maps = torch.tensor([[-3.0, 1.0], [2.0, -1.0], [0.0, 0.5]]).view(1, 1, 3, 1, 2)
    assert channel_maximum(maps).tolist() == [[[[3.0, 1.0]]]]
    assert channel_maximum(maps[:, 0]).shape == (1, 3, 1, 2)
