"""The losses of a segmentation network: SEC's seed, expand and constrain losses, and balanced cross-entropy.

Kolesnikov & Lampert, *Seed, Expand and Constrain: Three Principles for Weakly-Supervised Image Segmentation*,
ECCV 2016. Numbers and reductions are those of the authors' released code. Each loss returns a scalar, with background
as channel 0; `partial_cross_entropy` and `lovasz_loss` take scores, the others probabilities. Where a loss has
``image_weights`` (B,), they replace equal weights of the images. A term that does not apply to an image (no cue, no
present class, no absent class) is 0 for that image.

All losses are computed in float32, those of float64 probabilities in float64, also under autocast. To add a term, write
its function here and add it to `training.segmentation_task.SegmentationTask`.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor
from torch.nn import functional

from datamodules.class_names import IGNORE
from seeds.score_maps import resize_labels

PROBABILITY_FLOOR = 1e-4  # added after the softmax, and the floor of the CRF's output, as released
REFERENCE_POSITIONS = 41 * 41  # of the grid to which the released decays 0.996 and 0.999 belong
BOX_TOLERANCE = 1e-4  # of a side of the image: files round the sides of boxes
LOG_FLOOR = 1e-12  # keeps the logarithm of probabilities from other sources than `sec_probabilities` finite


def sec_probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over classes, plus 1e-4, renormalised: the probabilities for the losses of SEC.

    Args:
        logits: class scores (B, K, h, w) of any floating type.

    Returns:
        Probabilities (B, K, h, w), each at least about 1e-4; float32, or float64 if the logits are.

    Raises:
        ValueError: if the logits are not 4-D with K >= 2 and no empty side.
    """
    probs = _check(logits, "sec_probabilities", "logits").softmax(dim=1)
    return (probs + PROBABILITY_FLOOR) / (1.0 + PROBABILITY_FLOOR * logits.shape[1])


