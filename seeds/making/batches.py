"""Batches of images for a network, read ahead by other processes.

A batch never holds images of two shards. A shard's batches are therefore the same however many processes share the
work, and so is every bit of the network's output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from datamodules.dataset import one_thread
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.photos import PhotoSet
from datamodules.transforms import Transform
from seeds.making.resize import ResizePolicy


class BatchIndices(NamedTuple):
    """The images of a batch, by their indices in the list; all are of one shard."""

    shard: int
    indices: list[int]


class ImageBatch(NamedTuple):
    """A batch that has been read: images uint8 (B, 3, H, W) at each scale, none where no image can be read."""

    shard: int
    names: list[str]
    labels: Tensor  # (B, C)
    images: list[Tensor]
    grid: tuple[int, int]  # height and width of maps and cues
    left_out: dict[str, str]  # reasons, by id, of images that cannot be read or are excluded


class Batches(Sampler[BatchIndices]):
    """The batches of some shards, in their order."""

    def __init__(
        self,
        photos: PhotoSet,
        shards: Sequence[int],
        shard_size: int,
        batch_size: int,
        policy: ResizePolicy,
        without: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; no image is read yet.

        Args:
            photos: the list of images.
            shards: numbers of the shards: the n-th holds the n-th ``shard_size`` images of the list.
            shard_size: images per shard.
            batch_size: images per batch, at most.
            policy: the sizes to which images are resized.
            without: reasons, by id, of images that are excluded.
        """
        self.photos, self.policy, self.without = photos, policy, without or {}
        self._batch_size = batch_size
        self._shards = {
            number: range(number * shard_size, min((number + 1) * shard_size, len(photos))) for number in shards
        }

    @property
    def image_count(self) -> int:
        """Number of images."""
        return sum(map(len, self._shards.values()))

    def __iter__(self) -> Iterator[BatchIndices]:
        """Iterate over the batches, shard by shard."""
        for number, indices in self._shards.items():
            for first in range(0, len(indices), self._batch_size):
                yield BatchIndices(number, list(indices[first : first + self._batch_size]))


class BatchReader(Dataset[ImageBatch]):
    """Reads whole batches and resizes each image to every scale."""

    def __init__(self, photos: PhotoSet, policy: ResizePolicy, without: Mapping[str, str]) -> None:
        """Prepare to read images of ``photos``, except those in ``without``, which has the reasons by id."""
        self.photos, self.policy, self.without = photos, policy, without

    def __getitem__(self, batch: BatchIndices) -> ImageBatch:
        """Read a batch; images that cannot be read or are excluded are listed in ``left_out``."""
        read: dict[int, list[Tensor]] = {}
        left_out = {}
        for index in batch.indices:
            name = self.photos.ids[index]
            if name in self.without:
                left_out[name] = self.without[name]
                continue
            try:
                image = read_image(self.photos.images[index])
            except InputError as error:
                left_out[name] = str(error)
            else:
                read[index] = [resized(image, side) for side in self.policy.sides]
        images = [torch.stack(same) for same in zip(*read.values(), strict=True)]
        labels = torch.from_numpy(self.photos.labels[list(read)])
        names = [self.photos.ids[index] for index in read]
        return ImageBatch(batch.shard, names, labels, images, self.policy.grid, left_out)


def resized(image: np.ndarray, side: int) -> Tensor:
    """Return an image uint8 (H, W, 3) as a square of that side, uint8 (3, side, side)."""
    return torch.from_numpy(_transform(side)(image)["image"]).permute(2, 0, 1)


@cache  # making one takes as long as resizing an image
def _transform(side: int) -> Transform:
    return Transform(side)


class BatchLoader:
    """Batches read ahead by other processes, until there are no more or a stop is asked for."""

    def __init__(self, batches: Batches, num_workers: int, stopped: Callable[[], bool], *, pin: bool = False) -> None:
        """Read ``batches`` in their order with ``num_workers`` processes, while not ``stopped()``."""
        self._loader: DataLoader[Any] = DataLoader(
            BatchReader(batches.photos, batches.policy, batches.without),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            worker_init_fn=one_thread,
            pin_memory=pin,
        )
        self._stopped = stopped

    def __iter__(self) -> Iterator[ImageBatch]:
        """Iterate over the batches in their order."""
        for batch in self._loader:
            if self._stopped():
                return
            yield batch
