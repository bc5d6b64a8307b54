"""Is an explanation true? Does it point at the object, and does the score follow what it says?"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional

TOLERANCE = 15.0  # pixels (Zhang et al. 2016, the pointing game)
SMALL = 0.25  # of the image: a class that covers less is small, and difficult where another is there too (ibid.)
PATCHES = 12  # occluding patches a side
PATCH_SHARE = 0.2  # a patch's side, of the image's
STEPS = 16  # of deletion and insertion; RISE removes 224 · 8 pixels a step, 28 steps
BLUR = 0.05  # standard deviation of the blur that insertion starts from, of the image's side

Map = NDArray[np.floating]
Probability = Callable[[Tensor], Tensor]
"""Images (n, 3, H, W) to a class's probabilities (n,)."""


def points_at(heat: Map, region: NDArray[np.bool_], tolerance: float = TOLERANCE) -> bool:
    """The pointing game: whether a map's highest point is within ``tolerance`` pixels of the object.

    Args:
        heat: (H, W), of the image's size. Of equal highest points the first counts.
        region: (H, W), where the object is.
        tolerance: in pixels.
    """
    if not region.any() or not heat.max() > heat.min():  # a flat map points nowhere
        return False
    away = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(away[np.unravel_index(int(np.argmax(heat)), heat.shape)] <= tolerance)


def is_difficult(region: NDArray[np.bool_], others: NDArray[np.bool_]) -> bool:
    """Whether the pointing game is difficult: the class covers less than a quarter, and another one is there.

    Args:
        region: (H, W), where the class is.
        others: (H, W), where other classes are.
    """
    return bool(region.mean() < SMALL and others.any())


def energy_inside(heat: Map, region: NDArray[np.bool_]) -> float:
    """The part of a map's sum that lies on the object (H, W); negative values count as 0, an empty map as 0."""
    positive = np.maximum(heat, 0)
    total = float(positive.sum(dtype=np.float64))
    return float(positive[region].sum(dtype=np.float64)) / total if total > 0 else 0.0


def rank_correlation(one: Map, other: Map) -> float:
    """Spearman's rank correlation of two maps of one shape; 0 where one of them is flat."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(stats.spearmanr(one.ravel(), other.ravel()).statistic)


@torch.no_grad()
def occlusion_maps(scores: Callable[[Tensor], Tensor], image: Tensor, patches: int = PATCHES) -> Tensor:
    """By how much each score drops when a patch of the image is gray, float32 (C, patches, patches).

    Args:
        scores: images (n, 3, H, W) to scores (n, C).
        image: (3, H, W), normalised, so that the mean colour is 0.
        patches: patches a side, their centres evenly spread from half a cell within one edge to the other.
    """
    height, width = image.shape[1:]
    half = (PATCH_SHARE * height / 2, PATCH_SHARE * width / 2)
    whole = scores(image[None])[0]
    drops = []
    for row in range(patches):
        hidden = image.repeat(patches, 1, 1, 1)
        y = (row + 0.5) * height / patches
        for column in range(patches):
            x = (column + 0.5) * width / patches
            rows = slice(max(0, round(y - half[0])), round(y + half[0]))
            hidden[column, :, rows, max(0, round(x - half[1])) : round(x + half[1])] = 0
        drops.append(whole - scores(hidden))  # (patches, C)
    return torch.stack(drops).permute(2, 0, 1).float()


@torch.no_grad()
def curves(probability: Probability, image: Tensor, heat: Tensor, steps: int = STEPS) -> tuple[float, float]:
    """Areas under the deletion curve (low is good) and the insertion curve (high is good) of RISE (Petsiuk 2018).

    The image's pixels are grayed from the map's highest to its lowest, and put into a blurred image in the same
    order; the areas are of the class's probability over the fraction of pixels changed, by the trapezoidal rule.

    Args:
        probability: images to the class's probability.
        image: (3, H, W), normalised.
        heat: (H, W).
        steps: number of equal steps.
    """
    order = heat.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    bounds = torch.linspace(0, len(order), steps + 1, device=order.device).round()
    changed = (rank < bounds[:, None]).view(-1, 1, *image.shape[1:])  # (steps + 1, 1, H, W)
    deleted = probability(torch.where(changed, 0.0, image))
    inserted = probability(torch.where(changed, image, _blurred(image)))
    return (float(torch.trapezoid(deleted).item() / steps), float(torch.trapezoid(inserted).item() / steps))


def _blurred(image: Tensor) -> Tensor:
    sigma = BLUR * max(image.shape[1:])
    reach = min(int(3 * sigma), min(image.shape[1:]) - 1)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=image.device) ** 2) / (2 * sigma**2))
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    wide = functional.pad(image[:, None], (reach, reach, reach, reach), mode="reflect")  # channels as a batch
    once = functional.conv2d(wide, weights)
    return functional.conv2d(once, weights.transpose(2, 3))[:, 0]
