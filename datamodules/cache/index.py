"""Which image is where: a table of ids that takes one look to find any of them, however many there are.

``index.safetensors`` holds

======================  ==================================================================================
``ids``                 uint8, the names of all images in UTF-8, shard after shard, each ended by a line break
``order``               int32 (n,): the images' places 0..n-1, sorted by the first bits of the CRC-32 of their ids
``buckets``             int32 (2^b + 1,): where in ``order`` those of each value of these bits begin; 2^b < 2n
======================  ==================================================================================
"""

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from datamodules.cache.format import MAX_INDEX, check_ids
from datamodules.errors import InputError

CRC_BITS = 32
LINE_BREAK = 10


def index_bytes(ids: Sequence[Sequence[str]]) -> bytes:
    """The index of the images of each shard in turn.

    Raises:
        InputError: an id comes twice.
    """
    names = list(chain.from_iterable(ids))
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"image {twice} comes twice")
    bits = bits_for(len(names))
    hashes = np.fromiter((crc32(name.encode()) for name in names), np.uint64, len(names)) >> np.uint64(CRC_BITS - bits)
    order = np.argsort(hashes, kind="stable").astype(np.int32)
    buckets = np.searchsorted(hashes[order], np.arange(2**bits + 1, dtype=np.uint64)).astype(np.int32)
    text = np.frombuffer("".join(f"{name}\n" for name in names).encode(), np.uint8)
    content: bytes = safetensors.numpy.save({"ids": text, "order": order, "buckets": buckets})
    return content


def bits_for(pictures: int) -> int:
    """How many bits of the hash tell the buckets apart: as many buckets as images, up to a factor of 2."""
    return max(0, (pictures - 1).bit_length())


class Index:
    """An index in memory: about 15 bytes an image beside its name."""

    def __init__(self, path: Path, pictures: int, size: int, sha256: str) -> None:
        """Read it.

        Args:
            path: the file.
            pictures: how many there must be.
            size: bytes it must have.
            sha256: its checksum.

        Raises:
            InputError: it is missing, cut short, damaged, or holds an id that is none.
        """
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing or cut short; make the cache again")
        if size > MAX_INDEX:
            raise InputError(f"{path} is refused: {size} bytes are more than any index has")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(f"{path} is damaged: it is not what was written; make the cache again")
        try:
            arrays = safetensors.numpy.load(content)
            self._text, self._order, self._buckets = arrays["ids"], arrays["order"], arrays["buckets"]
            text = self._text.tobytes()
            text.decode()
        except (SafetensorError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged ({error}); make the cache again") from error
        check_ids(text, f"{path} is refused")
        self._ends = np.flatnonzero(self._text == LINE_BREAK)
        self._shift = CRC_BITS - bits_for(pictures)
        wanted = {"ids": np.uint8, "order": np.int32, "buckets": np.int32}
        shapes = [(len(self._text),), (pictures,), (2 ** bits_for(pictures) + 1,)]
        sound = [arrays[name].dtype == dtype for name, dtype in wanted.items()]
        sound += [arrays[name].shape == shape for name, shape in zip(wanted, shapes, strict=True)]
        if not all(sound) or len(self._ends) != pictures or not within(self._order, pictures):
            raise InputError(f"{path} is damaged: it does not hold the {pictures} images that the manifest names")

    def find(self, name: str) -> int | None:
        """An image's place 0..n-1, or None: a look at the images whose ids' hashes begin alike, one on average."""
        try:
            key = name.encode()
        except UnicodeEncodeError:
            return None
        bucket = crc32(key) >> self._shift
        for place in self._order[self._buckets[bucket] : self._buckets[bucket + 1]].tolist():
            start = int(self._ends[place - 1]) + 1 if place else 0
            if self._text[start : self._ends[place]].tobytes() == key:
                return int(place)
        return None

    def ids(self, first: int = 0, end: int | None = None) -> tuple[str, ...]:
        """The ids of the places ``first`` to ``end``, or of all, made anew at each call."""
        end = len(self._ends) if end is None else end
        start, stop = (int(self._ends[place - 1]) + 1 if place else 0 for place in (first, end))
        return tuple(self._text[start:stop].tobytes().decode().split("\n")[:-1])


def within(values: NDArray[Any], end: int) -> bool:
    """Whether all values are in 0..end-1."""
    return not len(values) or (int(values.min()) >= 0 and int(values.max()) < end)
