"""Seeded region growing: cues spread into neighbouring cells of which the network has become sure (DSRG).

Huang, Wang, Wang, Liu & Wang, *Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing*,
CVPR 2018, and the authors' code.
"""

from typing import TypedDict

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["Growing", "grow"]

NEIGHBOURS = np.zeros((3, 3, 3, 3), bool)
NEIGHBOURS[1, 1] = True  # eight around a cell, of the same picture and class


class Growing(TypedDict, total=False):
    """How sure the network must be: of a class ``fg``, of background ``bg``; DSRG's 0.85 and 0.99 where left out."""

    fg: float
    bg: float


def grow(cues: Tensor, probs: Tensor, labels: Tensor, *, fg: float = 0.85, bg: float = 0.99) -> Tensor:
    """Let the cues of a batch grow.

    A cell without a cue joins a class if that is its likeliest among those the picture is tagged with (and background),
    is likelier than the threshold, and a chain of such cells, neighbours sideways or aslant, leads to one of the
    class's cues. A cue is never overruled.

    Args:
        cues: bool (B, C+1, h, w), channel 0 = background.
        probs: probabilities (B, C+1, h, w); no gradient flows through them.
        labels: multi-hot (B, C), without background.
        fg: threshold of classes.
        bg: threshold of background.

    Returns:
        bool (B, C+1, h, w), on the cues' device.
    """
    allowed = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1) > 0  # (B, C+1)
    held = probs.detach() * allowed[:, :, None, None]
    best = torch.zeros_like(held, dtype=torch.bool).scatter_(1, held.argmax(dim=1, keepdim=True), value=True)
    limits = torch.full((1, probs.shape[1], 1, 1), fg, device=probs.device)
    limits[:, 0] = bg
    free = best & (held > limits) & ~cues.any(dim=1, keepdim=True)
    held_by = cues.cpu().numpy()
    regions, count = ndimage.label((cues | free).cpu().numpy(), structure=NEIGHBOURS)
    seeded = np.zeros(count + 1, bool)
    seeded[regions[held_by]] = True
    return torch.from_numpy(seeded[regions]).to(cues.device)
