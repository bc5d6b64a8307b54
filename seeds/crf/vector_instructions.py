# ruff: noqa: ARG001 - numba passes the typing context to every intrinsic
"""Vector instructions for numba: a type of eight float32 in one register, and operations on it in LLVM's language.

LLVM's optimiser does not turn loops over the 8 to 24 labels of a pixel into efficient vector instructions: such loops
are short, and their arrays might overlap. `docs/crf_internals.md` has the measurements. LLVM compiles these operations
for the processor at hand: one AVX register, or two SSE or NEON registers. Array offsets are not checked.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import models, register_model

WIDTH = 8
_INT32 = ir.IntType(32)
_LLVM_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_LLVM_INTEGERS = ir.VectorType(_INT32, WIDTH)
_FUSE = ("contract",)  # a multiplication and an addition may become one instruction; rounding changes nowhere else

Intrinsic = Callable[..., Any]


class VectorType(types.Type):
    """Numba's type of a register of eight float32."""


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _LLVM_VECTOR)  # type: ignore[no-untyped-call]


VECTOR = VectorType(name="float32x8")


def intrinsic(function: Intrinsic) -> Intrinsic:
    """Return numba's intrinsic of a function that generates LLVM code; typed for mypy."""
    return cast("Intrinsic", numba_intrinsic(function))


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _LLVM_VECTOR.as_pointer())


def _constant(value: float) -> Any:
    return ir.Constant(_LLVM_VECTOR, [np.float32(value)] * WIDTH)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


@intrinsic
def load(typing: Any, array: Any, offset: Any) -> Any:
    """Return the eight numbers from `offset` on of a contiguous float32 array, counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *args), align=4)

    return VECTOR(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write eight numbers into a contiguous float32 array from `offset` on, counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[2], _address(context, builder, signature.args[0], *args[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, VECTOR), code


@intrinsic
def element(typing: Any, array: Any, offset: Any) -> Any:
    """Return one number of a contiguous array, at an offset counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def fill(typing: Any, number: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(_LLVM_VECTOR, ir.Undefined)
        one = builder.insert_element(undefined, args[0], _INT32(0))
        return builder.shuffle_vector(one, undefined, ir.Constant(_LLVM_INTEGERS, [0] * WIDTH))

    return VECTOR(types.float32), code


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Return a + b, lane by lane."""
    return VECTOR(VECTOR, VECTOR), lambda _context, builder, _signature, args: builder.fadd(*args)


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, lane by lane."""
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda _context, builder, _signature, args: _multiply_add(builder, *args)


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """Return the larger of a and b, lane by lane."""
    return VECTOR(VECTOR, VECTOR), lambda _context, builder, _signature, args: _maximum(builder, *args)


def _reduce(builder: Any, vector: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Combine all lanes pairwise: with those 4 lanes away, 2 away, 1 away."""
    for step in (4, 2, 1):
        order = ir.Constant(_LLVM_INTEGERS, [lane ^ step for lane in range(WIDTH)])
        vector = combine(builder, vector, builder.shuffle_vector(vector, vector, order))
    return builder.extract_element(vector, _INT32(0))


@intrinsic
def largest_lane(typing: Any, vector: Any) -> Any:
    """Return the largest of the eight numbers, a float32."""
    return types.float32(VECTOR), lambda _context, builder, _signature, args: _reduce(builder, args[0], _maximum)


@intrinsic
def sum_of_lanes(typing: Any, vector: Any) -> Any:
    """Return the sum of the eight numbers, a float32."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _reduce(builder, args[0], lambda builder, a, b: builder.fadd(a, b))

    return types.float32(VECTOR), code


@intrinsic
def exp_of_difference(typing: Any, a: Any, b: Any) -> Any:
    """Return exp(a - b), to about 1e-7 of its value, for differences up to 80; exp(-50) for all from -50 down.

    This is expf of the Cephes library: x = n ln 2 + r with n whole, a polynomial of degree 7 in r, and n added to the
    exponent bits. The lower bound stays clear of denormal numbers, which are slow.
    """

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = _maximum(builder, builder.fsub(*args), _constant(-50.0))
        to_whole = _constant(12582912.0)  # 1.5 · 2^23: adding it leaves the rounded number in the low bits
        shifted = _multiply_add(builder, x, _constant(1.4426950408889634), to_whole)
        whole = builder.fsub(shifted, to_whole)
        rest = _multiply_add(builder, whole, _constant(-0.693359375), x)  # ln 2 in two parts
        rest = _multiply_add(builder, whole, _constant(2.12194440e-4), rest)
        value = _constant(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0):
            value = _multiply_add(builder, value, rest, _constant(factor))
        shift = ir.Constant(_LLVM_INTEGERS, [23] * WIDTH)
        exponent = builder.shl(builder.bitcast(shifted, _LLVM_INTEGERS), shift)
        return builder.bitcast(builder.add(builder.bitcast(value, _LLVM_INTEGERS), exponent), _LLVM_VECTOR)

    return VECTOR(VECTOR, VECTOR), code
