"""The index of a seed cache: what the headers of its shards contain, found by an image's id without reading them.

``index.safetensors`` is written by ``tag2mask seeds merge``. It follows from the shards, may be deleted at any time,
and is mapped into memory: opening a cache takes as long for a hundred million images as for a hundred. Without the
file, `read_index` reads the headers of all shards, and makes the same index in memory.

=================================  ===================================================================================
``ids, ids_offsets``               the ids of all images in the order of the shards: UTF-8, and int64 (n + 1,) offsets
``hashes``                         uint64, sorted: 64 bits of the BLAKE2b digest of each id, those left out included
``entries``                        int64: the image of each hash; -1 - i for the i-th image that was left out
``left_out, left_out_offsets``     the ids of the images that were left out
``reasons, reasons_offsets``       why they were left out
``files, files_offsets``           the file name of each shard
``digests``                        uint8 (shards, 32): digest of each shard
``first``                          int64 (shards + 1,): number of the images before each shard
=================================  ===================================================================================

The metadata of the safetensors header has one key, ``index``, with one JSON object: ``format``, ``version``, and
``classes``, ``settings`` and ``inputs`` of the shards, and ``fingerprint``.
"""

import hashlib
import json
import math
import mmap
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from datamodules.errors import InputError, errors_at
from datamodules.files import AnyPath, is_uri, list_folder, local_copy, open_atomically, read_bytes
from datamodules.progress import print_result, track
from datamodules.seed_cache.shard import Shard, plain_json
from datamodules.setting_differences import differences

INDEX = "index.safetensors"
"""File name of the index, which is no shard."""

FORMAT, VERSION = "tag2mask-seeds-index", 1
BUCKETS = 64  # a part of the hashes is sorted at a time: 1/64 of 24 bytes per image are in memory
SPOOL = 1 << 20  # bytes of a column that are kept in memory before they are kept in a temporary file
CHUNK = 1 << 16  # images
REQUESTS = 16  # headers of shards at a URI that are read at a time
FINDS = 64  # after so many, pages of the file are unmapped: 64 kB around each that was read would count as memory

