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

from datamodules.seed_cache import NO_CUE
from datamodules.transforms import resize_nearest
from seeds.crf import dense_crf

PIXELS = 4  # of the image on a side of a position; with 8 labels are no better, and the CRF takes four times as long
CERTAINTY = 0.7  # irn's: probability that a pixel's label is right before the CRF
SIDE = 433.0  # of a square image with as many pixels as VOC's of 500x375, for which irn's numbers are
CRF: Mapping[str, Any] = {
    "iterations": 10, "bilateral_weight": 10.0, "bilateral_sxy": 50.0, "bilateral_srgb": 5.0, "gaussian_weight": 3.0,
    "gaussian_sxy": 3.0,
}  # fmt: skip
"""Arguments of the dense CRF: irn's numbers, for an image of `SIDE` pixels a side; see `sharpened`."""


def crf_settings() -> dict[str, Any]:
    """Return all numbers of the refinement, as a cache records them."""
    return {"certainty": CERTAINTY, "pixels_a_cell": PIXELS, "side": SIDE, **CRF}


def refined(
    classes: NDArray[np.int64], maps: NDArray[np.float32], image: Tensor, conf_fg: float = 0.30, conf_bg: float = 0.05
) -> NDArray[np.uint8]:
    """Return the refined label map of one image.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w), not negative and not normalised; each is divided by its own maximum.
        image: the image, uint8 (3, H, W) of any size.
        conf_fg: score of the background that a confident class exceeds; 0.30 in irn.
        conf_bg: score of the background that exceeds all classes where the background is confident; 0.05 in irn.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.
    """
    if not len(maps):
        return np.full(maps.shape[1:], NO_CUE, np.uint8)
    foreground, background = (_sharpened(maps, image, score) for score in (conf_fg, conf_bg))
    names = np.array([0, *(classes + 1)], np.uint8)
    labels = np.where(foreground > 0, names[foreground], np.where(background == 0, 0, NO_CUE)).astype(np.uint8)
    return resize_nearest(labels, *maps.shape[1:])


def labelled(
    classes: NDArray[np.int64], maps: NDArray[np.float32], image: Tensor, bg_score: float
) -> NDArray[np.uint8]:
    """Return the label map of one image at one score of the background, sharpened by the CRF; all positions have a cue.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w), as of :func:`refined`; without maps all positions are background.
        image: the image, uint8 (3, H, W) of any size.
        bg_score: score of the background, beside maps of maximum 1.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class.
    """
    if not len(maps):
        return np.zeros(maps.shape[1:], np.uint8)
    names = np.array([0, *(classes + 1)], np.uint8)
    return resize_nearest(names[_sharpened(maps, image, bg_score)], *maps.shape[1:])


def of_maximum_one(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return maps (k, h, w), each divided by its maximum; maps of zeros stay zero."""
    maxima = maps.max(axis=(1, 2), keepdims=True)
    return (maps / np.where(maxima > 0, maxima, 1)).astype(np.float32)


def _sharpened(maps: NDArray[np.float32], image: Tensor, bg_score: float) -> NDArray[np.int64]:
    """Return the winner of background (0) and maps (1..k) at each pixel after the CRF, int64 (PIXELS·h, PIXELS·w)."""
    height, width = PIXELS * maps.shape[1], PIXELS * maps.shape[2]
    shares = functional.interpolate(torch.from_numpy(of_maximum_one(maps))[None], (height, width), mode="bilinear")
    small = cv2.resize(image.permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA)
    background = torch.full_like(shares[:, :1], bg_score)
    winner = torch.cat([background, shares], dim=1).argmax(dim=1, keepdim=True)  # (1, 1, H, W)
    others = math.log((1 - CERTAINTY) / shares.shape[1])
    logits = torch.full((1, shares.shape[1] + 1, height, width), others).scatter_(1, winner, math.log(CERTAINTY))
    sxy = CRF["bilateral_sxy"] * math.sqrt(winner.numel()) / SIDE  # in proportion to the image
    probs = dense_crf(torch.from_numpy(small).permute(2, 0, 1)[None], logits, **{**CRF, "bilateral_sxy": sxy})
    winners: NDArray[np.int64] = probs[0].argmax(dim=0).numpy()
    return winners
