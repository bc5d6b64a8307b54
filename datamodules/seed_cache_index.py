"""The index of a seed cache: which image is in which shard, and what the headers of all shards have in common.

``index.safetensors`` is derived from the shards. It is built when a cache is opened and the index is missing or older
than a shard; deleting it loses nothing. Finding an image takes one look-up, however many there are. The arrays are

======================  ==============================================================================================
``ids``                 uint8, the ids of all images in UTF-8, shard after shard, each ended by a line break
``order``               int32 (n,): positions 0..n-1 of the images, sorted by the CRC-32 of their ids
``buckets``             int32 (2^b + 1,): where in ``order`` each value of the first b bits of the CRC-32 begins; 2^b < 2n
``first``               int64 (shards + 1,): position of the first image of each shard, and n
``stamps``              int64 (shards, 2): size in bytes and modification time in ns of each shard
``digests``             uint8 (shards, 32): SHA-256 of each shard, see :attr:`datamodules.seed_shard.Shard.digest`
======================  ==============================================================================================
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from zlib import crc32

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from datamodules.errors import InputError
from datamodules.files import differences, write_atomically
from datamodules.seed_shard import DamagedError, Shard, check_ids, plain_json, shard_name

INDEX = "index.safetensors"
VERSION = 1
MAX_INDEX = 1 << 31  # bytes
CRC_BITS = 32
LINE_BREAK = 10

_SHARD_FILE = re.compile(r"shard-(\d{5,9})\.safetensors")
_TYPES = {
    "ids": np.uint8, "order": np.int32, "buckets": np.int32, "first": np.int64, "stamps": np.int64, "digests": np.uint8
}  # fmt: skip


def list_shards(folder: Path) -> dict[int, tuple[int, int]]:
    """Return the size in bytes and the modification time in ns of each shard in a folder, by number.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    found = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if match := _SHARD_FILE.fullmatch(entry.name):
                    status = entry.stat()
                    found[int(match[1])] = status.st_size, status.st_mtime_ns
    except OSError as error:
        raise InputError(f"{folder} is not a seed cache: {error.strerror}") from error
    return dict(sorted(found.items()))


