"""One shard of a seed cache: some hundreds of images in a safetensors file that describes itself.

The arrays of a shard are

======================  ==============================================================================================
``cues``                uint8, label maps one after the other: 0 = background, 1..C = class, 255 = no cue
``maps``                float16, class activation maps divided by their own maxima
``map_classes``         int32, the class 0..C-1 of each map; ``map_maxima`` float32: its maximum
``saliency``            float16, background saliency divided by its maximum
``saliency_maxima``     float32 (n,)
``rows``                int64 (n, 11): where the arrays of an image start and their shapes, the columns of :class:`Row`
``checks``              uint32 (n, 3): CRC-32 of each image's cues, maps and saliency, with its id and row
======================  ==============================================================================================

The metadata of the safetensors header has one key, ``seeds``, with one JSON object:

======================  ==============================================================================================
``format, version``     ``tag2mask-seeds`` and 3
``shard, shards``       number of the shard, counted from 0, and number of shards of the cache
``classes``             names of the classes 1..C of the label maps
``settings``            everything the result depends on: method, layer, thresholds, digests of checkpoint and labels, …
``inputs``              where the inputs were: checkpoint, images, other caches; not compared when a run is resumed
``ids``                 the images of the shard, in order
``left_out``            images that could not be used: id and reason
``checksum``            SHA-256 of all of the above, of ``rows`` and of ``checks``
======================  ==============================================================================================

A shard contains no date, host or command: its bytes depend on the settings and the inputs alone. Reading it runs no code.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack
from zlib import crc32

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from datamodules.errors import InputError

NO_CUE = 255
"""Value of a position without a cue in a label map."""

SHARD_SIZE = 256
"""Default number of images per shard."""

FORMAT, VERSION = "tag2mask-seeds", 3

# What a file may claim: a hostile one is refused before memory is allocated for it.
MAX_IMAGES = 1 << 16  # per shard
MAX_POSITIONS = 1 << 26  # of all maps of an image: 128 MB
MAX_HEADER = 1 << 24  # bytes

_METADATA = "seeds"
_DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "cues": ("U8", np.uint8), "maps": ("F16", np.float16), "map_classes": ("I32", np.int32),
    "map_maxima": ("F32", np.float32), "saliency": ("F16", np.float16), "saliency_maxima": ("F32", np.float32),
    "rows": ("I64", np.int64), "checks": ("U32", np.uint32),
}  # fmt: skip
_BAD_CHARACTERS = bytes([*range(10), *range(11, 32), 127]) + b"\\"  # a line break ends an id
_BAD_PARTS = (b"\n\n", b"\n.\n", b"\n..\n")  # parts of a path whose slashes are replaced by line breaks

Floats = NDArray[np.float32]


class DamagedError(InputError):
    """A shard is not what was written: a run that is resumed writes it again."""


class Row(NamedTuple):
    """Where the arrays of an image are: their first elements in the flat arrays, and their shapes."""

    cues: int
    cues_h: int
    cues_w: int
    maps: int
    num_maps: int
    maps_h: int
    maps_w: int
    first: int  # of the classes and maxima of its maps
    saliency: int
    saliency_h: int
    saliency_w: int


class Parts(TypedDict, total=False):
    """What a cache may contain of an image besides its cues."""

    map_classes: NDArray[np.integer[Any]]  # class 0..C-1 of each map, (k,)
    maps: Floats  # the raw maps, float32 (k, h, w), finite and not negative
    saliency: Floats  # background saliency, float32 (h, w)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def as_stored(maps: Floats) -> Floats:
    """Return maps (k, h, w) rounded as a cache returns them; cues are made of these, so that thresholds agree."""
    fractions, maxima = _fractions(maps)
    return fractions.astype(np.float32) * maxima[:, None, None]


def _fractions(maps: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Return maps (k, h, w) as float16 fractions of their own maxima, and the maxima float32 (k,)."""
    maxima = maps.max(axis=(1, 2), initial=0.0).astype(np.float32)
    return (maps / np.where(maxima > 0, maxima, 1)[:, None, None]).astype(np.float16), maxima


