"""Writing a seed cache in one go; :mod:`datamodules.cache.making` is for several goes and several processes."""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import NDArray

from datamodules.cache.format import FORMAT, INDEX, MANIFEST, SHARD_SIZE, VERSION, shard_name, signed
from datamodules.cache.index import index_bytes
from datamodules.cache.shard import Parts, ShardBuilder
from datamodules.errors import InputError
from datamodules.files import write_atomically


def write_shard(folder: Path, number: int, shard: ShardBuilder) -> dict[str, Any]:
    """Write a shard whole or not at all.

    Returns:
        What the manifest says of it: ``sha256``, ``bytes``, ``pictures``.

    Raises:
        InputError: the disk does not take it.
    """
    content = shard.tobytes()
    write_atomically(folder / shard_name(number), content)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "pictures": len(shard.ids)}


def write_manifest(
    folder: Path,
    manifest: Mapping[str, Any],
    shards: Sequence[Mapping[str, Any]],
    ids: Sequence[Sequence[str]],
    left_out: Mapping[str, str],
) -> None:
    """Write index and manifest, after all shards: with this the folder becomes a cache.

    Args:
        folder: where the shards are.
        manifest: the makers' settings and ``classes``.
        shards: what :func:`write_shard` said of each.
        ids: each shard's images.
        left_out: images that could not be used: id and reason.

    Raises:
        InputError: an id comes twice, or the disk does not take it.
    """
    index = index_bytes(ids)
    write_atomically(folder / INDEX, index)
    known = {"sha256": hashlib.sha256(index).hexdigest(), "bytes": len(index)}
    head = {"format": FORMAT, "version": VERSION, "pictures": sum(map(len, ids)), "left_out": dict(left_out)}
    write_atomically(folder / MANIFEST, signed({**manifest, **head, "shards": list(shards), "index": known}))


class CacheWriter:
    """Writes a cache; a context manager. Only leaving it without an error makes the cache appear under its name."""

    def __init__(
        self,
        path: str | Path,
        classes: Sequence[str],
        manifest: Mapping[str, Any],
        *,
        overwrite: bool = False,
        shard_size: int = SHARD_SIZE,
        left_out: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            path: the folder to be; its parents are made.
            classes: names of the classes 1..C.
            manifest: what should be remembered of the making; plain JSON values.
            overwrite: replace a cache that is already there (never a folder that is not a cache).
            shard_size: images a shard.
            left_out: images that could not be used: id and reason.

        Raises:
            InputError: the folder exists and may not be replaced.
        """
        self.path, self.classes, self.shard_size = Path(path), tuple(classes), shard_size
        if self.path.exists() and not (overwrite and (self.path / MANIFEST).is_file()):
            is_cache = (self.path / MANIFEST).is_file()
            why = "ask for it to be overwritten, or" if is_cache else "it is not a seed cache;"
            raise InputError(f"{self.path} exists already; {why} choose another output")
        self._manifest, self._left_out = {**manifest, "classes": list(classes)}, dict(left_out or {})
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._seen: set[str] = set()
        self._shard = ShardBuilder(len(self.classes))
        self._ids: list[list[str]] = []
        self._records: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """Make the neighbour that is written to.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self._part.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Finish the cache, or remove what there is of it after an error."""
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self._part, ignore_errors=True)

    def add(self, name: str, cues: NDArray[np.uint8], **parts: Unpack[Parts]) -> None:
        """Add an image; arguments as of :meth:`datamodules.cache.shard.ShardBuilder.add`.

        Raises:
            InputError: an id twice, a value or shape that does not fit, or the disk does not take it.
        """
        if name in self._seen:
            raise InputError(f"image {name} comes twice")
        self._shard.add(name, cues, **parts)
        self._seen.add(name)
        if len(self._shard.ids) == self.shard_size:
            self._write_shard()

    def _write_shard(self) -> None:
        self._records.append(write_shard(self._part, len(self._records), self._shard))
        self._ids.append(self._shard.ids)
        self._shard = ShardBuilder(len(self.classes))

    def _finish(self) -> None:
        if self._shard.ids:
            self._write_shard()
        write_manifest(self._part, self._manifest, self._records, self._ids, self._left_out)
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        try:
            if self.path.exists():  # a cache that may be replaced
                self.path.replace(old)
            try:
                self._part.replace(self.path)
            except OSError:
                if old.exists():
                    old.replace(self.path)
                raise
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        shutil.rmtree(old, ignore_errors=True)
