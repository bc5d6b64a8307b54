"""Asking a classifier where it looks: pictures in, maps and saliency on the cues' grid out."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from datamodules.dataset import one_thread
from datamodules.errors import InputError
from datamodules.images import normalize, read_image
from datamodules.photos import PhotoSet
from datamodules.transforms import Transform
from seeds.classifier import Classifier
from seeds.gradcam import GradCAM, class_maps
from seeds.probe import probing, scores_of
from seeds.saliency import saliency_map


class Seed(NamedTuple):
    """What the classifier said about one picture: (k,) classes 0..C-1, (k, h, w) maps, (h, w) saliency."""

    name: str
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]
    saliency: NDArray[np.float32]


class _Item(NamedTuple):
    """A picture at several sizes, each uint8 (3, S, S), and its labels; or the reason why it cannot be read."""

    name: str
    labels: NDArray[np.float32]
    images: list[Tensor]
    problem: str


class _Pictures(Dataset[_Item]):
    """A photo set's pictures, each read once and warped to several sizes as in the classifier's validation."""

    def __init__(self, photos: PhotoSet, sizes: Sequence[int]) -> None:
        self.photos = photos
        self.transforms = [Transform(size) for size in sizes]

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> _Item:
        name, labels = self.photos.ids[index], self.photos.labels[index]
        try:
            image = read_image(self.photos.images[index])
        except InputError as error:  # handed on: raised in a worker, it would arrive wrapped in a traceback
            return _Item(name, labels, [], str(error))
        warped = [torch.from_numpy(transform(image)["image"]) for transform in self.transforms]
        return _Item(name, labels, [picture.permute(2, 0, 1) for picture in warped], "")


class _Pack(NamedTuple):
    """A batch of items: images uint8 (B, 3, S, S) of each size."""

    names: list[str]
    labels: Tensor  # (B, C)
    images: list[Tensor]
    problem: str


def _pack(items: list[_Item]) -> _Pack:
    problem = next((item.problem for item in items if item.problem), "")
    labels = torch.from_numpy(np.stack([item.labels for item in items]))
    images = [] if problem else [torch.stack(same) for same in zip(*(item.images for item in items), strict=True)]
    return _Pack([item.name for item in items], labels, images, problem)


def picture_loader(photos: PhotoSet, sizes: Sequence[int], batch_size: int, num_workers: int) -> DataLoader[Any]:
    """Batches of a photo set's pictures at several sizes, in their order, for :func:`seeds_of`."""
    pictures = _Pictures(photos, sizes)
    return DataLoader(pictures, batch_size, num_workers=num_workers, collate_fn=_pack, worker_init_fn=one_thread)


def seeds_of(
    network: Classifier, packs: DataLoader[Any], layers: tuple[str, str], grid: int, *, flip: bool, bf16: bool = False
) -> Iterator[Seed]:
    """The seeds of pictures in their order.

    Maps of several sizes and of the mirrored picture are brought to the cues' grid bilinearly and averaged as they
    are, before any normalisation. Saliency is that of the picture as it is, at the first size.

    Args:
        network: the classifier.
        packs: batches of pictures at their sizes.
        layers: names of the layers for maps and for saliency.
        grid: cells a side.
        flip: whether mirrored pictures are averaged in.
        bf16: whether the network computes in bfloat16 (autocast).

    Raises:
        InputError: a picture cannot be read, or its maps are not finite.
    """
    device = next(network.parameters()).device
    for pack in packs:
        if pack.problem:
            raise InputError(pack.problem)
        labels = pack.labels.to(device)
        views = [normalize(images.to(device, non_blocking=True)) for images in pack.images]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total, spread = _look_first(network, views[0], labels, layers, grid)  # (n, h, w), (B, h, w)
            others = [(view, False) for view in views[1:]] + [(view, True) for view in views if flip]
            for view, mirror in others:
                total = total + _look(network, view, labels, layers[0], grid, mirror=mirror)
        maps, saliency = (total / (1 + len(others))).cpu().numpy(), spread.cpu().numpy()
        rows, classes = (part.numpy() for part in (pack.labels != 0).nonzero(as_tuple=True))
        for row, name in enumerate(pack.names):
            own = rows == row
            if not (np.isfinite(maps[own]).all() and np.isfinite(saliency[row]).all()):
                raise InputError(f"the classifier's maps of picture {name} are not finite; train it again")
            yield Seed(name, classes[own], maps[own], saliency[row])


def _look_first(
    network: Classifier, images: Tensor, labels: Tensor, layers: tuple[str, str], grid: int
) -> tuple[Tensor, Tensor]:
    """Maps (n, grid, grid) of a batch's n labels and saliency (B, grid, grid), from one forward pass."""
    with probing(network, layers) as taps:
        scores = scores_of(network, images, labels)
        maps = class_maps(scores, taps[0], labels, layers[0], keep=True)[labels != 0]  # (n, h, w)
        saliency = saliency_map(scores, taps[1], labels, layers[1])
    return _to_grid(maps, grid, mirror=False), _to_grid(saliency, grid, mirror=False)


def _look(network: Classifier, images: Tensor, labels: Tensor, layer: str, grid: int, *, mirror: bool) -> Tensor:
    """Maps (n, grid, grid) of a batch's n labels, of the picture or its mirror image."""
    maps = GradCAM(network, layer)(images.flip(-1) if mirror else images, labels)[labels != 0]  # (n, h, w)
    return _to_grid(maps, grid, mirror=mirror)


def _to_grid(maps: Tensor, grid: int, *, mirror: bool) -> Tensor:
    if not len(maps):
        return maps.new_zeros(0, grid, grid)
    straight = maps.flip(-1) if mirror else maps
    return functional.interpolate(straight.unsqueeze(1), (grid, grid), mode="bilinear").squeeze(1)
