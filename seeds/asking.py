"""Asking a classifier where it looks: a batch of pictures in, maps and saliency on the cues' grid out."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import normalize
from seeds.classifier import Classifier
from seeds.frames import Shape
from seeds.gradcam import GradCAM, class_maps
from seeds.packs import Pack
from seeds.probe import probing, scores_of
from seeds.saliency import saliency_map


class Seed(NamedTuple):
    """What a network said about one picture: (k,) classes 0..C-1, (k, h, w) maps, (h, w) saliency if it tells that.

    ``image`` is the picture as the network saw it first, uint8 (3, H, W).
    """

    name: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]
    saliency: NDArray[np.float32] | None
    image: Tensor


class Question(NamedTuple):
    """How the classifier is asked.

    Attributes:
        layers: names of the layers for maps and for saliency.
        flip: whether mirrored pictures are averaged in.
        bf16: whether the network computes in bfloat16 (autocast).
    """

    layers: tuple[str, str]
    flip: bool
    bf16: bool


def seeds_of(network: Classifier, pack: Pack, question: Question) -> list[Seed]:
    """The seeds of a batch's pictures in their order.

    Maps of several sizes and of the mirrored picture are brought to the pictures' grid bilinearly and averaged as they
    are, before any normalisation. Saliency is that of the picture as it is, at the first size.

    Args:
        network: the classifier.
        pack: the batch, on the network's device.
        question: how it is asked.

    Raises:
        InputError: maps that are not finite.
    """
    if not pack.images:
        return []
    layers, grid = question.layers, pack.grid
    views = [normalize(images) for images in pack.images]
    with torch.autocast(pack.labels.device.type, torch.bfloat16, enabled=question.bf16):
        total, spread = _look_first(network, views[0], pack.labels, layers, grid)  # (n, h, w), (B, h, w)
        others = [(view, False) for view in views[1:]] + [(view, True) for view in views if question.flip]
        for view, mirror in others:
            total = total + _look(network, view, pack.labels, layers[0], grid, mirror=mirror)
    maps, saliency = (total / (1 + len(others))).cpu().numpy(), spread.cpu().numpy()
    images = pack.images[0].cpu()
    rows, classes = (part.cpu().numpy() for part in (pack.labels != 0).nonzero(as_tuple=True))
    found = []
    for row, name in enumerate(pack.names):
        own = rows == row
        if not (np.isfinite(maps[own]).all() and np.isfinite(saliency[row]).all()):
            raise InputError(f"the classifier's maps of picture {name} are not finite; train it again")
        found.append(Seed(name, classes[own], maps[own], saliency[row], images[row]))
    return found


def _look_first(
    network: Classifier, images: Tensor, labels: Tensor, layers: tuple[str, str], grid: Shape
) -> tuple[Tensor, Tensor]:
    """Maps (n, h, w) of a batch's n labels and saliency (B, h, w), h and w the grid's, from one forward pass."""
    with probing(network, layers) as taps:
        scores = scores_of(network, images, labels)
        maps = class_maps(scores, taps[0], labels, layers[0], keep=True)[labels != 0]  # (n, h, w)
        saliency = saliency_map(scores, taps[1], labels, layers[1])
    return _to_grid(maps, grid, mirror=False), _to_grid(saliency, grid, mirror=False)


def _look(network: Classifier, images: Tensor, labels: Tensor, layer: str, grid: Shape, *, mirror: bool) -> Tensor:
    """Maps (n, h, w) of a batch's n labels, of the picture or its mirror image."""
    maps = GradCAM(network, layer)(images.flip(-1) if mirror else images, labels)[labels != 0]  # (n, h, w)
    return _to_grid(maps, grid, mirror=mirror)


def _to_grid(maps: Tensor, grid: Shape, *, mirror: bool) -> Tensor:
    if not len(maps):
        return maps.new_zeros(0, *grid)
    straight = maps.flip(-1) if mirror else maps
    return functional.interpolate(straight.unsqueeze(1), grid, mode="bilinear").squeeze(1)