def check_ids(ids: bytes, where: str) -> None:
    """Check that ids are printable names or relative paths that stay inside their folder.

    Args:
        ids: ids in UTF-8, each ended by a line break.
        where: start of the error message.

    Raises:
        InputError: an id is not.
    """
    parts = b"\n" + ids.replace(b"/", b"\n")
    if len(ids.translate(None, _BAD_CHARACTERS)) < len(ids) or any(part in parts for part in _BAD_PARTS):
        bad = next(name for name in ids.split(b"\n") if not is_valid_id(name))
        raise InputError(f"{where}: {bad[:80].decode(errors='replace')!r} is not a valid id of an image")


def is_valid_id(name: bytes) -> bool:
    """Return whether an id is a printable name or relative path that stays inside its folder."""
    return not set(name) & set(_BAD_CHARACTERS) and not {b"", b".", b".."} & set(name.split(b"/"))


def plain_json(value: Any) -> str:
    """Return the one JSON text of plain values: sorted, without spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


class ShardBuilder:
    """Collects the images of one shard.

    Attributes:
        ids: the images added so far.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        """Start empty; ``classes`` are the names of the classes 1..C."""
        self.classes = tuple(classes)
        self.ids: list[str] = []
        self._rows: list[Row] = []
        self._checks: list[list[int]] = []
        self._arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in _DTYPES}
        self._ends = dict.fromkeys(("cues", "maps", "map_classes", "saliency"), 0)

    def add(self, name: str, cues: NDArray[np.uint8], **parts: Unpack[Parts]) -> None:
        """Add an image.

        Args:
            name: its id; a name or a relative path without ``..``.
            cues: label map uint8 (h, w) with values 0..C and 255.
            **parts: maps and saliency, see :class:`Parts`; their sizes may differ from that of the cues.

        Raises:
            InputError: an id, value or shape is invalid.
        """
        maps = parts.get("maps", np.zeros((0, *cues.shape[-2:]), np.float32))
        map_classes = np.asarray(parts.get("map_classes", ()), np.int32)
        saliency = parts.get("saliency", np.zeros((0, 0), np.float32))
        num_classes = len(self.classes)
        try:
            check_ids(name.encode().replace(b"\n", b"\0") + b"\n", "an image cannot be stored")
        except UnicodeEncodeError as error:
            raise InputError(f"the name {name!r} of an image is not UTF-8; rename the image") from error
        if cues.dtype != np.uint8 or cues.ndim != 2 or not _legal_cues(num_classes)[cues].all():
            raise InputError(f"the cues of {name} are not a label map (h, w) of 0..{num_classes} and {NO_CUE}")
        if not (np.isfinite(maps).all() and np.isfinite(saliency).all()) or maps.min(initial=0) < 0:
            raise InputError(f"the maps of {name} are not all finite and positive: the network is broken")
        if maps.ndim != 3 or map_classes.shape != maps.shape[:1] or not np.isin(map_classes, range(num_classes)).all():
            raise InputError(f"image {name} has maps {maps.shape} for classes {map_classes.tolist()}")
        if saliency.ndim != 2 or max(cues.size, maps.size, saliency.size) > MAX_POSITIONS:
            raise InputError(f"image {name} has maps {maps.shape} and saliency {saliency.shape}, which is too much")
        (fractions, maxima), (saliency_fractions, saliency_maximum) = _fractions(maps), _fractions(saliency[None])
        ends = self._ends
        row = Row(
            ends["cues"], *cues.shape, ends["maps"], *maps.shape, ends["map_classes"], ends["saliency"], *saliency.shape
        )
        arrays: dict[str, NDArray[Any]] = {
            "cues": cues, "maps": fractions, "map_classes": map_classes, "map_maxima": maxima,
            "saliency": saliency_fractions, "saliency_maxima": saliency_maximum,
        }  # fmt: skip
        for key, value in arrays.items():
            self._arrays[key].append(value.ravel())
        for key in ends:
            ends[key] += arrays[key].size
        self.ids.append(name)
        self._rows.append(row)
        self._checks.append([
            _crc(name, row, cues),
            _crc(name, row, map_classes, maxima, fractions),
            _crc(name, row, saliency_maximum, saliency_fractions),
        ])  # fmt: skip

    def tobytes(
        self,
        number: int,
        shards: int,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Any],
        left_out: Mapping[str, str],
    ) -> bytes:
        """Return the content of the file; equal arguments give equal bytes.

        Args:
            number: of the shard.
            shards: how many the cache has.
            settings: everything the result depends on, as plain JSON values.
            inputs: where the inputs were, as plain JSON values.
            left_out: images of the shard that could not be used: id and reason.
        """
        tensors: dict[str, NDArray[Any]] = {
            name: np.concatenate([np.zeros(0, dtype), *self._arrays[name]]) for name, (_, dtype) in _DTYPES.items()
        }
        tensors["rows"] = np.array(self._rows, np.int64).reshape(-1, len(Row._fields))
        tensors["checks"] = np.array(self._checks, np.uint32).reshape(-1, 3)
        header: dict[str, Any] = {
            "format": FORMAT, "version": VERSION, "shard": number, "shards": shards, "classes": list(self.classes),
            "settings": settings, "inputs": inputs, "ids": self.ids, "left_out": left_out,
        }  # fmt: skip
        header = json.loads(plain_json(header))  # tuples become lists, keys strings: what will be read
        header["checksum"] = _checksums(header, tensors["rows"], tensors["checks"])[1]
        content: bytes = safetensors.numpy.save(tensors, {_METADATA: plain_json(header)})
        return content


