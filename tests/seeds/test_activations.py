"""Layouts of a layer's output. Every method restores the model, also after an error, and keeps no tensor."""

import gc

import pytest
import torch
import torchvision
from torch import nn

from datamodules.errors import InputError
from seeds.activations import as_map, restore_layout
from seeds.cam_methods.class_activation_maps import CAM
from seeds.cam_methods.registry import METHODS
from seeds.gradcam import GradCAM
from tests.seeds.networks import small_vgg, small_vit, snapshot


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cam":
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
        )
    return small_vit() if name == "clip" else small_vgg(norm=True)


def layer_of(name: str, other: str) -> str:
    return {"cam": "1", "clip": "blocks.2.norm1"}.get(name, other)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_as_it_was(name, fails):
    model = network(name).train()
    next(model.modules()).training = False
    next(model.parameters()).requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = snapshot(model)
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    kept = images.clone()
    method = METHODS[name](model, layer_of(name, "features.2"))
    if fails:
        with pytest.raises(InputError):
            method(images, torch.tensor([0, 9]))
    else:
        maps = method(images, torch.tensor([0, 3]))
        assert (maps.dtype, maps.requires_grad) == (torch.float32, False)
        assert torch.isfinite(maps).all()
    assert snapshot(model) == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(images, kept)
    assert images.requires_grad is False


@pytest.mark.parametrize("name", METHODS)
def test_mixed_precision_and_channels_last(name):
    model, labels = network(name), torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    images = torch.randn(2, 3, 32, 32)
    method = METHODS[name](model, layer_of(name, "features.6"))
    expected = method(images, labels)
    model.to(memory_format=torch.channels_last)
    found = method(images.to(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    kept = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    assert all(parameter.is_contiguous(memory_format=torch.channels_last) for parameter in kept)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(images, labels)
    assert rough.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    agreement = torch.nn.functional.cosine_similarity(rough.flatten(), expected.flatten(), dim=0)
    assert agreement > 0.97


def live_tensors() -> int:
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())  # no look through weak proxies


def test_a_thousand_calls_keep_nothing():
    """With the garbage collector off: not even a cycle is left behind."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 3, 2, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    images, labels = torch.randn(1, 3, 4, 4), torch.ones(1, 2)
    methods = {name: make(model, "1") for name, make in METHODS.items() if name != "clip"}
    transformer = METHODS["clip"](small_vit(2), "blocks.2.norm1")
    methods["clip"] = lambda images, labels: transformer(images.repeat(1, 1, 4, 4), labels)
    for method in methods.values():
        method(images, labels)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors()
        for name, method in methods.items():
            for _ in range(1000 if name == "gradcam" else 20):
                method(images, labels)
        assert live_tensors() == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("shape", "size", "layout", "prefix"),
    [((2, 8, 5, 7), (80, 112), "first", 0), ((2, 5, 7, 8), (80, 112), "last", 0),
     ((2, 7, 7, 7), (224, 224), "first", 0), ((2, 8, 3, 9), (64, 64), "first", 0),
     ((2, 11, 11, 64), (321, 321), "last", 0),
     ((2, 11, 6, 64), (350, 187), "last", 0), ((2, 197, 8), (224, 224), "tokens 14 14", 1),
     ((2, 198, 8), (224, 224), "tokens 14 14", 2), ((2, 201, 8), (224, 224), "tokens 14 14", 5),
     ((2, 196, 8), (224, 224), "tokens 14 14", 0), ((2, 1 + 8 * 12, 8), (128, 192), "tokens 8 12", 1),
     ((2, 30, 8), (224, 224), None, 0), ((2, 8), (64, 64), None, 0), ((3, 8, 5, 7), (80, 112), None, 0),
     ((), (64, 64), None, 0)],
)  # fmt: skip
def test_layouts(shape, size, layout, prefix):
    output = torch.randn(shape)
    found = as_map(output, (2, 3, *size))
    if layout is None:
        assert found is None
        return
    expected = {"first": output, "last": output.movedim(3, 1)}.get(layout) if output.dim() == 4 else None
    if layout.startswith("tokens"):
        grid = [int(side) for side in layout.split()[1:]]
        expected = output[:, prefix:].movedim(2, 1).unflatten(2, grid)
    assert torch.equal(found, expected)
    assert found.data_ptr() == expected.data_ptr()  # a view
    restored = restore_layout(found, output)
    assert torch.equal(restored, output)
    assert restored.data_ptr() != output.data_ptr()


def test_outputs_that_are_no_tensors():
    assert as_map([torch.zeros(2, 8, 5, 7)], (2, 3, 80, 112)) is None


def test_tokens_by_the_formula():
    """A ViT's first norm of its last block: the class token apart, the tokens on their grid."""
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.randn(2, 3, 32, 32)
    kept = {}
    block = model.encoder.layers[-1]
    handle = block.ln_1.register_forward_hook(lambda _m, _i, out: kept.update(out=out))
    score = model(images)[:, 1].sum()
    handle.remove()
    slope = torch.autograd.grad(score, kept["out"])[0][:, 1:]
    value = kept["out"].detach()[:, 1:]
    expected = (value * slope.mean(1, keepdim=True)).sum(2).relu().view(2, 1, 4, 4)
    maps = GradCAM(model, "encoder.layers.encoder_layer_1.ln_1")(images, torch.tensor([1, 1]))
    torch.testing.assert_close(maps, expected)
    assert expected.max() > 0
    with pytest.raises(InputError, match="no map"):
        GradCAM(model, "heads")(images, torch.tensor([1, 1]))


@pytest.mark.parametrize("how", ["function", "method", "part"])
def test_compiled(how):
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 48, 48), torch.ones(2, 4)
    model = small_vgg().eval()
    expected = GradCAM(model, "features.4")(images, labels)
    if how == "part":
        model.features = torch.compile(model.features, backend="eager")
    elif how == "method":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    scores = model(images)
    assert torch.equal(GradCAM(model, "features.4")(images, labels), expected)
    assert torch.equal(model(images), scores)
    with pytest.raises(InputError, match="global average pooling"):
        CAM(model, "features.4")(images, labels)
