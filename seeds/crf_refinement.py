"""Label maps from class activation maps by the dense CRF: confident foreground, confident background, and no cue.

Training labels as in irn (Ahn, Cho & Kwak, CVPR 2019; ``step/cam_to_ir_label.py`` of the authors' code): label maps are
made twice, with a high and with a low score of the background, and the CRF sharpens both. Positions with a class in the
first have that class; positions that are background in the second are background; the others have no cue.
"""

import math
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest
from seeds.crf import dense_crf
from seeds.score_maps import divide_by_maxima, highest_class

PIXELS_PER_POSITION = 4  # on a side; with 8 labels are no better, and the CRF takes four times as long
CERTAINTY = 0.7  # irn's: probability that a pixel's label is right before the CRF
SIDE = 433.0  # of a square image with as many pixels as VOC's of 500x375, for which irn's numbers are
CRF: Mapping[str, Any] = {
    "iterations": 10, "bilateral_weight": 10.0, "bilateral_sxy": 50.0, "bilateral_srgb": 5.0, "gaussian_weight": 3.0,
    "gaussian_sxy": 3.0,
}  # fmt: skip
"""Arguments of the dense CRF: irn's numbers, for an image of `SIDE` pixels a side; see `refined_cues`."""


def crf_settings() -> dict[str, Any]:
    """Return all numbers of the refinement, as a cache records them."""
    return {"certainty": CERTAINTY, "pixels_per_position": PIXELS_PER_POSITION, "side": SIDE, **CRF}


def refined_cues(
    classes: NDArray[np.int64], maps: NDArray[np.float32], image: Tensor, conf_fg: float = 0.30, conf_bg: float = 0.05,
    *, grid: tuple[int, ...] | None = None,
) -> NDArray[np.uint8]:  # fmt: skip
    """Return the refined label map of one image; with equal scores all positions have a cue, without maps none.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w), not negative and not normalised; each is divided by its own maximum.
        image: the image, uint8 (3, H, W) of any size.
        conf_fg: score of the background that a confident class exceeds; 0.30 in irn.
        conf_bg: score of the background that exceeds all classes where the background is confident; 0.05 in irn.
        grid: height and width, in positions of the maps, for which the CRF's numbers are: of an image in tiles, those
            of a tile. By default those of the maps.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    if not len(maps):
        return np.full(maps.shape[1:], NO_CUE, np.uint8)
    height, width = PIXELS_PER_POSITION * maps.shape[1], PIXELS_PER_POSITION * maps.shape[2]
    shares = functional.interpolate(torch.from_numpy(divide_by_maxima(maps))[None], (height, width), mode="bilinear")
    small = torch.from_numpy(cv2.resize(image.permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA))
    others = math.log((1 - CERTAINTY) / len(maps))
    side = PIXELS_PER_POSITION * math.sqrt(math.prod(grid or maps.shape[1:]))
    numbers = {**CRF, "bilateral_sxy": CRF["bilateral_sxy"] * side / SIDE}
    winners: dict[float, NDArray[np.int64]] = {}  # after the CRF, of background (0) and maps (1..k) at each pixel
    for score in {conf_fg, conf_bg}:
        winner = torch.cat([torch.full_like(shares[:, :1], score), shares], dim=1).argmax(dim=1, keepdim=True)
        logits = torch.full((1, len(maps) + 1, height, width), others).scatter_(1, winner, math.log(CERTAINTY))
        winners[score] = highest_class(dense_crf(small.permute(2, 0, 1)[None], logits, **numbers)[0]).numpy()
    foreground, names = winners[conf_fg], np.array([0, *(classes + 1)], np.uint8)
    labels = np.where(foreground > 0, names[foreground], np.where(winners[conf_bg] == 0, 0, NO_CUE)).astype(np.uint8)
    return resize_nearest(labels, *maps.shape[1:])
