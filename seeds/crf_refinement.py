"""From maps to label maps with confident foreground, confident background and the rest left open, by the dense CRF.

As irn makes its training labels (Ahn, Cho & Kwak, CVPR 2019; ``step/cam_to_ir_label.py`` of the authors' code): the
maps are made label maps twice, once with a high and once with a low score for the background, and each is sharpened by
a CRF. What the first calls a class is that class; what the second calls background is background; the rest is open.
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

PIXELS = 4  # of the image to a side of a cell; with 8 the labels are as good, and the CRF takes four times as long
CERTAINTY = 0.7  # irn's: probability that a pixel's label is right before the CRF
SIDE = 433.0  # of a square image with as many pixels as VOC's of 500x375, for which irn's numbers are
CRF: Mapping[str, Any] = {
    "iterations": 10, "bilateral_weight": 10.0, "bilateral_sxy": 50.0, "bilateral_srgb": 5.0, "gaussian_weight": 3.0,
    "gaussian_sxy": 3.0,
}  # fmt: skip
"""Arguments of the dense CRF: irn's numbers, for an image of `SIDE` pixels a side; see `sharpened`."""


def crf_settings() -> dict[str, Any]:
    """Return all numbers of the refinement, as a cache's manifest records them."""
    return {"certainty": CERTAINTY, "pixels_a_cell": PIXELS, "side": SIDE, **CRF}


def refined(
    classes: NDArray[np.int64], maps: NDArray[np.float32], image: Tensor, conf_fg: float = 0.30, conf_bg: float = 0.05
) -> NDArray[np.uint8]:
    """The refined label map of one image.

    Args:
        classes: the maps' classes 0..C-1, (k,).
        maps: (k, h, w), not negative and not normalised; each is divided by its own maximum.
        image: the image, uint8 (3, H, W) of any size.
        conf_fg: the background's score against which a class must win to be confident; 0.30 in irn.
        conf_bg: the background's score with which it must win to be confident; 0.05 in irn.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class, 255 = neither is confident.
    """
    if not len(maps):
        return np.full(maps.shape[1:], NO_CUE, np.uint8)
    share, picture = _enlarged(maps, image)
    sure, possible = (sharpened(share, picture, threshold) for threshold in (conf_fg, conf_bg))
    names = np.array([0, *(classes + 1)], np.uint8)
    labels = np.where(sure > 0, names[sure], np.where((sure == 0) & (possible == 0), 0, NO_CUE)).astype(np.uint8)
    return resize_nearest(labels, *maps.shape[1:])


def labelled(
    classes: NDArray[np.int64], maps: NDArray[np.float32], image: Tensor, bg_score: float
) -> NDArray[np.uint8]:
    """The label map of one image at one score of the background, sharpened by the CRF; no cell is left open.

    Args:
        classes: as for :func:`refined`, and so the next two.
        maps: where there is none, all is background.
        image: the image.
        bg_score: the background's score, beside maps of maximum 1.

    Returns:
        uint8 (h, w): 0 = background, 1..C = class.
    """
    if not len(maps):
        return np.zeros(maps.shape[1:], np.uint8)
    names = np.array([0, *(classes + 1)], np.uint8)
    return resize_nearest(names[sharpened(*_enlarged(maps, image), bg_score)], *maps.shape[1:])


def _enlarged(maps: NDArray[np.float32], image: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of maximum 1 (1, k, H, W) and the image uint8 (1, 3, H, W), ``PIXELS`` to a side of a cell."""
    height, width = PIXELS * maps.shape[1], PIXELS * maps.shape[2]
    share = functional.interpolate(torch.from_numpy(of_maximum_one(maps))[None], (height, width), mode="bilinear")
    small = cv2.resize(image.permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA)
    return share, torch.from_numpy(small).permute(2, 0, 1)[None]


def of_maximum_one(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps (k, h, w), each divided by its own maximum; one of 0 stays 0."""
    peak = maps.max(axis=(1, 2), keepdims=True)
    return (maps / np.where(peak > 0, peak, 1)).astype(np.float32)


def sharpened(share: Tensor, picture: Tensor, threshold: float) -> NDArray[np.int64]:
    """Places (H, W) of the winner of the background's score ``threshold`` (0) and maps (1, k, H, W), after the CRF."""
    background = torch.full_like(share[:, :1], threshold)
    winner = torch.cat([background, share], dim=1).argmax(dim=1, keepdim=True)  # (1, 1, H, W)
    others = math.log((1 - CERTAINTY) / share.shape[1])
    logits = torch.full((1, share.shape[1] + 1, *share.shape[2:]), others).scatter_(1, winner, math.log(CERTAINTY))
    own_sxy = CRF["bilateral_sxy"] * math.sqrt(winner.numel()) / SIDE  # in proportion to the image
    found = dense_crf(picture, logits, **{**CRF, "bilateral_sxy": own_sxy})
    places: NDArray[np.int64] = found[0].argmax(dim=0).numpy()
    return places
