"""Read, verify and describe a seed cache: the cues, class activation maps and background saliency of images, by id.

A seed cache is a folder of shards ``shard-00000.safetensors`` …, each of some hundreds of images; their format is in
:mod:`datamodules.seed_shard`.
"""

import hashlib
import json
import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from upath import UPath

from datamodules.errors import InputError
from datamodules.files import AnyPath, differences
from datamodules.progress import track
from datamodules.seed_shard import DamagedError, Floats, Shard, shard_name

OPEN_SHARDS = 128
"""Shards that are open at a time, each a mapping of its file and some 500 kB."""

_SHARD_FILE = re.compile(r"shard-(\d{5,9})\.safetensors")


def list_shards(folder: AnyPath) -> list[int]:
    """Return the sorted numbers of the shards in a folder.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    try:
        names = [_SHARD_FILE.fullmatch(file.name) for file in folder.iterdir()]
    except OSError as error:
        raise InputError(f"{folder} is not a seed cache: {error.strerror}") from error
    return sorted(int(match[1]) for match in names if match)


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
        numbers = list_shards(self.path)
        if not numbers:
            raise InputError(f"{path} is not a seed cache: it contains no {shard_name(0)}")
        first = Shard(self.path / shard_name(numbers[0]))
        self.classes, self.settings, self.inputs = first.classes, first.settings, first.inputs
        self.left_out: dict[str, str] = {}
        self._numbers: dict[str, int] = {}  # the shard of each image in the cache
        self._digests: list[bytes] = []
        for number in numbers:
            shard = Shard(self.path / shard_name(number))
            if shard.number != number:
                raise DamagedError(f"{shard.path} is damaged: it is shard {shard.number}")
            for key, here, there in differences(first.result, shard.result):
                where = f"{key} is {here!r} in {first.path.name} and {there!r} in {shard.path.name}"
                raise InputError(f"{path} contains shards of different settings: {where}; overwrite it")
            if twice := next((name for name in shard.ids if name in self._numbers), None):
                raise InputError(f"{path}: image {twice} occurs twice")
            self._numbers |= dict.fromkeys(shard.ids, number)
            self._digests.append(shard.digest)
            self.left_out |= shard.left_out
        if first.shards > len(numbers):
            missing = shard_name(next(number for number in range(first.shards) if number not in numbers))
            count = f"{first.shards - len(numbers)} of {first.shards} shards, first {missing}"
            raise InputError(f"{path} lacks {count}; run the command that makes it again")
        self.ids, self.num_shards = tuple(self._numbers), len(numbers)
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
        shard = Shard(self.path / shard_name(number))
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
    numbers, problems = list_shards(cache), []
    for number in track(numbers, "verifying", unit="shards"):
        try:
            Shard(cache / shard_name(number)).verify()
        except InputError as error:
            problems.append(str(error).removesuffix("; make the cache again"))
    if problems:
        raise InputError(f"{len(problems)} of {len(numbers)} shards are damaged: " + "; ".join(problems))
    seeds = SeedCache(cache)
    left_out = f", {len(seeds.left_out)} left out" if seeds.left_out else ""
    sound = f"{cache}: {len(seeds)} images in {len(numbers)} shards{left_out}; every byte is sound"
    Console(soft_wrap=True, highlight=False).print(sound)


def print_info(cache: UPath) -> None:
    """Print a seed cache's classes, settings, inputs, numbers of images, shards and bytes, and left-out images as JSON.

    Args:
        cache: a seed cache.

    Raises:
        InputError: there is no cache in the folder, or a shard is missing or damaged.
    """
    seeds = SeedCache(cache)
    files = [cache / shard_name(number) for number in range(seeds.num_shards)]
    info = {
        "classes": seeds.classes, "images": len(seeds), "shards": len(files),
        "bytes": sum(file.stat().st_size for file in files), "fingerprint": seeds.fingerprint,
        "settings": seeds.settings, "inputs": seeds.inputs, "left_out": seeds.left_out,
    }  # fmt: skip
    Console().print_json(json.dumps(info))
