"""Torch's tensors within a pickle, read as arrays; torch's own loading, which may run code, stays out of it.

``pickle.dump`` of a tensor writes its shape and strides, and its storage as the bytes of a file that ``torch.save``
once wrote (its format before version 1.6): five pickles, of which the fourth names the type of number and the fifth
the storage, then the number of elements, then the elements.
"""

import io
import math
import pickletools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.pickles import Maker, Refused, as_array

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8", "IntStorage": "<i4",
    "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


def _storage(content: Any) -> NDArray[Any]:
    """A storage's elements, (n,)."""
    if not isinstance(content, bytes):
        raise Refused("holds a tensor without contents")
    stream = io.BytesIO(content)
    pickles = [[(opcode.name, argument) for opcode, argument, _ in pickletools.genops(stream)] for _ in range(5)]
    names = [str(argument) for opcode, argument in pickles[3] if opcode == "GLOBAL"]
    if MAGIC not in (argument for _, argument in pickles[0]) or len(names) != 1:
        raise Refused("holds a tensor in an unknown form")
    dtype = DTYPES.get(names[0].removeprefix("torch ").removeprefix("torch.cuda "))
    if dtype is None:
        raise Refused("holds a tensor of something other than numbers")
    count = int.from_bytes(stream.read(8), "little")
    return as_array(stream.read(), np.dtype(dtype), (count,))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> NDArray[Any]:
    """A tensor as an array, in C's order."""
    integers = [offset, *shape, *strides]
    if not isinstance(storage, np.ndarray) or not all(type(each) is int and each >= 0 for each in integers):
        raise Refused("holds a tensor in an unknown form")
    if len(shape) != len(strides) or not math.prod(shape) <= storage.size:
        raise Refused("holds a tensor whose shape and contents do not agree")
    if math.prod(shape) == 0:
        return np.zeros(shape, storage.dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.size:
        raise Refused("holds a tensor whose shape and contents do not agree")
    steps = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps).copy()


TENSORS: Mapping[str, Maker] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "collections.OrderedDict": lambda *_: {},  # a tensor's hooks: none
}
"""For `datamodules.pickles.load`: the further names that pickles of tensors hold."""
