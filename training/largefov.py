"""VGG-16 DeepLab-LargeFOV, the network of SEC."""

from collections.abc import Mapping

from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.pretrained_weights import imagenet_weights, read_weights
from training.freezable import SegmentationNetwork

__all__ = ["LargeFOV", "largefov_state"]

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # VGG-16, configuration D
FC_CHANNELS = 1024
FC6_DILATION = 12
HEAD_STD = 0.01  # fc8 is drawn from N(0, 0.01), biases 0, as released


class LargeFOV(SegmentationNetwork):
    """VGG-16 DeepLab-LargeFOV: 41x41 scores from a 321x321 image (stride 8).

    Chen et al., *Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs*, ICLR 2015, in the
    form that SEC's released code trains: all pools 3x3 with padding 1; pool4 and pool5 at stride 1, conv5 dilated by 2,
    a 3x3 average after pool5, fc6 a 3x3 convolution dilated by 12 with 1024 channels, fc7 1x1 with 1024, dropout 0.5
    after both, fc8 the only fresh layer. ``features`` has torchvision's numbering, so that its VGG-16 loads by name.

    Args:
        num_classes: channels of the output, background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers, strides = _features()
        self.features = nn.Sequential(*layers)
        self.strides = {f"features.{index}": stride for index, stride in enumerate(strides)}
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1)
        self.fc6 = nn.Conv2d(STAGES[-1][-1], FC_CHANNELS, 3, padding=FC6_DILATION, dilation=FC6_DILATION)
        self.fc7 = nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)
        self.fc8 = nn.Conv2d(FC_CHANNELS, num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.fc8.weight, std=HEAD_STD)
        self.fresh = [self.fc8]

    def forward(self, images: Tensor) -> Tensor:
        """Class scores of images (B, 3, H, W): (B, num_classes, h, w) with h = ceil(H / 8)."""
        x = self.smooth(self.features(images))  # (B, 512, h, w)
        x = self.dropout(self.fc6(x).relu())  # (B, 1024, h, w)
        x = self.dropout(self.fc7(x).relu())
        scores: Tensor = self.fc8(x)
        return scores

    def load_weights(self, weights: str) -> None:
        """Start from a VGG-16.

        Args:
            weights: ``none``, ``imagenet`` (torchvision's, downloaded), a file with torchvision's keys, or the
                checkpoint of a classifier whose backbone is ``vgg16``; see `largefov_state`.

        Raises:
            InputError: no such file, or it is not of a VGG-16.
        """
        if weights == "none":
            return
        state = largefov_state(imagenet_weights("vgg16") if weights == "imagenet" else read_weights(weights))
        own = self.state_dict()
        wrong = [k for k in own if k.startswith("features.") and (k not in state or state[k].shape != own[k].shape)]
        unknown = [key for key in state if key not in own]
        if wrong or unknown:
            raise InputError(f"weights {weights} are not a VGG-16's: {(wrong + unknown)[0]} is missing or does not fit")
        self.load_state_dict(state, strict=False)


def largefov_state(vgg16: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a torchvision VGG-16 under the names and shapes of `LargeFOV`.

    The convolutions are taken as they are. The fully connected layers become convolutions as DeepLab made its initial
    model: of fc6's 7x7 window every third row and column, of the 4096 units every fourth. They are left out (and stay
    fresh) where the file has no fully connected layers or others than ImageNet's; fc8 is always fresh.

    Args:
        vgg16: state dict with torchvision's keys.

    Returns:
        A partial state dict for `LargeFOV`.
    """
    state = {key: tensor for key, tensor in vgg16.items() if key.startswith("features.")}
    keep = 4096 // FC_CHANNELS
    fc6, fc7 = vgg16.get("classifier.0.weight"), vgg16.get("classifier.3.weight")
    if fc6 is None or fc7 is None or fc6.shape != (4096, 512 * 7 * 7) or fc7.shape != (4096, 4096):
        return state
    state["fc6.weight"] = fc6.view(4096, 512, 7, 7)[::keep, :, ::3, ::3].contiguous()
    state["fc6.bias"] = vgg16["classifier.0.bias"][::keep].contiguous()
    state["fc7.weight"] = fc7[::keep, ::keep, None, None].contiguous()
    state["fc7.bias"] = vgg16["classifier.3.bias"][::keep].contiguous()
    return state


def _features() -> tuple[list[nn.Module], list[int]]:
    """The convolutional part in torchvision's order, and each layer's stride in VGG-16 as published."""
    layers: list[nn.Module] = []
    strides: list[int] = []
    channels = 3
    for stage, widths in enumerate(STAGES, start=1):
        dilation = 2 if stage == len(STAGES) else 1  # conv5, after pool4 has lost its stride
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(3, stride=2 if stage <= 3 else 1, padding=1))
        strides += [2 ** (stage - 1)] * (2 * len(widths)) + [2**stage]
    return layers, strides
