"""Maps of vision transformers as in CLIP-ES: Grad-CAM of a softmax, spread by the transformer's attention.

Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023. The numbers are those of the authors' code for VOC.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from datamodules.errors import InputError
from seeds.activations import forward_hooks, record_activations
from seeds.cam_methods.base import LayerMethod
from seeds.cam_methods.targets import Target, TargetScores, select_scores
from seeds.gradcam import weighted_maps

BLOCKS = 8  # the last blocks, whose attention is averaged
BALANCING_STEPS = 3  # of Sinkhorn and Knopp's algorithm
BOX_THRESHOLD = 0.4  # of a map's maximum; the authors take 0.7 on COCO


class ClipES(LayerMethod):
    """Grad-CAM of the softmax over an image's classes and the background, refined by attention (CLIP-ES).

    The scores of the network are log-odds against the background, as those of `seeds.classifier.TextHead`: the
    probability p of class c is exp(score c) / (1 + sum of exp(score) over the selected classes). A map depends on which
    classes are selected: evidence that they share counts less.

    The gradients are those of log(p / (1 - p)): up to the factor p (1 - p), which the scaling below removes, they are
    those of p, and do not vanish where p rounds to 1.

    Each map is scaled to 0..1, set to zero outside of the boxes around its parts above 0.4 of its maximum, and
    multiplied by A², where A is the attention between patches, averaged over heads and the last 8 blocks, made doubly
    stochastic and symmetric. (In the authors' code, the boxes lack their last row and column at the image's border.)
    """

    position_power = 0  # each map is scaled to 0..1

    def __call__(self, images: Tensor, labels: Target) -> Tensor:
        """Return maps, as `seeds.cam_methods.base.LayerMethod.__call__`.

        Raises:
            InputError: also where the network contains no vision transformer of timm.
        """
        with (
            record_activations(self.model, [self.layer]) as activations,
            record_attention(activations.module) as attention,
        ):
            tagged = select_scores(activations.run(images), labels, len(images))
            scores = tagged.scores.float()
            every = functional.pad(scores.masked_fill(~tagged.selected, -torch.inf), (0, 1))  # 0 of the background
            itself = torch.eye(every.shape[1], dtype=torch.bool, device=every.device)
            others = every[:, None].masked_fill(itself, -torch.inf).logsumexp(dim=2)[:, :-1]
            present = TargetScores(scores - others, tagged.selected, None, None)
            maps = weighted_maps(present, activations[0], activations.names[0]).relu_()
        with torch.autocast(maps.device.type, enabled=False):
            return spread_by_attention(maps, torch.stack(attention).mean(dim=0))


@contextmanager
def record_attention(network: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention of the last 8 blocks of a vision transformer in a forward pass inside this context.

    Args:
        network: contains one `timm.models.vision_transformer.VisionTransformer`.

    Yields:
        A list that the forward pass fills, one matrix for each block: float32 (B, N, N), the mean over the heads of the
        attention that each of N tokens (row) pays to the others (column).

    Raises:
        InputError: the network contains no vision transformer, or several.
    """
    transformers = [module for module in network.modules() if isinstance(module, VisionTransformer)]
    if len(transformers) != 1:
        raise InputError(
            f"method clip needs a network with one vision transformer of timm; the {type(network).__name__} has "
            f"{len(transformers)}"
        )
    layers: list[Any] = [getattr(block, "attn", None) for block in transformers[0].blocks[-BLOCKS:]]
    if not all(isinstance(layer, Attention) for layer in layers):
        raise InputError("method clip needs blocks with one attention each; those of this vision transformer differ")
    owners = {layer.qkv: layer for layer in layers}
    attentions: list[Tensor] = []

    def record(qkv: nn.Module, _inputs: object, output: Tensor) -> None:
        layer, (count, tokens, _) = owners[qkv], output.shape
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):
            heads = output.float().reshape(count, tokens, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4)
            query, key = layer.q_norm(heads[0]), layer.k_norm(heads[1])
            attentions.append((query @ key.mT * layer.scale).softmax(dim=-1).mean(dim=1))

    with forward_hooks(owners, record):
        yield attentions


def spread_by_attention(maps: Tensor, attention: Tensor) -> Tensor:
    """Return maps (B, C, h, w), spread to patches that belong together by attention, not normalised.

    Args:
        maps: Grad-CAM maps, float32 (B, C, h, w), not negative.
        attention: float32 (B, N, N), as `record_attention` records it; the last h · w of N tokens are the patches.
    """
    patches = maps.shape[2] * maps.shape[3]
    transition = attention[:, -patches:, -patches:]
    for _ in range(BALANCING_STEPS):
        transition = transition / transition.sum(dim=1, keepdim=True)
        transition = transition / transition.sum(dim=2, keepdim=True)
    transition = (transition + transition.mT) / 2
    least, most = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    scaled = torch.where(most > least, (maps - least) / (most - least), 0)
    inside = torch.from_numpy(np.stack([box_mask(each) for each in scaled.flatten(0, 1).cpu().numpy()]))
    kept = scaled * inside.view(maps.shape).to(maps.device)
    return (transition @ transition @ kept.flatten(2).mT).mT.reshape(maps.shape)


def box_mask(scaled: np.ndarray) -> np.ndarray:
    """Return where the boxes around the connected parts above 0.4 of a map lie; map and mask (h, w)."""
    mask = np.zeros(scaled.shape, bool)
    _, _, parts, _ = cv2.connectedComponentsWithStats((scaled > BOX_THRESHOLD).astype(np.uint8), connectivity=8)
    for left, top, width, height, _ in parts[1:]:
        mask[top : top + height, left : left + width] = True
    return mask
