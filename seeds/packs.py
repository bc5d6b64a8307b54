"""Pictures on their way to the classifier: read ahead, in batches that follow from the list alone.

A batch never holds pictures of two shards, nor of two sizes. So a shard's batches are the same however many processes
share the work, and with them every bit of what the network says.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.dataset import one_thread
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.photos import PhotoSet
from datamodules.transforms import Transform


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
        self, photos: PhotoSet, shards: Sequence[int], shard_size: int, batch_size: int, sizes: Sequence[int]
    ) -> None:
        """Plan the batches; no picture is read yet.

        Args:
            photos: the list.
            shards: numbers of the shards: the n-th holds the n-th ``shard_size`` pictures of the list.
            shard_size: pictures a shard.
            batch_size: pictures a batch, at most.
            sizes: sides in pixels to which each picture is warped.
        """
        self.photos = photos
        self.transforms = [Transform(size) for size in sizes]
        self.batches = [
            (shard, range(first, min(first + batch_size, end)))
            for shard, end in ((shard, min((shard + 1) * shard_size, len(photos))) for shard in shards)
            for first in range(shard * shard_size, end, batch_size)
        ]

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
        warped = (torch.from_numpy(transform(image)["image"]) for transform in self.transforms)  # (S, S, 3)
        return [picture.permute(2, 0, 1) for picture in warped]


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