def seed_loss(probs: Tensor, cues: Tensor, *, image_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy at the cues: -mean over images of [sum(cues * log p) / sum(cues)].

    Foreground and background cues are in one sum, as in the released code.

    Args:
        probs: probabilities (B, C+1, h, w).
        cues: bool (B, C+1, h, w), channel 0 = background; an image without a cue adds 0.
        image_weights: weight (B,) of each image; by default 1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ, or are not 4-D with C >= 1 and no empty side.
    """
    probs = _check(probs, "seed_loss", cues=cues)
    return _mean_at(probs, cues.to(probs.dtype), image_weights)


def balanced_cross_entropy(probs: Tensor, cues: Tensor, *, image_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy at foreground cues plus the one at background cues, each a mean over its positions.

    A small object then has as much weight as all the background of its image. As in DSRG (Huang et al.,
    *Weakly-Supervised Semantic Segmentation Network with Deep Seeded Region Growing*, CVPR 2018, eq. 3).

    Args:
        probs: probabilities (B, C+1, h, w).
        cues: bool (B, C+1, h, w), channel 0 = background; the term of an image without such cues is 0.
        image_weights: weight (B,) of each image; by default 1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ, or are not 4-D with C >= 1 and no empty side.
    """
    probs = _check(probs, "balanced_cross_entropy", cues=cues)
    cues = cues.to(probs.dtype)
    return _mean_at(probs[:, :1], cues[:, :1], image_weights) + _mean_at(probs[:, 1:], cues[:, 1:], image_weights)


def expand_loss(
    probs: Tensor, labels: Tensor, *, decay_fg: float = 0.996, decay_bg: float = 0.999,
    image_weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the image-level loss by global weighted rank pooling.

    Three terms, each a mean over images: present classes, -log of the ranked mean with ``decay_fg``, averaged over
    the image's present classes; absent classes, -log(1 - max over positions), averaged over the image's absent
    classes; background, -log of the ranked mean with ``decay_bg``, for every image.

    Args:
        probs: probabilities (B, C+1, h, w), channel 0 = background.
        labels: multi-hot (B, C), without background.
        decay_fg: ratio of the weights of successive positions on a grid of 1681 (see `ranked_weights`), for present
            classes.
        decay_bg: the same for the background.
        image_weights: weight (B,) of each image; by default 1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes do not fit, or a decay is not in [0, 1].
    """
    probs = _check(probs, "expand_loss")
    images, channels, height, width = probs.shape
    if labels.shape != (expected := (images, channels - 1)):
        raise ValueError(f"expand_loss: labels {tuple(labels.shape)} must be {expected}, probs {tuple(probs.shape)}")
    ranked = probs.flatten(2).sort(dim=2, descending=True).values  # (B, C+1, n)
    weights_bg = ranked_weights(height * width, decay_bg, probs.device, probs.dtype)  # (n,)
    weights_fg = ranked_weights(height * width, decay_fg, probs.device, probs.dtype)
    background = (ranked[:, 0] * weights_bg).sum(dim=1)  # (B,)
    foreground = (ranked[:, 1:] * weights_fg).sum(dim=2)  # (B, C)
    present = (labels > 0).to(probs.dtype)
    absent = 1.0 - present
    present_term = _ratio((present * _log(foreground)).sum(dim=1), present.sum(dim=1))  # (B,)
    absent_term = _ratio((absent * _log(1.0 - ranked[:, 1:, 0])).sum(dim=1), absent.sum(dim=1))  # (B,)
    return -_mean(present_term + absent_term + _log(background), image_weights)


def constrain_loss(probs: Tensor, crf_probs: Tensor, *, image_weights: Tensor | None = None) -> Tensor:
    """Return KL(Q || p), summed over classes, mean over images and positions; Q is the CRF's output.

    Q is floored at 1e-4 and renormalised here, and no gradient flows through it. (The released code also clips the
    ratio Q / p to [0.05, 20]; this is the divergence itself, whose gradient does not vanish where the two disagree.)

    Args:
        probs: probabilities (B, C+1, h, w).
        crf_probs: the CRF's probabilities (B, C+1, h, w).
        image_weights: weight (B,) of each image; by default 1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes differ, or are not 4-D with C >= 1 and no empty side.
    """
    probs = _check(probs, "constrain_loss", crf_probs=crf_probs)
    target = crf_probs.detach().to(probs.dtype).clamp_min(PROBABILITY_FLOOR)
    target = target / target.sum(dim=1, keepdim=True)
    return _mean((target * (target.log() - _log(probs))).sum(dim=1), image_weights)


def partial_cross_entropy(logits: Tensor, mask: Tensor, min_weight: float = 0.0) -> Tensor:
    """Return the cross-entropy at drawn pixels: mean over images of [weight * mean over the drawn pixels].

    The weight of an image is the share of its pixels that are drawn, at least ``min_weight``. With 0 a point has the
    weight of a pixel. With 1 it has the weight of a whole mask, as in Bearman et al., *What's the Point: Semantic
    Segmentation with Point Supervision*, ECCV 2016, eq. 3.

    Args:
        logits: class scores (B, C+1, H, W).
        mask: integers (B, H, W), 255 where nothing is drawn; an image without drawn pixels adds 0.
        min_weight: least weight of an image with drawn pixels, 0..1.

    Returns:
        Scalar tensor.

    Raises:
        ValueError: if the shapes do not fit.
    """
    logits, shape = _check(logits, "partial_cross_entropy", "logits"), tuple(logits.shape)
    if mask.shape != (expected := (shape[0], *shape[2:])):
        raise ValueError(f"partial_cross_entropy: mask {tuple(mask.shape)} must be {expected}, logits {shape}")
    each = functional.cross_entropy(logits.float(), mask.long(), ignore_index=IGNORE, reduction="none").sum(dim=(1, 2))
    drawn = (mask != IGNORE).sum(dim=(1, 2))
    weights = (drawn / mask[0].numel()).clamp(min=min_weight)
    return (weights * _ratio(each, drawn)).mean()


def lovasz_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Return the Lovász-softmax loss of a batch, 1 - IoU made differentiable, mean over the classes.

    Berman et al., *The Lovász-Softmax loss*, CVPR 2018, by segmentation_models_pytorch. A class counts as much as any
    other that is in the masks of the batch, however small its objects are.

    Args:
        logits: class scores (B, C+1, h, w).
        mask: masks or labels, integers (B, H, W), 255 where the class is unknown; its value at the centre of each
            position counts.

    Returns:
        Scalar tensor, times the share of positions whose class is known; 0 where none is.
    """
    mask = resize_labels(mask, logits.shape[-2:])
    share = (mask != IGNORE).float().mean()
    if not share:
        return logits.sum() * 0
    loss: Tensor = LovaszLoss("multiclass", ignore_index=IGNORE)(logits.float(), mask)
    return share * loss


def box_loss(probs: Tensor, boxes: Sequence[Tensor]) -> Tensor:
    """Return the loss of boxes: a class with boxes is absent outside of them, and reaches every side of each box.

    Outside: -mean over positions of log(1 - p), the emptiness constraint of Kervadec et al., *Bounding boxes for weakly
    supervised segmentation: Global constraints get close to full supervision*, MIDL 2020. Inside: -mean over the rows
    and columns of its boxes of log(max p), because a tight box has a position of the object in each of them (the
    tightness prior of Lempitsky et al., *Image segmentation with a bounding box prior*, ICCV 2009; as a loss by Hsu
    et al., *Weakly supervised instance segmentation using the bounding box tightness prior*, NeurIPS 2019). Rows that
    leave the image at a side of the box, and columns likewise, are left out: the object may lie beyond.

    Args:
        probs: probabilities (B, C+1, h, w).
        boxes: float (n, 5) of each image: class 1..C, left, top, right, bottom, in fractions of the image's sides,
            beyond 0..1 where the box leaves the image. An image without boxes adds 0.

    Returns:
        Scalar tensor: the sum of both, averaged over an image's classes with boxes and then over images. A box that
        contains no centre of a row or column has the one in which its own centre lies.

    Raises:
        ValueError: if the probabilities are not 4-D with C >= 1 and no empty side, or there are boxes of another number
            of images, or a class is outside 1..C.
    """
    probs = _check(probs, "box_loss")
    if len(boxes) != len(probs):
        raise ValueError(f"box_loss: boxes of {len(boxes)} images, and probs {tuple(probs.shape)}")
    height, width = probs.shape[-2:]
    total = probs.new_zeros(())
    for image, own in zip(probs, boxes, strict=True):
        labels = own[:, 0].long()
        present = torch.unique(labels)  # in ascending order
        if len(present) and not 1 <= present[0] <= present[-1] < probs.shape[1]:
            found = present.tolist()
            raise ValueError(f"box_loss: boxes of the classes {found}, and probs {tuple(probs.shape)}: 1..C is needed")
        for label in present:
            p, (left, top, right, bottom) = image[label], own[labels == label, 1:].T[..., None]  # (h, w), (n, 1) each
            rows, columns = _between(top, bottom, height), _between(left, right, width)  # (n, h), (n, w)
            interiors = rows[:, :, None] & columns[:, None]  # (n, h, w)
            outside = ~interiors.any(dim=0)
            inside = p.where(interiors, 0)
            lines = torch.cat([inside.amax(dim=2), inside.amax(dim=1)], dim=1)  # (n, h + w), largest p of each
            first, last = -BOX_TOLERANCE, 1 + BOX_TOLERANCE
            rows &= (left >= first) & (right <= last)
            columns &= (top >= first) & (bottom <= last)
            complete = torch.cat([rows, columns], dim=1)
            complete &= torch.cat([interiors.any(dim=2), interiors.any(dim=1)], dim=1)
            term = _ratio((_log(1 - p) * outside).sum(), outside.sum())
            term = term + _ratio((_log(lines) * complete).sum(), complete.sum())
            total = total - term / (len(present) * len(boxes))
    return total


def _between(first: Tensor, last: Tensor, count: int) -> Tensor:
    """Return which of ``count`` centres lie in intervals of 0..1 (n, 1), or else next to the interval's; (n, count)."""
    index = torch.arange(count, device=first.device)
    inside = (first <= (index + 0.5) / count) & ((index + 0.5) / count < last)
    return inside | (~inside.any(dim=1, keepdim=True) & (index == ((first + last) / 2 * count).floor()))


@lru_cache(maxsize=64)
def ranked_weights(positions: int, decay: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the weights of global weighted rank pooling, for positions sorted from the most to the least probable.

    The weight of rank r (0 = most probable) is q^r / Z with q = decay^(1681 / positions). The decay is given for the
    paper's 41x41 grid, and the same *fraction* of a grid has the same weight at any size. A decay of 1 is the mean, a
    decay of 0 the maximum.

    Args:
        positions: number of positions of the grid.
        decay: q of a grid of 1681 positions, in [0, 1].
        device: device of the weights.
        dtype: type of the weights.

    Returns:
        Weights (positions,) that sum to 1, computed in float64; cached, so the caller must not change them.

    Raises:
        ValueError: if ``decay`` is not in [0, 1].
    """
    if not 0.0 <= decay <= 1.0:
        raise ValueError(f"a decay of ranked pooling must be in [0, 1], not {decay}")
    with torch.inference_mode(mode=False):  # a tensor cached in validation must serve autograd in training
        ranks = torch.arange(positions, dtype=torch.float64)
        weights = torch.tensor(decay ** (REFERENCE_POSITIONS / positions), dtype=torch.float64) ** ranks
        return (weights / weights.sum()).to(device=device, dtype=dtype)


def _check(probs: Tensor, loss: str, title: str = "probs", **others: Tensor) -> Tensor:
    """Return probabilities in at least float32; raise a ValueError unless they are (B, C+1, h, w), and others too."""
    shape = tuple(probs.shape)
    if probs.ndim != 4 or probs.shape[1] < 2 or probs.numel() == 0:
        raise ValueError(f"{loss}: {title} must be (B, C+1, h, w) with C >= 1 and no empty side, not {shape}")
    for name, other in others.items():
        if other.shape != probs.shape:
            raise ValueError(f"{loss}: {name} {tuple(other.shape)} must have the shape of {title} {shape}")
    return probs.to(torch.promote_types(probs.dtype, torch.float32))


def _mean_at(probs: Tensor, cues: Tensor, image_weights: Tensor | None) -> Tensor:
    """Return -mean over images of the mean log p at an image's cues; both (B, K, h, w)."""
    log_likelihood = (cues * _log(probs)).sum(dim=(1, 2, 3))  # (B,)
    return -_mean(_ratio(log_likelihood, cues.sum(dim=(1, 2, 3))), image_weights)


def _mean(values: Tensor, image_weights: Tensor | None) -> Tensor:
    """Return the mean over images of the mean of an image's values (B, ...), times its weight."""
    return (
        values.mean() if image_weights is None else (values.reshape(len(values), -1).mean(dim=1) * image_weights).mean()
    )


def _log(probs: Tensor) -> Tensor:
    return probs.clamp_min(LOG_FLOOR).log()


def _ratio(numerator: Tensor, count: Tensor) -> Tensor:
    """Return numerator / count, and 0 if the count is 0 (the numerator is then 0 too)."""
    return numerator / count.where(count > 0, torch.ones_like(count))
