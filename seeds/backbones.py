"""Backbones by name, at an output stride of 8, 16 or 32, and the freezing of their first stages.

Names are looked up in this order: the VGGs (`seeds.vgg`), timm's plain vision transformers
(``tu-vit_small_patch16_224.dino`` …, also those of DINO and CLIP), segmentation_models_pytorch's encoders
(``mobilenet_v2``, ``resnet50``, ``tu-convnext_tiny`` …), and torchvision's classifiers with a trunk named ``features``
(``convnext_tiny``, ``efficientnet_b0`` …), except those whose maps have channels last (``swin_t`` …).
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import timm
import torch
import torchvision
from segmentation_models_pytorch.encoders import encoders, get_encoder
from segmentation_models_pytorch.encoders._utils import patch_first_conv
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from datamodules.errors import InputError, did_you_mean, errors_at, first_line
from seeds.activations import MAP_DIMS, forward_hooks
from seeds.dilated_depthwise import replace_dilated_depthwise
from seeds.pretrained_weights import load_weights
from seeds.vgg import VGG_NAMES, dilate_vgg, init_convolutions, vgg_layers

STRIDES = (8, 16, 32)
SALIENCY_STRIDE = 8
FULL_DEPTH = 5  # stages of a network as published: stride 32
MIN_DEPTH = 3  # stride 8, the finest output stride
BLANK_SIZE = 64  # side of the blank image that measures the strides: two positions at stride 32


class FreezableNetwork(nn.Module):
    """A network whose pretrained blocks can be frozen up to a stride.

    Attributes:
        strides: name of each pretrained block in the order of execution → its stride in the network as published.
            (Dilation changes at which stride a block computes, not the stage that it belongs to.)
    """

    strides: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[str] = []

    def freeze(self, stride: int) -> None:
        """Freeze every pretrained block up to and including ``stride``; 0 freezes nothing.

        Frozen parameters get no gradient and frozen batch norms keep their statistics, also after ``.train()``.
        Frozen blocks run without an autograd graph.

        Raises:
            InputError: ``stride`` is neither 0 nor a power of two, the network has no stages, or nothing is left to
                train.
        """
        if stride < 0 or stride & (stride - 1):
            raise InputError(f"freeze_stride {stride} is neither 0 nor a power of two")
        if stride and len(set(self.strides.values())) <= 1:  # transformers, and some of timm's networks
            problem = "this encoder has no stages to tell apart; set it to 0"
            raise InputError(f"freeze_stride {stride} is not possible: {problem}")
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(True)
        self._frozen = [name for name, block_stride in self.strides.items() if block_stride <= stride]
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise InputError(f"freeze_stride {stride} freezes the whole {type(self).__name__.lower()}")
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode as ``nn.Module.train`` does, but keep frozen blocks in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self


class Backbone(FreezableNetwork):
    """An encoder whose output is its last feature map.

    Attributes:
        encoder: the library's module, with the library's parameter names.
        in_channels: channels of the images.
        out_channels: channels of the feature map.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.in_channels = input_channels(encoder)
        measured = measure_encoder(encoder)
        self.out_channels = measured.channels
        self.strides = {f"encoder.{name}": stride for name, stride in measured.strides.items()}
        for name in measured.unused:
            encoder.get_submodule(name).requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        """Return the last feature map (B, out_channels, h, w) of images (B, in_channels, H, W).

        SMP's encoders return a list of maps, torchvision's trunks one map. A vision transformer's normalised patch
        tokens become a map.

        Raises:
            InputError: a side of the images is no multiple of a vision transformer's patches.
        """
        encoder = self.encoder
        if not isinstance(encoder, VisionTransformer):
            output: Any = encoder(image)
            return output[-1] if isinstance(output, list | tuple) else output  # type: ignore[no-any-return]
        patch, (height, width) = int(encoder.patch_embed.patch_size[0]), image.shape[-2:]
        if height % patch or width % patch:
            raise InputError(f"images of {height}x{width} pixels do not divide into patches of {patch}")
        tokens: Tensor = encoder.forward_features(image)[:, encoder.num_prefix_tokens :]  # (B, h * w, K)
        return tokens.transpose(1, 2).reshape(len(tokens), -1, height // patch, width // patch)

    @property
    def saliency_layer(self) -> str:
        """The name of the block at whose output background saliency is computed by default.

        The last block of stride 8: conv4 in VGG-16, as in the SEC authors' code; ``layer2`` in a ResNet. In a network
        that ends there, the last block of the stage before: behind the last block only the average over the map
        remains, in which every position has the same gradient.
        """
        *names, last = self.strides
        limit = SALIENCY_STRIDE if self.strides[last] > SALIENCY_STRIDE else self.strides[last] // 2
        return ([name for name in names if self.strides[name] <= limit] or names or [last])[-1]


def build_backbone(
    name: str, output_stride: int = 32, weights: str = "none", depth: int = FULL_DEPTH, in_channels: int = 3
) -> Backbone:
    """Build a backbone whose output stride is at most 8, 16 or 32 pixels.

    Args:
        name: see the head of this file.
        output_stride: 8, 16 or 32; stages beyond it are computed with dilation instead of striding (DeepLab). A vision
            transformer has the stride of its patches, and fewer stages may end at a smaller stride.
        weights: ``none`` (random), ``imagenet`` (downloaded) or a file; see `seeds.pretrained_weights`.
        depth: number of stages; each halves the map. Only segmentation_models_pytorch's encoders allow 3 or 4 of 5.
        in_channels: channels of the images; weights of RGB images are adapted, see
            `seeds.pretrained_weights.load_fitting`.

    Raises:
        InputError: no such backbone or depth, an output stride that the backbone cannot have, or weights that do not
            exist or do not fit.
    """
    if output_stride not in STRIDES:
        raise InputError(f"output_stride {output_stride} is none of 8, 16, 32")
    is_vgg, vits = name in VGG_NAMES, timm.list_models("vit*", module="vision_transformer")
    is_vit = name.startswith("tu-") and name.removeprefix("tu-").partition(".")[0] in vits
    is_smp = not is_vgg and not is_vit and (name in encoders or name.startswith("tu-"))
    if not MIN_DEPTH <= depth <= FULL_DEPTH or (depth < FULL_DEPTH and not is_smp):
        allowed = f"depth is {FULL_DEPTH}, or for encoders of segmentation_models_pytorch {MIN_DEPTH} to {FULL_DEPTH}"
        raise InputError(f"backbone {name} cannot be built at depth {depth}: {allowed}")
    encoder: nn.Module
    try:
        if is_vgg:
            encoder = nn.Sequential(OrderedDict(features=vgg_layers(name, in_channels)))  # the keys are torchvision's
            init_convolutions(encoder)
        elif is_vit:
            encoder = timm.create_model(
                name.removeprefix("tu-"), num_classes=0, global_pool="", dynamic_img_size=True, in_chans=in_channels
            )
        elif is_smp:
            encoder = get_encoder(name, in_channels, depth=depth, weights=None)
        else:
            encoder = nn.Sequential(OrderedDict(features=torchvision.models.get_model(name).features))
            if in_channels != 3:
                patch_first_conv(encoder, in_channels, pretrained=False)
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        models = [*timm.list_models(), *timm.list_models(pretrained=True)] if name.startswith("tu-") else []
        names = [f"tu-{each}" for each in models] or [*VGG_NAMES, *encoders]
        known = "vgg16 and its like, encoders of SMP, tu-… of timm, networks of torchvision with a trunk 'features'"
        advice = ("" if name in names else did_you_mean(name, names)) or f"there are {known}"
        raise InputError(f"there is no backbone {name} ({first_line(error)}); {advice}") from error
    load_weights(encoder, weights, name)
    try:
        with errors_at(f"backbone {name}"):
            backbone = Backbone(encoder)  # measured before dilation: strides as published
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"backbone {name} does not take images of any size: {first_line(error)}") from error
    if is_vgg:
        dilate_vgg(encoder, output_stride)
    elif not isinstance(encoder, VisionTransformer):
        dilate(encoder, output_stride)
    elif output_stride < (patch := encoder.patch_embed.patch_size[0]):
        raise InputError(f"this backbone has patches of {patch} pixels: output_stride {output_stride} is less")
    return backbone


