"""Reading a seed cache, an image at a time."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.cache.format import FORMAT, INDEX, MANIFEST, MAX_PICTURES, VERSION, Floats, read_signed, shard_name
from datamodules.cache.index import Index
from datamodules.cache.shard import Shard
from datamodules.errors import InputError

OPEN_SHARDS = 128  # at a time, each a mapping of its file and some 25 kB


class SeedCache:
    """Reads a cache by the images' ids.

    Every part read is compared with its checksum. Memory stays what it is after opening: about 15 bytes an image
    and its id, and the 128 shards last read from. It may be handed to workers, forked or not: those that are not
    forked read manifest and index anew.

    Attributes:
        path: the folder.
        manifest: everything said about how the cache was made.
        classes: names of the classes 1..C of the label maps.
        left_out: images of the list that could not be used, each with the reason.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the manifest and the index.

        Raises:
            InputError: no such folder, a cache never finished, a damaged manifest, or one of another version.
        """
        self.path = Path(path)
        file = self.path / MANIFEST
        if not file.is_file():
            raise InputError(f"{self.path} is not a finished seed cache: it has no {MANIFEST}")
        self.manifest = read_signed(file, version=VERSION, kind=FORMAT)
        try:
            self.classes: tuple[str, ...] = tuple(str(name) for name in self.manifest["classes"])
            self.left_out: dict[str, str] = {str(k): str(v) for k, v in self.manifest["left_out"].items()}
            self._sizes = [int(shard["bytes"]) for shard in self.manifest["shards"]]
            counts = [int(shard["pictures"]) for shard in self.manifest["shards"]]
            index = (int(self.manifest["index"]["bytes"]), str(self.manifest["index"]["sha256"]))
            self._pictures = int(self.manifest["pictures"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} is damaged; make the cache again") from error
        if min(counts, default=0) < 0 or max(counts, default=0) > MAX_PICTURES or sum(counts) != self._pictures:
            raise InputError(f"{file} is damaged: the numbers of images do not add up; make the cache again")
        self._index = Index(self.path / INDEX, self._pictures, *index)
        self._shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._first = [0, *np.cumsum(counts).tolist()]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __reduce__(self) -> tuple[type["SeedCache"], tuple[Path]]:
        return SeedCache, (self.path,)

    def __len__(self) -> int:
        return self._pictures

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    @property
    def ids(self) -> tuple[str, ...]:
        """The images, in the order they were added; made anew at each call."""
        return self._index.ids()

    def ids_of(self, number: int) -> tuple[str, ...]:
        """The images of a shard."""
        return self._index.ids(self._first[number], self._first[number + 1])

    def shard(self, number: int) -> Shard:
        """A shard, opened if it is not; the one not read from for longest is closed if too many are.

        Raises:
            InputError: it is missing or damaged.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)
        count = self._first[number + 1] - self._first[number]
        shard = Shard(self.path / shard_name(number), count, self._sizes[number], len(self.classes))
        self._open[number] = shard
        return shard

    def _find(self, name: str) -> tuple[Shard, int]:
        place = self._index.find(name)
        if place is None:
            reason = self.left_out.get(name)
            told = f": it was left out when the cache was made, because {reason}" if reason else ""
            raise InputError(f"the seed cache {self.path} has no image {name}{told}")
        number = int(self._shard_of[place])
        return self.shard(number), place - self._first[number]

    def cues(self, name: str) -> NDArray[np.uint8]:
        """An image's cues, uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.

        Raises:
            InputError: no such image, or a damaged shard.
        """
        shard, row = self._find(name)
        return shard.cues(row, name)

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """An image's raw maps, as they were but for the rounding of :func:`datamodules.cache.as_stored`.

        Returns:
            Classes 0..C-1, (k,), and maps float32 (k, h, w); k is 0 in a cache that was made of label maps only.

        Raises:
            InputError: no such image, or a damaged shard.
        """
        shard, row = self._find(name)
        return shard.maps(row, name)

    def saliency(self, name: str) -> Floats | None:
        """An image's background saliency float32 (h, w), or None where none was kept.

        Raises:
            InputError: no such image, or a damaged shard.
        """
        shard, row = self._find(name)
        return shard.saliency(row, name)
