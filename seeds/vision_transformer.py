"""timm's vision transformers as backbones, with their tokens arranged as a map; DINO and CLIP among them."""

from typing import cast

import timm
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor

from datamodules.errors import InputError

__all__ = ["VisionTransformer", "build_vit", "is_vit", "patch_side", "token_map", "weights_for_vit"]

PREFIX = "tu-"  # segmentation_models_pytorch's prefix for networks of timm


def is_vit(name: str) -> bool:
    """Whether a backbone's name is one of timm's plain vision transformers (``tu-vit_…``)."""
    model = name.removeprefix(PREFIX).partition(".")[0]
    known = timm.list_models("vit*", module="vision_transformer")
    return name.startswith(PREFIX) and model in known


def build_vit(name: str, *, pretrained: bool = False) -> VisionTransformer:
    """Build a vision transformer without its head, for images whose sides its patches divide.

    Args:
        name: ``tu-`` and timm's name.
        pretrained: download timm's weights.
    """
    vit = timm.create_model(
        name.removeprefix(PREFIX), pretrained=pretrained, num_classes=0, global_pool="", dynamic_img_size=True
    )
    return cast("VisionTransformer", vit)


def patch_side(vit: VisionTransformer) -> int:
    """Return the side of a patch in pixels: the stride of every block."""
    return int(vit.patch_embed.patch_size[0])


def token_map(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Return the last block's normalised patch tokens as a map (B, K, h, w).

    Raises:
        InputError: images (B, 3, H, W) with a side that is no multiple of the patches' side.
    """
    patch = patch_side(vit)
    height, width = image.shape[-2:]
    if height % patch or width % patch:
        raise InputError(f"images of {height}x{width} pixels do not divide into patches of {patch}: choose such a size")
    tokens: Tensor = vit.forward_features(image)[:, vit.num_prefix_tokens :]  # (B, h * w, K)
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height // patch, width // patch)


def weights_for_vit(state: dict[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a file's weights under timm's names; the file is timm's, DINO's, DINOv2's or CLIP's.

    Position embeddings of another grid are resampled. Weights of heads and of masked training are left out.
    """
    known = vit.state_dict()
    found: dict[str, Tensor] = checkpoint_filter_fn(dict(state), vit)
    return {key: value for key, value in found.items() if key in known or not key.startswith(("head", "mask_token"))}
