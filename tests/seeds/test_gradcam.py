import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from datamodules.errors import InputError
from seeds.backbones import build_backbone
from seeds.classifier import Classifier
from seeds.gradcam import GradCAM
from tests.seeds.networks import snapshot


@pytest.fixture(scope="module")
def model() -> Classifier:
    torch.manual_seed(0)
    return Classifier(build_backbone("resnet18", 16), 4)


IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


@settings(max_examples=15, deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.sampled_from([0.0, 1.0])))
def test_a_map_depends_on_its_own_image_and_label_only(labels):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)
    )
    images, wanted = IMAGES[:, :, :12, :12], torch.from_numpy(labels)
    maps = GradCAM(model, "0")(images, wanted)
    every = GradCAM(model, "0")(images, torch.ones(3, 4))
    torch.testing.assert_close(maps, every * wanted[:, :, None, None])
    alone = torch.cat([GradCAM(model, "0")(images[i : i + 1], torch.ones(1, 4)) for i in range(3)])
    torch.testing.assert_close(every, alone)


def test_only_the_head_is_differentiated_once_per_rank(model, monkeypatch):
    calls, graph = [], {}
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or grad(*a, **k))
    handles = [
        module.register_forward_hook(lambda _m, _i, out, name=name: graph.__setitem__(name, out.requires_grad))
        for name, module in model.named_modules()
        if name != "features.encoder"  # gives a list of maps
    ]
    forwards = []
    handles.append(model.register_forward_pre_hook(lambda *_: forwards.append(1)))
    try:
        GradCAM(model, "features.encoder.layer3")(IMAGES, LABELS)
    finally:
        for handle in handles:
            handle.remove()
    assert len(forwards) == 1
    assert len(calls) == 3  # the image of most labels has three
    below = [
        name
        for name in graph
        if name.startswith("features.encoder.") and "layer4" not in name and name != "features.encoder.layer3"
    ]
    assert below
    assert not any(graph[name] for name in below)
    assert graph["head"]


@pytest.mark.parametrize("fails", [None, "layer", "head", "labels"])
def test_the_model_comes_back_as_it_was(fails):
    model = Classifier(build_backbone("resnet18", 16), 4).train()
    model.features.encoder.layer1.eval()
    model.features.encoder.conv1.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = snapshot(model)
    layer = {"layer": "nothing", "head": "head"}.get(fails, "features")
    labels = LABELS[:, :3] if fails == "labels" else LABELS
    if fails:
        with pytest.raises(InputError):
            GradCAM(model, layer)(IMAGES, labels)
    else:
        GradCAM(model, layer)(IMAGES, labels)
    assert snapshot(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_within_other_modes(model, context):
    expected = GradCAM(model, "features")(IMAGES, LABELS)
    with context():
        maps = GradCAM(model, "features")(IMAGES + 0, LABELS)  # a tensor made in that mode
        assert torch.is_grad_enabled() == (context is torch.enable_grad)
    assert torch.equal(maps, expected)
    assert not maps.requires_grad


def test_under_autocast(model):
    expected = GradCAM(model, "features.encoder.layer3")(IMAGES, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = GradCAM(model, "features.encoder.layer3")(IMAGES, LABELS)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, expected, rtol=0.1, atol=0.05 * float(expected.max()))


@pytest.mark.parametrize("layer", ["0", "2"])
def test_large_maps_in_float16(layer):
    """Of 256 x 256 positions; float16 ends at 65504."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)]
    network, images = nn.Sequential(*body), torch.rand(1, 3, 256, 256)
    expected = GradCAM(network, layer)(images, LABELS[:1])
    maps = GradCAM(network.half(), layer)(images.half(), LABELS[:1])
    torch.testing.assert_close(maps.float(), expected, rtol=0.05, atol=0.02 * float(expected.max()))


def test_layers_that_work_in_place_behind_the_layer():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(5 * 36, 4)]
    plain = nn.Sequential(*body)
    inplace = nn.Sequential(body[0], nn.ReLU(inplace=True), *body[2:])
    images = IMAGES[:, :, :8, :8]
    torch.testing.assert_close(GradCAM(inplace, "0")(images, LABELS), GradCAM(plain, "0")(images, LABELS))
    torch.testing.assert_close(GradCAM(inplace, inplace[1])(images, LABELS), GradCAM(plain, "1")(images, LABELS))


def test_no_images_labelled(model):
    maps = GradCAM(model, "features")(IMAGES, torch.zeros(3, 4))
    assert maps.shape == (3, 4, 4, 4)
    assert not maps.any()


class Twice(nn.Module):
    def __init__(self, use="twice"):
        super().__init__()
        self.conv, self.other, self.use = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), use

    def forward(self, x):
        y = self.conv(x)
        if self.use == "twice":
            y = self.conv(y)
        return (x if self.use == "ignored" else y).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "layer", "words"),
    [(Twice(), "convs", "no layer 'convs'; did you mean 'conv'"), (Twice(), "conv", "runs more than once"),
     (Twice(), "other", "takes no part"), (Twice("ignored"), "conv", "no score of the model depends on layer conv"),
     (Twice(), nn.ReLU(), "not a layer of the Twice"),
     (nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 3)), "0", "no map .* of shape \\(3, 12288\\)")],
)  # fmt: skip
def test_bad_layers(model, layer, words):
    with pytest.raises(InputError, match=words):
        GradCAM(model, layer)(IMAGES, torch.ones(3, 3))


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [(IMAGES, torch.ones(3, 5), r"\(3, 5\) do not fit the model, which gives scores \(3, 4\)"),
     (IMAGES, torch.ones(2, 4), r"labels must have shape \(3, C\)"), (IMAGES, torch.ones(3), "labels must have shape"),
     (IMAGES[0], torch.ones(3, 4), "images must have shape")],
)  # fmt: skip
def test_bad_shapes(model, images, labels, words):
    with pytest.raises(InputError, match=words):
        GradCAM(model, "features")(images, labels)


class Scaled(nn.Module):
    """Global average pooling and a matrix product that is scaled within the same operation."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 3, stride=4), nn.Linear(8, 4)

    def forward(self, x):
        return torch.addmm(self.linear.bias, self.conv(x).mean((2, 3)), self.linear.weight.t(), alpha=2)


def test_a_scaled_product_is_no_linear_head():
    torch.manual_seed(0)
    model, images = Scaled(), torch.randn(2, 3, 32, 32)
    maps = GradCAM(model, "conv")(images, torch.ones(2, 4))
    features = model.conv(images).detach()
    wanted = torch.einsum("ck,bkhw->bchw", 2 * model.linear.weight, features).relu() / features[0, 0].numel()
    torch.testing.assert_close(maps, wanted.detach())
