"""One shard of a seed cache: some hundreds of images in a safetensors file that describes itself.

The tensors of image ``ID`` are

======================  ==============================================================================================
``ID:cues``             uint8 (h, w), label map: 0 = background, 1..C = class, 255 = no cue
``ID:maps``             float16 (k, h, w), class activation maps divided by their own maxima; where there are maps
``ID:saliency``         float16 (h, w), background saliency divided by its maximum; where there is one
======================  ==============================================================================================

The metadata of the safetensors header has one key, ``seeds``, with one JSON object:

======================  ==============================================================================================
``format, version``     ``tag2mask-seeds`` and 3
``shard, shards``       number of the shard, counted from 0, and number of shards of the cache
``classes``             names of the classes 1..C of the label maps
``settings``            everything the result depends on: method, layer, thresholds, digests of checkpoint and labels, …
``inputs``              where the inputs were: checkpoint, images, other caches; not compared when a job is resumed
``ids``                 the images of the shard, in order
``images``              per image ``classes`` 0..C-1 and ``maxima`` of the maps, ``saliency_maximum``, and ``crc``, the
                        CRC-32 of cues, maps and saliency
``left_out``            images that could not be used: id and reason
``checksum``            SHA-256 of all of the above
======================  ==============================================================================================

A shard contains no date, host or command: its bytes follow from the settings and the inputs. Reading it runs no code.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, local_copy, read_bytes
from datamodules.image_ids import is_valid_id

NO_CUE = IGNORE
"""Value of a position without a cue in a label map: losses ignore it as they ignore pixels of masks."""

SHARD_SIZE = 256
"""Default number of images per shard."""

FORMAT, VERSION = "tag2mask-seeds", 3
MAX_IMAGES = 1 << 16  # per shard
MAX_HEADER = 1 << 25  # characters of the metadata
FIRST_REQUEST = 1 << 18  # bytes that are read of a shard at a URI to begin with; headers of 256 images are shorter

_METADATA = "seeds"
_PARTS = ("cues", "maps", "saliency")
_DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "F16": np.dtype("<f2")}

Floats = NDArray[np.float32]


class DamagedError(InputError):
    """A shard is not what was written: a job that is resumed writes it again."""


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.safetensors"


def as_stored(maps: Floats) -> Floats:
    """Return maps (k, h, w) rounded as a cache returns them; cues are made of these maps."""
    fractions, maxima = _fractions(maps)
    return fractions.astype(np.float32) * maxima[:, None, None]


def _fractions(maps: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Return maps (k, h, w) as float16 fractions of their maxima, and the maxima float32 (k,)."""
    maxima = maps.max(axis=(1, 2), initial=0.0).astype(np.float32)
    return (maps / np.where(maxima > 0, maxima, 1)[:, None, None]).astype(np.float16), maxima


def plain_json(value: Any) -> str:
    """Return the one JSON text of plain values: sorted, without spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _crc(name: str, part: str, array: NDArray[Any]) -> int:
    """Return the CRC-32 of a part of an image, its shape and the image's id."""
    return crc32(array.tobytes(), crc32(f"{name}:{part}{array.shape}".encode()))


def _checksums(header: Mapping[str, Any]) -> tuple[bytes, str, str]:
    """Return checksums of a header, and its JSON text, which is made once: a large part of the time to open a shard.

    Returns:
        The SHA-256 of all but ``inputs``, which do not belong to the result; that of all; and the text.
    """
    texts = {key: f"{plain_json(key)}:{plain_json(value)}" for key, value in sorted(header.items())}
    result = ",".join(text for key, text in texts.items() if key not in ("inputs", "checksum"))
    digest = hashlib.sha256(f"{{{result}}}".encode()).digest()
    checksum = hashlib.sha256(digest + plain_json(header["inputs"]).encode()).hexdigest()
    return digest, checksum, f"{{{','.join(texts.values())}}}"


