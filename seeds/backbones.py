"""Backbones: a network's convolutional trunk at a chosen output stride, from several libraries by one name.

Names are looked up in this order: the VGGs (built here: with pools of stride 1 and dilation they reach any output
stride), timm's plain vision transformers (``tu-vit_small_patch16_224.dino`` …; see :mod:`seeds.vision_transformer`),
segmentation_models_pytorch's encoders (``mobilenet_v2``, ``resnet50``, ``tu-convnext_tiny`` …), and torchvision's
classifiers that keep their trunk in ``features`` (``convnext_tiny``, ``efficientnet_b0`` …).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from segmentation_models_pytorch.encoders import encoders, get_encoder
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.pretrained_weights import load_weights
from seeds.vgg import VGG_NAMES, Trunk, dilate_vgg, vgg_trunk
from seeds.vision_transformer import VisionTransformer, build_vit, is_vit, patch_of, token_map

STRIDES = (8, 16, 32)
SALIENCY_STRIDE = 8
FULL_DEPTH = 5  # stages of a network as published: stride 32
SMALLEST_DEPTH = 3  # stride 8, the finest output stride
MAP_DIMS = 4  # (B, K, h, w)
PROBE_SIZE = 64  # side of the blank image that tells the strides: two cells at stride 32


class Backbone(nn.Module):
    """An encoder that gives its last feature map only, and of which the first stages can be frozen.

    Attributes:
        encoder: the library's own module, with its own parameter names.
        out_channels: channels of the feature map.
        strides: name of each building block within ``encoder``, in the order of execution → its stride in the
            network as published (dilation changes where a block computes, not which stage it belongs to).
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.strides, self.out_channels = block_strides(encoder)
        rest_idle_blocks(encoder)
        self._frozen: tuple[str, ...] = ()

    def forward(self, image: Tensor) -> Tensor:
        """The last feature map (B, out_channels, h, w) of images (B, 3, H, W)."""
        return last_map(self.encoder, image)

    def freeze(self, stride: int) -> None:
        """Freeze every block up to and including ``stride``; 0 freezes nothing.

        Their parameters get no gradient and their batch-norm statistics stay as they are, also after ``.train()``;
        having nothing to learn, they also run without an autograd graph.

        Raises:
            InputError: ``stride`` is neither 0 nor a power of two, or nothing would be left to train.
        """
        if stride < 0 or stride & (stride - 1):
            raise InputError(f"freeze_stride {stride} is neither 0 nor a power of two")
        blocks = frozen_blocks(self.strides, stride)
        if len(blocks) == len(self.strides):
            raise InputError(f"freeze_stride {stride} freezes the whole backbone, whose last stage has stride {stride}")
        self._frozen = blocks
        self.encoder.requires_grad_(True)
        rest_idle_blocks(self.encoder)
        for name in blocks:
            self.encoder.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """As ``nn.Module.train``, but frozen blocks stay in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.encoder.get_submodule(name).eval()
        return self

    @property
    def saliency_layer(self) -> str:
        """Name, within this module, of the block at whose output background saliency is read by default.

        The last one of stride 8: conv4 in VGG-16, as the SEC authors have it; ``layer2`` in a ResNet. Of a network that
        ends there, the last of the stage before: behind the last block only the average over the map remains, in
        which every cell counts alike.
        """
        *names, last = self.strides
        final = self.strides[last]
        limit = SALIENCY_STRIDE if final > SALIENCY_STRIDE else final // 2
        fine = [name for name in names if self.strides[name] <= limit]
        return f"encoder.{(fine or names or [last])[-1]}"


def last_map(encoder: nn.Module, image: Tensor) -> Tensor:
    """The last of an encoder's feature maps: SMP's give a list, torchvision's trunks and the VGGs one map."""
    if isinstance(encoder, VisionTransformer):
        return token_map(encoder, image)
    output: Any = encoder(image)
    last: Tensor = output[-1] if isinstance(output, list | tuple) else output
    return last


def build_backbone(name: str, output_stride: int = 32, weights: str = "none", depth: int = FULL_DEPTH) -> Backbone:
    """Build a backbone at an output stride of 8, 16 or 32 pixels a cell.

    Args:
        name: see the head of this file.
        output_stride: stages beyond it are computed with dilation instead of striding (DeepLab).
        weights: ``none`` (random), ``imagenet`` (downloaded) or a file; see `seeds.pretrained_weights`.
        depth: number of stages, each of which halves the map; fewer than 5 for segmentation_models_pytorch's only.

    Raises:
        InputError: no such backbone or depth, an output stride it cannot have, or weights that do not fit or are not
            there.
    """
    encoder = build_encoder(name, depth)
    load_weights(encoder, weights, name)
    try:
        backbone = Backbone(encoder)  # measured before dilation: strides as published
    except (AssertionError, RuntimeError) as error:
        raise InputError(f"backbone {name} does not take images of any size: {error}") from error
    dilate(encoder, output_stride)
    return backbone


