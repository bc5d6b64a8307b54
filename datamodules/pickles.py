"""Pickles of arrays, read without running anything of what a pickle may carry.

A pickle is a program: loading it the usual way calls whatever functions it names. Here its opcodes are read one by one
(:mod:`pickletools` takes them apart and runs nothing) by a machine that knows lists, dictionaries, tuples, numbers,
strings and how an array is put together. A function's name stays a name; the few that array pickles hold stand for code
of this file, any other ends the reading. What is built is never larger than the bytes it is built from.
"""

import gzip
import io
import math
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

MAX_BYTES = 2**30  # of a pickle once unzipped; the cues of SEC's 10,582 pictures are a tenth of it
MAX_DIMENSIONS = 8
DTYPE = re.compile(r"b1|[iu][1248]|f[248]")
OBJECT = re.compile(r"O[48]")  # the shell that numpy.save puts around a dictionary

Maker = Callable[..., Any]

CONSTANTS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    ]
)
"""Opcodes that stand for their own argument."""
SINGLES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Refused(Exception):  # noqa: N818 - reads as what happened
    """A pickle holds something that is not put together here; the message continues a sentence about the file."""


class Name(NamedTuple):
    """A function or class that a pickle asks for, as its name."""

    text: str


class _DType:
    """A type of numbers in the making: its byte order comes after its name."""

    def __init__(self, code: Any, _align: Any = 0, _copy: Any = 0) -> None:
        if not isinstance(code, str) or not (DTYPE.fullmatch(code) or OBJECT.fullmatch(code)):
            raise Refused("holds an array of something other than numbers")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> "_DType":
        """The byte order, out of (version, order, None, None, None, …)."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):  # noqa: PLR2004
            raise Refused("holds an array of something other than numbers")
        if state[1] not in ("<", ">", "|", "="):
            raise Refused("holds an array of unknown byte order")
        self.order = state[1]
        return self

    def numpy(self) -> np.dtype[Any]:
        """The type itself; never one of objects."""
        if OBJECT.fullmatch(self.code):
            raise Refused("holds an array of objects")
        return np.dtype(self.code if self.order == "|" else self.order + self.code)


class _Array:
    """An array in the making: an empty shell, until its state comes."""

    def __init__(self, kind: Any, _shape: Any, _code: Any) -> None:
        if kind != Name("numpy.ndarray"):
            raise Refused("builds an array of an unknown kind")
        self.made: Any = None

    def build(self, state: Any) -> Any:
        """The array, out of (version, shape, dtype, whether in Fortran's order, bytes); what a shell holds."""
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):  # noqa: PLR2004
            raise Refused("builds an array in an unknown way")
        _, shape, dtype, fortran, content = state
        if OBJECT.fullmatch(dtype.code):
            if shape != () or not isinstance(content, list) or len(content) != 1:
                raise Refused("holds an array of objects")
            self.made = content[0]
        else:
            self.made = as_array(content, dtype.numpy(), shape, order="F" if fortran is True else "C")
        return self.made


