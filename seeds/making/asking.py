"""Grad-CAM and background saliency of a batch of images, on the grid of the cues."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import normalize
from seeds.activations import class_scores, record_activations
from seeds.background_saliency import saliency_map
from seeds.classifier import Classifier
from seeds.gradcam import gradcam_maps
from seeds.making.batches import ImageBatch


class Seed(NamedTuple):
    """What a network said about one image: (k,) classes 0..C-1, (k, h, w) maps, (h, w) saliency if it tells that.

    ``image`` is the image as the network saw it first, uint8 (3, H, W).
    """

    name: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]
    saliency: NDArray[np.float32] | None
    image: Tensor


class CamSettings(NamedTuple):
    """How maps are extracted from the classifier.

    Attributes:
        layer: name of the layer whose Grad-CAM maps are taken.
        saliency_layer: name of the layer at which background saliency is computed.
        flip: whether the maps of the mirrored image are averaged in.
    """

    layer: str
    saliency_layer: str
    flip: bool


def extract_cams(network: Classifier, batch: ImageBatch, settings: CamSettings) -> list[Seed]:
    """Return the maps and the saliency of each image of a batch, in the order of the batch.

    The maps of all scales and of the mirrored image are resized to the grid bilinearly and averaged before any
    normalisation. Saliency is computed from the image as it is, at the first scale.

    Args:
        network: the classifier.
        batch: the batch, on the network's device.
        settings: which layers are used, and whether the mirrored image counts.

    Raises:
        InputError: maps that are not finite.
    """
    if not batch.images:
        return []
    grid = batch.grid
    views = [normalize(images) for images in batch.images]
    total, spread = _maps_and_saliency(network, views[0], batch.labels, settings, grid)  # (n, h, w), (B, h, w)
    others = [(view, False) for view in views[1:]] + [(view, True) for view in views if settings.flip]
    for view, mirror in others:
        total = total + _maps(network, view, batch.labels, settings.layer, grid, mirror=mirror)
    maps, saliency = (total / (1 + len(others))).cpu().numpy(), spread.cpu().numpy()
    images = batch.images[0].cpu()
    rows, classes = (part.cpu().numpy() for part in (batch.labels != 0).nonzero(as_tuple=True))
    found = []
    for row, name in enumerate(batch.names):
        own = rows == row
        if not (np.isfinite(maps[own]).all() and np.isfinite(saliency[row]).all()):
            raise InputError(f"the classifier's maps of image {name} are not finite; train it again")
        found.append(Seed(name, classes[own], maps[own], saliency[row], images[row]))
    return found


def _maps_and_saliency(
    network: Classifier, images: Tensor, labels: Tensor, settings: CamSettings, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return maps (n, h, w) of a batch's n labels and saliency (B, h, w), from one forward pass."""
    with record_activations(network, (settings.layer, settings.saliency_layer)) as activations:
        scores = class_scores(network, images, labels)
        maps = gradcam_maps(scores, activations[0], labels, settings.layer, keep_graph=True)[labels != 0]
        saliency = saliency_map(scores, activations[1], labels, settings.saliency_layer)
    return _to_grid(maps, grid), _to_grid(saliency, grid)


def _maps(
    network: Classifier, images: Tensor, labels: Tensor, layer: str, grid: tuple[int, int], *, mirror: bool
) -> Tensor:
    """Return maps (n, h, w) of a batch's n labels, of the images or of their mirror images."""
    with record_activations(network, [layer]) as activations:
        scores = class_scores(network, images.flip(-1) if mirror else images, labels)
        maps = gradcam_maps(scores, activations[0], labels, layer)[labels != 0]
    return _to_grid(maps.flip(-1) if mirror else maps, grid)


def _to_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return maps (n, h, w) at another size, resized bilinearly."""
    if not len(maps):
        return maps.new_zeros(0, *grid)
    return functional.interpolate(maps[None], grid, mode="bilinear")[0]
