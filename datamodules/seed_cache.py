"""Read a seed cache: the localization cues, class activation maps and background saliency of images, by their ids.

A seed cache is a folder of shards ``shard-00000.safetensors`` …, each of some hundreds of images; their format is in
:mod:`datamodules.seed_shard`. There may be an index beside them (:mod:`datamodules.seed_cache_index`).
"""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.seed_cache_index import CacheIndex, list_shards
from datamodules.seed_shard import NO_CUE, Floats, Shard, as_stored, shard_name

__all__ = ["NO_CUE", "OPEN_SHARDS", "SeedCache", "as_stored", "cache_fingerprint"]

OPEN_SHARDS = 128
"""Shards that are open at a time, each a mapping of its file and some 50 kB."""


class SeedCache:
    """Reads a complete cache by the ids of its images.

    Every array that is read is compared with its checksum. Memory stays what it is after opening: about 15 bytes per
    image besides its id, and the `OPEN_SHARDS` shards last read from. A cache may be passed to other processes: those
    that are not forked open it again.

    Attributes:
        path: the folder.
        classes: names of the classes 1..C of the label maps.
        settings: everything the result depends on, such as ``method``, ``fg_threshold`` and ``checkpoint_sha256``.
        inputs: where the inputs were when the first shard was written, such as ``checkpoint`` and ``data``.
        left_out: images that could not be used: id and reason.
        fingerprint: SHA-256 over all shards; equal for caches whose shards differ only in ``inputs``.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a cache by its index, which is built from the headers of the shards where necessary.

        Raises:
            InputError: there is no cache in the folder, a shard is missing or damaged, or the shards have different
                settings.
        """
        self.path = Path(path)
        self._index = CacheIndex.open(self.path)
        common = self._index.common
        self.classes: tuple[str, ...] = tuple(common["classes"])
        self.settings: dict[str, Any] = common["settings"]
        self.inputs: dict[str, Any] = common["inputs"]
        self.left_out: dict[str, str] = common["left_out"]
        self.fingerprint: str = common["fingerprint"]
        self._open: OrderedDict[int, Shard] = OrderedDict()

    def __reduce__(self) -> tuple[type["SeedCache"], tuple[Path]]:
        return SeedCache, (self.path,)

    def __len__(self) -> int:
        return int(self._index.first[-1])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    @property
    def ids(self) -> tuple[str, ...]:
        """The images in order, as new strings at each call."""
        return self._index.ids()

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self._index.digests)

    def shard(self, number: int) -> Shard:
        """Return a shard, opened if necessary; of too many open shards the one not read for longest is closed.

        Raises:
            InputError: the shard is missing, damaged, or has been replaced since the cache was opened.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = Shard(self.path / shard_name(number))
        if shard.digest != self._index.digests[number].tobytes():
            raise InputError(f"{shard.path} has been replaced since the seed cache was opened; open the cache again")
        if len(self._open) >= OPEN_SHARDS:
            self._open.popitem(last=False)
        self._open[number] = shard
        return shard

    def _find(self, name: str) -> tuple[Shard, int, str]:
        place = self._index.find(name)
        if place is None:
            reason = self.left_out.get(name)
            why = f": it was left out when the cache was made, because {reason}" if reason else ""
            raise InputError(f"the seed cache {self.path} has no image {name}{why}")
        return self.shard(place[0]), place[1], name

    def cues(self, name: str) -> NDArray[np.uint8]:
        """Return the cues of an image, uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        shard, row, name = self._find(name)
        return shard.cues(row, name)

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the raw maps of an image, rounded by :func:`datamodules.seed_shard.as_stored`.

        Returns:
            Classes 0..C-1, (k,), and maps float32 (k, h, w); k is 0 in a cache of label maps alone.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        shard, row, name = self._find(name)
        return shard.maps(row, name)

    def saliency(self, name: str) -> Floats | None:
        """Return the background saliency of an image, float32 (h, w), or None where the cache has none.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        shard, row, name = self._find(name)
        return shard.saliency(row, name)


def cache_fingerprint(path: Path) -> str | None:
    """Return the fingerprint of a seed cache, another text for a damaged or incomplete one, or None for no cache."""
    try:
        shards = list_shards(path)
    except InputError:
        return None
    if not shards:
        return None
    try:
        return SeedCache(path).fingerprint
    except InputError:
        return hashlib.sha256(f"incomplete: {sorted(shards.items())}".encode()).hexdigest()
