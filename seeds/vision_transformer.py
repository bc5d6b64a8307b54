"""timm's vision transformers as backbones, with their tokens arranged as a map; DINO and CLIP among them."""

from typing import Any, cast

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from datamodules.errors import InputError

__all__ = ["VisionTransformer", "build_vit", "is_vit", "token_map"]


def is_vit(name: str) -> bool:
    """Whether a backbone's name is one of timm's plain vision transformers (``tu-vit_…``)."""
    known = timm.list_models("vit*", module="vision_transformer")
    return name.startswith("tu-") and name.removeprefix("tu-").partition(".")[0] in known


def build_vit(name: str, *, pretrained: bool = False) -> VisionTransformer:
    """Build a vision transformer without its head, for images whose sides its patches divide.

    Args:
        name: ``tu-`` and timm's name.
        pretrained: download timm's weights.
    """
    options: dict[str, Any] = {"num_classes": 0, "global_pool": "", "dynamic_img_size": True}
    return cast("VisionTransformer", timm.create_model(name.removeprefix("tu-"), pretrained=pretrained, **options))


def token_map(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Return the last block's normalised patch tokens as a map (B, K, h, w).

    Raises:
        InputError: images (B, 3, H, W) with a side that is no multiple of the patches' side.
    """
    patch = int(vit.patch_embed.patch_size[0])
    height, width = image.shape[-2:]
    if height % patch or width % patch:
        raise InputError(f"images of {height}x{width} pixels do not divide into patches of {patch}: choose such a size")
    tokens: Tensor = vit.forward_features(image)[:, vit.num_prefix_tokens :]  # (B, h * w, K)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height // patch, width // patch)
