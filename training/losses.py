"""The three losses of SEC: seed, expand, constrain.

Kolesnikov & Lampert, *Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image Segmentation*,
ECCV 2016. Numbers and reductions are those of the authors' released code. Each function takes probabilities over
the classes with background as channel 0 and gives a scalar; every image of a batch weighs the same, and a part of a
loss that an image has no occasion for (no cue, no present class, no absent class) is 0 for that image.

Everything is computed in float32, or in float64 where the probabilities are, under autocast too; there is no loop
over images or classes.
"""

from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "balanced_seed_loss",
    "constrain_loss",
    "expand_loss",
    "ranked_weights",
    "sec_probabilities",
    "seed_loss",
]

PROBABILITY_FLOOR = 1e-4  # added after the softmax, and the floor of the CRF's output, as released
REFERENCE_CELLS = 41 * 41  # the grid that the released decays 0.996 and 0.999 belong to
LOG_FLOOR = 1e-12  # only for probabilities that did not come from `sec_probabilities`: log stays finite


def sec_probabilities(logits: Tensor) -> Tensor:
    """Softmax over classes, plus 1e-4, renormalised: the probabilities that all three losses see.

    Args:
        logits: class scores (B, K, h, w) of any floating type.

    Returns:
        Probabilities (B, K, h, w), each at least about 1e-4; float32, or float64 where the logits are.
    """
    probs = _at_least_float32(logits).softmax(dim=1)
    return (probs + PROBABILITY_FLOOR) / (1.0 + PROBABILITY_FLOOR * logits.shape[1])


def seed_loss(probs: Tensor, cues: Tensor) -> Tensor:
    """Cross-entropy at the cues: -mean over images of [sum(cues * log p) / sum(cues)].

    Foreground and background cells are in one sum, as in the released code.

    Args:
        probs: probabilities (B, C+1, h, w).
        cues: bool (B, C+1, h, w), channel 0 = background; an image without a cue adds 0.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ or are not 4-D.
    """
    probs, cued = _probabilities_and_cues(probs, cues, "seed_loss")
    return _mean_at(probs, cued)


def balanced_seed_loss(probs: Tensor, cues: Tensor) -> Tensor:
    """Cross-entropy at the cues of classes, plus that at the cues of background: each the mean over its own cells.

    However small a thing is in its image, it then counts as much as all of the image's background. As in DSRG
    (Huang et al., *Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing*, CVPR 2018, eq. 3).

    Args:
        probs: probabilities (B, C+1, h, w).
        cues: bool (B, C+1, h, w), channel 0 = background; either part of an image without such a cue is 0.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ or are not 4-D.
    """
    probs, cued = _probabilities_and_cues(probs, cues, "balanced_seed_loss")
    return _mean_at(probs[:, :1], cued[:, :1]) + _mean_at(probs[:, 1:], cued[:, 1:])


def expand_loss(probs: Tensor, labels: Tensor, *, decay_fg: float = 0.996, decay_bg: float = 0.999) -> Tensor:
    """Image-level loss by global weighted rank pooling.

    Three terms, each a mean over images: present classes, -log of the ranked mean with ``decay_fg``, averaged over
    the image's present classes; absent classes, -log(1 - max over cells), averaged over the image's absent classes;
    background, -log of the ranked mean with ``decay_bg``, of every image.

    Args:
        probs: probabilities (B, C+1, h, w), channel 0 = background.
        labels: multi-hot (B, C), without background.
        decay_fg: ratio of the weights of successive cells on a grid of 1681 (see `ranked_weights`), present classes.
        decay_bg: the same for the background.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes do not fit, or a decay is not in [0, 1].
    """
    probs = _probabilities(probs, "expand_loss")
    images, channels, height, width = probs.shape
    if labels.shape != (images, channels - 1):
        raise ValueError(
            f"expand_loss: labels {_shape(labels)} must be {(images, channels - 1)}, probs {_shape(probs)}"
        )
    ranked = probs.flatten(2).sort(dim=2, descending=True).values  # (B, C+1, n)
    weights_bg, weights_fg = (
        ranked_weights(height * width, decay, device=probs.device, dtype=probs.dtype) for decay in (decay_bg, decay_fg)
    )  # (n,) each
    background = (ranked[:, 0] * weights_bg).sum(dim=1)  # (B,)
    foreground = (ranked[:, 1:] * weights_fg).sum(dim=2)  # (B, C)
    present = (labels > 0).to(probs.dtype)
    absent = 1.0 - present
    present_term = _ratio((present * _log(foreground)).sum(dim=1), present.sum(dim=1))  # (B,)
    absent_term = _ratio((absent * _log(1.0 - ranked[:, 1:, 0])).sum(dim=1), absent.sum(dim=1))  # (B,)
    return -(present_term + absent_term + _log(background)).mean()


