"""One shard: some hundreds of images in a safetensors file, each part of each image with its checksum.

======================  ==================================================================================
``ids``                 uint8, the images' names in UTF-8, each ended by a line break
``cues``                uint8, label maps one behind the other: 0 = background, 1..C = class, 255 = no cue
``maps``                float16, maps divided by their own maximum
``map_classes``         int32, of every map in turn its class 0..C-1; ``map_maxima`` float32: its maximum
``saliency``            float16, background saliency divided by its maximum
``saliency_maxima``     float32 (n,)
``pictures``            int64 (n, 11): where an image's parts are, the columns of :class:`Row`
``checks``              uint32 (n, 3): CRC-32 of each image's cues, maps and saliency, its id and row included
======================  ==================================================================================
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack
from zlib import crc32

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from datamodules.cache.format import MAX_CELLS, MAX_PICTURES, NO_CUE, Floats, check_ids, scaled
from datamodules.errors import InputError

DTYPES = {
    "ids": "U8", "cues": "U8", "maps": "F16", "map_classes": "I32", "map_maxima": "F32", "saliency": "F16",
    "saliency_maxima": "F32", "pictures": "I64", "checks": "U32",
}  # fmt: skip

NUMPY: dict[str, type[np.generic]] = {
    "U8": np.uint8, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "U32": np.uint32
}  # fmt: skip


class Row(NamedTuple):
    """Where an image's parts are: their first cells in the flat arrays, and their shapes."""

    cues: int
    cues_h: int
    cues_w: int
    maps: int
    num_maps: int
    maps_h: int
    maps_w: int
    first: int  # of its maps' classes and maxima
    saliency: int
    saliency_h: int
    saliency_w: int


class Parts(TypedDict, total=False):
    """What may be kept of an image beside its cues."""

    map_classes: NDArray[np.integer[Any]]  # class 0..C-1 of each map, (k,)
    maps: Floats  # the raw maps, float32 (k, h, w), finite and not negative
    saliency: Floats  # background saliency, float32 (h, w)