def as_array(content: Any, dtype: np.dtype[Any], shape: Any, order: Any = "C") -> NDArray[Any]:
    """Bytes as a read-only array, if there are exactly as many as its shape needs.

    Raises:
        Refused: there are not, or the shape is none.
    """
    raw = content.encode("latin1") if isinstance(content, str) else content  # a str of Python 2 is its bytes
    sizes = shape if isinstance(shape, tuple) else (-1,)
    if len(sizes) > MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in sizes):
        raise Refused("holds an array without a proper shape")
    if not isinstance(raw, bytes) or len(raw) != math.prod(sizes) * dtype.itemsize:
        raise Refused("holds an array whose shape and contents do not agree")
    return np.ndarray(sizes, dtype, raw, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    if not isinstance(dtype, _DType):
        raise Refused("holds a number of no type")
    return as_array(content, dtype.numpy(), ()).item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """What Python 3 writes for Python 2 to turn a text into bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise Refused("encodes a text as arrays never are")
    return text.encode("latin1")


def _no_bytes(*given: Any) -> bytes:
    """What Python 3 writes for Python 2 where there are no bytes at all."""
    if given:
        raise Refused("makes bytes as arrays never are made")
    return b""


def _no_call(*_: Any) -> Any:
    raise Refused("calls numpy.ndarray, as saved arrays never do")


ARRAYS: Mapping[str, Maker] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": _no_call,
    "numpy.dtype": _DType,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _no_bytes,
}
"""All names that pickles of NumPy arrays hold, and what each is here."""


class _Machine:
    """Reads one pickle."""

    def __init__(self, makers: Mapping[str, Maker]) -> None:
        self.makers = makers
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """The value that the pickle at the stream's place stands for."""
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name in CONSTANTS:
                self.stack.append(argument)
            elif name in SINGLES:
                self.stack.append(SINGLES[name])
            elif name == "STOP":
                break
            elif name not in ("PROTO", "FRAME"):
                self._step(name, argument)
        if len(self.stack) != 1 or self.marks:
            raise Refused("is not one whole pickle")
        return self.stack[0]

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                value = self.memo[argument]
                self.stack.append(value.made if isinstance(value, _Array) else value)
            case "GLOBAL":
                self.stack.append(self._named(*argument.split(" ")))
            case "STACK_GLOBAL":
                self.stack.append(self._named(*self._pop(2)))
            case "REDUCE" | "BUILD":
                self._make(name)
            case _:
                self._collect(name)

    def _collect(self, name: str) -> None:
        match name:
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self._since_mark() if name == "TUPLE" else self._pop(int(name[-1]))))
            case "EMPTY_LIST" | "LIST":
                self.stack.append([] if name == "EMPTY_LIST" else self._since_mark())
            case "EMPTY_DICT":
                self.stack.append({})
            case "DICT":
                items = self._since_mark()
                self.stack.append({})
                self._fill(items)
            case "APPEND" | "SETITEM":
                self._fill(self._pop(1 if name == "APPEND" else 2))
            case "APPENDS" | "SETITEMS":
                self._fill(self._since_mark())
            case _:
                raise Refused(f"uses {name}, which saved arrays never need")

    def _pop(self, count: int) -> list[Any]:
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise Refused("is not one whole pickle")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def _since_mark(self) -> list[Any]:
        return self._pop(len(self.stack) - self.marks.pop())

    def _named(self, module: Any, function: Any) -> Name:
        if not isinstance(module, str) or not isinstance(function, str):
            raise Refused("asks for something that is not a name")
        text = f"{module}.{function}"
        if text not in self.makers:
            shown = ascii(text)[1:-1][:80]
            raise Refused(f"asks for {shown}, which saved arrays never need: nothing of it was run")
        return Name(text)

    def _fill(self, items: list[Any]) -> None:
        container = self.stack[-1]
        if isinstance(container, list):
            container.extend(items)
            return
        keys = items[::2]
        if not isinstance(container, dict) or len(items) % 2:
            raise Refused("is not one whole pickle")
        if not all(type(key) in (str, int) for key in keys):  # others can take for ever to hash
            raise Refused("has dictionary keys other than texts and integers")
        container.update(zip(keys, items[1::2], strict=True))

    def _make(self, name: str) -> None:
        what, given = self._pop(2)
        if name == "REDUCE" and isinstance(what, Name) and isinstance(given, tuple):
            self.stack.append(self.makers[what.text](*given))
        elif name == "BUILD" and isinstance(what, (_DType, _Array)):
            self.stack.append(what.build(given))
        else:
            raise Refused("calls or changes something, as saved arrays never do")


def load(stream: BinaryIO, where: Path, also: Mapping[str, Maker] | None = None) -> Any:
    """The value of one pickle: dictionaries, lists, tuples, numbers, texts, and arrays of numbers (read-only).

    A ``str`` of Python 2 comes back as text, each byte a character.

    Args:
        stream: at the pickle's beginning; not one that would allocate what is asked of it before reading.
        where: the file, for messages.
        also: what further names stand for, beside those of `ARRAYS`.

    Raises:
        InputError: the pickle is damaged or holds anything else; nothing of it is ever run.
    """
    try:
        return _Machine({**ARRAYS, **(also or {})}).run(stream)
    except Refused as error:
        raise InputError(f"{where} {error}.") from error
    except Exception as error:  # a malformed pickle raises anything
        raise InputError(f"{where} is cut short or not a pickle ({error}).") from error


def load_file(path: Path) -> Any:
    """`load` of a file, which may be gzipped.

    Raises:
        InputError: as `load`; or the file cannot be read, or is absurdly large.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if zipped else file).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} holds more than {MAX_BYTES} bytes, which no file of cues does.")
    return load(io.BytesIO(content), path)


def load_npy_dict(path: Path, also: Mapping[str, Maker] | None = None) -> dict[Any, Any]:
    """The dictionary in a ``.npy`` file, as ``numpy.save(path, {...})`` writes it.

    Raises:
        InputError: as `load`; or the file cannot be read, or holds something else.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        major, _ = np.lib.format.read_magic(content)
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not a NumPy file ({error}).") from error
    value = load(content, path, also) if dtype.hasobject and shape == () else None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one dictionary, as numpy.save writes it.")
    return value
