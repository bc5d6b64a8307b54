"""Vision transformers as backbones: timm's, with their tokens laid out as a map; DINO and CLIP among them."""

from typing import cast

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from datamodules.errors import InputError

__all__ = ["VisionTransformer", "build_vit", "fitting", "is_vit", "patch_of", "token_map"]

PREFIX = "tu-"  # as segmentation_models_pytorch names timm's networks


def is_vit(name: str) -> bool:
    """Whether a backbone's name is that of one of timm's plain vision transformers (``tu-vit_…``)."""
    own = name.removeprefix(PREFIX).partition(".")[0]
    return name.startswith(PREFIX) and own.startswith("vit") and own in timm.list_models(module="vision_transformer")


def build_vit(name: str, *, pretrained: bool = False) -> VisionTransformer:
    """A vision transformer without its head, for images whose sides its patches divide.

    Args:
        name: ``tu-`` and timm's name.
        pretrained: download timm's weights.
    """
    vit = timm.create_model(
        name.removeprefix(PREFIX), pretrained=pretrained, num_classes=0, global_pool="", dynamic_img_size=True
    )
    return cast("VisionTransformer", vit)


def patch_of(vit: VisionTransformer) -> int:
    """Side of a patch in pixels: the stride of every block."""
    return int(vit.patch_embed.patch_size[0])


def token_map(vit: VisionTransformer, image: Tensor) -> Tensor:
    """The last block's tokens, normalised as the network has it, as a map (B, K, h, w); those of no place left out.

    Raises:
        InputError: images (B, 3, H, W) with a side that is no multiple of the patches'.
    """
    patch = patch_of(vit)
    height, width = image.shape[-2:]
    if height % patch or width % patch:
        raise InputError(f"images of {height}x{width} pixels do not divide into patches of {patch}: choose such a size")
    tokens: Tensor = vit.forward_features(image)[:, vit.num_prefix_tokens :]  # (B, h * w, K)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height // patch, width // patch)


def fitting(state: dict[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """A file's weights under timm's names: of timm, or as DINO, DINOv2 and CLIP publish theirs.

    Positions of another grid are resampled. What belongs to heads and to masked training is left out.
    """
    known = vit.state_dict()
    found: dict[str, Tensor] = checkpoint_filter_fn(dict(state), vit)
    return {key: value for key, value in found.items() if key in known or not key.startswith(("head", "mask_token"))}