_METADATA = "index"
_DTYPES: dict[str, np.dtype[Any]] = {"U64": np.dtype("<u8"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}
_TEXTS = ("ids", "left_out", "reasons", "files")
_COLUMNS = {  # those of 8 bytes first, so that all are aligned
    "hashes": "U64", "entries": "I64", "first": "I64", **{f"{name}_offsets": "I64" for name in _TEXTS},
    "digests": "U8", **dict.fromkeys(_TEXTS, "U8"),
}  # fmt: skip


class ShardEntry(NamedTuple):
    """Entry of a shard in the index.

    Attributes:
        file: its file name.
        digest: 32 bytes.
        ids: its images.
        left_out: images that could not be used: id and reason.
    """

    file: str
    digest: bytes
    ids: Sequence[str]
    left_out: Mapping[str, str]


class Texts(Sequence[str]):
    """Strings in one array of UTF-8 bytes; each is decoded when it is read. Equal to any sequence of the same strings.

    Args:
        content: uint8, the strings one after the other.
        offsets: int64 (n + 1,), where each string begins, and the last one ends.
    """

    def __init__(self, content: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self._content, self._offsets = content, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        number = range(len(self))[index]
        first, last = self._offsets[number : number + 2]
        return self._content[first:last].tobytes().decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), CHUNK):
            offsets = self._offsets[start : start + CHUNK + 1]
            content = self._content[offsets[0] : offsets[-1]].tobytes()
            ends = (offsets - offsets[0]).tolist()
            yield from (content[first:last].decode(errors="surrogatepass") for first, last in pairwise(ends))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class CacheIndex:
    """What a seed cache contains: images, those left out, and shards; no shard is read.

    Attributes:
        path: the file; None for an index that was made in memory.
        ids: the images in the order of the shards.
        left_out: images that could not be used: id and reason.
        files: file names of the shards.
        classes: names of the classes 1..C.
        settings: everything the result depends on.
        inputs: where the inputs were when the first shard was written.
        fingerprint: SHA-256 over all shards.
    """

    def __init__(self, file: bytes | mmap.mmap, path: AnyPath | None) -> None:
        """Interpret the bytes of an index.

        Args:
            file: its bytes.
            path: its name.

        Raises:
            InputError: it is damaged, or of another version.
        """
        content = np.frombuffer(file, np.uint8)
        self.path, self._file, self._content, self._finds = path, file, content, 0
        damaged = f"{path} is damaged: delete it, or run seeds merge again"
        try:
            start = 8 + int.from_bytes(content[:8].tobytes(), "little")
            columns = json.loads(content[8:start].tobytes())
            header = json.loads(columns.pop("__metadata__")[_METADATA])
            is_known = (header["format"], header["version"]) == (FORMAT, VERSION)
            arrays, end = dict[str, NDArray[Any]](), start
            for name, column in columns.items():
                first, end = (start + offset for offset in column["data_offsets"])
                arrays[name] = content[first:end].view(_DTYPES[column["dtype"]]).reshape(column["shape"])
            self.classes = tuple(map(str, header["classes"]))
            self.settings: dict[str, Any] = header["settings"]
            self.inputs: dict[str, Any] = header["inputs"]
            self.fingerprint = str(header["fingerprint"])
            self.ids, self.left_out_ids, self.reasons, self.files = (
                Texts(arrays[name], arrays[f"{name}_offsets"]) for name in _TEXTS
            )
            self._hashes, self._entries = arrays["hashes"], arrays["entries"]
            self._first, self._digests = arrays["first"], arrays["digests"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise InputError(damaged) from error
        if not is_known or end != len(content):
            raise InputError(damaged if is_known else f"{path} is of another version: run seeds merge again")
        self.left_out = LeftOut(self)

    def find(self, name: str) -> int | None:
        """Return the number of an image; -1 - i for the i-th image that was left out, and None for others."""
        self._finds += 1
        if self._finds % FINDS == 0 and isinstance(self._file, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._file.madvise(mmap.MADV_DONTNEED)
        wanted = np.frombuffer(hash_id(name.encode(errors="surrogatepass")), "<u8")[0]
        count = len(self._hashes)
        guess, width = int(wanted) * count >> 64, 2 * math.isqrt(count) + 64
        start = max(0, guess - width)
        hashes = self._hashes[start : guess + width]  # hashes are uniform: this is within four standard deviations
        if not count or not hashes[0] < wanted <= hashes[-1]:
            start, hashes = 0, self._hashes
        position = start + int(np.searchsorted(hashes, wanted))
        while position < count and self._hashes[position] == wanted:
            entry = int(self._entries[position])
            if name == (self.ids[entry] if entry >= 0 else self.left_out_ids[-1 - entry]):
                return entry
            position += 1  # another id with the same hash
        return None

    def shard_of(self, entry: int) -> int:
        """Return the number of the shard that contains an image."""
        return int(np.searchsorted(self._first, entry, side="right")) - 1

    def is_equal(self, file: IO[bytes]) -> bool:
        """Return whether another index, read from where its file is, has the same bytes."""
        starts = range(0, len(self._content) + 1, 1 << 20)
        return all(self._content[start : start + (1 << 20)].tobytes() == file.read(1 << 20) for start in starts)

    def digest(self, number: int) -> bytes:
        """Return the digest of a shard, 32 bytes."""
        digest: bytes = self._digests[number].tobytes()
        return digest


class LeftOut(Mapping[str, str]):
    """The images that a seed cache has left out: id and reason, read from its index one by one."""

    def __init__(self, index: CacheIndex) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index.left_out_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.left_out_ids)

    def __getitem__(self, name: str) -> str:
        entry = self._index.find(name)
        if entry is None or entry >= 0:
            raise KeyError(name)
        return self._index.reasons[-1 - entry]


def hash_id(name: bytes) -> bytes:
    """Return 8 bytes that depend on an id alone."""
    return hashlib.blake2b(name, digest_size=8).digest()


def is_shard(name: str) -> bool:
    """Return whether a file of a cache is a shard: all ``.safetensors`` but hidden ones and the index are."""
    return name.endswith(".safetensors") and name[0] != "." and name != INDEX


def list_shards(folder: AnyPath) -> list[str]:
    """Return the sorted file names of the shards in a folder.

    Raises:
        InputError: the folder does not exist or cannot be read.
    """
    try:
        _, names = list_folder(folder)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "is not a seed cache" if is_missing else "cannot be read"
        raise InputError(f"{folder} {problem}: {error.strerror or error}") from error
    return sorted(filter(is_shard, names))


def missing_ranges(numbers: Iterable[int], count: int) -> str:
    """Return which of 0..count-1 are not among the numbers, consecutive ones as a range, such as ``0, 3-5``."""
    gaps = [(left + 1, right - 1) for left, right in pairwise([-1, *sorted(numbers), count]) if right - left > 1]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in gaps)


def write_index(
    output: IO[bytes], shards: Iterable[ShardEntry], header: Mapping[str, Any], folder: str | None = None
) -> None:
    """Write an index; equal arguments give equal bytes.

    Args:
        output: the file.
        shards: what it contains, in the order of the shards; read once.
        header: ``classes``, ``settings`` and ``inputs``.
        folder: for temporary files, which are as large as the index; the system's folder if not given.

    Raises:
        InputError: an image occurs twice.
    """
    with ExitStack() as stack:
        writer = _IndexWriter(stack, folder)
        for shard in shards:
            writer.add(shard)
        writer.sort()
        writer.write(output, header)


