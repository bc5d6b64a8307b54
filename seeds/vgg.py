"""VGG trunks as published and as DeepLab uses them, at output strides 8, 16 and 32."""

import torchvision
from torch import Tensor, nn

from datamodules.errors import InputError

LAYOUTS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}  # the columns of the paper's table
VGG_NAMES = (*LAYOUTS, *(f"{name}_bn" for name in LAYOUTS))


class Trunk(nn.Module):
    """Convolutional layers under the name ``features``, so that keys are those of torchvision's weight files."""

    def __init__(self, features: nn.Module, *, is_vgg: bool = False) -> None:
        super().__init__()
        self.features = features
        self.is_vgg = is_vgg

    def forward(self, image: Tensor) -> Tensor:
        """The last feature map (B, K, h, w) of images (B, 3, H, W)."""
        return self.features(image)  # type: ignore[no-any-return]


def vgg_trunk(name: str = "vgg16", output_stride: int = 32) -> Trunk:
    """A VGG trunk from the first convolution to pool5, with random weights; the map has 512 channels.

    At stride 32 it is the published one: pools of 2x2, and odd sides are rounded down (321 → 10). At 16 and 8 it is
    DeepLab's (Chen et al. 2015, and SEC after it): pools of 3x3 with padding 1, so that odd sides are rounded up
    (321 → 161 → 81 → 41), pool5 (and pool4) of stride 1, and conv5 of dilation 2 behind an unstrided pool4.
    """
    # torchvision knows no trunk without the classifier's 120 million weights, but it does know the layers' plan
    layout = torchvision.models.vgg.cfgs[LAYOUTS[name.removesuffix("_bn")]]
    trunk = Trunk(torchvision.models.vgg.make_layers(layout, batch_norm=name.endswith("_bn")), is_vgg=True)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):  # as torchvision does; fan-out keeps a deep net without batch norm alive
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    dilate_vgg(trunk, output_stride)
    return trunk


def dilate_vgg(trunk: Trunk, output_stride: int) -> None:
    """Bring a published VGG trunk to an output stride of 32 (no change), 16 or 8, in place.

    Raises:
        InputError: another output stride.
    """
    if output_stride not in (8, 16, 32):
        raise InputError(f"output_stride {output_stride} is none of 8, 16, 32")
    if output_stride == 32:
        return
    stride, rate = 1, 1
    for module in trunk.modules():
        if isinstance(module, nn.MaxPool2d):
            step = 2 if stride < output_stride else 1
            stride, rate = stride * step, rate * 2 // step
            module.kernel_size, module.stride, module.padding = 3, step, 1
        elif isinstance(module, nn.Conv2d):
            module.dilation = module.padding = (rate, rate)
