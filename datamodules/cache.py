"""The seed cache on disk: what a classifier said about each picture, made once, read many times.

A folder of ``manifest.json`` and ``shard-00000.safetensors`` …, some hundreds of pictures a shard; nothing in it is
ever run. The manifest is written last, into a neighbour that is renamed when it is complete: a folder with a manifest
is a whole cache. Beside the makers' settings it holds ``format``, ``version``, ``classes`` and ``shards``: for each
its ``file``, ``sha256``, ``bytes`` and ``ids``.

In a shard the arrays of its n pictures lie flat, one behind the other, with their shapes beside them:

======================  ==================================================================================
``cues``                uint8, label maps: 0 = background, 1..C = class, 255 = no cue
``cues_shape``          int32 (n, 2)
``maps``                float16, maps divided by their own maximum, k_i maps of shape ``maps_shape[i]`` each
``maps_shape``          int32 (n, 2); ``map_counts`` int32 (n,): k_i
``map_classes``         int32, ``map_maxima`` float32: of every map in turn its class 0..C-1 and its maximum
``saliency``            float16, background saliency divided by its maximum; ``saliency_shape`` int32 (n, 2)
``saliency_maxima``     float32 (n,)
======================  ==================================================================================
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from datamodules.errors import InputError

FORMAT = "tag2mask-seeds"
VERSION = 1
MANIFEST = "manifest.json"
NO_CUE = 255
SHARD_SIZE = 256  # pictures
FLAT = ("cues", "maps", "saliency")
SMALL = (*(f"{name}_shape" for name in FLAT), "map_counts", "map_classes", "map_maxima", "saliency_maxima")
SHARD_NAME = re.compile(r"shard-\d{5}\.safetensors")

Floats = NDArray[np.float32]


def scaled(maps: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Maps (k, h, w) as stored: float16 fractions of their own maxima, and the maxima float32 (k,)."""
    maxima = maps.max(axis=(1, 2), initial=0.0).astype(np.float32)
    return (maps / np.where(maxima > 0, maxima, 1)[:, None, None]).astype(np.float16), maxima


def as_stored(maps: Floats) -> Floats:
    """Maps (k, h, w) as they will come back from a cache, rounded; thresholds agree when applied to these."""
    fractions, maxima = scaled(maps)
    return fractions.astype(np.float32) * maxima[:, None, None]


class _Shard:
    """One open shard: shapes in memory, flat arrays mapped from the file and read a picture at a time."""

    def __init__(self, path: Path, pictures: int, size: int) -> None:
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing or cut short; make the cache again")
        try:
            file: Any = safe_open(path, framework="numpy")
            read = {name: file.get_tensor(name) for name in SMALL}
            self._flat = {name: file.get_slice(name) for name in FLAT}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); make the cache again") from error
        counts = read["map_counts"].astype(np.int64)
        self.map_start, self.map_classes, self.map_maxima = _starts(counts), read["map_classes"], read["map_maxima"]
        self.saliency_maxima = read["saliency_maxima"]
        self.shapes = {name: read[f"{name}_shape"].astype(np.int64) for name in FLAT}
        if any(shape.shape != (pictures, 2) or shape.min(initial=0) < 0 for shape in self.shapes.values()):
            raise InputError(f"{path} is damaged: it does not hold the {pictures} pictures that the manifest names")
        lengths = {name: shape.prod(axis=1) for name, shape in self.shapes.items()}
        self._starts = {
            name: _starts(length) for name, length in (lengths | {"maps": lengths["maps"] * counts}).items()
        }
        if any(self._flat[name].get_shape() != [int(starts[-1])] for name, starts in self._starts.items()):
            raise InputError(f"{path} is damaged: the shapes of its arrays do not add up")

    def part(self, name: str, row: int) -> NDArray[Any]:
        """A picture's stretch of a flat array."""
        start, end = (int(place) for place in self._starts[name][row : row + 2])
        part: NDArray[Any] = self._flat[name][start:end] if start < end else np.zeros(0)  # safetensors cuts no nothing
        return part


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