def _legal_cues(num_classes: int) -> NDArray[np.bool_]:
    """Return which values a label map may have, bool (256,)."""
    values = np.zeros(256, np.bool_)
    values[[*range(num_classes + 1), NO_CUE]] = True
    return values


def _crc(name: str, row: Sequence[int], *arrays: NDArray[Any]) -> int:
    """Return the CRC-32 of arrays of an image, with its id and row: those of another image have another."""
    total = crc32(np.array(row, np.int64).tobytes(), crc32(name.encode()))
    for array in arrays:
        total = crc32(array.tobytes(), total)
    return total


def _checksums(header: Mapping[str, Any], rows: NDArray[np.int64], checks: NDArray[np.uint32]) -> tuple[bytes, str]:
    """Return the SHA-256 of the result, and of the result together with where its inputs were."""
    result = {key: value for key, value in header.items() if key not in ("inputs", "checksum")}
    digest = hashlib.sha256(plain_json(result).encode() + rows.tobytes() + checks.tobytes()).digest()
    return digest, hashlib.sha256(digest + plain_json(header["inputs"]).encode()).hexdigest()


class Shard:
    """An open shard: its header and rows are in memory, and its arrays are mapped and read image by image.

    Attributes:
        path: the file.
        number: of the shard; ``shards`` is the number of shards of the cache.
        classes: names of the classes 1..C.
        settings: everything the result depends on.
        inputs: where the inputs were.
        ids: its images.
        left_out: images that could not be used: id and reason.
        digest: SHA-256 of everything but ``inputs``, 32 bytes.
    """

    def __init__(self, path: Path) -> None:
        """Open a shard, and check header, rows and checks.

        Raises:
            DamagedError: it is not what was written, or not a shard.
            InputError: it is missing or of another version.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER:
                raise ValueError(f"{length} bytes")  # noqa: TRY301
            opened: Any = safe_open(path, framework="numpy")
            text = (opened.metadata() or {})[_METADATA]
            header = json.loads(text)
            kind, version, checksum = header["format"], int(header["version"]), header["checksum"]
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: it has no header of a shard ({str(error)[:100]})") from error
        if kind == FORMAT and version != VERSION:
            age = "newer" if version > VERSION else "older"
            raise InputError(f"{path} is of version {version}, {age} than {VERSION}, which this program reads")
        self._open_arrays(opened, header)
        try:
            self.digest, expected = _checksums(header, self._rows, self._checks)
            sound = kind == FORMAT and checksum == expected and plain_json(header) == text
            self.number, self.shards = int(header["shard"]), int(header["shards"])
            self.classes = tuple(map(str, header["classes"]))
            self.settings: dict[str, Any] = dict(header["settings"])
            self.inputs: dict[str, Any] = dict(header["inputs"])
            self.ids = list(map(str, header["ids"]))
            self.left_out = {str(name): str(reason) for name, reason in header["left_out"].items()}
            names = "".join(f"{name}\n" for name in self.ids).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: its header is incomplete") from error
        if not sound:
            raise DamagedError(f"{path} is damaged: its header is not what was written")
        if (
            not 0 <= self.number < self.shards
            or len(self.ids) != len(self._rows)
            or names.count(b"\n") != len(self.ids)
        ):
            raise DamagedError(f"{path} is damaged: its header contradicts itself")
        check_ids(names, f"{path} is refused")
        self._legal = _legal_cues(min(len(self.classes), NO_CUE - 1))

    def _open_arrays(self, opened: Any, header: Mapping[str, Any]) -> None:
        """Check names, types and shapes of the arrays; read ``rows`` and ``checks``."""
        if sorted(opened.keys()) != sorted(_DTYPES):
            raise DamagedError(f"{self.path} is damaged: it has other arrays than a shard")
        self._flat = {name: opened.get_slice(name) for name in _DTYPES}
        if any(self._flat[name].get_dtype() != dtype for name, (dtype, _) in _DTYPES.items()):
            raise DamagedError(f"{self.path} is damaged: its arrays are of other types")
        shapes = {name: tuple(part.get_shape()) for name, part in self._flat.items()}
        images = len(header.get("ids") or ())
        expected = {"rows": (images, len(Row._fields)), "checks": (images, 3), "saliency_maxima": (images,)}
        if images > MAX_IMAGES or any(shapes[name] != shape for name, shape in expected.items()):
            raise DamagedError(f"{self.path} is damaged: its arrays are not those of {images} images")
        if any(len(shape) != 1 for name, shape in shapes.items() if name not in expected):
            raise DamagedError(f"{self.path} is damaged: its arrays are not flat")
        self._lengths = {name: shape[0] for name, shape in shapes.items()}
        self._rows: NDArray[np.int64] = opened.get_tensor("rows")
        self._checks: NDArray[np.uint32] = opened.get_tensor("checks")

    def verify(self) -> None:
        """Compare every image with its checks, so that all bytes of the file are verified.

        Raises:
            DamagedError: an image is not what was written.
        """
        for row, name in enumerate(self.ids):
            self.cues(row, name)
            self.maps(row, name)
            self.saliency(row, name)

    def cues(self, row: int, name: str) -> NDArray[np.uint8]:
        """Return the label map of an image, uint8 (h, w).

        Args:
            row: its position in the shard.
            name: its id, which is part of what is checked.

        Raises:
            DamagedError: the cues are not what was written.
        """
        place = Row(*self._rows[row].tolist())
        cues = self._read("cues", name, place.cues, place.cues_h, place.cues_w)
        if _crc(name, place, cues) != self._checks[row, 0] or not self._legal[cues].all():
            raise self._damaged(name)
        return cues

    def maps(self, row: int, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the classes (k,) of an image and its maps, float32 (k, h, w); arguments and errors as :meth:`cues`."""
        place = Row(*self._rows[row].tolist())
        classes = self._read("map_classes", name, place.first, place.num_maps)
        maxima = self._read("map_maxima", name, place.first, place.num_maps)
        fractions = self._read("maps", name, place.maps, place.num_maps, place.maps_h, place.maps_w)
        sound = _crc(name, place, classes, maxima, fractions) == self._checks[row, 1]
        if not sound or not ((classes >= 0) & (classes < len(self.classes))).all():
            raise self._damaged(name)
        return classes.astype(np.int64), fractions.astype(np.float32) * maxima[:, None, None]

    def saliency(self, row: int, name: str) -> Floats | None:
        """Return the background saliency of an image, float32 (h, w), or None; arguments and errors as :meth:`cues`."""
        place = Row(*self._rows[row].tolist())
        fractions = self._read("saliency", name, place.saliency, place.saliency_h, place.saliency_w)
        maximum = self._read("saliency_maxima", name, row, 1)
        if _crc(name, place, maximum, fractions) != self._checks[row, 2]:
            raise self._damaged(name)
        return np.asarray(fractions.astype(np.float32) * maximum) if fractions.size else None

    def _read(self, array: str, name: str, start: int, *shape: int) -> NDArray[Any]:
        """Read the part of a flat array that belongs to an image; nothing that the file does not have is allocated."""
        size = math.prod(shape)
        if min(start, *shape) < 0 or size > MAX_POSITIONS or start + size > self._lengths[array]:
            raise self._damaged(name)
        if not size:  # safetensors returns no empty slices
            return np.zeros(shape if max(shape) < MAX_POSITIONS else 0, _DTYPES[array][1])
        part: NDArray[Any] = self._flat[array][start : start + size]
        return part.reshape(shape)

    def _damaged(self, name: str) -> DamagedError:
        return DamagedError(f"{self.path} is damaged: image {name} is not what was written; make the cache again")
