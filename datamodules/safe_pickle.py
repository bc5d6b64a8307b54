"""Read arrays and tensors from pickles without running anything that a pickle names.

The standard library's unpickler reads the opcodes; it finds only the stand-ins of this file, and no function of NumPy
or torch. A stand-in builds an array from exactly as many bytes as the shape needs.
"""

import gzip
import io
import math
import pickle
import pickletools
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError

MAX_BYTES = 2**30  # of an unzipped pickle: 10 times SEC's of 10,582 images
MAX_OPCODES = 2**23  # of a pickle: 20 times SEC's; one byte can take 100 bytes of memory
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before version 1.6
STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "LongStorage": "i8", "IntStorage": "i4",
    "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "b1",
}  # fmt: skip
OPCODES = re.compile(  # run as in the standard library; none of them calls, hashes or changes anything but lists
    r"PROTO|FRAME|STOP|MARK|GLOBAL|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|STRING|UNICODE|"
    r"(SHORT_)?BIN(STRING|BYTES|UNICODE)|BIN(BYTES|UNICODE)8|(EMPTY_)?(TUPLE|LIST)|TUPLE[123]|EMPTY_DICT|APPENDS?|"
    r"((LONG_)?BIN)?(GET|PUT)|MEMOIZE"
)
NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
NPY_OF_OBJECT = rb"\x93NUMPY\x01\x00..\{'descr': '\|O[48]?', 'fortran_order': False, 'shape': \(\), \} *\n"


class Refused(Exception):  # noqa: N818 - reads as what happened
    """A pickle contains something that no array needs; the message continues a sentence about the file."""


def _need(condition: bool, otherwise: str, value: Any = None) -> Any:
    if not condition:
        raise Refused(otherwise)
    return value


def _is_shape(sizes: Any) -> bool:
    few = isinstance(sizes, tuple) and len(sizes) <= 8
    return few and all(type(size) is int and 0 <= size < 2**128 for size in sizes)  # the product stays quick


def _as_array(content: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
    """Return bytes as a read-only array; the bytes are not copied."""
    raw = content.encode("latin1") if isinstance(content, str) else content  # a str of Python 2 is its bytes
    _need(isinstance(dtype, _DType) and "O" not in dtype.code, "holds an array of objects or of no type")
    _need(_is_shape(shape), "holds an array without a proper shape")
    fits = isinstance(raw, bytes) and len(raw) == math.prod(shape) * np.dtype(dtype.code).itemsize
    _need(fits, "holds an array whose shape does not fit its contents")
    return np.ndarray(shape, dtype.code, raw, order=order)


class _DType:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: Any, _align: Any = 0, _copy: Any = 0) -> None:
        known = isinstance(code, str) and re.fullmatch("b1|[iu][1248]|f[248]|O[48]", code) is not None
        self.code: str = "<" + _need(known, "holds an array of something other than numbers", code)

    def build(self, _version: Any, order: Any, *others: Any) -> "_DType":
        """Take over the byte order of a type's state."""
        _need(others[:3] == (None, None, None), "holds an array of something other than numbers")
        self.code = _need(order in ("<", ">", "|", "="), "holds an array of unknown byte order", order) + self.code[1:]
        return self


class _Array:
    """Stands in for `numpy.core.multiarray._reconstruct`: an array that has no contents yet."""

    def __init__(self, kind: Any, _shape: Any, _code: Any) -> None:
        _need(kind is ARRAYS["numpy.ndarray"], "builds an array of an unknown kind")
        self.built: Any = None

    def build(self, _version: Any, shape: Any, dtype: Any, is_fortran: Any, content: Any) -> Any:
        """Return the array of an array's state; the contents of numpy.save's array of one object."""
        if isinstance(content, list):  # objects; numpy.save puts a dictionary into an array of one
            self.built = _need(shape == () and len(content) == 1, "holds an array of objects", content)[0]
        else:
            self.built = _as_array(content, dtype, shape, "F" if is_fortran is True else "C")
        return self.built


