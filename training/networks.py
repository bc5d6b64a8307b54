"""Segmentation networks by name: any architecture of segmentation_models_pytorch, or SEC's LargeFOV."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from datamodules.errors import InputError, first_line, unknown_name
from datamodules.files import is_uri
from seeds.backbones import FreezableNetwork, dilate, measure_encoder
from seeds.base_task import SIGNATURE
from seeds.checkpoints import check_checkpoint, read_file, require_classes
from seeds.dilated_depthwise import replace_dilated_depthwise
from seeds.pretrained_weights import load_fitting, load_weights
from training.largefov import LargeFOV

SMP_CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()
    if cls is not smp.DPT  # it has no stages
}
ARCHITECTURES = ("LargeFOV", *SMP_CLASSES)  # names that `build_network` knows


class SumOfMaps(nn.Module):
    """The sum of the maps of all pyramid levels, without SMP's copy of them: a tenth of a training step on a CPU."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return the sum (B, K, h, w) of maps (B, K, h, w)."""
        return sum(maps[1:], maps[0])


class SmpNetwork(FreezableNetwork):
    """A network of segmentation_models_pytorch without the upsampling at its end.

    The encoder is dilated by `seeds.backbones.dilate`, which keeps what pretrained weights mean. ``cls`` is the
    architecture and ``arguments`` are those of its class; the others are as for `build_network`.

    Attributes:
        model: SMP's network.
        head_layers: the layers that no ImageNet file initialises.
        multiple: sides of images must be multiples of this.

    Raises:
        InputError: the architecture cannot be built with this encoder or these arguments, or weights do not fit.
    """

    def __init__(
        self, cls: type[nn.Module], num_classes: int, encoder: str, weights: str, in_channels: int, **arguments: Any
    ) -> None:
        super().__init__()
        self.model: Any
        try:
            self.model = cls(
                classes=num_classes, encoder_name=encoder, encoder_weights=None, in_channels=in_channels, **arguments
            )
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = first_line(error).strip("'\"")  # the message of a KeyError is quoted
            raise InputError(f"{cls.__name__} with the encoder {encoder} cannot be built: {reason}") from error
        built = self.model.encoder
        published = get_encoder(encoder, in_channels, weights=None, depth=built._depth)  # noqa: SLF001  SMP has no public name for it
        self.strides: dict[str, int] = {}
        unused: list[str] = []
        try:
            measured = measure_encoder(published)
            self.strides = {f"model.encoder.{block}": stride for block, stride in measured.strides.items()}
            unused = measured.unused
        except (AssertionError, AttributeError, RuntimeError):
            published.train()  # transformers of one image size have no stages to freeze
        if encoder.startswith("tu-"):  # timm's own dilation keeps what weights mean
            load_weights(built, weights, encoder)
        else:  # SMP's does not: its dilated encoder is replaced by the published one, dilated here
            load_weights(published, weights, encoder)
            if built._output_stride != published._output_stride:  # noqa: SLF001
                dilate(published, built.output_stride)
                published._output_stride = built._output_stride  # noqa: SLF001
            self.model.encoder = published
        for block in unused:
            self.model.encoder.get_submodule(block).requires_grad_(False)
        if isinstance(self.model.segmentation_head, SegmentationHead):
            self.model.segmentation_head[1] = nn.Identity()  # the upsampling
        replace_dilated_depthwise(self.model)
        if isinstance(self.model, smp.FPN) and self.model.decoder.merge.policy == "add":
            self.model.decoder.merge = SumOfMaps()
        self.head_layers = [module for name, module in self.model.named_children() if name != "encoder"]
        self.multiple = int(self.model.encoder.output_stride) if self.model.requires_divisible_input_shape else 1

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (B, K, h, w) of images (B, in_channels, H, W).

        Raises:
            InputError: a side of the images is no multiple of the architecture's stride.
        """
        stride, (height, width) = self.multiple, images.shape[-2:]
        if height % stride or width % stride:
            near, name = max(stride, round(height / stride) * stride), type(self.model).__name__
            raise InputError(f"{name} needs sides that are multiples of {stride}, not {height}x{width}: choose {near}")
        scores: Tensor = self.model(images)
        return scores


def build_network(
    architecture: str,
    num_classes: int,
    encoder: str = "mobilenet_v2",
    output_stride: int | None = None,
    weights: str = "none",
    network_args: dict[str, Any] | None = None,
    in_channels: int = 3,
    classes: Sequence[str] | None = None,
) -> LargeFOV | SmpNetwork:
    """Build a segmentation network: class scores (B, K, h, w) of images (B, in_channels, H, W), not upsampled.

    Args:
        architecture: ``LargeFOV`` (VGG-16, without further choices), or a class of segmentation_models_pytorch.
        num_classes: channels of the output, background included.
        encoder: segmentation_models_pytorch's name of the encoder (``mobilenet_v2``, ``tu-convnext_tiny`` …).
        output_stride: pixels between positions of the encoder's last map, for architectures with a choice
            (``DeepLabV3``, ``DeepLabV3Plus``: 8 or 16; ``PAN``: 16 or 32); None: the architecture's default.
        weights: initial weights: ``none``, ``imagenet`` (of the encoder, downloaded), or a file: a state dict of the
            encoder with torchvision's keys, a classifier's checkpoint, whose trunk is taken, or the checkpoint of a
            segmentation network of the same architecture, encoder and classes, with its head.
        network_args: further arguments of the architecture's class (``{"decoder_channels": 128}``).
        in_channels: channels of the images; weights of RGB images are adapted, see
            `seeds.pretrained_weights.load_fitting`.
        classes: names of the classes; weights of a segmentation network must be of the same, in the same order. None:
            the names are not compared.

    Raises:
        InputError: no such architecture or encoder, an argument that it does not take, or weights that do not fit.
    """
    weights = str(weights)  # null in a YAML is no file either
    is_file = weights not in ("none", "imagenet") and (is_uri(weights) or Path(weights).is_file())
    content = read_file(weights) if is_file else {}
    header = content.get(SIGNATURE)
    if isinstance(header, dict) and header.get("task") == "segmentation":
        network = build_network(architecture, num_classes, encoder, output_stride, "none", network_args, in_channels)
        stored = check_checkpoint(content, weights, "segmentation")["state_dict"]
        state = {name.removeprefix("network."): value for name, value in stored.items() if name.startswith("network.")}
        load_fitting(network, state, f"weights {weights} are of another network")
        if classes is not None:
            require_classes(content, classes, f"weights {weights} are")
        return network
    if architecture == "LargeFOV":
        if network_args or output_stride not in (None, 8):
            raise InputError("LargeFOV has output_stride 8 and takes no network_args")
        return LargeFOV(num_classes, weights, in_channels)
    if architecture not in SMP_CLASSES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    if encoder not in encoders and not encoder.startswith("tu-"):
        raise unknown_name("encoder", encoder, encoders)
    cls, arguments = SMP_CLASSES[architecture], dict(network_args or {})
    known = [key for key in inspect.signature(cls).parameters if key != "kwargs"]
    if refused := next((key for key in ("activation", "aux_params") if arguments.get(key)), None):
        raise InputError(f"network_args cannot contain {refused}: the losses need the class scores alone")
    if output_stride is not None:
        if "encoder_output_stride" not in known:
            raise InputError(f"{cls.__name__} has no choice of output_stride, which is {output_stride}: leave it out")
        arguments["encoder_output_stride"] = output_stride
    # SMP ignores unknown arguments; timm's encoders take arguments that the architecture does not
    if not encoder.startswith("tu-") and (foreign := arguments.keys() - known):
        raise InputError(f"{cls.__name__} takes no {min(foreign)}; there are {', '.join(known)}")
    return SmpNetwork(cls, num_classes, encoder, weights, in_channels, **arguments)
