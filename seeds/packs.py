"""Pictures on their way to the classifier: read ahead, in batches that follow from the list alone.

A batch never holds pictures of two shards, nor of two sizes. So a shard's batches are the same however many processes
share the work, and with them every bit of what the network says.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.dataset import one_thread
from datamodules.errors import InputError
from datamodules.images import image_size, read_image
from datamodules.photos import PhotoSet
from datamodules.transforms import Transform

STEP = 32  # pixels: sides are multiples of it where pictures keep their proportions, so that there are few shapes
LONGEST = 2.0  # proportions up to which a picture keeps its own; a panorama is squeezed to these

Shape = tuple[int, int]  # height and width in pixels


class Pack(NamedTuple):
    """A batch of one shard's pictures: images uint8 (B, 3, H, W) at each size, none where no picture can be read."""

    shard: int
    names: list[str]
    labels: Tensor  # (B, C)
    images: list[Tensor]
    left_out: dict[str, str]  # pictures that cannot be read, and why


class Packs(Dataset[Pack]):
    """The batches of some shards of a photo set, each read as a whole, each picture warped to several sizes."""

    def __init__(
        self,
        photos: PhotoSet,
        shards: Sequence[int],
        shard_size: int,
        batch_size: int,
        sizes: Sequence[int],
        *,
        keep_aspect: bool = False,
    ) -> None:
        """Plan the batches; no picture is read yet.

        Args:
            photos: the list.
            shards: numbers of the shards: the n-th holds the n-th ``shard_size`` pictures of the list.
            shard_size: pictures a shard.
            batch_size: pictures a batch, at most.
            sizes: sides in pixels of the squares to which each picture is warped.
            keep_aspect: warp to rectangles as large as these squares, see :func:`shape_like`. Pictures of one shape
                make batches of their own.
        """
        self.photos = photos
        self.sizes, self.keep_aspect = sizes, keep_aspect
        self.batches: list[tuple[int, list[int]]] = []  # shard, and places in the list
        for shard in shards:
            places = range(shard * shard_size, min((shard + 1) * shard_size, len(photos)))
            for alike in self._alike(places):
                self.batches += [
                    (shard, alike[first : first + batch_size]) for first in range(0, len(alike), batch_size)
                ]

    def _alike(self, places: Sequence[int]) -> list[list[int]]:
        """Places of pictures that will have the same shapes; looks at the head of each file if that can differ."""
        groups: dict[tuple[Shape, ...], list[int]] = defaultdict(list)
        for place in places:
            try:
                own = image_size(self.photos.images[place]) if self.keep_aspect else (1, 1)
            except InputError:  # told when it is read
                own = (1, 1)
            groups[self._shapes(own)].append(place)
        return list(groups.values())

    def _shapes(self, own: Shape) -> tuple[Shape, ...]:
        """To what a picture of its own height and width is warped."""
        return tuple(shape_like(own, size) if self.keep_aspect else (size, size) for size in self.sizes)

    @property
    def pictures(self) -> int:
        """How many pictures these are."""
        return sum(len(places) for _, places in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Pack:
        """Read a batch; pictures that cannot be read are left out of it and told."""
        shard, places = self.batches[index]
        read: dict[int, list[Tensor]] = {}
        left_out = {}
        for place in places:
            try:
                read[place] = self._warped(read_image(self.photos.images[place]))
            except InputError as error:
                left_out[self.photos.ids[place]] = str(error)
        images = [torch.stack(same) for same in zip(*read.values(), strict=True)]
        labels = torch.from_numpy(self.photos.labels[list(read)])
        return Pack(shard, [self.photos.ids[place] for place in read], labels, images, left_out)

    def _warped(self, image: np.ndarray) -> list[Tensor]:
        shapes = self._shapes((image.shape[0], image.shape[1]))
        warped = (torch.from_numpy(_warp(shape)(image)["image"]) for shape in shapes)  # (h, w, 3)
        return [picture.permute(2, 0, 1) for picture in warped]


def shape_like(own: Shape, size: int) -> Shape:
    """The shape of a picture that keeps its proportions and is about as large as a square of side ``size``.

    Sides are rounded to multiples of 32 pixels; proportions beyond 1:2 become 1:2.
    """
    ratio = min(max(own[1] / own[0], 1 / LONGEST), LONGEST)
    height, width = (max(1, round(size * share / STEP)) * STEP for share in (1 / math.sqrt(ratio), math.sqrt(ratio)))
    return height, width


@cache
def _warp(shape: Shape) -> Transform:
    return Transform(shape)


class PackLoader:
    """Batches read ahead by other processes, until there are no more or a stop is asked for."""

    def __init__(self, packs: Packs, num_workers: int, stopped: Callable[[], bool], *, pin: bool = False) -> None:
        """Read ``packs`` in their order with ``num_workers`` processes, while not ``stopped()``."""
        self._loader: DataLoader[Any] = DataLoader(
            packs, batch_size=None, num_workers=num_workers, worker_init_fn=one_thread, pin_memory=pin
        )
        self._stopped = stopped

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Pack]:
        """The batches in their order."""
        for pack in self._loader:
            if self._stopped():
                return
            yield pack