class CacheIndex:
    """The index in memory: about 15 bytes per image besides its id.

    Attributes:
        common: ``classes``, ``settings``, ``inputs``, ``left_out`` and ``fingerprint`` of the cache.
        first: position of the first image of each shard, and the number of images, int64 (shards + 1,).
        digests: SHA-256 of each shard, uint8 (shards, 32).
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], common: dict[str, Any]) -> None:
        """Check the arrays and keep them.

        Raises:
            InputError: they contradict each other, or an id is invalid.
        """
        self._arrays, self.common = arrays, common
        self._text, self._order, self._buckets = arrays["ids"], arrays["order"], arrays["buckets"]
        self.first, self.digests = arrays["first"], arrays["digests"]
        self._ends = np.flatnonzero(self._text == LINE_BREAK)
        images, shards = len(self._order), len(self.digests)
        bits = _bucket_bits(images)
        self._shift = CRC_BITS - bits
        shapes = {
            "ids": self._text.shape[:1], "order": (images,), "buckets": (2**bits + 1,), "first": (shards + 1,),
            "stamps": (shards, 2), "digests": (shards, 32),
        }  # fmt: skip
        sound = all(
            arrays[name].dtype == dtype and arrays[name].shape == shapes[name] for name, dtype in _TYPES.items()
        )
        positions = self._order.astype(np.int64)
        sound &= len(self._ends) == images == self.first[-1] and bool((np.diff(self.first) >= 0).all())
        sound &= not images or bool(positions.min() >= 0 and positions.max() < images)
        if not sound:
            raise InputError("the index contradicts itself")
        check_ids(self._text.tobytes(), "the index is refused")

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the index of a cache, or build it where it is missing, damaged or older than a shard.

        Raises:
            InputError: there is no cache in the folder, a shard is missing or damaged, the shards have different
                settings, or an image occurs twice.
        """
        stamps = list_shards(folder)
        if not stamps:
            raise InputError(f"{folder} is not a seed cache: it contains no {shard_name(0)}")
        path = folder / INDEX
        with suppress(SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            if path.stat().st_size <= MAX_INDEX:
                with safe_open(path, framework="numpy") as file:
                    common = json.loads(file.metadata()["index"])
                    arrays = {name: file.get_tensor(name) for name in _TYPES}
                checksum, version = common.pop("checksum"), common.pop("version")
                current = version == VERSION and np.array_equal(arrays["stamps"], np.array(list(stamps.values())))
                if current and checksum == _checksum(arrays, common):
                    return cls(arrays, common)
        arrays, common = _merge_headers(folder, stamps)
        index = cls(arrays, common)
        header = {**common, "version": VERSION, "checksum": _checksum(arrays, common)}
        with suppress(InputError):  # the folder may be read-only
            write_atomically(path, safetensors.numpy.save(arrays, {"index": plain_json(header)}))
        return index

    def find(self, name: str) -> tuple[int, int] | None:
        """Return the shard of an image and its row there, or None: one comparison of ids on average."""
        try:
            key = name.encode()
        except UnicodeEncodeError:
            return None
        bucket = crc32(key) >> self._shift
        for position in self._order[self._buckets[bucket] : self._buckets[bucket + 1]].tolist():
            start = int(self._ends[position - 1]) + 1 if position else 0
            if self._text[start : self._ends[position]].tobytes() == key:
                shard = int(np.searchsorted(self.first, position, side="right")) - 1
                return shard, position - int(self.first[shard])
        return None

    def ids(self) -> tuple[str, ...]:
        """Return all ids in order, as new strings at each call."""
        return tuple(self._text.tobytes().decode().split("\n")[:-1])


def _bucket_bits(images: int) -> int:
    """Return how many bits of the CRC-32 number the buckets: there are as many as images, up to a factor of 2."""
    return max(0, (images - 1).bit_length())


def _checksum(arrays: dict[str, NDArray[Any]], common: dict[str, Any]) -> str:
    total = hashlib.sha256(plain_json(common).encode())
    for name in _TYPES:
        total.update(np.ascontiguousarray(arrays[name]).data)
    return total.hexdigest()


def _merge_headers(folder: Path, stamps: dict[int, tuple[int, int]]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the headers of all shards; errors as of :meth:`CacheIndex.open`."""
    first_shard = Shard(folder / shard_name(next(iter(stamps))))
    text, hashes, first, digests, left_out = bytearray(), [], [0], [], {}
    for number in stamps:
        shard = Shard(folder / shard_name(number))
        if shard.number != number:
            raise DamagedError(f"{shard.path} is damaged: it is shard {shard.number}")
        one, other = ({**s.settings, "classes": s.classes, "shards": s.shards} for s in (first_shard, shard))
        for key, here, there in differences(one, other):
            raise InputError(
                f"{folder} contains shards of different settings: {key} is {here!r} in {first_shard.path.name} and "
                f"{there!r} in {shard.path.name}; make the cache again, with overwrite"
            )
        names = [name.encode() for name in shard.ids]
        text += b"".join(name + b"\n" for name in names)
        hashes.append(np.fromiter(map(crc32, names), np.uint32, len(names)))
        first.append(first[-1] + len(names))
        digests.append(np.frombuffer(shard.digest, np.uint8))
        left_out |= shard.left_out
    shards = first_shard.shards
    if shards > len(stamps):
        missing = next(number for number in range(shards) if number not in stamps)
        raise InputError(
            f"{folder} lacks {shards - len(stamps)} of {shards} shards, first {shard_name(missing)}; run the command "
            "that makes it again"
        )
    crc = np.concatenate(hashes)
    order = np.argsort(crc, kind="stable").astype(np.int32)
    bits = np.uint64(_bucket_bits(len(crc)))
    prefixes = crc[order].astype(np.uint64) >> (np.uint64(CRC_BITS) - bits)
    buckets = np.searchsorted(prefixes, np.arange(2 ** int(bits) + 1, dtype=np.uint64)).astype(np.int32)
    arrays = {
        "ids": np.frombuffer(bytes(text), np.uint8), "order": order, "buckets": buckets, "first": np.array(first),
        "stamps": np.array(list(stamps.values())), "digests": np.stack(digests),
    }  # fmt: skip
    twice = np.flatnonzero(crc[order[1:]] == crc[order[:-1]])
    if len(twice):  # ids that share a checksum, or are equal
        ends = np.flatnonzero(arrays["ids"] == LINE_BREAK)
        starts = np.append(0, ends + 1)
        close = np.union1d(order[twice], order[twice + 1])
        names = [bytes(text[starts[position] : ends[position]]) for position in close]
        if len(set(names)) < len(names):
            double = next(name for name in names if names.count(name) > 1)
            raise InputError(f"{folder}: image {double.decode()} occurs twice")
    common = {
        "classes": first_shard.classes, "settings": first_shard.settings, "inputs": first_shard.inputs, "left_out": left_out,
        "fingerprint": hashlib.sha256(arrays["digests"].tobytes()).hexdigest(),
    }  # fmt: skip
    return arrays, json.loads(plain_json(common))