def _storage(content: Any) -> NDArray[Any]:
    """Return the elements (n,) of torch's old format: five pickles, the fourth with the type; n; elements."""
    stream = io.BytesIO(_need(isinstance(content, bytes), "holds a tensor without contents", content))
    pickles = [[(op.name, value) for op, value, _ in pickletools.genops(stream)] for _ in range(5)]  # runs nothing
    names = [str(value) for name, value in pickles[3] if name == "GLOBAL"]
    _need(MAGIC in dict(pickles[0]).values() and len(names) == 1, "holds a tensor in an unknown form")
    code = STORAGES.get(names[0].removeprefix("torch ").removeprefix("torch.cuda "))
    _need(code is not None, "holds a tensor of something other than numbers")
    count = int.from_bytes(stream.read(8), "little")
    return _as_array(stream.read(), _DType(code), (count,))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, _meta: Any = None) -> Any:
    proper = isinstance(storage, np.ndarray) and all(_is_shape(sizes) for sizes in ((offset,), shape, strides))
    _need(proper, "holds a tensor in an unknown form")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=False))
    fits = len(shape) == len(strides) and math.prod(shape) <= storage.size and (0 in shape or last < storage.size)
    _need(fits, "holds a tensor whose shape does not fit its contents")
    start, steps = offset * storage.itemsize, [stride * storage.itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, start, steps).copy()


ARRAYS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": lambda dtype, content: _as_array(content, dtype, ()).item(),
    "numpy.ndarray": lambda *_: _need(False, "calls numpy.ndarray, as saved arrays never do"),
    "numpy.dtype": _DType,
    "_codecs.encode": lambda text, to: text.encode(_need(to == "latin1", "encodes a text as arrays never are", to)),
    "__builtin__.bytes": lambda *given: _need(not given, "makes bytes as arrays never are made", b""),
}
"""The stand-ins for all names in pickles of NumPy arrays; Python 3 writes the last two for Python 2."""
TENSORS: dict[str, Any] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "collections.OrderedDict": lambda _items=(): {},  # a tensor's hooks: none
}
"""For `load`: the stand-ins for the further names in pickles of torch's tensors."""


class _Memo(dict[int, Any]):
    """The values that a pickle uses again; the array itself where the pickle names an array's shell."""

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        return value.built if isinstance(value, _Array) else value

    def __setitem__(self, index: int, value: Any) -> None:
        _need(index < 2**32, "numbers its values as pickles never do")  # larger ones can share a hash
        super().__setitem__(index, value)


class _Dispatch(dict[int, Any]):
    """The functions of the allowed opcodes; counts the opcodes as the unpickler looks them up."""

    def __init__(self, functions: dict[int, Any]) -> None:
        super().__init__(functions)
        self.left = iter(range(MAX_OPCODES))

    def __getitem__(self, code: int) -> Any:
        if next(self.left, None) is None:
            raise Refused(f"has more than {MAX_OPCODES} opcodes, which no file of arrays has")
        return self.get(code) or _need(False, f"uses {NAMES[code]}, which saved arrays never need")


