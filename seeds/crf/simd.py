# ruff: noqa: ARG001 - the arguments are those numba calls with
"""Registers of eight float32 in numba: the vector type `LanesType` and what can be done with it.

Numba leaves vectorisation to LLVM's loop optimiser, which gives up on short inner loops over arrays that might overlap.
Here the vector instructions are written out, for whatever processor LLVM compiles for. Array indices are not checked.
How many registers belong together is known when compiling, from the length of a tuple: numba compiles a function anew
for each type of argument, and finds what it kept on disk by the same. Constants in closures would do too, but not
functions that call each other there: of these numba's cache finds nothing again.
"""

import hashlib
import operator
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, overload, register_model

WIDTH = 8
_SINGLE = ir.FloatType()
_INTEGER = ir.IntType(32)
_VECTOR = ir.VectorType(_SINGLE, WIDTH)
_INTEGERS = ir.VectorType(_INTEGER, WIDTH)
_FUSE = ("contract",)  # a multiply and an add may become one instruction; nothing else about rounding changes

Function = TypeVar("Function", bound=Callable[..., Any])
Code = Callable[..., Any]


class _PackageCache(FunctionCache):
    """Numba's cache of one function on disk, valid while every Python file of this folder stays the same.

    Numba itself only looks at the file that defines the function. It would load machine code that contains an old
    version of a function from another file.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        files = sorted(Path(__file__).parent.glob("*.py"))
        content = b"".join(file.name.encode() + file.read_bytes() for file in files)
        stamp = hashlib.sha256(content).hexdigest()
        self._cache_file = IndexDataCacheFile(  # type: ignore[no-untyped-call]
            self._cache_path, self._impl.filename_base, stamp
        )


def compiled(function: Function) -> Function:
    """Compile with numba: without the interpreter lock, kept on disk where there is a place to keep it.

    Numba stores machine code beside the source or, where that cannot be written, in the user's cache folder; where
    neither can be, every process compiles for itself.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})(function)
    with suppress(RuntimeError):  # numba's "no locator available": no folder can be written
        dispatcher._cache = _PackageCache(function)  # noqa: SLF001  what njit(cache=True) sets, with numba's own class
    return cast("Function", dispatcher)


def intrinsic(function: Code) -> Code:
    """A function whose code is written in LLVM's language: numba's `intrinsic`."""
    return cast("Code", numba_intrinsic(function))


class LanesType(types.Type):
    """Numba's type of some registers of eight float32 each."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        super().__init__(name=f"Lanes({blocks})")


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, ir.ArrayType(_VECTOR, kind.blocks))  # type: ignore[no-untyped-call]


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _registers(builder: Any, address: Any, blocks: int) -> list[Any]:
    """Addresses of so many registers in a row."""
    first = builder.bitcast(address, _VECTOR.as_pointer())
    return [builder.gep(first, [_INTEGER(block)]) for block in range(blocks)]


def _split(builder: Any, value: Any) -> list[Any]:
    return [builder.extract_value(value, block) for block in range(value.type.count)]


def _join(builder: Any, registers: list[Any]) -> Any:
    value = ir.Constant(ir.ArrayType(_VECTOR, len(registers)), ir.Undefined)
    for block, register in enumerate(registers):
        value = builder.insert_value(value, register, block)
    return value


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [np.float32(value)] * WIDTH)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def load(typing: Any, array: Any, index: Any, blocks: Any) -> Any:
    """``array[index : index + 8 * blocks]`` of a flat float32 array; `blocks` is a tuple of that length."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = _address(context, builder, signature.args[0], *args[:2])
        addresses = _registers(builder, first, blocks.count)
        return _join(builder, [builder.load(address, align=4) for address in addresses])

    return LanesType(blocks.count)(array, types.intp, blocks), code


@intrinsic
def store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index : index + 8 * blocks] = value``."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = _registers(builder, _address(context, builder, signature.args[0], *args[:2]), value.blocks)
        for address, register in zip(addresses, _split(builder, args[2]), strict=True):
            builder.store(register, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), code


@intrinsic
def at(typing: Any, array: Any, index: Any) -> Any:
    """``array[index]`` of a flat array, without the check for a negative index."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *args))

    return array.dtype(array, types.intp), code


@intrinsic
def fill(typing: Any, number: Any, blocks: Any) -> Any:
    """The same float32 in every lane of so many registers as `blocks`, a tuple, is long."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(nothing, args[0], _INTEGER(0))
        same = builder.shuffle_vector(one, nothing, ir.Constant(_INTEGERS, [0] * WIDTH))
        return _join(builder, [same] * blocks.count)

    return LanesType(blocks.count)(types.float32, blocks), code


def _arithmetic(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Teach numba an arithmetic sign between two values of as many lanes."""

    @intrinsic
    def operate(typing: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pairs = zip(*(_split(builder, value) for value in args), strict=True)
            return _join(builder, [getattr(builder, instruction)(*pair, flags=_FUSE) for pair in pairs])

        return a(a, b), code

    @overload(symbol, strict=False)
    def sign(a: Any, b: Any) -> Any:
        if isinstance(a, LanesType) and a == b:
            return lambda a, b: operate(a, b)  # noqa: PLW0108 - numba compiles it
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _arithmetic(_symbol, _instruction)


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of each pair."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pairs = zip(*(_split(builder, value) for value in args), strict=True)
        return _join(builder, [_maximum(builder, *pair) for pair in pairs])

    return a(a, b), code


def _fold(builder: Any, value: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Combine all registers, then all lanes pairwise: with those 4 away, 2 away, 1 away."""
    register, *others = _split(builder, value)
    for other in others:
        register = combine(builder, register, other)
    for step in (4, 2, 1):
        order = ir.Constant(_INTEGERS, [lane ^ step for lane in range(WIDTH)])
        register = combine(builder, register, builder.shuffle_vector(register, register, order))
    return builder.extract_element(register, _INTEGER(0))


@intrinsic
def largest(typing: Any, a: Any) -> Any:
    """The largest of all lanes, a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], _maximum)

    return types.float32(a), code


@intrinsic
def total(typing: Any, a: Any) -> Any:
    """The sum of all lanes, a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _fold(builder, args[0], lambda builder, a, b: builder.fadd(a, b))

    return types.float32(a), code


def _exponential(builder: Any, x: Any) -> Any:
    """Cephes' expf: x = n ln 2 + r, n whole; a polynomial of degree 7 in r; n added to the exponent bits."""

    def multiply_add(a: Any, b: Any, c: float | Any) -> Any:
        return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)

    x = _maximum(builder, x, _constant(-50.0))
    to_whole = _constant(12582912.0)  # 1.5 · 2^23: adding it leaves the whole number in the low bits
    shifted = multiply_add(x, _constant(1.4426950408889634), to_whole)
    whole = builder.fsub(shifted, to_whole)
    rest = multiply_add(whole, _constant(-0.693359375), x)  # ln 2 in two parts
    rest = multiply_add(whole, _constant(2.12194440e-4), rest)
    value = _constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0):
        value = multiply_add(value, rest, _constant(factor))
    exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [23] * WIDTH))
    return builder.bitcast(builder.add(builder.bitcast(value, _INTEGERS), exponent), _VECTOR)


@intrinsic
def exponential(typing: Any, a: Any) -> Any:
    """exp, to about 1e-7 of its value, of numbers up to 80; from -50 down exp(-50), far from slow denormals."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _join(builder, [_exponential(builder, register) for register in _split(builder, args[0])])

    return a(a), code