class ShardBuilder:
    """Gathers the images of one shard."""

    def __init__(self, num_classes: int) -> None:
        """Start empty; ``num_classes`` without background."""
        self.num_classes = num_classes
        self.ids: list[str] = []
        self._rows: list[Row] = []
        self._checks: list[tuple[int, int, int]] = []
        self._parts: dict[str, list[NDArray[Any]]] = {name: [] for name in DTYPES}
        self._ends = dict.fromkeys(("cues", "maps", "saliency", "map_classes"), 0)

    def add(self, name: str, cues: NDArray[np.uint8], **parts: Unpack[Parts]) -> None:
        """Add an image.

        Args:
            name: the image's id; a name or relative path without ``..``.
            cues: label map uint8 (h, w) with values 0..C and 255.
            **parts: its maps and saliency, as of :class:`Parts`, each of any size.

        Raises:
            InputError: an id, value or shape that does not fit.
        """
        maps = parts.get("maps", np.zeros((0, *cues.shape[-2:]), np.float32))
        kinds = np.asarray(parts.get("map_classes", ()), np.int32)
        saliency = parts.get("saliency", np.zeros((0, 0), np.float32))
        self._check(name, cues, kinds, maps, saliency)
        fractions, maxima = scaled(maps)
        salient_fractions, salient_maximum = scaled(saliency[None])
        ends = self._ends
        row = Row._make((
            ends["cues"], *cues.shape, ends["maps"], *maps.shape, ends["map_classes"], ends["saliency"],
            *saliency.shape,
        ))  # fmt: skip
        arrays: dict[str, NDArray[Any]] = {
            "cues": cues, "maps": fractions, "map_classes": kinds, "map_maxima": maxima,
            "saliency": salient_fractions, "saliency_maxima": salient_maximum,
        }  # fmt: skip
        for key, value in arrays.items():
            self._parts[key].append(value.ravel())
        for key in ends:
            ends[key] += arrays[key].size
        self.ids.append(name)
        self._rows.append(row)
        self._checks.append((
            checksum(name, row, cues),
            checksum(name, row, kinds, maxima, fractions),
            checksum(name, row, salient_maximum, salient_fractions),
        ))  # fmt: skip

    def _check(
        self, name: str, cues: NDArray[np.uint8], kinds: NDArray[np.int32], maps: Floats, saliency: Floats
    ) -> None:
        try:
            key = name.encode().replace(b"\n", b"\0") + b"\n"
        except UnicodeEncodeError as error:
            raise InputError(f"an image's name {name!r} is not UTF-8; rename it") from error
        check_ids(key, "an image cannot be kept")
        if cues.dtype != np.uint8 or cues.ndim != 2 or not legal(self.num_classes)[cues].all():
            raise InputError(f"the cues of {name} are no label map (h, w) of 0..{self.num_classes} and {NO_CUE}")
        if not (np.isfinite(maps).all() and np.isfinite(saliency).all()) or maps.min(initial=0) < 0:
            raise InputError(f"the maps of {name} are not all finite and positive: the classifier is broken")
        if maps.ndim != 3 or kinds.shape != maps.shape[:1] or not np.isin(kinds, range(self.num_classes)).all():
            raise InputError(f"image {name} has maps {maps.shape} for classes {kinds.tolist()}")
        if saliency.ndim != 2 or max(cues.size, maps.size, saliency.size) > MAX_CELLS:
            raise InputError(f"image {name} has maps {maps.shape} and saliency {saliency.shape}, which is too much")

    def tobytes(self) -> bytes:
        """The shard's file, the same bytes for the same images."""
        tensors: dict[str, NDArray[Any]] = {
            name: np.concatenate([np.zeros(0, NUMPY[DTYPES[name]]), *parts]) for name, parts in self._parts.items()
        }
        tensors["ids"] = np.frombuffer("".join(f"{name}\n" for name in self.ids).encode(), np.uint8)
        tensors["pictures"] = np.array(self._rows, np.int64).reshape(-1, len(Row._fields))
        tensors["checks"] = np.array(self._checks, np.uint32).reshape(-1, 3)
        content: bytes = safetensors.numpy.save(tensors)
        return content


def legal(num_classes: int) -> NDArray[np.bool_]:
    """Boolean (256,): which values a label map may have."""
    values = np.zeros(256, bool)
    values[[*range(num_classes + 1), NO_CUE]] = True
    return values


def checksum(name: str, row: Sequence[int], *parts: NDArray[Any]) -> int:
    """CRC-32 of an image's part, its id and its row with it: so that no other image's is taken for it."""
    total = crc32(np.array(row, np.int64).tobytes(), crc32(name.encode()))
    for part in parts:
        total = crc32(part.tobytes(), total)
    return total