class SeedCache:
    """Reads a cache, a picture at a time; small enough to hand to workers, which each open the shards anew.

    Attributes:
        path: the folder.
        manifest: everything said about how the cache was made.
        classes: names of the classes 1..C of the label maps.
        ids: the pictures, in the order they were added.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the manifest.

        Raises:
            InputError: no such folder, a cache never finished, a damaged manifest, or one of another version.
        """
        self.path = Path(path)
        file = self.path / MANIFEST
        if not file.is_file():
            raise InputError(f"{self.path} is not a finished seed cache: it has no {MANIFEST}")
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if self.manifest["format"] != FORMAT:
                raise InputError(f"{file} is not the manifest of a seed cache")
            if self.manifest["version"] != VERSION:
                raise InputError(f"{file} is of version {self.manifest['version']}; this program reads {VERSION}")
            self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
            self._shards = [
                (str(s["file"]), [str(i) for i in s["ids"]], int(s["bytes"])) for s in self.manifest["shards"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} is damaged; make the cache again") from error
        if not all(SHARD_NAME.fullmatch(name) for name, _, _ in self._shards):
            raise InputError(f"{file} names a shard outside its folder; it was not written by this program")
        self._where = {
            name: (shard, row) for shard, (_, ids, _) in enumerate(self._shards) for row, name in enumerate(ids)
        }
        self.ids: tuple[str, ...] = tuple(self._where)
        self._open: dict[int, _Shard] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def _find(self, name: str) -> tuple[_Shard, int]:
        if name not in self._where:
            raise InputError(f"the seed cache {self.path} has no picture {name}")
        number, row = self._where[name]
        if number not in self._open:
            file, ids, size = self._shards[number]
            self._open[number] = _Shard(self.path / file, len(ids), size)
        return self._open[number], row

    def cues(self, name: str) -> NDArray[np.uint8]:
        """A picture's label map uint8 (h, w): 0 = background, 1..C = class, 255 = no cue.

        Raises:
            InputError: no such picture, or a damaged shard.
        """
        shard, row = self._find(name)
        return shard.part("cues", row).reshape(shard.shapes["cues"][row]).astype(np.uint8, copy=False)

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """A picture's maps: their classes 0..C-1, int64 (k,), and the maps, float32 (k, h, w), not normalised.

        k is 0 for a picture without labels and in a cache that was made of label maps only.

        Raises:
            InputError: no such picture, or a damaged shard.
        """
        shard, row = self._find(name)
        span = slice(shard.map_start[row], shard.map_start[row + 1])
        classes, maxima = shard.map_classes[span].astype(np.int64), shard.map_maxima[span]
        fractions = shard.part("maps", row).reshape(len(classes), *shard.shapes["maps"][row])
        return classes, fractions.astype(np.float32) * maxima[:, None, None]

    def saliency(self, name: str) -> Floats | None:
        """A picture's background saliency float32 (h, w), or None where none was kept.

        Raises:
            InputError: no such picture, or a damaged shard.
        """
        shard, row = self._find(name)
        shape = shard.shapes["saliency"][row]
        if not shape.prod():
            return None
        fractions = shard.part("saliency", row).reshape(shape)
        return np.asarray(fractions.astype(np.float32) * shard.saliency_maxima[row])


class CacheWriter:
    """Writes a cache; a context manager. Only leaving it without an error makes the cache appear under its name."""

    def __init__(
        self, path: str | Path, classes: Sequence[str], manifest: dict[str, Any], *, overwrite: bool = False
    ) -> None:
        """Prepare; nothing is touched yet.

        Args:
            path: the folder to be; its parents are made.
            classes: names of the classes 1..C.
            manifest: what should be remembered of the making; plain JSON values.
            overwrite: replace a cache that is already there (never a folder that is not a cache).

        Raises:
            InputError: the folder exists and may not be replaced.
        """
        self.path, self.classes = Path(path), tuple(classes)
        if self.path.exists() and not (overwrite and (self.path / MANIFEST).is_file()):
            is_cache = (self.path / MANIFEST).is_file()
            why = "ask for it to be overwritten, or" if is_cache else "it is not a seed cache;"
            raise InputError(f"{self.path} exists already; {why} choose another output")
        self._manifest = manifest | {"format": FORMAT, "version": VERSION, "classes": list(classes), "shards": []}
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._seen: set[str] = set()
        self._clear()

    def _clear(self) -> None:
        self._ids: list[str] = []
        self._rows: dict[str, list[NDArray[Any]]] = {}

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

    def add(
        self,
        name: str,
        cues: NDArray[np.uint8],
        *,
        map_classes: NDArray[np.integer[Any]] | None = None,
        maps: Floats | None = None,
        saliency: Floats | None = None,
    ) -> None:
        """Add a picture.

        Args:
            name: the picture's id, each once.
            cues: label map uint8 (h, w) with values 0..C and 255.
            map_classes: class 0..C-1 of each map, (k,).
            maps: the raw maps, float32 (k, h, w), finite and not negative.
            saliency: background saliency, float32 (h, w).

        Raises:
            InputError: an id twice, a value or shape other than these, or the disk does not take it.
        """
        if name in self._seen:
            raise InputError(f"picture {name} comes twice")
        legal = np.zeros(256, bool)
        legal[[*range(len(self.classes) + 1), NO_CUE]] = True
        if cues.dtype != np.uint8 or cues.ndim != 2 or not legal[cues].all():  # noqa: PLR2004
            raise InputError(f"the cues of {name} are no label map (h, w) of 0..{len(self.classes)} and {NO_CUE}")
        given = np.zeros((0, *cues.shape), np.float32) if maps is None else maps
        kinds = np.zeros(0, np.int32) if map_classes is None else np.asarray(map_classes, np.int32)
        salient = np.zeros((0, 0), np.float32) if saliency is None else saliency
        if not (np.isfinite(given).all() and np.isfinite(salient).all()) or given.min(initial=0) < 0:
            raise InputError(f"the maps of {name} are not all finite and positive: the classifier is broken")
        if given.ndim != 3 or kinds.shape != given.shape[:1] or not np.isin(kinds, range(len(self.classes))).all():  # noqa: PLR2004
            raise InputError(f"picture {name} has maps {given.shape} for classes {kinds.tolist()}")
        fractions, maxima = scaled(given)
        salient_fractions, salient_maximum = scaled(salient[None])
        self._seen.add(name)
        self._ids.append(name)
        row: dict[str, NDArray[Any]] = {"cues": cues.ravel(), "cues_shape": np.array([cues.shape], np.int32)}
        row |= {"maps": fractions.ravel(), "maps_shape": np.array([given.shape[1:]], np.int32), "map_classes": kinds}
        row |= {"map_maxima": maxima, "map_counts": np.array([len(kinds)], np.int32)}
        row |= {"saliency": salient_fractions.ravel(), "saliency_shape": np.array([salient.shape], np.int32)}
        row |= {"saliency_maxima": salient_maximum}
        for key, value in row.items():
            self._rows.setdefault(key, []).append(value)
        if len(self._ids) == SHARD_SIZE:
            self._write_shard()

    def _write_shard(self) -> None:
        tensors = {key: np.concatenate(parts) for key, parts in self._rows.items()}
        content = safetensors.numpy.save(tensors)
        file = f"shard-{len(self._manifest['shards']):05d}.safetensors"
        self._write(file, content)
        digest = hashlib.sha256(content).hexdigest()
        self._manifest["shards"].append({"file": file, "sha256": digest, "bytes": len(content), "ids": self._ids})
        self._clear()

    def _write(self, file: str, content: bytes) -> None:
        try:
            (self._part / file).write_bytes(content)
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error

    def _finish(self) -> None:
        if self._ids:
            self._write_shard()
        self._write(MANIFEST, json.dumps(self._manifest, indent=1).encode())
        old = self.path.with_name(f".{self.path.name}.{os.getpid()}.old")
        try:
            if self.path.exists():  # a cache that may be replaced
                self.path.replace(old)
            self._part.replace(self.path)
        except OSError as error:
            raise InputError(f"the seed cache {self.path} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(old, ignore_errors=True)
