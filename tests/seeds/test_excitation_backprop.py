"""Excitation backpropagation: by hand, conserved layer by layer, and refused for layers without a rule."""

import functools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.backbones import build_backbone
from seeds.cam_methods.excitation_backprop import MWP, ContrastiveMWP, _Excitation
from seeds.classifier import Classifier
from tests.seeds.networks import small_vgg

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]])


class TwoLayers(nn.Module):
    """Three positions of one channel, two hidden units, two scores."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.hidden, self.top = nn.Identity(), nn.Linear(3, 2), nn.Linear(2, 2)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [3.0, -1.0, 1.0]]))
            self.hidden.bias.copy_(torch.tensor([0.5, -1.0]))  # a bias excites nothing
            self.top.weight.copy_(torch.tensor([[2.0, 1.0], [-1.0, 3.0]]))

    def forward(self, x):
        return self.top(self.hidden(self.positions(x).flatten(1)).relu())


def test_two_layers_by_hand():
    # a = (1, 2, 1): hidden = (1 + 4 - 1 + 0.5, 3 - 2 + 1 - 1) = (4.5, 1)
    # score 0: shares 2 * 4.5 = 9 and 1 * 1 = 1 of 10: p(hidden) = (0.9, 0.1); its dual (-2, -1) excites nothing
    # score 1: p(hidden) = (0, 1); its dual (1, -3) wins through hidden 0 alone: (1, 0); the difference is (-1, 1)
    # hidden 0 from a: 1 * 1, 2 * 2, nothing, of 5; hidden 1 from a: 3 * 1, nothing, 1 * 1, of 4
    image, both = torch.tensor([1.0, 2.0, 1.0]).view(1, 1, 1, 3), torch.ones(1, 2)
    plain = MWP(TwoLayers(), "positions")(image, both)[0, :, 0]
    torch.testing.assert_close(plain, torch.tensor([[0.255, 0.72, 0.025], [0.75, 0.0, 0.25]]))
    contrast = ContrastiveMWP(TwoLayers(), "positions")(image, both)[0, :, 0]
    torch.testing.assert_close(contrast, torch.tensor([[0.255, 0.72, 0.025], [0.55, 0.0, 0.25]]))  # ReLU(-0.8) = 0


@pytest.mark.parametrize(("factor", "bias", "expected"), [(1.0, 0.0, [1.0, 0.0]), (-1.0, 4.0, [0.0, 1.0])])
def test_a_batch_norm_is_part_of_the_convolution_by_hand(factor, bias, expected):
    """Weights (4, -1) at positions (2, 3): the first one excites, or with a negative factor, (-4, 1), the second.

    The bias of the batch norm, which is bias - 2 factor, excites nothing.
    """
    conv, norm, head = nn.Conv2d(1, 1, (1, 2), bias=False), nn.BatchNorm2d(1), nn.Linear(1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([4.0, -1.0]).view(1, 1, 1, 2))
        for values, number in ((norm.running_mean, 2), (norm.weight, factor), (norm.bias, bias), (head.weight, 1)):
            values.fill_(number)
    model = nn.Sequential(nn.Identity(), conv, norm, nn.ReLU(), nn.Flatten(), head).eval()
    maps = MWP(model, "0")(torch.tensor([2.0, 3.0]).view(1, 1, 1, 2), torch.ones(1, 1))
    torch.testing.assert_close(maps.flatten(), torch.tensor(expected))


class Gated(nn.Module):
    """Squeeze and excitation: activations times, or plus, a number for each channel that is computed from them."""

    def __init__(self, combine) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gate, self.head, self.combine = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 4), nn.Linear(4, 4), combine
        self.head.weight.data.abs_()  # so that no score loses its probability

    def forward(self, x):
        maps = self.conv(x).relu()
        gate = self.gate(maps.mean((2, 3))).sigmoid()[:, :, None, None]
        return self.head(self.combine(maps, gate).mean((2, 3)))


def test_the_gate_of_a_product_takes_no_probability():
    first, second = (MWP(Gated(each), "conv") for each in (lambda x, gate: x * gate, lambda x, gate: gate * x))
    maps = first(IMAGES, LABELS)
    torch.testing.assert_close(second(IMAGES, LABELS), maps)
    torch.testing.assert_close(maps.sum((2, 3)), LABELS.float(), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="no rule for sums and products of different shapes"):
        MWP(Gated(lambda x, gate: x + gate), "conv")(IMAGES, LABELS)


@functools.cache
def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "classifier":
        return Classifier(build_backbone("resnet18", 16), 4).eval()
    model = small_vgg(norm=name == "vgg_bn") if name.startswith("vgg") else torchvision.models.get_model(name)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as trained ones: other than the identity
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("name", "layers"),
    [("vgg", ["features.8", "features.5", "features.4", "features.2", "features.1"]),
     ("vgg_bn", ["features.11", "features.10", "features.2"]), ("resnet18", ["layer4", "layer3", "layer2", "layer1"]),
     ("densenet121", ["features.denseblock4", "features.pool0"]),
     ("googlenet", ["inception5b", "inception3a"]), ("classifier", ["features", "features.encoder.layer2"])],
)  # fmt: skip
def test_probability_is_conserved_layer_by_layer(name, layers):
    model = network(name)
    labels = functional.pad(LABELS, (0, 996)) if name in ("resnet18", "densenet121", "googlenet") else LABELS
    for layer in layers:
        maps = MWP(model, layer)(IMAGES, labels)
        assert (maps >= 0).all()
        torch.testing.assert_close(maps.sum((2, 3)), labels.float(), rtol=0, atol=1e-4)


def test_contrast_is_the_difference_of_two_networks():
    """c-MWP = MWP of a class less MWP of its dual, a class with the negative weights."""
    model, dual = network("vgg"), small_vgg(classes=8).eval()
    state = model.state_dict()
    for key in ("classifier.3.weight", "classifier.3.bias"):
        state[key] = torch.cat([state[key], -state[key]])
    dual.load_state_dict(state)
    each = MWP(dual, "features.4")(IMAGES, torch.cat([LABELS, LABELS], 1))
    expected = (each[:, :4] - each[:, 4:]).relu()
    torch.testing.assert_close(ContrastiveMWP(model, "features.4")(IMAGES, LABELS), expected, rtol=1e-3, atol=1e-6)
    assert expected.any()


def test_values_are_those_of_the_network():
    """The rules change derivatives only."""
    for name in ("resnet18", "densenet121", "googlenet", "classifier"):
        model, images = network(name), IMAGES.clone().requires_grad_()
        with _Excitation():
            found = model(images)
        torch.testing.assert_close(found, model(IMAGES), rtol=1e-4, atol=1e-5)


def test_no_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.LayerNorm(256), nn.Linear(256, 4))
    with pytest.raises(InputError, match="no rule for layer_norm"):
        MWP(model, "0")(IMAGES, LABELS)
    with pytest.raises(InputError, match="not a function"):
        MWP(network("vgg"), "features.8")(IMAGES, lambda scores: scores[:, 0])
