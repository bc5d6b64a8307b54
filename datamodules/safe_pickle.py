"""Read arrays and tensors from pickles without running anything that a pickle names.

A first pass over the opcodes runs nothing and refuses pickles that could fill the memory. Then the standard library's
unpickler reads the pickle; it finds only the functions of this file, and no function of NumPy or torch.
"""

import gzip
import io
import math
import pickle
import pickletools
import re
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, read_bytes

MAX_BYTES = 2**30  # of an unzipped pickle: 10 times SEC's of 10,582 images
MAX_OPCODES = 2**23  # of a pickle: 20 times SEC's; one byte can take 100 bytes of memory
MAGIC = 0x1950A86A20F9469CFC6C  # of torch's format before version 1.6
STORAGES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Bool": "b1"}
OPCODES = re.compile(
    r"PROTO|FRAME|STOP|MARK|(STACK_)?GLOBAL|REDUCE|BUILD|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG[14]?|(BIN)?FLOAT|"
    r"STRING|UNICODE|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BIN(BYTES|UNICODE)8|(EMPTY_)?(TUPLE|LIST|DICT)|TUPLE[123]|"
    r"APPENDS?|SETITEMS?|((LONG_)?BIN)?(GET|PUT)|MEMOIZE"
)
REUSABLE = re.compile(r"(STACK_)?GLOBAL|REDUCE|\w*(STRING|UNICODE|BYTES)8?|(EMPTY_)?(LIST|DICT)|\w*GET")
"""Opcodes whose values a pickle may use again. Tuples are not: tuples of tuples can take for ever to hash."""
NPY_OF_OBJECT = rb"\x93NUMPY\x01\x00..\{'descr': '\|O[48]?', 'fortran_order': False, 'shape': \(\), \} *\n"


class _DType:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, _align: Any = 0, _copy: Any = 0) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        self.code = state[1][:1] + self.code  # the byte order

    def of_numpy(self) -> np.dtype[Any]:
        """Return the type, if it is one of numbers or of objects."""
        if not re.fullmatch("[<>|=]?(b1|[iu][1248]|f[248]|O8)", self.code):
            raise UnpicklingError("it contains an array of something other than numbers")
        return np.dtype(self.code)


class _Array(np.ndarray[Any, Any]):
    """Stands in for `numpy.core.multiarray._reconstruct`: an array whose state is checked before NumPy reads it."""

    spend: Callable[[Any], None]

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, is_fortran, content = state
        dtype = dtype.of_numpy()
        objects = dtype.hasobject  # numpy.save puts a dictionary into an array of one object
        if objects != isinstance(content, list) or (objects and shape != ()):
            raise UnpicklingError("it contains an array of objects")
        self.spend(state)
        super().__setstate__((version, shape, dtype, is_fortran, content))  # compares shape and content
        self.flags.writeable = False


class _Callable:
    """A function that a pickle can call and cannot change."""

    __setstate__ = None  # BUILD fails

    def __init__(self, function: Any, spend: Callable[[Any], None]) -> None:
        self._function, self._spend = function, spend

    def __call__(self, *arguments: Any) -> Any:
        self._spend(arguments)
        result = self._function(*arguments)
        if isinstance(result, _Array):
            result.spend = self._spend
        return result


def _storage(content: bytes) -> NDArray[Any]:
    """Return the elements (n,) of torch's old format: five pickles, the fourth with the type; n; elements."""
    stream = io.BytesIO(content)
    opcodes = [each for _ in range(5) for each in islice(pickletools.genops(stream), 50)]  # runs nothing
    names = [
        str(argument).split()[-1].removesuffix("Storage") for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"
    ]
    if opcodes[1][1] != MAGIC or len(names) != 1 or names[0] not in STORAGES:
        raise UnpicklingError("it contains a tensor of an unknown format or type")
    count, elements = int.from_bytes(stream.read(8), "little"), np.frombuffer(stream.read(), STORAGES[names[0]])
    if len(elements) != count:
        raise UnpicklingError("it contains a tensor whose size does not fit its content")
    return elements


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_hooks: Any) -> NDArray[Any]:
    """Return a view of a storage; NumPy checks that the view lies inside."""
    if type(storage) is not np.ndarray or len(shape) > 8 or math.prod(shape) > storage.size:
        raise UnpicklingError("it contains a tensor whose shape does not fit its content")
    steps = [stride * storage.itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, storage, offset * storage.itemsize, steps)


