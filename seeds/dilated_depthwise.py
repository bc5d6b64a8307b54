"""Depthwise convolutions with dilation, whose gradient is quick on a CPU.

oneDNN's gradient of a dilated depthwise convolution takes far longer than that of one without dilation
(``python -m tests.benchmarks.bench_networks``).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_POSITIONS = 4  # on a side of the map for each step of the dilation; below, the map is split into too small parts


class DilatedDepthwiseConv2d(nn.Conv2d):
    """A depthwise 3x3 convolution of stride 1 whose padding equals its dilation.

    It computes what `torch.nn.Conv2d` does. In training on a CPU, where the dilation is either small or at least the
    side of the map, it does so without dilation; the last bits may differ, as the order of sums does. The result then
    has channels last in memory, as `seeds.base_task.BaseTask` trains networks.
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
            split = functional.pad(maps, (0, columns * right - w, 0, rows * down - h)).permute(0, 2, 3, 1)
            split = split.reshape(b, rows, down, columns, right, k).permute(0, 2, 4, 1, 3, 5)
            split = split.reshape(-1, rows, columns, k).permute(0, 3, 1, 2)
            out = functional.conv2d(split, self.weight, None, padding=1, groups=k)
            out = out.permute(0, 2, 3, 1).reshape(b, down, right, rows, columns, k).permute(0, 3, 1, 4, 2, 5)
            out = out.reshape(b, rows * down, columns * right, k)[:, :h, :w].permute(0, 3, 1, 2)
            out = out.contiguous(memory_format=torch.channels_last)
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
