"""Read, verify and describe a seed cache: the cues, class activation maps and background saliency of images, by id.

A seed cache is a folder of shards, ``*.safetensors``, each of some hundreds of images; their format is in
`datamodules.seed_cache.shard`. A shard's number is in its header; its file may have any name.
"""

from functools import lru_cache
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import AnyPath
from datamodules.progress import print_result, track
from datamodules.seed_cache.index import list_shards, merge_shards, missing_ranges, read_index
from datamodules.seed_cache.shard import Floats, Shard

SMALL_CLASSES = "small_classes"  # key of the settings
OPEN_SHARDS = 128
"""Shards that are open at a time, each a mapping of its file and some 500 kB."""


class SeedCache:
    """Reads a complete cache by the ids of its images.

    Opening maps the index that ``seeds merge`` has written; without one it reads the headers of all shards, a few
    milliseconds for each. Every array that is read is compared with its checksum. A cache may be passed to other
    processes: those that are not forked open it again.

    Attributes:
        path: the folder.
        ids: the images in order, a sequence that is read when needed.
        classes: names of the classes 1..C of the label maps.
        settings: everything the result depends on, such as ``method``, ``fg_threshold`` and ``checkpoint_sha256``.
        inputs: where the inputs were when the first shard was written, such as ``checkpoint`` and ``data``.
        left_out: images that could not be used: id and reason, a mapping that is read when needed.
        num_shards: number of shards.
        fingerprint: SHA-256 over all shards; equal for caches whose shards differ only in ``inputs``.
    """

    def __init__(self, path: str | AnyPath) -> None:
        """Open a cache.

        Raises:
            InputError: there is no cache in the folder, a shard is missing or damaged, the shards have different
                settings, or an image occurs twice.
        """
        self.path: AnyPath = UPath(path)
        self._index = index = read_index(self.path)
        self.classes, self.settings, self.inputs = index.classes, index.settings, index.inputs
        self.ids, self.left_out, self.num_shards = index.ids, index.left_out, len(index.files)
        self.fingerprint = index.fingerprint
        self._open = lru_cache(OPEN_SHARDS)(self.shard)

    @property
    def small_labels(self) -> list[int]:
        """Labels 1..C of the classes that ``seeds generate --small_classes`` was given."""
        small = self.settings.get(SMALL_CLASSES, ())
        return [index for index, name in enumerate(self.classes, start=1) if name in small]

    def __reduce__(self) -> tuple[type["SeedCache"], tuple[AnyPath]]:
        return SeedCache, (self.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        entry = self._index.find(name) if isinstance(name, str) else None
        return entry is not None and entry >= 0

    def shard(self, number: int) -> Shard:
        """Open a shard.

        Raises:
            InputError: the shard is missing, damaged, or has been replaced since the cache was opened.
        """
        shard = Shard(self.path / self._index.files[number])
        if shard.digest != self._index.digest(number):
            since = "its index was written; run seeds merge again"
            since = since if self._index.path else "the seed cache was opened; open the cache again"
            raise InputError(f"{shard.path} has been replaced since {since}")
        return shard

    def _find(self, name: str) -> Shard:
        entry = self._index.find(name)
        if entry is None or entry < 0:
            why = "" if entry is None else f": it was left out when the cache was made, because {self.left_out[name]}"
            raise InputError(f"the seed cache {self.path} has no image {name}{why}")
        return self._open(self._index.shard_of(entry))

    def cues(self, name: str) -> NDArray[np.uint8]:
        """Return the cues of an image, uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        return self._find(name).cues(name)

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the raw maps of an image, rounded by `datamodules.seed_cache.shard.as_stored`.

        Returns:
            Classes 0..C-1, (k,), and maps float32 (k, h, w); k is 0 in a cache of label maps alone.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        return self._find(name).maps(name)

    def saliency(self, name: str) -> Floats | None:
        """Return the background saliency of an image, float32 (h, w), or None where the cache has none.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        return self._find(name).saliency(name)


def cache_fingerprint(path: AnyPath) -> str | None:
    """Return the fingerprint of a seed cache; None where a folder contains none, or a damaged or incomplete one."""
    try:
        return SeedCache(path).fingerprint
    except InputError:
        return None


def verify_cache(cache: UPath) -> None:
    """Check every byte of every shard of a seed cache, that the shards form one complete cache, and its index.

    Args:
        cache: a seed cache.

    Raises:
        InputError: shards are damaged, missing or of different settings, and all of them are named; an image occurs
            twice; or the index is not that of the shards.
    """
    names, numbers, count, problems = list_shards(cache), list[int](), 0, list[str]()
    for name in track(names, "verifying", unit="shards"):
        try:
            shard = Shard(cache / name)
            numbers.append(shard.number)
            count = max(count, shard.shards)
            shard.verify()
        except InputError as error:
            problems.append(str(error).removesuffix("; make the cache again"))
    if problems:
        if missing := missing_ranges(numbers, count):
            problems.append(f"of {count} shards these are missing or have no header: {missing}")
        damaged = len(problems) - bool(missing)
        raise InputError(f"{damaged} of {len(names)} shards are damaged: " + "; ".join(problems))
    index = read_index(cache)
    if index.path:
        with TemporaryFile() as expected:
            merge_shards(cache, expected)
            expected.seek(0)
            if not index.is_equal(expected):
                raise InputError(f"{index.path} is not the index of these shards: delete it, or run seeds merge again")
    left_out = f", {len(index.left_out)} left out" if index.left_out else ""
    print_result(f"{cache}: {len(index.ids)} images in {len(names)} shards{left_out}; every byte is sound")


def print_info(cache: UPath) -> None:
    """Print a seed cache's classes, settings, inputs, numbers of images, shards and bytes, and left-out images as JSON.

    Args:
        cache: a seed cache.

    Raises:
        InputError: there is no cache in the folder, or a shard is missing or damaged.
    """
    seeds = SeedCache(cache)
    files = [cache / name for name in list_shards(cache)]
    info = {
        "classes": seeds.classes, "images": len(seeds), "shards": len(files),
        "bytes": sum(file.stat().st_size for file in files), "fingerprint": seeds.fingerprint,
        "settings": seeds.settings, "inputs": seeds.inputs, "left_out": dict(seeds.left_out),
    }  # fmt: skip
    Console().print_json(data=info)
