"""Pictures on their way to the classifier: read ahead, in batches that follow from the list alone.

A batch never holds pictures of two shards, nor of two shapes. So a shard's batches are the same however many processes
share the work, and with them every bit of what the network says.
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
from seeds.making.frames import Frame, Framing, Shape


class Batch(NamedTuple):
    """Which pictures make a batch: their places in the list, all of one shard and of one frame."""

    shard: int
    places: list[int]
    frame: Frame


class Pack(NamedTuple):
    """A batch that has been read: images uint8 (B, 3, H, W) of each view, none where no picture can be read."""

    shard: int
    names: list[str]
    labels: Tensor  # (B, C)
    images: list[Tensor]
    grid: Shape  # cells of the maps and cues
    left_out: dict[str, str]  # pictures that cannot be read or are not to be, and why


class Batches(Sampler[Batch]):
    """The batches of some shards, each shard planned when its turn comes: the pictures' headers tell their shapes."""

    def __init__(
        self,
        photos: PhotoSet,
        shards: Sequence[int],
        shard_size: int,
        batch_size: int,
        framing: Framing,
        without: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; no picture is looked at yet.

        Args:
            photos: the list.
            shards: numbers of the shards: the n-th holds the n-th ``shard_size`` pictures of the list.
            shard_size: pictures a shard.
            batch_size: pictures a batch, at most.
            framing: at which sizes a picture is seen.
            without: pictures that are left out, and why.
        """
        self.photos, self.without = photos, without or {}
        self._batch_size, self._framing = batch_size, framing
        self._shards = {
            number: range(number * shard_size, min((number + 1) * shard_size, len(photos))) for number in shards
        }

    @property
    def pictures(self) -> int:
        """How many pictures these are."""
        return sum(map(len, self._shards.values()))

    def __iter__(self) -> Iterator[Batch]:
        """Shard by shard; within one, pictures of one frame together, the frame that comes first first."""
        for number, places in self._shards.items():
            alike: dict[Frame, list[int]] = {}
            for place in places:
                alike.setdefault(self._framing.read(self.photos.images[place]), []).append(place)
            for frame, same in alike.items():
                for first in range(0, len(same), self._batch_size):
                    yield Batch(number, same[first : first + self._batch_size], frame)


class Packs(Dataset[Pack]):
    """Reads batches of a photo set, each as a whole, and warps each picture to its views."""

    def __init__(self, photos: PhotoSet, without: Mapping[str, str]) -> None:
        """Prepare to read pictures of ``photos``, but not those of ``without``, each with the reason."""
        self.photos, self.without = photos, without

    def __getitem__(self, batch: Batch) -> Pack:
        """Read a batch; pictures that cannot be read, or are not to be, are left out of it and told."""
        read: dict[int, list[Tensor]] = {}
        left_out = {}
        for place in batch.places:
            if self.photos.ids[place] in self.without:
                left_out[self.photos.ids[place]] = self.without[self.photos.ids[place]]
                continue
            try:
                image = read_image(self.photos.images[place])
            except InputError as error:
                left_out[self.photos.ids[place]] = str(error)
            else:
                read[place] = [warped(image, view) for view in batch.frame.views]
        images = [torch.stack(same) for same in zip(*read.values(), strict=True)]
        labels = torch.from_numpy(self.photos.labels[list(read)])
        names = [self.photos.ids[place] for place in read]
        return Pack(batch.shard, names, labels, images, batch.frame.grid, left_out)


def warped(image: np.ndarray, shape: Shape) -> Tensor:
    """A picture uint8 (H, W, 3) at another size, uint8 (3, h, w)."""
    return torch.from_numpy(_transform(shape)(image)["image"]).permute(2, 0, 1)


@cache  # making one takes as long as a warp
def _transform(shape: Shape) -> Transform:
    return Transform(shape)


class PackLoader:
    """Batches read ahead by other processes, until there are no more or a stop is asked for."""

    def __init__(self, batches: Batches, num_workers: int, stopped: Callable[[], bool], *, pin: bool = False) -> None:
        """Read ``batches`` in their order with ``num_workers`` processes, while not ``stopped()``."""
        self._loader: DataLoader[Any] = DataLoader(
            Packs(batches.photos, batches.without),
            batch_size=None,
            sampler=batches,
            num_workers=num_workers,
            worker_init_fn=one_thread,
            pin_memory=pin,
        )
        self._stopped = stopped

    def __iter__(self) -> Iterator[Pack]:
        """The batches in their order."""
        for pack in self._loader:
            if self._stopped():
                return
            yield pack
