"""Every method restores the model, also after an error, and keeps no tensor."""

import gc

import pytest
import torch
from torch import nn

from datamodules.errors import InputError
from seeds.cam_methods.registry import METHODS
from tests.seeds.networks import small_vgg


def snapshot(model):
    return {
        "modes": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "learning": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "places": [(p.dtype, p.device, p.data_ptr()) for p in model.parameters()],
        "modes of torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "functions": len(torch.overrides._get_current_function_mode_stack()),
    }


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cam":
        return nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
        )
    return small_vgg(norm=True)


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
    method = METHODS[name](model, "1" if name == "cam" else "features.2")
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
    method = METHODS[name](model, "1" if name == "cam" else "features.6")
    expected = method(images, labels)
    model.to(memory_format=torch.channels_last)
    found = method(images.to(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(images, labels)
    assert rough.dtype == torch.float32
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
    methods = {name: make(model, "1") for name, make in METHODS.items()}
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
