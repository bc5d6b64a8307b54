"""Asking a classifier where it looks: a batch of pictures in, maps and saliency on the cues' grid out."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import normalize
from seeds.classifier import Classifier
from seeds.gradcam import class_maps
from seeds.making.frames import Shape
from seeds.making.packs import Pack
from seeds.probe import Taps, probing, scores_of
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
        layers: names of the layers for maps; of several, each layer's map is divided by its maximum in the picture, and
            their mean is taken.
        saliency_layer: name of the layer for saliency.
        flip: whether mirrored pictures are averaged in.
    """

    layers: tuple[str, ...]
    saliency_layer: str
    flip: bool


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
    grid = pack.grid
    views = [normalize(images) for images in pack.images]
    total, spread = _look_first(network, views[0], pack.labels, question, grid)  # (L, n, h, w), (B, h, w)
    others = [(view, False) for view in views[1:]] + [(view, True) for view in views if question.flip]
    for view, mirror in others:
        total = total + _look(network, view, pack.labels, question.layers, grid, mirror=mirror)
    maps, saliency = _as_one(total / (1 + len(others))).cpu().numpy(), spread.cpu().numpy()
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
    network: Classifier, images: Tensor, labels: Tensor, question: Question, grid: Shape
) -> tuple[Tensor, Tensor]:
    """Maps (L, n, h, w) of L layers and a batch's n labels, and saliency (B, h, w), from one forward pass."""
    with probing(network, (*question.layers, question.saliency_layer)) as taps:
        scores = scores_of(network, images, labels)
        maps = _maps(scores, taps, labels, question.layers, keep=True)
        saliency = saliency_map(scores, taps[len(question.layers)], labels, question.saliency_layer)
    return _to_grid(maps, grid, mirror=False), _to_grid([saliency], grid, mirror=False)[0]


def _look(
    network: Classifier, images: Tensor, labels: Tensor, layers: tuple[str, ...], grid: Shape, *, mirror: bool
) -> Tensor:
    """Maps (L, n, h, w) of L layers and a batch's n labels, of the picture or its mirror image."""
    with probing(network, layers) as taps:
        scores = scores_of(network, images.flip(-1) if mirror else images, labels)
        maps = _maps(scores, taps, labels, layers, keep=False)
    return _to_grid(maps, grid, mirror=mirror)


def _maps(scores: Tensor, taps: Taps, labels: Tensor, layers: tuple[str, ...], *, keep: bool) -> list[Tensor]:
    """Grad-CAM (n, h, w) of a batch's n labels at each layer; ``keep`` the graph for what else looks at it."""
    return [
        class_maps(scores, taps[i], labels, layer, keep=keep or i + 1 < len(layers))[labels != 0]
        for i, layer in enumerate(layers)
    ]


def _as_one(maps: Tensor) -> Tensor:
    """Maps (n, h, w) of those of L layers (L, n, h, w): as they are where L is 1, for only then they share a scale."""
    if len(maps) == 1:
        return maps[0]
    peak = maps.amax(dim=(2, 3), keepdim=True)
    return (maps / torch.where(peak > 0, peak, 1)).mean(dim=0)


def _to_grid(maps: Sequence[Tensor], grid: Shape, *, mirror: bool) -> Tensor:
    """Layers' maps, each (n, h, w) of sizes of its own, on one grid: (L, n, h, w)."""
    if not len(maps[0]):
        return maps[0].new_zeros(len(maps), 0, *grid)
    straight = [each.flip(-1) if mirror else each for each in maps]
    return torch.cat([functional.interpolate(each[None], grid, mode="bilinear") for each in straight])