class EncoderMeasures(NamedTuple):
    """What `measure_encoder` finds.

    Attributes:
        strides: the stride of each block's output by the block's name, in the order of execution.
        unused: the names of blocks that never run, such as SMP's beyond the encoder's depth; they must be frozen,
            because distributed training would wait forever for their gradients.
        channels: of the last map.
        output_stride: of the last map.
    """

    strides: dict[str, int]
    unused: list[str]
    channels: int
    output_stride: int


def measure_encoder(encoder: nn.Module) -> EncoderMeasures:
    """Measure a newly built encoder with a blank image, in eval mode; the encoder is in training mode afterwards.

    A block whose output is no map has the stride of the stage around it. All blocks of a vision transformer have the
    stride of its patches.

    Raises:
        InputError: the last map has channels last.
    """
    if isinstance(encoder, VisionTransformer):
        patch = int(encoder.patch_embed.patch_size[0])
        strides = {f"blocks.{index}": patch for index in range(len(encoder.blocks))}
        return EncoderMeasures(strides, [], int(encoder.embed_dim), patch)
    blocks = {block: name for name, block in _blocks(encoder)}
    strides, ran = dict[str, int](), set[nn.Module]()

    def measure(module: nn.Module, _inputs: object, output: object) -> None:
        ran.add(module)
        if module in blocks:
            side = output.shape[-2] if isinstance(output, Tensor) and output.dim() == MAP_DIMS else 0
            strides[blocks[module]] = BLANK_SIZE // side if side else max(strides.values(), default=1)

    encoder.eval()
    with torch.no_grad(), forward_hooks(encoder.modules(), measure):
        output = encoder(torch.zeros(1, input_channels(encoder), BLANK_SIZE, BLANK_SIZE))
    encoder.train()
    last = output[-1] if isinstance(output, list | tuple) else output
    if last.shape[-1] != last.shape[-2]:  # the blank image is square
        raise InputError(f"its last map has the shape {tuple(last.shape)}, and must be (B, K, h, w)")
    unused = [name for block, name in blocks.items() if ran.isdisjoint(block.modules())]
    return EncoderMeasures(strides, unused, last.shape[1], BLANK_SIZE // last.shape[-2])


def input_channels(network: nn.Module) -> int:
    """Return the channels of the images that a network takes: those of its first convolution."""
    return next(module.in_channels for module in network.modules() if isinstance(module, nn.Conv2d))


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a network's building blocks by name: children, with plain lists of blocks replaced by their members."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        # "model" is timm's network inside SMP's wrapper
        is_list = type(child) in (nn.Sequential, nn.ModuleList) or path == "model"
        if is_list and list(child.children()):
            yield from _blocks(child, f"{path}.")
        else:
            yield path, child


def dilate(encoder: nn.Module, output_stride: int) -> None:
    """Lower the output stride of an encoder, as published, to 16 or 8, in place, keeping what its weights mean.

    Every convolution of stride 2 beyond ``output_stride`` loses its stride and later convolutions double their
    dilation: at the positions that the published network computes, the result is the same. (SMP's ``make_dilated``
    also dilates the strided convolution, for which pretrained weights were not made.) It is nearly the same where
    layers average over the map (squeeze and excitation: 0.4 to 0.8 % of the values) or reduce the keys of attention by
    strided convolutions (SegFormer's encoders: 1.5 %).

    Raises:
        InputError: an encoder that reduces its maps by other operations than strided convolutions.
    """
    published = measure_encoder(encoder)
    rate, before = 1, 1
    for name, stride in published.strides.items():
        if stride > output_stride:
            factor, reach = max(1, stride // before), rate
            for module in encoder.get_submodule(name).modules():
                if not isinstance(module, nn.Conv2d):
                    continue
                strided = module.stride != (1, 1)
                own = (rate if strided else reach) * module.dilation[0]  # a block may have several strided branches
                module.stride = (1, 1)
                if module.kernel_size != (1, 1):
                    module.dilation = (own, own)
                    module.padding = (module.kernel_size[0] // 2 * own, module.kernel_size[1] // 2 * own)
                if strided:
                    reach = rate * factor
            rate *= factor
        before = max(before, stride)
    try:
        reached = measure_encoder(encoder).output_stride
    except RuntimeError:  # the two branches of a block have different sizes
        reached = 0
    if reached != min(output_stride, published.output_stride):
        raise InputError(
            f"output_stride {output_stride} is not possible with this encoder, only {published.output_stride}"
        )
    replace_dilated_depthwise(encoder)