class Shard:
    """One open shard: the rows in memory, the flat arrays mapped from the file and read an image at a time."""

    def __init__(self, path: Path, pictures: int, size: int, num_classes: int) -> None:
        """Open it.

        Args:
            path: the file.
            pictures: how many the manifest says are in it.
            size: bytes the manifest says it has.
            num_classes: C.

        Raises:
            InputError: it is missing, cut short, or not such a file.
        """
        self.path, self._legal, self._num_classes = path, legal(num_classes), num_classes
        if not path.is_file() or path.stat().st_size != size:
            raise InputError(f"{path} is missing or cut short; make the cache again")
        try:
            file: Any = safe_open(path, framework="numpy")
            self._flat = {name: file.get_slice(name) for name in DTYPES}
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged ({error}); make the cache again") from error
        if any(self._flat[name].get_dtype() != dtype for name, dtype in DTYPES.items()):
            raise InputError(f"{path} is damaged: its arrays are of other types; make the cache again")
        shapes = {name: tuple(part.get_shape()) for name, part in self._flat.items()}
        wanted = {"pictures": (pictures, len(Row._fields)), "checks": (pictures, 3), "saliency_maxima": (pictures,)}
        if pictures > MAX_PICTURES or any(shapes[name] != shape for name, shape in wanted.items()):
            raise InputError(f"{path} is damaged: it does not hold the {pictures} images that the manifest names")
        if any(len(shape) != 1 for name, shape in shapes.items() if name not in wanted):
            raise InputError(f"{path} is damaged: its arrays are not flat; make the cache again")
        self._lengths = {name: shape[0] for name, shape in shapes.items()}
        self._rows: NDArray[np.int64] = file.get_tensor("pictures")
        self._checks: NDArray[np.uint32] = file.get_tensor("checks")

    def ids(self) -> list[str]:
        """The images' names, in their order.

        Raises:
            InputError: they are not text, or far too long.
        """
        text = self._part("ids", "of its ids", 0, self._lengths["ids"])
        try:
            return text.tobytes().decode().split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise self._damaged("of its ids") from error

    def cues(self, row: int, name: str) -> NDArray[np.uint8]:
        """An image's label map uint8 (h, w); arguments as all of these: its row, and its id to be checked.

        Raises:
            InputError: it is damaged.
        """
        place = Row(*self._rows[row].tolist())
        cues = self._part("cues", name, place.cues, place.cues_h, place.cues_w)
        if checksum(name, place, cues) != self._checks[row, 0] or not self._legal[cues].all():
            raise self._damaged(name)
        return cues.reshape(place.cues_h, place.cues_w)

    def maps(self, row: int, name: str) -> tuple[NDArray[np.int64], Floats]:
        """An image's classes (k,) and its maps float32 (k, h, w), as they were but for float16's rounding.

        Raises:
            InputError: they are damaged.
        """
        place = Row(*self._rows[row].tolist())
        classes = self._part("map_classes", name, place.first, place.num_maps)
        maxima = self._part("map_maxima", name, place.first, place.num_maps)
        fractions = self._part("maps", name, place.maps, place.num_maps, place.maps_h, place.maps_w)
        sound = checksum(name, place, classes, maxima, fractions) == self._checks[row, 1]
        if not sound or not ((classes >= 0) & (classes < self._num_classes)).all():
            raise self._damaged(name)
        fractions = fractions.reshape(place.num_maps, place.maps_h, place.maps_w)
        return classes.astype(np.int64), fractions.astype(np.float32) * maxima[:, None, None]

    def saliency(self, row: int, name: str) -> Floats | None:
        """An image's background saliency float32 (h, w), or None where none was kept.

        Raises:
            InputError: it is damaged.
        """
        place = Row(*self._rows[row].tolist())
        fractions = self._part("saliency", name, place.saliency, place.saliency_h, place.saliency_w)
        maximum = self._part("saliency_maxima", name, row, 1)
        if checksum(name, place, maximum, fractions) != self._checks[row, 2]:
            raise self._damaged(name)
        if not fractions.size:
            return None
        return np.asarray(fractions.reshape(place.saliency_h, place.saliency_w).astype(np.float32) * maximum)

    def _part(self, array: str, name: str, start: int, *shape: int) -> NDArray[Any]:
        """An image's stretch of a flat array; nothing is read that the file does not have."""
        if min(start, *shape) < 0:
            raise self._damaged(name)
        size = 1
        for side in shape:
            size *= side
        if size > MAX_CELLS or start + size > self._lengths[array]:
            raise self._damaged(name)
        if not size:  # safetensors cuts no nothing
            return np.zeros(0, NUMPY[DTYPES[array]])
        part: NDArray[Any] = self._flat[array][start : start + size]
        return part

    def _damaged(self, name: str) -> InputError:
        return InputError(f"{self.path} is damaged: image {name} is not what was written; make the cache again")