def build_encoder(name: str, depth: int = FULL_DEPTH) -> nn.Module:
    """The encoder of that name as published (stride 2^depth), with random weights."""
    is_smp = (name in encoders or name.startswith("tu-")) and not is_vit(name)
    if not (SMALLEST_DEPTH <= depth <= FULL_DEPTH) or (depth < FULL_DEPTH and (name in VGG_NAMES or not is_smp)):
        raise InputError(f"backbone {name} cannot be built at depth {depth}")
    if name in VGG_NAMES:
        return vgg_trunk(name)
    if is_vit(name):
        return build_vit(name)
    if is_smp:
        try:
            return get_encoder(name, depth=depth, weights=None)  # type: ignore[no-any-return]
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"backbone {name} cannot be built: {error}") from error
    if name in torchvision.models.list_models(module=torchvision.models):
        model = torchvision.models.get_model(name)
        if isinstance(getattr(model, "features", None), nn.Module):
            return Trunk(model.features)
    raise InputError(
        f"there is no backbone {name}; use a segmentation_models_pytorch encoder (mobilenet_v2, resnet50, tu-…), "
        "a VGG (vgg16, vgg16_bn), or a torchvision model with a 'features' trunk"
    )


def _blocks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A network's building blocks: children, looking into plain lists of blocks but not into a block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        # "model" is timm's own network inside SMP's wrapper
        is_list = type(child) in (nn.Sequential, nn.ModuleList) or path == "model"
        if is_list and list(child.children()):
            yield from _blocks(child, f"{path}.")
        else:
            yield path, child


def block_strides(encoder: nn.Module) -> tuple[dict[str, int], int]:
    """Names of an encoder's blocks in the order they run, each with its output's stride; and the last map's channels.

    Found by showing the encoder one blank image. A block whose output is no map counts to the stage around it; all of
    a vision transformer's have the stride of its patches.
    """
    if isinstance(encoder, VisionTransformer):
        return {f"blocks.{index}": patch_of(encoder) for index in range(len(encoder.blocks))}, int(encoder.embed_dim)
    seen: dict[str, int] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: object, output: object) -> None:
            side = output.shape[-2] if isinstance(output, Tensor) and output.dim() == MAP_DIMS else 0
            seen[name] = PROBE_SIZE // side if side else max(seen.values(), default=1)

        return note

    handles = [block.register_forward_hook(noting(name)) for name, block in _blocks(encoder)]
    try:
        output = _blank_map(encoder)
    finally:
        for handle in handles:
            handle.remove()
    return seen, int(output.shape[1])


def rest_idle_blocks(encoder: nn.Module) -> None:
    """Let an encoder's blocks that never run, as SMP's beyond its depth, ask for no gradient.

    Several processes would wait for it for ever.
    """
    ran: set[nn.Module] = set()
    handles = [module.register_forward_hook(lambda module, *_: ran.add(module)) for module in encoder.modules()]
    try:
        _blank_map(encoder)
    finally:
        for handle in handles:
            handle.remove()
    for _, block in _blocks(encoder):
        if ran.isdisjoint(block.modules()):
            block.requires_grad_(False)


def _blank_map(encoder: nn.Module) -> Tensor:
    """The encoder's map of one blank image; the encoder's modes and statistics stay as they are."""
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        encoder.eval()
        with torch.no_grad():
            side = 2 * patch_of(encoder) if isinstance(encoder, VisionTransformer) else PROBE_SIZE
            return last_map(encoder, torch.zeros(1, 3, side, side))
    finally:
        for module, mode in modes:
            module.training = mode


def frozen_blocks(strides: dict[str, int], stride: int) -> tuple[str, ...]:
    """Names of the blocks up to and including ``stride`` among those of :func:`block_strides`."""
    return tuple(name for name, own in strides.items() if own <= stride)


def dilate(encoder: nn.Module, output_stride: int) -> None:
    """Lower the output stride of an encoder, as published, to 16 or 8, in place, keeping what its weights mean.

    Every convolution of stride 2 beyond ``output_stride`` loses its stride and the ones after it look twice as far
    apart: at the cells that the published network computes, the result is the same. (SMP's own ``make_dilated``
    spreads the strided convolution too, for which pretrained weights were not made.)

    Raises:
        InputError: an output stride other than 8, 16, 32, or an encoder that shrinks its maps by something else
            than strided convolutions.
    """
    if output_stride not in STRIDES:
        raise InputError(f"output_stride {output_stride} is none of 8, 16, 32")
    if isinstance(encoder, Trunk) and encoder.is_vgg:
        dilate_vgg(encoder, output_stride)
        return
    if isinstance(encoder, VisionTransformer):
        if output_stride < patch_of(encoder):
            raise InputError(
                f"this backbone has patches of {patch_of(encoder)} pixels: output_stride {output_stride} is less"
            )
        return
    published = PROBE_SIZE // _blank_map(encoder).shape[-2]
    rate, before = 1, 1
    for name, stride in block_strides(encoder)[0].items():
        if stride > output_stride:
            rate = _dilate_block(encoder.get_submodule(name), rate, max(1, stride // before))
        before = max(before, stride)
    try:
        side = _blank_map(encoder).shape[-2]
    except RuntimeError:  # the two ways through a block no longer meet
        side = 0
    if side != PROBE_SIZE // min(output_stride, published):
        raise InputError(f"this backbone cannot be built at output stride {output_stride}, only at {published}")


def _dilate_block(block: nn.Module, rate: int, factor: int) -> int:
    """Un-stride a block that enters at dilation ``rate`` and shrinks its map by ``factor``; the rate after it."""
    reach = rate
    for module in block.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        strided = module.stride != (1, 1)
        module.stride = (1, 1)
        if module.kernel_size != (1, 1):
            module.dilation = (reach, reach)
            module.padding = (module.kernel_size[0] // 2 * reach, module.kernel_size[1] // 2 * reach)
        if strided:
            reach = rate * factor
    return rate * factor
