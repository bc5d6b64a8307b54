"""The gradient of dilated depthwise convolutions equals that of torch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seeds.backbones import build_backbone
from seeds.dilated_depthwise import DilatedDepthwiseConv2d, replace_dilated_depthwise
from training.networks import build_network


def run(conv, maps, target):
    maps = maps.clone().requires_grad_()
    out = conv(maps)
    conv.zero_grad()
    (out * target).sum().backward()
    return [out, maps.grad, *(parameter.grad.clone() for parameter in conv.parameters())]


SIDES, DILATIONS = st.integers(1, 26), st.integers(1, 12)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, DILATIONS, DILATIONS, st.integers(1, 3), st.booleans(), st.booleans())
def test_equals_torch(height, width, down, right, batch, bias, channels_last):
    torch.manual_seed(height * 31 + width)
    own = nn.Conv2d(4, 4, 3, padding=(down, right), dilation=(down, right), groups=4, bias=bias).double()
    quick = nn.Sequential(own)
    replace_dilated_depthwise(quick)
    assert (type(quick[0]) is DilatedDepthwiseConv2d) == (max(down, right) > 1)
    maps, target = torch.randn(2, batch, 4, height, width, dtype=torch.float64)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    for one, other in zip(run(quick[0], maps, target), run(own, maps, target), strict=True):
        torch.testing.assert_close(one, other)


def test_outside_of_training_torch_computes_it():
    conv = DilatedDepthwiseConv2d(8, 8, 3, padding=2, dilation=2, groups=8)
    own = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
    own.load_state_dict(conv.state_dict())
    maps = torch.randn(2, 8, 16, 16)
    assert torch.equal(conv.eval()(maps), own(maps))


@pytest.mark.parametrize("side", [32, 5, 2])  # split into maps, as torch does it, and a product
def test_autocast_gives_bfloat16(side):
    conv, maps = DilatedDepthwiseConv2d(4, 4, 3, padding=2, dilation=2, groups=4), torch.randn(1, 4, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        out = conv(maps)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), nn.Conv2d.forward(conv, maps), atol=0.03, rtol=0.03)


def test_only_dilated_depthwise_ones_are_replaced_and_names_stay():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), nn.Conv2d(4, 4, 3, padding=0, dilation=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, stride=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4),
    )  # fmt: skip
    before = dict(network.named_parameters())
    replace_dilated_depthwise(network)
    assert [type(each) is DilatedDepthwiseConv2d for each in network] == [False] * 5 + [True]
    after = dict(network.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_networks_use_them():
    backbone = build_backbone("mobilenet_v2", 16)
    network = build_network("DeepLabV3Plus", 3, "mobilenet_v2", 16)
    for module in (backbone, network):
        dilated = [each for each in module.modules() if isinstance(each, nn.Conv2d) and each.dilation != (1, 1)]
        assert len(dilated) >= 3
        assert all(isinstance(each, DilatedDepthwiseConv2d) for each in dilated if each.groups > 1)