def constrain_loss(probs: Tensor, crf_probs: Tensor) -> Tensor:
    """KL(Q || p), summed over classes, mean over images and cells; Q is the CRF's output.

    Q is floored at 1e-4 and renormalised here, and no gradient flows through it. (The released code also clips the
    ratio Q / p to [0.05, 20]; this is the divergence itself, whose gradient does not vanish where the two disagree.)

    Args:
        probs: probabilities (B, C+1, h, w).
        crf_probs: the CRF's probabilities (B, C+1, h, w).

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ or are not 4-D.
    """
    probs = _probabilities(probs, "constrain_loss")
    if crf_probs.shape != probs.shape:
        raise ValueError(f"constrain_loss: crf_probs {_shape(crf_probs)} must have the shape of probs {_shape(probs)}")
    target = crf_probs.detach().to(probs.dtype).clamp_min(PROBABILITY_FLOOR)
    target = target / target.sum(dim=1, keepdim=True)
    return (target * (target.log() - _log(probs))).sum(dim=1).mean()


def ranked_weights(cells: int, decay: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Weights of global weighted rank pooling, for cells sorted from the most to the least probable.

    Weight of rank r (0 = most probable) is q^r / Z with q = decay^(1681 / cells): the decay is given for the paper's
    41x41 grid, and the same *fraction* of a grid carries the same weight at any size. A decay of 1 is the mean, a
    decay of 0 the maximum.

    Args:
        cells: number of cells of the grid.
        decay: q of a grid of 1681 cells, in [0, 1].
        device: where the weights are wanted.
        dtype: their type.

    Returns:
        Weights (cells,) that sum to 1; computed in float64 and kept for the next call, so not to be written to.

    Raises:
        ValueError: if ``decay`` is not in [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"a decay of ranked pooling must be in [0, 1], not {decay}")
    return _ranked_weights(cells, decay, device, dtype)


@lru_cache(maxsize=64)
def _ranked_weights(cells: int, decay: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):  # a tensor cached in validation must serve autograd in training
        ranks = torch.arange(cells, dtype=torch.float64)
        weights = torch.tensor(decay ** (REFERENCE_CELLS / cells), dtype=torch.float64) ** ranks
        return (weights / weights.sum()).to(device=device, dtype=dtype)


def _probabilities(probs: Tensor, loss: str) -> Tensor:
    if probs.ndim != 4 or probs.shape[1] < 2 or probs.numel() == 0:
        raise ValueError(f"{loss}: probs must be (B, C+1, h, w) with C >= 1 and no empty side, not {_shape(probs)}")
    return _at_least_float32(probs)


def _probabilities_and_cues(probs: Tensor, cues: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Both (B, C+1, h, w) and of one type, the cues 0 or 1."""
    probs = _probabilities(probs, loss)
    if cues.shape != probs.shape:
        raise ValueError(f"{loss}: cues {_shape(cues)} must have the shape of probs {_shape(probs)}")
    return probs, cues.to(probs.dtype)


def _mean_at(probs: Tensor, cued: Tensor) -> Tensor:
    """-mean over images of the mean log p at an image's cues; both (B, K, h, w)."""
    log_likelihood = (cued * _log(probs)).sum(dim=(1, 2, 3))  # (B,)
    return -_ratio(log_likelihood, cued.sum(dim=(1, 2, 3))).mean()


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(LOG_FLOOR).log()


def _ratio(numerator: Tensor, count: Tensor) -> Tensor:
    """Numerator / count, and 0 where the count is 0 (the numerator is 0 there too)."""
    return numerator / count.where(count > 0, torch.ones_like(count))


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