class ShardBuilder:
    """Collects the images of one shard.

    Attributes:
        classes: names of the classes 1..C.
        ids: the images added so far.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes, self.ids = tuple(classes), list[str]()
        self._images: list[dict[str, Any]] = []
        self._tensors: dict[str, NDArray[Any]] = {}

    def add(
        self, name: str, cues: NDArray[np.uint8], map_classes: Any = (), maps: Any = None, saliency: Any = None
    ) -> None:
        """Add an image; maps and saliency may have other sizes than the cues.

        Args:
            name: its id; a name or a relative path without ``..``.
            cues: label map uint8 (h, w) with values 0..C and 255.
            map_classes: class 0..C-1 of each map, (k,).
            maps: raw maps, float32 (k, h, w), finite and not negative; None for no maps.
            saliency: background saliency, float32 (h, w), or None.

        Raises:
            InputError: an id, value or shape is invalid.
        """
        classes, num_classes = np.asarray(map_classes, np.int64), len(self.classes)
        maps = np.zeros((0, 1, 1), np.float32) if maps is None else maps
        saliency = np.zeros((0, 0), np.float32) if saliency is None else saliency
        if not is_valid_id(name):
            raise InputError(f"an image cannot be stored: {name[:80]!r} is not a valid id of an image")
        if f"{name}:cues" in self._tensors:
            raise InputError(f"image {name} occurs twice")
        if cues.dtype != np.uint8 or cues.ndim != 2 or not np.isin(cues, [*range(num_classes + 1), NO_CUE]).all():
            raise InputError(f"the cues of {name} are not a label map (h, w) of 0..{num_classes} and {NO_CUE}")
        if not (np.isfinite(maps).all() and np.isfinite(saliency).all()) or maps.min(initial=0) < 0:
            raise InputError(f"the maps or the saliency of {name} are not all finite, or a map is negative")
        fits = maps.ndim == 3 and classes.shape == maps.shape[:1] and 0 not in maps.shape[1:] and saliency.ndim == 2
        if not fits or not np.isin(classes, range(num_classes)).all():
            shapes = f"maps {maps.shape} for classes {classes.tolist()}, and saliency {saliency.shape}"
            raise InputError(f"image {name} has {shapes}")
        (fractions, maxima), (saliency_fractions, saliency_maximum) = _fractions(maps), _fractions(saliency[None])
        arrays: dict[str, NDArray[Any]] = {"cues": cues, "maps": fractions, "saliency": saliency_fractions[0]}
        found = {part: np.ascontiguousarray(arrays[part]) for part in _PARTS if arrays[part].size or part == "cues"}
        self._tensors |= {f"{name}:{part}": array for part, array in found.items()}
        self._images.append({
            "classes": classes.tolist(), "maxima": maxima.tolist(), "saliency_maximum": float(saliency_maximum[0]),
            "crc": {part: _crc(name, part, array) for part, array in found.items()},
        })  # fmt: skip
        self.ids.append(name)

    def tobytes(self, **entries: Any) -> bytes:
        """Return the content of the file; equal arguments give equal bytes.

        Args:
            **entries: ``shard``, ``shards``, ``settings``, ``inputs`` and ``left_out`` of the header, see above.
        """
        header = {
            "format": FORMAT, "version": VERSION, "classes": self.classes, "ids": self.ids, "images": self._images,
            **entries,
        }  # fmt: skip
        header = json.loads(plain_json(header))  # tuples become lists, keys strings: what will be read
        header["checksum"] = _checksums(header)[1]
        content: bytes = safetensors.numpy.save(self._tensors, {_METADATA: plain_json(header)})
        return content


class _SafeRanges:
    """A safetensors file at a URI, used as `safe_open` is: a request reads the header, and one each tensor.

    Args:
        path: the file.
        content: the whole file, if it has been read already.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has no header; KeyError and TypeError where the header is damaged.
    """

    def __init__(self, path: AnyPath, content: bytes | None = None) -> None:
        self._path, self._content = path, content
        start = self._read(0, FIRST_REQUEST)
        length = int.from_bytes(start[:8], "little")
        if length > 2 * MAX_HEADER:
            raise ValueError(f"it is {length} bytes long")
        if len(start) < 8 + length:
            start += self._read(len(start), 8 + length)
        self._tensors: dict[str, Any] = dict(json.loads(start[8 : 8 + length].decode()))
        self._metadata, self._start = self._tensors.pop("__metadata__"), 8 + length

    def _read(self, start: int, end: int) -> bytes:
        if self._content is not None or start == end:
            return (self._content or b"")[start:end]
        return read_bytes(self._path, start, end)

    def metadata(self) -> dict[str, str]:
        """Return the metadata."""
        metadata: dict[str, str] = self._metadata
        return metadata

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._tensors)

    def get_tensor(self, name: str) -> NDArray[Any]:
        """Return a tensor.

        Raises:
            OSError: the file cannot be read.
            ValueError: the tensor is not in the file, or not as the header describes it; KeyError and TypeError where
                the header is damaged.
        """
        tensor = self._tensors[name]
        first, last = (self._start + offset for offset in tensor["data_offsets"])
        if not self._start <= first <= last:
            raise ValueError(f"{name} has {last - first} bytes")
        array: NDArray[Any] = np.frombuffer(self._read(first, last), _DTYPES[tensor["dtype"]])
        return array.reshape(tensor["shape"])


class Shard:
    """An open shard: its header is in memory, and its tensors are read image by image.

    A local file is mapped. A file at a URI is read by range requests, or a local copy of it is mapped.

    Attributes:
        path: the file.
        number: of the shard; ``shards`` is the number of shards of the cache.
        classes: names of the classes 1..C.
        settings: everything the result depends on.
        result: the same, with ``classes`` and ``shards``: what all shards of a cache have in common.
        inputs: where the inputs were.
        ids: its images.
        left_out: images that could not be used: id and reason.
        digest: SHA-256 of everything but ``inputs``, 32 bytes.
    """

    def __init__(self, path: AnyPath) -> None:
        """Open a shard and check its header.

        Raises:
            DamagedError: it is not what was written, or not a shard.
            InputError: it is missing or of another version.
        """
        self.path = path
        try:
            local = local_copy(path) if is_uri(path) else path
            self._file: Any = _SafeRanges(path) if local is None else safe_open(local, framework="numpy")
            self._text: str = (self._file.metadata() or {})[_METADATA]
            header = json.loads(self._text) if len(self._text) <= MAX_HEADER else {}
            kind, version = header["format"], int(header["version"])
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing") from error
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error, InputError) or (isinstance(error, OSError) and is_uri(path)):
                raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            raise DamagedError(f"{path} is damaged: it has no header of a shard ({str(error)[:100]})") from error
        if kind == FORMAT and version != VERSION:
            age = "newer" if version > VERSION else "older"
            raise InputError(f"{path} is of version {version}, {age} than {VERSION}, which this program reads")
        try:
            self.digest, checksum, text = _checksums(header)
            sound = kind == FORMAT and header["checksum"] == checksum and text == self._text
            self.number, self.shards = int(header["shard"]), int(header["shards"])
            self.classes = tuple(map(str, header["classes"]))
            self.settings: dict[str, Any] = dict(header["settings"])
            self.result = {**self.settings, "classes": list(self.classes), "shards": self.shards}
            self.inputs: dict[str, Any] = dict(header["inputs"])
            self.ids = list(map(str, header["ids"]))
            self.left_out = {str(name): str(reason) for name, reason in header["left_out"].items()}
            self._images = {
                name: (np.array(image["classes"], np.int64), np.array(image["maxima"], np.float32),
                       np.float32(image["saliency_maximum"]), dict(image["crc"]))
                for name, image in zip(self.ids, header["images"], strict=True)
            }  # fmt: skip
            keys = {f"{name}:{part}" for name, image in self._images.items() for part in image[3]}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedError(f"{path} is damaged: its header is incomplete") from error
        if not sound:
            raise DamagedError(f"{path} is damaged: its header is not what was written")
        if not 0 <= self.number < self.shards or keys != set(self._file.keys()):
            raise DamagedError(f"{path} is damaged: its header contradicts itself")
        if bad := [name for name in self.ids if not is_valid_id(name)]:
            raise InputError(f"{path} is refused: {bad[0][:80]!r} is not a valid id of an image")

    def verify(self) -> None:
        """Compare every byte of the file with what was written.

        Raises:
            DamagedError: an image is not what was written.
        """
        content = read_bytes(self.path)
        if isinstance(self._file, _SafeRanges):
            self._file = _SafeRanges(self.path, content)
        for name in self.ids:
            self.cues(name)
            self.maps(name)
            self.saliency(name)
        tensors = {key: self._file.get_tensor(key) for key in self._file.keys()}  # noqa: SIM118
        if safetensors.numpy.save(tensors, {_METADATA: self._text}) != content:
            raise DamagedError(f"{self.path} is damaged: its safetensors header is not what was written")

    def cues(self, name: str) -> NDArray[np.uint8]:
        """Return the label map of an image, uint8 (h, w).

        Raises:
            DamagedError: the cues are not what was written.
        """
        cues = self._read(name, "cues", np.uint8, 2)
        if not np.isin(cues, [*range(len(self.classes) + 1), NO_CUE]).all():
            raise self._damaged(name)
        return cues

    def map_classes(self, name: str) -> NDArray[np.int64]:
        """Return the classes 0..C-1 of the maps of an image, (k,), which are in the header; errors as `cues`."""
        classes = self._images[name][0]
        if not all(0 <= index < len(self.classes) for index in classes.tolist()):
            raise self._damaged(name)
        return classes

    def maps(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Return the classes (k,) of an image and its maps, float32 (k, h, w); errors as `cues`."""
        classes, (_, maxima, _, crc) = self.map_classes(name), self._images[name]
        if "maps" in crc:
            fractions = self._read(name, "maps", np.float16, 3)
        else:
            fractions = np.zeros((0, *self.cues(name).shape), np.float16)
        if not len(fractions) == len(classes) == len(maxima):
            raise self._damaged(name)
        return classes, fractions.astype(np.float32) * maxima[:, None, None]

    def saliency(self, name: str) -> Floats | None:
        """Return the background saliency of an image, float32 (h, w), or None; errors as `cues`."""
        _, _, maximum, crc = self._images[name]
        if "saliency" not in crc:
            return None
        return self._read(name, "saliency", np.float16, 2).astype(np.float32) * maximum

    def _read(self, name: str, part: str, dtype: type[np.generic], dimensions: int) -> NDArray[Any]:
        """Read a tensor and compare it with its CRC; safetensors allocates no more than the file has."""
        try:
            array: NDArray[Any] = self._file.get_tensor(f"{name}:{part}")
            sound = array.dtype == dtype and array.ndim == dimensions
            if sound and _crc(name, part, array) == self._images[name][3][part]:
                return array
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError):
            pass
        raise self._damaged(name)

    def _damaged(self, name: str) -> DamagedError:
        return DamagedError(f"{self.path} is damaged: image {name} is not what was written; make the cache again")
