"""Depthwise convolutions with dilation, whose gradient is quick on a CPU.

oneDNN's gradient of a dilated depthwise convolution takes far longer than that of one without dilation. With
MobileNetV2 and DeepLabV3+ at output stride 16 it is 30 % of a training step
(``python -m tests.benchmarks.bench_depthwise``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_POSITIONS = 4  # on a side of the map for each step of the dilation; below, the map is split into too small parts


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution of stride 1 whose padding equals its dilation.

    It computes what `torch.nn.Conv2d` does. In training on a CPU, where the dilation is either small or at least the
    side of the map, it does so without dilation; the last bits may differ, as the order of sums does.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Return the convolution (B, K, h, w) of maps (B, K, h, w)."""
        (b, k, h, w), (down, right) = maps.shape, self.dilation
        if not self.training or maps.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(maps)
        if down >= h and right >= w:  # no position meets another one
            if torch.is_autocast_enabled("cpu"):
                maps = maps.to(torch.get_autocast_dtype("cpu"))
            out = maps * self.weight[:, :, 1, 1, None].to(maps.dtype)
        elif h >= MIN_POSITIONS * down and w >= MIN_POSITIONS * right:
            # each position meets only positions of the same remainders: they form separate maps, without dilation
            rows, columns = -(-h // down), -(-w // right)
            split = functional.pad(maps, (0, columns * right - w, 0, rows * down - h))
            split = split.view(b, k, rows, down, columns, right).permute(0, 3, 5, 1, 2, 4).reshape(-1, k, rows, columns)
            out = functional.conv2d(split, self.weight, None, padding=1, groups=k)
            out = out.view(b, down, right, k, rows, columns).permute(0, 3, 4, 1, 5, 2)
            out = out.reshape(b, k, rows * down, columns * right)[..., :h, :w]
        else:
            return super().forward(maps)
        return out if self.bias is None else out + self.bias.to(out.dtype)[:, None, None]


def replace_dilated_depthwise(network: nn.Module) -> None:
    """Replace the dilated depthwise 3x3 convolutions of a network, in place, keeping their parameters and names."""
    for parent in list(network.modules()):
        for name, conv in list(parent.named_children()):
            if type(conv) is not nn.Conv2d or conv.dilation == (1, 1) or conv.padding != conv.dilation:
                continue
            is_depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.padding_mode == "zeros"
            if is_depthwise and conv.kernel_size == (3, 3) and conv.stride == (1, 1):
                new = DilatedDepthwiseConv2d(
                    conv.in_channels, conv.out_channels, 3, groups=conv.groups, bias=conv.bias is not None
                )  # fmt: skip
                new.padding, new.dilation = conv.padding, conv.dilation
                new.weight, new.bias = conv.weight, conv.bias
                setattr(parent, name, new.train(conv.training))
