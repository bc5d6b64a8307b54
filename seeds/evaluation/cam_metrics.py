"""Metrics of one map: pointing game, bounding box, energy inside the object, occlusion, deletion and insertion."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torchvision.ops import box_iou

from datamodules.annotations.shapes import Box

TOLERANCE = 15.0  # pixels (Zhang et al., ECCV 2016, the pointing game)
THRESHOLD = 0.15  # of the map's maximum, for boxes (Grad-CAM, section 4.1)
MIN_IOU = 0.5  # of a correct box (ImageNet, VOC)
PATCHES = 12  # occluding patches per side
PATCH_SHARE = 0.2  # side of a patch relative to the image's
STEPS = 16  # of deletion and insertion; RISE takes 28 (224 · 8 pixels each)
BLUR = 0.05  # std of the blur that insertion starts from, relative to the image's longer side

Map = NDArray[np.floating]


def points_at(cam: Map, region: NDArray[np.bool_]) -> bool:
    """Return whether a map's maximum is within `TOLERANCE` pixels of the object (the pointing game).

    Args:
        cam: map (H, W) at the image's size. Of equal maxima the first counts; a constant map misses.
        region: the object's pixels (H, W).
    """
    if not region.any() or not cam.max() > cam.min():
        return False
    distance = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return bool(distance[np.unravel_index(int(np.argmax(cam)), cam.shape)] <= TOLERANCE)


def box_from_map(cam: Map, name: str) -> Box | None:
    """Return the box of the largest connected component above 15 % of the map's maximum; None for a zero map.

    Args:
        cam: map (H, W) at the image's size.
        name: the box's class.
    """
    peak = float(cam.max())
    if not peak > 0:
        return None
    above = (cam > THRESHOLD * peak).astype(np.uint8)
    _, _, parts, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    largest = 1 + int(np.argmax(parts[1:, cv2.CC_STAT_AREA]))
    left, top, width, height = parts[largest, :4].tolist()
    return Box(name, left, top, left + width, top + height)


def is_correct(box: Box | None, truth: Sequence[Box]) -> bool:
    """Return whether a box has an IoU of at least ``MIN_IOU`` with a true box of the same class."""
    same = [true[1:] for true in truth if box is not None and true.name == box.name]
    if box is None or not same:
        return False
    iou = box_iou(torch.tensor([box[1:]], dtype=torch.float64), torch.tensor(same, dtype=torch.float64))
    return bool((iou >= MIN_IOU).any())


def energy_inside(cam: Map, region: NDArray[np.bool_]) -> float:
    """Return the fraction of a map's positive sum inside the object (H, W); 0 for a map without positive values."""
    positive = np.maximum(cam, 0)
    total = float(positive.sum(dtype=np.float64))
    return float(positive[region].sum(dtype=np.float64)) / total if total > 0 else 0.0


def rank_correlation(first: Map, second: Map) -> float:
    """Return Spearman's rank correlation of two maps of one shape; 0 where one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


@torch.no_grad()
def occlusion_maps(scores: Callable[[Tensor], Tensor], image: Tensor, patches: int = PATCHES) -> Tensor:
    """Return the drop of each score when a patch of the image is gray, float32 (C, patches, patches).

    Args:
        scores: images (n, in_channels, H, W) to scores (n, C).
        image: (in_channels, H, W), normalised: 0 is the mean colour.
        patches: patches per side; their centres are the centres of a square grid.
    """
    height, width = image.shape[1:]
    half = (PATCH_SHARE * height / 2, PATCH_SHARE * width / 2)
    unchanged = scores(image[None])[0]
    drops = []
    for row in range(patches):
        occluded = image.repeat(patches, 1, 1, 1)
        y = (row + 0.5) * height / patches
        rows = slice(max(0, round(y - half[0])), round(y + half[0]))
        for column in range(patches):
            x = (column + 0.5) * width / patches
            occluded[column, :, rows, max(0, round(x - half[1])) : round(x + half[1])] = 0
        drops.append(unchanged - scores(occluded))  # (patches, C)
    return torch.stack(drops).permute(2, 0, 1).float()


@torch.no_grad()
def deletion_insertion(
    scores: Callable[[Tensor], Tensor], label: int, image: Tensor, cam: Tensor, steps: int = STEPS
) -> tuple[float, float]:
    """Return the areas under the deletion curve (lower is better) and the insertion curve (higher is better).

    Petsiuk, Das & Saenko, *RISE*, BMVC 2018. Deletion grays the image's pixels from the map's highest to its lowest;
    insertion puts them into a blurred image in the same order. The area is that of the class's probability over the
    fraction of changed pixels, by the trapezoidal rule.

    Args:
        scores: images (n, in_channels, H, W) to scores (n, C), whose sigmoid are the probabilities.
        label: the class, 0..C-1.
        image: (in_channels, H, W), normalised.
        cam: map (H, W).
        steps: number of equal steps.
    """
    order = cam.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    bounds = torch.linspace(0, len(order), steps + 1, device=order.device).round()
    changed = (rank < bounds[:, None]).view(-1, 1, *image.shape[1:])  # (steps + 1, 1, H, W)

    sigma = BLUR * max(image.shape[1:])
    reach = min(int(3 * sigma), min(image.shape[1:]) - 1)
    kernel = (2 * reach + 1, 2 * reach + 1)
    smooth = cv2.GaussianBlur(image.permute(1, 2, 0).cpu().numpy(), kernel, sigma, borderType=cv2.BORDER_REFLECT_101)
    smooth = smooth.reshape(*image.shape[1:], -1)  # OpenCV drops a single channel, but is 60 times as fast
    blurred = torch.from_numpy(smooth).permute(2, 0, 1).to(image)
    deleted = scores(torch.where(changed, 0.0, image))[:, label].sigmoid()
    inserted = scores(torch.where(changed, image, blurred))[:, label].sigmoid()
    return torch.trapezoid(deleted).item() / steps, torch.trapezoid(inserted).item() / steps