class _IndexWriter:
    """Collects the columns of an index in temporary files; a 64th of the hashes is in memory when they are sorted."""

    def __init__(self, stack: ExitStack, folder: str | None) -> None:
        def spool() -> IO[bytes]:
            return stack.enter_context(SpooledTemporaryFile(SPOOL, dir=folder))

        self._columns, self._buckets = {name: spool() for name in _COLUMNS}, [spool() for _ in range(BUCKETS)]
        self._counts, self._ends, self._fingerprint = Counter[str](), Counter[str](), hashlib.sha256()
        self._hashes, self._entries = list[bytes](), list[NDArray[np.int64]]()  # not yet in a bucket
        for name in ("first", *(f"{name}_offsets" for name in _TEXTS)):
            self._columns[name].write(bytes(8))

    def add(self, shard: ShardEntry) -> None:
        """Append a shard."""
        numbers = self._counts["ids"] + np.arange(len(shard.ids))
        left_out = -1 - self._counts["left_out"] - np.arange(len(shard.left_out))
        self._entries += [numbers, left_out]
        self._hashes += map(hash_id, self._add_texts("ids", shard.ids))
        self._hashes += map(hash_id, self._add_texts("left_out", shard.left_out))
        self._add_texts("reasons", shard.left_out.values())
        self._add_texts("files", [shard.file])
        self._columns["first"].write(self._counts["ids"].to_bytes(8, "little"))
        self._columns["digests"].write(shard.digest)
        self._fingerprint.update(shard.digest)
        if len(self._hashes) >= CHUNK:
            self._distribute()

    def _add_texts(self, name: str, texts: Iterable[str]) -> list[bytes]:
        encoded = [text.encode(errors="surrogatepass") for text in texts]
        ends = self._ends[name] + np.cumsum([len(each) for each in encoded], dtype=np.int64)
        self._columns[name].write(b"".join(encoded))
        self._columns[f"{name}_offsets"].write(ends.tobytes())
        self._ends[name] += sum(map(len, encoded))
        self._counts[name] += len(encoded)
        return encoded

    def _distribute(self) -> None:
        """Append hashes and entries, 16 bytes an image, to the buckets; each has a range of hashes."""
        records = np.empty((len(self._hashes), 2), "<u8")
        records[:, 0] = np.frombuffer(b"".join(self._hashes), "<u8")
        records[:, 1] = np.concatenate(self._entries).view("<u8")
        self._hashes, self._entries = [], []
        buckets = records[:, 0] // np.uint64(2**64 // BUCKETS)
        for number in np.unique(buckets).tolist():
            self._buckets[number].write(records[buckets == number].tobytes())

    def sort(self) -> None:
        """Write the sorted hashes and their entries.

        Raises:
            InputError: an image occurs twice.
        """
        if self._entries:
            self._distribute()
        for bucket in self._buckets:
            bucket.seek(0)
            records = np.frombuffer(bucket.read(), "<u8").reshape(-1, 2)
            records = records[np.argsort(records[:, 0], kind="stable")]
            equal = np.flatnonzero(records[1:, 0] == records[:-1, 0])
            names = dict[str, int]()
            for entry in records[np.union1d(equal, equal + 1), 1].view("<i8").tolist():
                if (name := self._name(entry)) in names:
                    first, second = sorted(self._file_of(each) for each in (names[name], entry))
                    raise InputError(f"image {name} occurs twice, in {first} and {second}")
                names[name] = entry  # an id with the hash of another
            for name, values in zip(("hashes", "entries"), records.T, strict=True):
                self._columns[name].write(values.tobytes())
            bucket.truncate(0)

    def _name(self, entry: int) -> str:
        """Return the id of an image."""
        return self._text("ids", entry) if entry >= 0 else self._text("left_out", -1 - entry)

    def _file_of(self, entry: int) -> str:
        """Return the file name of the shard that contains an image."""
        if entry < 0:
            return "the images left out"
        self._columns["first"].seek(0)
        ends = np.frombuffer(self._columns["first"].read(), "<i8")[1:]
        return self._text("files", int(np.searchsorted(ends, entry, side="right")))

    def _text(self, name: str, number: int) -> str:
        self._columns[f"{name}_offsets"].seek(8 * number)
        first, last = np.frombuffer(self._columns[f"{name}_offsets"].read(16), "<i8").tolist()
        self._columns[name].seek(first)
        return self._columns[name].read(last - first).decode(errors="surrogatepass")

    def write(self, output: IO[bytes], header: Mapping[str, Any]) -> None:
        """Write the file: the header of safetensors, and all columns."""
        fingerprint = self._fingerprint.hexdigest()
        metadata = plain_json({"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, **header})
        text, end = dict[str, Any](__metadata__={_METADATA: metadata}), 0
        for name, dtype in _COLUMNS.items():
            size = self._columns[name].seek(0, os.SEEK_END)
            shape = [size // 32, 32] if name == "digests" else [size // _DTYPES[dtype].itemsize]
            text[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
            end += size
        content = json.dumps(text).encode()
        content += b" " * (-len(content) % 8)  # so that columns are aligned
        output.write(len(content).to_bytes(8, "little") + content)
        for column in self._columns.values():
            column.seek(0)
            shutil.copyfileobj(column, output, 1 << 20)


def _open_shards(folder: AnyPath, names: Sequence[str]) -> Iterator[Shard]:
    """Yield open shards; many requests at a time read headers at a URI."""
    if isinstance(folder, Path):
        yield from (Shard(folder / name) for name in names)
        return
    with ThreadPoolExecutor(REQUESTS) as pool:
        for start in range(0, len(names), 4 * REQUESTS):
            yield from pool.map(Shard, [folder / name for name in names[start : start + 4 * REQUESTS]])


def merge_shards(folder: AnyPath, output: IO[bytes], temporary: str | None = None, *, progress: bool = False) -> None:
    """Write the index of a cache from the headers of its shards.

    Args:
        folder: the cache.
        output: the file.
        temporary: folder for temporary files; the system's folder if not given.
        progress: report progress.

    Raises:
        InputError: there is no cache in the folder, shards are missing, damaged or of different settings, or an image
            occurs twice.
    """
    names = list_shards(folder)
    if not names:
        raise InputError(f"{folder} is not a seed cache: it contains no shards")
    files, offsets, result = dict[int, str](), dict[int, int](), dict[str, Any]()
    with SpooledTemporaryFile(1 << 26, "w+", dir=temporary, encoding="ascii", newline="\n") as spool:
        shards = _open_shards(folder, names)
        for shard in track(shards, "merging", len(names), "shards") if progress else shards:
            name, result = shard.path.name, result or shard.result
            for key, here, there in differences(result, shard.result):
                where = f"{key} is {here!r} in {names[0]} and {there!r} in {name}"
                raise InputError(f"{folder} contains shards of different settings: {where}; overwrite it")
            if shard.number in files:
                raise InputError(f"{folder} contains shard {shard.number} twice: {files[shard.number]} and {name}")
            files[shard.number], offsets[shard.number] = name, spool.tell()
            spool.write(json.dumps([shard.digest.hex(), shard.ids, shard.left_out]) + "\n")
            if shard.number == 0:  # a cache without it is incomplete
                header = {"classes": shard.classes, "settings": shard.settings, "inputs": shard.inputs}
        if missing := missing_ranges(files, shard.shards):
            lacks = f"{shard.shards - len(files)} of {shard.shards} shards: {missing}"
            raise InputError(f"{folder} lacks {lacks}; run the command that makes it again")

        def entries() -> Iterator[ShardEntry]:
            for number in range(len(files)):
                spool.seek(offsets[number])
                digest, ids, left_out = json.loads(spool.readline())
                yield ShardEntry(files[number], bytes.fromhex(digest), ids, left_out)

        with errors_at(str(folder)):
            write_index(output, entries(), header, temporary)


def read_index(folder: AnyPath) -> CacheIndex:
    """Open the index of a seed cache, or make it in memory where there is none.

    Raises:
        InputError: the index is damaged, or as `merge_shards`.
    """
    path = folder / INDEX
    try:
        local = local_copy(path) if is_uri(path) else Path(str(path))
        if local is None or not local.stat().st_size:
            return CacheIndex(read_bytes(path), path)
        with local.open("rb") as file:
            return CacheIndex(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path)
    except (FileNotFoundError, NotADirectoryError):
        output = BytesIO()
        merge_shards(folder, output)
        return CacheIndex(output.getvalue(), None)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def merge_cache(cache: UPath) -> None:
    """Write the index of a complete seed cache, ``index.safetensors``: the cache then opens in a moment at any size.

    Args:
        cache: a seed cache.

    Raises:
        InputError: shards are missing, damaged or of different settings, an image occurs twice, or the index cannot be
            written.
    """
    list_shards(cache)  # whether there is such a folder
    with open_atomically(cache / INDEX) as output:
        merge_shards(cache, output, None if is_uri(cache) else str(cache), progress=True)
    index = read_index(cache)
    left_out = f", {len(index.left_out)} left out" if index.left_out else ""
    print_result(f"{cache / INDEX}: {len(index.ids)} images in {len(index.files)} shards{left_out}")