FUNCTIONS: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": lambda _kind, _shape, _code: _Array((0,), np.int8),
    "numpy.core.multiarray.scalar": lambda dtype, content: np.frombuffer(content, dtype.of_numpy(), 1)[0].item(),
    "numpy.ndarray": lambda *_: None,  # an argument of _reconstruct
    "numpy.dtype": _DType,
    "_codecs.encode": lambda text, _encoding: text.encode("latin1"),  # bytes as Python 3 writes them for Python 2
    "__builtin__.bytes": lambda: b"",
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "collections.OrderedDict": lambda: None,  # a tensor's hooks
}
"""The functions for all names in pickles of NumPy's arrays and torch's tensors."""


def _check_opcodes(content: bytes) -> None:
    """Check that a pickle has few opcodes, of known kinds, and no value that takes much memory or time.

    Raises:
        UnpicklingError: it has others.
    """
    reusable: dict[int, bool] = {}  # by index in the memo
    last = ""
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if count >= MAX_OPCODES:
            raise UnpicklingError(f"it has more than {MAX_OPCODES} opcodes")
        if not OPCODES.fullmatch(name):
            raise UnpicklingError(f"it uses {name}, which saved arrays never need")
        if type(argument) is int and not -(2**60) < argument < 2**60:  # as keys, larger ones can share a hash
            raise UnpicklingError("it contains an integer of more than 60 bits")
        if "PUT" in name or name == "MEMOIZE":
            index = len(reusable) if argument is None else argument
            if index > count:  # the memo takes 8 bytes for each index below
                raise UnpicklingError("it numbers its values as pickles never do")
            reusable[index] = REUSABLE.fullmatch(last) is not None
        elif "GET" in name and not reusable.get(argument):
            raise UnpicklingError("it uses a tuple twice, or a value that it has not stored")
        else:
            last = name


class _Unpickler(pickle.Unpickler):
    """The standard library's unpickler, which finds `FUNCTIONS` alone."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin1")  # a str of Python 2 is bytes
        self.left = 2 * len(content)  # bytes that calls may copy; those of an array pass through two calls at most

    def find_class(self, module: str, name: str) -> Any:
        """Return the function for a name; refuse all other names."""
        path = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # NumPy 2 renamed it
        if path not in FUNCTIONS:
            raise UnpicklingError(f"it names {path[:80]}, which saved arrays never need")
        return _Callable(FUNCTIONS[path], self.spend)

    def spend(self, values: Any) -> None:
        """Count the bytes of values that are copied: a pickle can give the same bytes to any number of arrays."""
        self.left -= sum(len(each) for each in values if isinstance(each, str | bytes))
        if self.left < 0:
            raise UnpicklingError("it builds arrays of more bytes than it has")


def load(content: bytes, where: AnyPath) -> Any:
    """Return the value of a pickle: dictionaries, lists, tuples, numbers, texts, and arrays of numbers (read-only).

    Args:
        content: the pickle, in memory, so that reading takes no more than there is.
        where: the file, for messages.

    Raises:
        InputError: the pickle is damaged or contains anything else.
    """
    try:
        _check_opcodes(content)
        return _Unpickler(content).load()
    except Exception as error:  # a malformed pickle raises anything
        reason = ascii(str(error)[:200] or type(error).__name__)[1:-1]
        raise InputError(f"{where} is not a pickle of arrays, or damaged: {reason}; nothing of it was run") from error


def load_dict(path: AnyPath) -> dict[Any, Any]:
    """Return the dictionary in a pickle, gzipped or not, or in a ``.npy`` file that ``numpy.save(path, {...})`` wrote.

    Raises:
        InputError: as `load`; or the file cannot be read, has more than `MAX_BYTES`, or contains something else.
    """
    try:
        with io.BytesIO(read_bytes(path)) if is_uri(path) else Path(str(path)).open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            content = (gzip.GzipFile(fileobj=file) if zipped else file).read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} contains more than {MAX_BYTES} bytes, which no file of cues does")
    header = re.match(NPY_OF_OBJECT, content, re.DOTALL)
    value = load(content[header.end() :] if header else content, path)
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if not isinstance(value, dict):
        raise InputError(f"{path} must contain one dictionary")
    return value
