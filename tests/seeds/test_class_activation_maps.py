"""CAM, Grad-CAM and the other class activation maps, against formulas and the grad-cam library."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.activations import record_activations
from seeds.cam_methods import base
from seeds.cam_methods.class_activation_maps import CAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from seeds.gradcam import Counterfactual, GradCAM, linear_head
from tests.seeds.networks import network

IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "layer4"), ("mobilenet_v2", "features")])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_grad_cam_is_rectified_cam_over_the_positions(name, layer, memory):
    model, images = network(name), IMAGES.to(memory_format=memory)
    with torch.no_grad():
        features = {}
        handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: features.update(out=out))
        model(images)
        handle.remove()
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    cam = torch.einsum("ck,bkhw->bchw", last.weight.detach(), features["out"]) * LABELS[:, :, None, None]
    torch.testing.assert_close(CAM(model, layer)(images, LABELS), cam, atol=1e-5 * float(cam.max()), rtol=1e-5)
    expected = cam.relu() / features["out"][0, 0].numel()
    torch.testing.assert_close(
        GradCAM(model, layer)(images, LABELS), expected, atol=1e-5 * float(expected.max()), rtol=1e-5
    )
    negative = cam.neg().relu() / features["out"][0, 0].numel()
    torch.testing.assert_close(
        Counterfactual(model, layer)(images, LABELS), negative, atol=1e-5 * float(negative.max()), rtol=1e-5
    )
    assert (expected.amax((2, 3)) > 0).any()
    assert (negative.amax((2, 3)) > 0).any()


def test_a_pooled_linear_head_needs_no_backward_pass(monkeypatch):
    expected = GradCAM(network("resnet18"), "layer4")(IMAGES, LABELS)
    monkeypatch.setattr("seeds.gradcam.linear_head", lambda *_: None)
    torch.testing.assert_close(GradCAM(network("resnet18"), "layer4")(IMAGES, LABELS), expected)
    monkeypatch.undo()
    monkeypatch.setattr(torch.autograd, "grad", lambda *_a, **_k: pytest.fail("a backward pass"))
    torch.testing.assert_close(GradCAM(network("resnet18"), "layer4")(IMAGES, LABELS), expected)


class Head(nn.Module):
    """Heads that look nearly like global average pooling and a linear layer, and are not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(3, 8, 3, stride=4)
        self.linear = nn.Linear(8, 4, bias=kind != "without bias")
        self.permutation = torch.randperm(8, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "relu":
            y = y.relu()
        if self.kind == "rows":
            return self.linear(y.mean(2).mean(2).flatten(1))
        if self.kind == "shuffled":
            return self.linear(y.mean((2, 3))[:, self.permutation])
        if self.kind == "channels mixed":
            return self.linear(y.view(len(y), -1, 8).mean(1))
        if self.kind == "scaled":
            return self.linear(y.mean((2, 3))) * 2
        if self.kind == "summed":
            return self.linear(y.mean((2, 3)) + y.amax((2, 3)))
        return self.linear(functional.dropout(y.mean((2, 3), keepdim=True).flatten(1), training=self.training))


@pytest.mark.parametrize(
    ("kind", "is_linear"),
    [("plain", True), ("without bias", True), ("relu", False), ("rows", False), ("shuffled", False),
     ("channels mixed", False), ("scaled", False), ("summed", False)],
)  # fmt: skip
def test_heads_are_recognised(kind, is_linear, monkeypatch):
    torch.manual_seed(0)
    model = Head(kind)
    with record_activations(model, ["conv"]) as activations:
        found = linear_head(activations.run(IMAGES), activations[0])
    assert (found is not None) == is_linear
    ours = GradCAM(model, "conv")(IMAGES, LABELS)
    monkeypatch.setattr("seeds.gradcam.linear_head", lambda *_: None)
    torch.testing.assert_close(ours, GradCAM(model, "conv")(IMAGES, LABELS))
    if not is_linear:
        with pytest.raises(InputError, match=r"CAM needs scores that are global average pooling .* layer conv"):
            CAM(model, "conv")(IMAGES, LABELS)


@pytest.mark.parametrize(
    ("ours", "name", "layer"),
    [
        *((ours, "resnet18", "layer3") for ours in (GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM)),
        *((ours, "vgg", "features.4") for ours in (GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM)),
        (GradCAM, "densenet121", "features.denseblock3"),
    ],
)
def test_equals_the_grad_cam_library(ours, name, layer):
    library = pytest.importorskip("pytorch_grad_cam")
    model = copy.deepcopy(network(name))
    with torch.no_grad():  # large gradients, beside which the 1e-6 that the library adds in Grad-CAM++ is nothing
        [module for module in model.modules() if isinstance(module, nn.Linear)][-1].weight.mul_(1e4)
    maps = ours(model, layer)(IMAGES, LABELS)
    with getattr(library, ours.__name__)(model, [model.get_submodule(layer)]) as peer:
        for image, label in LABELS.nonzero().tolist():
            single = IMAGES[image : image + 1].clone()
            scores = peer.activations_and_grads(single)
            model.zero_grad()
            scores[0, label].backward()
            gradients = peer.activations_and_grads.gradients[0].numpy()
            value = peer.activations_and_grads.activations[0].numpy()
            expected = np.maximum(peer.get_cam_image(single, None, None, value, gradients, eigen_smooth=False), 0)[0]
            np.testing.assert_allclose(maps[image, label], expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_grad_cam_plus_plus_of_small_gradients():
    """The paper's formula in float64, for gradients as small as those behind an average over 40x40 positions."""
    generator = np.random.default_rng(0)
    features, gradients = generator.uniform(size=(2, 5, 40, 40)), generator.normal(size=(2, 5, 40, 40)) * 1e-5
    total = features.sum(axis=(2, 3), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        alpha = gradients**2 / (2 * gradients**2 + gradients**3 * total)
    weights = (alpha * np.maximum(gradients, 0)).sum(axis=(2, 3))
    wanted = np.maximum(np.einsum("nk,nkhw->nhw", weights, features), 0)
    method = GradCAMPlusPlus(network("resnet18"), "layer4")
    found = method.combine(torch.tensor(features).float(), torch.tensor(gradients).float())
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    negative = method.combine(-torch.ones(1, 2, 3, 3), torch.ones(1, 2, 3, 3))
    assert negative.tolist() == torch.zeros(1, 3, 3).tolist()  # the weights are 9/2, the features below 0


def test_layercam_of_features_below_zero():
    """Position by position in float64: gradients are rectified, features are not."""
    generator = np.random.default_rng(0)
    features, gradients = generator.normal(size=(2, 2, 5, 3, 4))
    wanted = np.maximum((np.maximum(gradients, 0) * features).sum(axis=1), 0)
    method = LayerCAM(network("resnet18"), "layer4")
    found = method.combine(torch.tensor(features).float(), torch.tensor(gradients).float())
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("side", [64, 224])
def test_maps_of_half_precision_networks(side):
    """The gradients behind an average over the map are smaller than any number of float16, 6e-8."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].bias.add_(2)  # no activation is below 0
        model[3].weight.fill_(2e-4)
    images, labels = torch.rand(1, 3, side, side), torch.ones(1, 2)
    expected = model[0](images).sum(1).detach().expand(1, 2, side, side) * 2e-4 / side**2
    assert expected.min() > 0
    found = HiResCAM(model.half(), "0")(images.half(), labels)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("sides", [(64, 96), (96, 64)])
def test_grad_cam_of_images_that_are_not_square(sides):
    """The weight of a channel is the mean over its positions of the gradient that autograd computes."""
    model, layer = network("resnet18"), "layer4"
    image = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(2))
    seen = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, out: seen.update(out=out))
    score = model(image)[0, 2]
    handle.remove()
    (gradients,) = torch.autograd.grad(score, seen["out"])
    wanted = (gradients.mean(dim=(2, 3), keepdim=True) * seen["out"]).sum(dim=1).relu()[0].detach()
    found = GradCAM(model, layer)(image, torch.tensor([[0, 0, 1, 0]]))[0, 2]
    torch.testing.assert_close(found, wanted, atol=1e-5 * float(wanted.max()), rtol=1e-4)


def test_equals_captum():
    captum = pytest.importorskip("captum.attr")
    model = network("resnet18")
    maps = GradCAM(model, "layer3")(IMAGES, LABELS)
    peer = captum.LayerGradCam(model, model.layer3)
    for image, label in LABELS.nonzero().tolist():
        expected = peer.attribute(IMAGES[image : image + 1], target=label, relu_attributions=True)[0, 0].detach()
        torch.testing.assert_close(maps[image, label], expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


@pytest.mark.parametrize(
    ("name", "layer"), [("vgg", "features.4"), ("resnet18", "layer3"), ("densenet121", "features")]
)
@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_many_classes_share_backward_passes(name, layer, at_once, monkeypatch):
    model, calls, grad = network(name), [], torch.autograd.grad
    labels = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 0]])
    monkeypatch.setattr(base, "BATCHED_FROM", 9)
    expected = HiResCAM(model, layer)(IMAGES, labels)
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    with record_activations(model, [layer]) as activations:
        activations.run(IMAGES)
        monkeypatch.setattr(base, "MAX_GRADIENT_NUMBERS", at_once * activations[0].numel())
    monkeypatch.setattr(base, "BATCHED_FROM", 4)
    torch.testing.assert_close(HiResCAM(model, layer)(IMAGES, labels), expected)
    assert len(calls) == {1: 4, 3: 2, 100: 1}[at_once]
