"""What all parts of the cache agree upon: names, numbers, limits, signed JSON, how maps are rounded."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

FORMAT = "tag2mask-seeds"
VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index.safetensors"
NO_CUE = 255
SHARD_SIZE = 256  # images

# What a file may claim, so that a hostile one is refused before anything is allocated for it.
MAX_PICTURES = 1 << 16  # of a shard
MAX_CELLS = 1 << 26  # of all maps of an image: 128 MB
MAX_JSON = 1 << 28  # bytes
MAX_INDEX = 1 << 31  # bytes

Floats = NDArray[np.float32]

_BAD_CHARACTERS = bytes([*range(10), *range(11, 32), 127]) + b"\\"  # a line break ends an id
_BAD_PARTS = (b"\n\n", b"\n.\n", b"\n..\n")  # of a path, when its slashes are line breaks


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def check_ids(ids: bytes, where: str) -> None:
    """Refuse ids that, taken for a relative path, are none or lead out of a folder, and unprintable ones.

    Args:
        ids: one or more in UTF-8, each ended by a line break.
        where: what holds them, for the error.

    Raises:
        InputError: there is such an id.
    """
    parts = b"\n" + ids.replace(b"/", b"\n")
    if len(ids.translate(None, _BAD_CHARACTERS)) < len(ids) or any(part in parts for part in _BAD_PARTS):
        bad = next(name for name in ids.split(b"\n") if not good_id(name))
        raise InputError(f"{where}: {bad[:80].decode(errors='replace')!r} is no name of an image")


def good_id(name: bytes) -> bool:
    """Whether an id is a name or a relative path that stays inside its folder, of printable characters."""
    return not set(name) & set(_BAD_CHARACTERS) and not {b"", b".", b".."} & set(name.split(b"/"))


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of plain JSON values, however they are laid out in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def signed(content: dict[str, Any]) -> bytes:
    """JSON with its own checksum under ``checksum``, for :func:`read_signed`."""
    plain = json.loads(json.dumps(content))  # tuples become lists, keys strings: what will be read
    return (json.dumps(plain | {"checksum": digest(plain)}, indent=1) + "\n").encode()


def read_signed(path: Path, *, version: int, kind: str) -> dict[str, Any]:
    """Read JSON that :func:`signed` wrote, with ``format`` and ``version`` in it.

    Args:
        path: the file.
        version: the version this program reads.
        kind: what ``format`` must say.

    Raises:
        InputError: it cannot be read, is too long, of another kind or version, or is not what was written.
    """
    try:
        size = path.stat().st_size
        content: dict[str, Any] = json.loads(path.read_bytes()) if size <= MAX_JSON else {}
        found, age, checksum = content["format"], int(content["version"]), content.pop("checksum", None)
        sound = checksum == digest(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged; make the cache again") from error
    if found != kind:
        raise InputError(f"{path} is of another kind than {kind}")
    if age != version:
        than = "newer" if age > version else "older"
        raise InputError(f"{path} is of version {age}, {than} than {version}, which this program reads")
    if not sound:
        raise InputError(f"{path} is damaged: it is not what was written; make the cache again")
    return content


def scaled(maps: Floats) -> tuple[NDArray[np.float16], Floats]:
    """Maps (k, h, w) as stored: float16 fractions of their own maxima, and the maxima float32 (k,)."""
    maxima = maps.max(axis=(1, 2), initial=0.0).astype(np.float32)
    return (maps / np.where(maxima > 0, maxima, 1)[:, None, None]).astype(np.float16), maxima


def as_stored(maps: Floats) -> Floats:
    """Maps (k, h, w) as they will come back from a cache, rounded; thresholds agree when applied to these."""
    fractions, maxima = scaled(maps)
    return fractions.astype(np.float32) * maxima[:, None, None]
