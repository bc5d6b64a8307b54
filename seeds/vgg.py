"""VGG trunks as published and as DeepLab uses them, at output strides 8, 16 and 32."""

import torchvision
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from torch import nn

_COLUMNS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}  # the columns of the paper's table
VGG_NAMES = (*_COLUMNS, *(f"{name}_bn" for name in _COLUMNS))


def vgg_layers(name: str, in_channels: int = 3) -> nn.Sequential:
    """Build the layers of a published VGG trunk up to pool5, numbered as torchvision's ``features``; 512 channels.

    Its stride is 32: pools of 2x2, and odd sides are rounded down (321 → 10). See `dilate_vgg` for others.

    Args:
        name: ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``, or with batch norms ``vgg16_bn`` and so on.
        in_channels: channels of the images.
    """
    # torchvision builds no trunk without the classifier's 120 million weights, but it has the plan of the layers
    layout = torchvision.models.vgg.cfgs[_COLUMNS[name.removesuffix("_bn")]]
    layers: nn.Sequential = torchvision.models.vgg.make_layers(layout, batch_norm=name.endswith("_bn"))
    if in_channels != 3:
        patch_first_conv(layers, in_channels, pretrained=False)
    return layers


def init_convolutions(network: nn.Module) -> None:
    """Initialise all convolutions as torchvision does for VGG; fan-out keeps gradients alive without batch norms."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def dilate_vgg(layers: nn.Module, output_stride: int) -> None:
    """Bring a published VGG trunk to an output stride of 32 (no change), 16 or 8, in place.

    At 16 and 8 it is DeepLab's (Chen et al. 2015, and SEC after it): pools of 3x3 with padding 1, so that odd sides are
    rounded up (321 → 161 → 81 → 41), pool5 (and pool4) of stride 1, and conv5 of dilation 2 behind an unstrided pool4.
    """
    if output_stride == 32:
        return
    stride, rate = 1, 1
    for module in layers.modules():
        if isinstance(module, nn.MaxPool2d):
            step = 2 if stride < output_stride else 1
            stride, rate = stride * step, rate * 2 // step
            module.kernel_size, module.stride, module.padding = 3, step, 1
        elif isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (rate, rate)
