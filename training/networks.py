"""Segmentation networks by name: any architecture of segmentation_models_pytorch, or SEC's LargeFOV."""

import difflib
import inspect
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.backbones import block_strides, dilate, rest_idle_blocks
from seeds.pretrained_weights import load_weights
from training.freezable import SegmentationNetwork
from training.largefov import LargeFOV

__all__ = ["ARCHITECTURES", "SmpNetwork", "build_network"]

SMP_CLASSES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
ARCHITECTURES = ("LargeFOV", *SMP_CLASSES)  # names that `build_network` knows


def build_network(
    architecture: str,
    num_classes: int,
    *,
    encoder: str = "mobilenet_v2",
    output_stride: int | None = None,
    weights: str = "none",
    network_args: dict[str, Any] | None = None,
) -> SegmentationNetwork:
    """Build a segmentation network whose scores come on its own grid, without a last upsampling.

    Args:
        architecture: ``LargeFOV`` (VGG-16, nothing else to choose), or a class of segmentation_models_pytorch.
        num_classes: channels of the output, background included.
        encoder: name of the encoder as segmentation_models_pytorch knows it (``mobilenet_v2``, ``tu-convnext_tiny`` …).
        output_stride: pixels a cell of the encoder's last map, for architectures that let one choose
            (``DeepLabV3``, ``DeepLabV3Plus``, ``PAN``: 8 or 16); None: the architecture's own.
        weights: initial weights of the encoder: ``none``, ``imagenet`` (downloaded), or a file: a state dict with
            torchvision's keys, or a classifier's checkpoint, whose trunk is taken.
        network_args: further arguments of the architecture's class (``{"decoder_channels": 128}``).

    Raises:
        InputError: no such architecture or encoder, an argument it does not take, or weights that do not fit.
    """
    if architecture == "LargeFOV":
        if network_args or output_stride not in (None, 8):
            raise InputError("LargeFOV has output_stride 8 and takes no network_args")
        network = LargeFOV(num_classes)
        network.load_weights(weights)
        return network
    if architecture not in SMP_CLASSES:
        near = difflib.get_close_matches(architecture, ARCHITECTURES, n=3, cutoff=0.3) or ARCHITECTURES
        raise InputError(f"there is no architecture {architecture!r}; the nearest are {', '.join(near)}")
    return SmpNetwork(
        SMP_CLASSES[architecture],
        num_classes,
        encoder=encoder,
        output_stride=output_stride,
        weights=weights,
        network_args=network_args or {},
    )


class SmpNetwork(SegmentationNetwork):
    """A network of segmentation_models_pytorch, less the upsampling at its end.

    The encoder is dilated by `seeds.backbones.dilate`, which keeps what pretrained weights mean.

    Args:
        cls: the architecture.
        num_classes: channels of the output; this and the others as in `build_network`.
        encoder: the encoder's name.
        output_stride: pixels a cell of its last map, or None.
        weights: its initial weights.
        network_args: further arguments of ``cls``.

    Raises:
        InputError: as `build_network`.
    """

    def __init__(
        self,
        cls: type[nn.Module],
        num_classes: int,
        *,
        encoder: str,
        output_stride: int | None,
        weights: str,
        network_args: dict[str, Any],
    ) -> None:
        super().__init__()
        _check_encoder(encoder)
        known = inspect.signature(cls).parameters
        arguments: dict[str, Any] = {**network_args, "encoder_name": encoder, "encoder_weights": None}
        if output_stride is not None:
            if "encoder_output_stride" not in known:
                raise InputError(f"{cls.__name__} has no choice of output_stride: leave it out")
            arguments["encoder_output_stride"] = output_stride
        unknown = [key for key in network_args if key not in known]
        if unknown and not encoder.startswith("tu-"):  # timm's encoders take what the architecture does not
            choices = ", ".join(key for key in known if key not in ("kwargs", *arguments))
            raise InputError(f"{cls.__name__} takes no {unknown[0]!r}; there are {choices}")
        try:
            self.model: Any = cls(classes=num_classes, **arguments)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{cls.__name__} with the encoder {encoder} cannot be built: {_sentence(error)}"
            ) from error
        self._prepare_encoder(encoder, weights)
        model: Any = self.model
        head = model.segmentation_head
        if isinstance(head, SegmentationHead):
            head[1] = nn.Identity()  # the upsampling
        self.fresh = [module for name, module in self.model.named_children() if name != "encoder"]
        if model.requires_divisible_input_shape:
            self.multiple = int(model.encoder.output_stride)

    def _prepare_encoder(self, name: str, weights: str) -> None:
        """Load the weights, and put the encoder as published, dilated here, in place of SMP's dilated one."""
        built = self.model.encoder
        published = get_encoder(name, weights=None, depth=built._depth)  # noqa: SLF001  SMP has no other name for it
        strides = _strides(published)
        if name.startswith("tu-"):  # timm dilates well by itself
            load_weights(built, weights, name)
        else:
            load_weights(published, weights, name)
            if built._output_stride != published._output_stride:  # noqa: SLF001
                dilate(published, built.output_stride)
                published._output_stride = built._output_stride  # noqa: SLF001
            self.model.encoder = published
        if strides:
            rest_idle_blocks(self.model.encoder)
        self.strides = {f"model.encoder.{block}": stride for block, stride in strides.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, K, h, w) of images (B, 3, H, W).

        Raises:
            InputError: the architecture wants sides that are multiples of its stride, and these are not.
        """
        stride, (height, width) = self.multiple, images.shape[-2:]
        if height % stride or width % stride:
            raise InputError(
                f"{type(self.model).__name__} needs images whose sides are multiples of {stride}, "
                f"not {height}x{width}: choose a size such as {max(stride, round(height / stride) * stride)}"
            )
        scores: Tensor = self.model(images)
        return scores


def _check_encoder(name: str) -> None:
    if name in encoders or name.startswith("tu-"):
        return
    near = difflib.get_close_matches(name, encoders, n=3, cutoff=0.3) or ["mobilenet_v2", "resnet50", "tu-…"]
    raise InputError(f"there is no encoder {name!r}; the nearest are {', '.join(near)}")


def _strides(encoder: nn.Module) -> dict[str, int]:
    """As `block_strides`; nothing for transformers that take one image size only, which have no stages to freeze."""
    try:
        return block_strides(encoder)[0]
    except (AssertionError, AttributeError, RuntimeError):
        return {}


def _sentence(error: Exception) -> str:
    return (str(error.args[0]) if error.args else type(error).__name__).strip().splitlines()[0]