class _Unpickler(pickle._Unpickler):  # noqa: SLF001
    """The standard library's unpickler in Python, which can be cut down to the opcodes that arrays need.

    The one in C cannot: a memo index of 2^31 takes 34 GB, bytes are allocated as claimed before they are read, tuples
    of tuples are hashed for ever as keys, and BUILD sets any attribute of a stand-in.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    pop_mark: Any

    def __init__(self, stream: io.BytesIO, stand_ins: dict[str, Any]) -> None:
        super().__init__(stream, encoding="latin1")
        self.stand_ins, self.memo = stand_ins, _Memo()
        self.unspent = 2 * stream.seek(0, io.SEEK_END)  # an array's bytes pass through two calls at most
        stream.seek(0)
        plain = {code: run for code, run in super().dispatch.items() if OPCODES.fullmatch(NAMES[code])}
        self.dispatch = _Dispatch(plain | CHECKED)  # type: ignore[misc]

    def find_class(self, module: Any, name: Any) -> Any:
        """Return the stand-in for a name; refuse all other names."""
        _need(isinstance(module, str) and isinstance(name, str), "names something that is not a name")
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # NumPy 2 renamed it
        shown = ascii(path[:80])[1:-1][:80]
        _need(path in self.stand_ins, f"names {shown}, which saved arrays never need: nothing of it was run")
        return self.stand_ins[path]

    def call(self, function: Any, given: Any) -> None:
        """Push what a stand-in returns; nothing else on the stack is callable."""
        proper = callable(function) and isinstance(given, tuple) and len(given) < 16
        _need(proper, "calls or changes something, as saved arrays never do")
        # A pickle can give the same bytes to any number of calls, and each can copy them.
        for each in given:
            self.unspent -= len(each) if isinstance(each, (str, bytes)) else getattr(each, "nbytes", 0)
        _need(self.unspent >= 0, "builds arrays of more bytes than it has")
        self.stack.append(function(*given))

    def build(self, shell: Any, state: Any) -> None:
        """Give a stand-in its state; no other object can have one."""
        self.call(shell.build if isinstance(shell, (_DType, _Array)) else None, state)

    def update(self, items: list[Any], target: Any) -> None:
        """Put keys and values, in turn in ``items``, into a dictionary, and push it."""
        _need(isinstance(target, dict) and len(items) % 2 == 0, "is not one whole pickle")
        # Others can take for ever to hash, and large integers can share a hash.
        proper = (type(key) is str or (type(key) is int and -(2**60) < key < 2**60) for key in items[::2])
        _need(all(proper), "has dictionary keys other than texts and integers")
        target.update(zip(items[::2], items[1::2], strict=True))
        self.stack.append(target)


CHECKED: dict[int, Any] = {
    pickle.STACK_GLOBAL[0]: lambda self: self.stack.append(self.find_class(self.stack.pop(-2), self.stack.pop())),
    pickle.REDUCE[0]: lambda self: self.call(self.stack.pop(-2), self.stack.pop()),
    pickle.BUILD[0]: lambda self: self.build(self.stack.pop(-2), self.stack.pop()),
    pickle.DICT[0]: lambda self: self.update(self.pop_mark(), {}),
    pickle.SETITEM[0]: lambda self: self.update([self.stack.pop(-2), self.stack.pop()], self.stack.pop()),
    pickle.SETITEMS[0]: lambda self: self.update(self.pop_mark(), self.stack.pop()),
}


def load(stream: io.BytesIO, where: Path, also: dict[str, Any] | None = None) -> Any:
    """Return the value of one pickle: dictionaries, lists, tuples, numbers, texts, and arrays of numbers (read-only).

    Args:
        stream: the pickle; in memory, so that reading takes no more than there is.
        where: the file, for messages.
        also: stand-ins for further names, such as `TENSORS`.

    Raises:
        InputError: the pickle is damaged or contains anything else.
    """
    try:
        unpickler = _Unpickler(stream, ARRAYS | (also or {}))
        value = unpickler.load()
        _need(not unpickler.stack and not unpickler.metastack, "is not one whole pickle")
    except Refused as error:
        raise InputError(f"{where} {error}.") from error
    except Exception as error:  # a malformed pickle raises anything
        detail = "not one whole pickle" if isinstance(error, (EOFError, IndexError)) else str(error)[:200]
        raise InputError(f"{where} is cut short or not a pickle ({detail}).") from error
    return value


def load_file(path: Path) -> Any:
    """Return `load` of a file, which may be gzipped.

    Raises:
        InputError: as `load`; or the file cannot be read or holds more than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            zipped = file.peek(2)[:2] == b"\x1f\x8b"
            content = (gzip.GzipFile(fileobj=file) if zipped else file).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} holds more than {MAX_BYTES} bytes, which no file of cues does.")
    return load(io.BytesIO(content), path)


def load_npy_dict(path: Path, also: dict[str, Any] | None = None) -> dict[Any, Any]:
    """Return the dictionary in a ``.npy`` file, as ``numpy.save(path, {...})`` writes it.

    Raises:
        InputError: as `load`; or the file cannot be read or contains something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    if not content.startswith(b"\x93NUMPY"):
        raise InputError(f"{path} is not a NumPy file.")
    header = re.match(NPY_OF_OBJECT, content, re.DOTALL)
    value = load(io.BytesIO(content[header.end() :]), path, also) if header else None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold one dictionary, as numpy.save writes it.")
    return value
