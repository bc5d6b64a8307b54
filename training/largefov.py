"""VGG-16 DeepLab-LargeFOV, the network of SEC."""

from collections.abc import Mapping

from torch import Tensor, nn

from seeds.backbones import FreezableNetwork, measure_encoder
from seeds.pretrained_weights import imagenet_weights, load_fitting, read_weights
from seeds.vgg import dilate_vgg, init_convolutions, vgg_layers

FC_CHANNELS = 1024
FC6_DILATION = 12
HEAD_STD = 0.01  # fc8 is drawn from N(0, 0.01), biases 0, as released


class LargeFOV(FreezableNetwork):
    """VGG-16 DeepLab-LargeFOV: 41x41 scores from a 321x321 image (stride 8).

    Chen et al., *Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs*, ICLR 2015, in the
    form that SEC's released code trains: the trunk of `seeds.vgg.dilate_vgg` at stride 8, a 3x3 average after
    pool5, fc6 a 3x3 convolution dilated by 12 with 1024 channels, fc7 1x1 with 1024, dropout 0.5 after both, fc8 the
    only newly initialised layer. ``features`` has torchvision's numbering, so its VGG-16 loads by name.

    Args:
        num_classes: channels of the output, background included.
        weights: initial weights: ``none``, ``imagenet`` (torchvision's VGG-16, downloaded), a file with torchvision's
            keys, or the checkpoint of a classifier whose backbone is ``vgg16``; see `largefov_state`.
        in_channels: channels of the images.

    Raises:
        InputError: no such file, or its weights are not a VGG-16's.

    Attributes:
        head_layers: the layers that no ImageNet file initialises.
        multiple: sides of images must be multiples of this.
    """

    multiple = 1

    def __init__(self, num_classes: int, weights: str = "none", in_channels: int = 3) -> None:
        super().__init__()
        self.features = vgg_layers("vgg16", in_channels)
        strides = measure_encoder(self.features).strides  # as published
        self.strides = {f"features.{name}": stride for name, stride in strides.items()}
        dilate_vgg(self.features, 8)
        self.smooth = nn.AvgPool2d(3, stride=1, padding=1)
        self.fc6 = nn.Conv2d(512, FC_CHANNELS, 3, padding=FC6_DILATION, dilation=FC6_DILATION)
        self.fc7 = nn.Conv2d(FC_CHANNELS, FC_CHANNELS, 1)
        self.fc8 = nn.Conv2d(FC_CHANNELS, num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        init_convolutions(self)
        nn.init.normal_(self.fc8.weight, std=HEAD_STD)
        self.head_layers: list[nn.Module] = [self.fc8]
        if weights != "none":
            state = largefov_state(imagenet_weights("vgg16") if weights == "imagenet" else read_weights(weights)[0])
            head = {key: value for key, value in self.state_dict().items() if not key.startswith("features.")}
            load_fitting(self, {**head, **state}, f"weights {weights} are not a VGG-16's")

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores of images (B, in_channels, H, W): (B, num_classes, h, w) with h = ceil(H / 8)."""
        x = self.smooth(self.features(images))  # (B, 512, h, w)
        x = self.dropout(self.fc6(x).relu())  # (B, 1024, h, w)
        x = self.dropout(self.fc7(x).relu())
        scores: Tensor = self.fc8(x)
        return scores


def largefov_state(vgg16: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the weights of a torchvision VGG-16 to the names and shapes of `LargeFOV`.

    Convolutions are kept. Fully connected layers become convolutions as in DeepLab's initial model: every third row
    and column of fc6's 7x7 window, every fourth of the 4096 units. They are left out if the file has no fully connected
    layers of ImageNet's shapes; fc8 is always left out.

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
    state["fc6.weight"] = fc6.view(4096, 512, 7, 7)[::keep, :, ::3, ::3]
    state["fc6.bias"] = vgg16["classifier.0.bias"][::keep]
    state["fc7.weight"] = fc7[::keep, ::keep, None, None]
    state["fc7.bias"] = vgg16["classifier.3.bias"][::keep]
    return state
