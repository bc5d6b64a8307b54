"""Read, verify and describe a seed cache: the cues, class activation maps and background saliency of images, by id.

A seed cache is a folder of shards, ``*.safetensors``, each of some hundreds of images; their format is in
:mod:`datamodules.seed_shard`. A shard's number is in its header; its file may have any name.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import AnyPath, differences
from datamodules.progress import track
from datamodules.seed_shard import Floats, Shard

OPEN_SHARDS = 128
"""Shards that are open at a time, each a mapping of its file and some 500 kB."""

INDEX = "index.safetensors"
"""File name of a cache's index, which is no shard."""


def list_shards(folder: AnyPath) -> list[str]:
    """Return the sorted file names of the shards in a folder: all ``.safetensors`` but hidden ones and the index.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError as error:
        raise InputError(f"{folder} is not a seed cache: {error.strerror or 'there is no such folder'}") from error
    return sorted(name for name in names if name.endswith(".safetensors") and name[0] != "." and name != INDEX)


def missing_ranges(numbers: Iterable[int], count: int) -> str:
    """Return which of 0..count-1 are not among the numbers, consecutive ones as a range, such as ``0, 3-5``."""
    gaps = [(left + 1, right - 1) for left, right in pairwise([-1, *sorted(numbers), count]) if right - left > 1]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


class SeedCache:
    """Reads a complete cache by the ids of its images.

    Opening reads the headers of all shards, a few milliseconds for each. Every array that is read is compared with
    its checksum. A cache may be passed to other processes: those that are not forked open it again.

    Attributes:
        path: the folder.
        ids: the images in order.
        classes: names of the classes 1..C of the label maps.
        settings: everything the result depends on, such as ``method``, ``fg_threshold`` and ``checkpoint_sha256``.
        inputs: where the inputs were when the first shard was written, such as ``checkpoint`` and ``data``.
        left_out: images that could not be used: id and reason.
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
        names = list_shards(self.path)
        if not names:
            raise InputError(f"{path} is not a seed cache: it contains no shards")
        first = Shard(self.path / names[0])
        self.classes, self.settings, self.inputs = first.classes, first.settings, first.inputs
        files: dict[int, str] = {}
        digests: dict[int, bytes] = {}
        ids: dict[int, list[str]] = {}
        left_out: dict[int, dict[str, str]] = {}
        for name in names:
            shard = Shard(self.path / name)
            for key, here, there in differences(first.result, shard.result):
                where = f"{key} is {here!r} in {first.path.name} and {there!r} in {name}"
                raise InputError(f"{path} contains shards of different settings: {where}; overwrite it")
            if shard.number in files:
                raise InputError(f"{path} contains shard {shard.number} twice: {files[shard.number]} and {name}")
            files[shard.number], digests[shard.number] = name, shard.digest
            ids[shard.number], left_out[shard.number] = shard.ids, shard.left_out
        if missing := missing_ranges(files, first.shards):
            lacks = f"{first.shards - len(files)} of {first.shards} shards: {missing}"
            raise InputError(f"{path} lacks {lacks}; run the command that makes it again")
        self.num_shards = len(files)
        self.left_out: dict[str, str] = {}
        self._numbers: dict[str, int] = {}  # the shard of each image in the cache
        self._files, self._digests = ([each[number] for number in range(self.num_shards)] for each in (files, digests))
        for number in range(self.num_shards):
            if twice := next((name for name in ids[number] if name in self._numbers), None):
                raise InputError(f"{path}: image {twice} occurs twice")
            self._numbers |= dict.fromkeys(ids[number], number)
            self.left_out |= left_out[number]
        self.ids = tuple(self._numbers)
        self.fingerprint = hashlib.sha256(b"".join(self._digests)).hexdigest()
        self._open = lru_cache(OPEN_SHARDS)(self.shard)

    def __reduce__(self) -> tuple[type["SeedCache"], tuple[AnyPath]]:
        return SeedCache, (self.path,)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def shard(self, number: int) -> Shard:
        """Open a shard.

        Raises:
            InputError: the shard is missing, damaged, or has been replaced since the cache was opened.
        """
        shard = Shard(self.path / self._files[number])
        if shard.digest != self._digests[number]:
            raise InputError(f"{shard.path} has been replaced since the seed cache was opened; open the cache again")
        return shard

    def _find(self, name: str) -> Shard:
        if name not in self._numbers:
            reason = self.left_out.get(name)
            why = f": it was left out when the cache was made, because {reason}" if reason else ""
            raise InputError(f"the seed cache {self.path} has no image {name}{why}")
        return self._open(self._numbers[name])

    def cues(self, name: str) -> NDArray[np.uint8]:
        """Return the cues of an image, uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.

        Raises:
            InputError: there is no such image, or its shard is damaged.
        """
        return self._find(name).cues(name)

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the raw maps of an image, rounded by :func:`datamodules.seed_shard.as_stored`.

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
    """Check every byte of every shard of a seed cache, and that the shards form one complete cache.

    Args:
        cache: a seed cache.

    Raises:
        InputError: shards are damaged, missing or of different settings; all damaged shards are named.
    """
    names, problems = list_shards(cache), []
    for name in track(names, "verifying", unit="shards"):
        try:
            Shard(cache / name).verify()
        except InputError as error:
            problems.append(str(error).removesuffix("; make the cache again"))
    if problems:
        raise InputError(f"{len(problems)} of {len(names)} shards are damaged: " + "; ".join(problems))
    seeds = SeedCache(cache)
    left_out = f", {len(seeds.left_out)} left out" if seeds.left_out else ""
    sound = f"{cache}: {len(seeds)} images in {len(names)} shards{left_out}; every byte is sound"
    Console(soft_wrap=True, highlight=False).print(sound)


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
        "settings": seeds.settings, "inputs": seeds.inputs, "left_out": seeds.left_out,
    }  # fmt: skip
    Console().print_json(json.dumps(info))
