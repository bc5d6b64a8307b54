# ruff: noqa: ARG001 - numba passes the typing context to every intrinsic
"""Vector instructions for numba: a type that holds the labels of a pixel in registers of eight float32 each.

LLVM's optimiser does not turn loops over the 8 to 24 labels of a pixel into efficient vector instructions;
`docs/pages/experiments-history.md` explains why, with measurements. LLVM compiles the operations below for the
processor that runs the program: eight float32 are one AVX register, or two SSE or NEON registers. Array offsets are
not checked.

The number of registers must be known when a function is compiled. It is therefore the length of a tuple, which is part
of the argument's type: numba compiles a function once for each length.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending
from numba.core import types

WIDTH = 8
Registers = tuple[int, ...]
"""As many zeros as a vector has registers."""
_INT32 = ir.IntType(32)
_REGISTER = ir.VectorType(ir.FloatType(), WIDTH)
_INTEGERS = ir.VectorType(_INT32, WIDTH)
intrinsic = cast("Callable[[Callable[..., Any]], Callable[..., Any]]", extending.intrinsic)
_FUSE = ("contract",)  # a multiplication and an addition may become one instruction; rounding changes nowhere else


class VectorType(types.Type):
    """Numba's type of a vector of so many registers of eight float32."""

    def __init__(self, registers: int) -> None:
        self.registers = registers
        super().__init__(name=f"Vector({registers})")


@extending.register_model(VectorType)
class _VectorModel(extending.models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, ir.ArrayType(_REGISTER, numba_type.registers))  # type: ignore[no-untyped-call]


def _addresses(context: Any, builder: Any, signature: Any, args: Any, registers: int) -> list[Any]:
    """Return the addresses of so many registers in an array, the first argument, from an offset on, the second."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    first = builder.bitcast(builder.gep(data, [args[1]]), _REGISTER.as_pointer())
    return [builder.gep(first, [_INT32(i)]) for i in range(registers)]


def _split(builder: Any, vector: Any) -> list[Any]:
    return [builder.extract_value(vector, i) for i in range(vector.type.count)]


def _join(builder: Any, registers: list[Any]) -> Any:
    vector = ir.Constant(ir.ArrayType(_REGISTER, len(registers)), ir.Undefined)
    for i, register in enumerate(registers):
        vector = builder.insert_value(vector, register, i)
    return vector


def _constant(value: float) -> Any:
    return ir.Constant(_REGISTER, [np.float32(value)] * WIDTH)


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _for_each_register(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Return the code generator that applies an operation to the corresponding registers of its vectors."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        registers = zip(*(_split(builder, vector) for vector in args), strict=True)
        return _join(builder, [operation(builder, *operands) for operands in registers])

    return code


@intrinsic
def load(typing: Any, array: Any, offset: Any, registers: Any) -> Any:
    """Return the numbers from `offset` on of a contiguous float32 array, counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = _addresses(context, builder, signature, args, registers.count)
        return _join(builder, [builder.load(address, align=4) for address in addresses])

    return VectorType(registers.count)(array, types.intp, registers), code


@intrinsic
def store(typing: Any, array: Any, offset: Any, vector: Any) -> Any:
    """Write a vector into a contiguous float32 array from `offset` on, counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        addresses = _addresses(context, builder, signature, args, vector.registers)
        for address, register in zip(addresses, _split(builder, args[2]), strict=True):
            builder.store(register, address, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def element(typing: Any, array: Any, offset: Any) -> Any:
    """Return one number of a contiguous array, at an offset counted as if it were flat."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [args[1]]))

    return array.dtype(array, types.intp), code


@intrinsic
def fill(typing: Any, number: Any, registers: Any) -> Any:
    """Return a vector with the same float32 in every lane."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined = ir.Constant(_REGISTER, ir.Undefined)
        one = builder.insert_element(undefined, args[0], _INT32(0))
        register = builder.shuffle_vector(one, undefined, ir.Constant(_INTEGERS, [0] * WIDTH))
        return _join(builder, [register] * registers.count)

    return VectorType(registers.count)(types.float32, registers), code


@intrinsic
def add(typing: Any, a: Any, b: Any) -> Any:
    """Return a + b, lane by lane."""
    return a(a, b), _for_each_register(_add)


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, lane by lane."""
    return a(a, b, c), _for_each_register(_multiply_add)


def _reduce(combine: Callable[..., Any]) -> Callable[..., Any]:
    """Return the code generator that combines all registers, and then all lanes with those 4, 2 and 1 lanes away."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        register, *others = _split(builder, args[0])
        for other in others:
            register = combine(builder, register, other)
        for step in (4, 2, 1):
            order = ir.Constant(_INTEGERS, [lane ^ step for lane in range(WIDTH)])
            register = combine(builder, register, builder.shuffle_vector(register, register, order))
        return builder.extract_element(register, _INT32(0))

    return code


@intrinsic
def largest_lane(typing: Any, vector: Any) -> Any:
    """Return the largest number of a vector, a float32."""
    return types.float32(vector), _reduce(_maximum)


@intrinsic
def sum_of_lanes(typing: Any, vector: Any) -> Any:
    """Return the sum of the numbers of a vector, a float32."""
    return types.float32(vector), _reduce(_add)


def _exp_of_difference(builder: Any, a: Any, b: Any) -> Any:
    x = _maximum(builder, builder.fsub(a, b), _constant(-50.0))
    to_whole = _constant(12582912.0)  # 1.5 · 2^23: adding it leaves the rounded number in the low bits
    shifted = _multiply_add(builder, x, _constant(1.4426950408889634), to_whole)
    whole = builder.fsub(shifted, to_whole)
    rest = _multiply_add(builder, whole, _constant(-0.693359375), x)  # ln 2 in two parts
    rest = _multiply_add(builder, whole, _constant(2.12194440e-4), rest)
    value = _constant(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0):
        value = _multiply_add(builder, value, rest, _constant(factor))
    exponent = builder.shl(builder.bitcast(shifted, _INTEGERS), ir.Constant(_INTEGERS, [23] * WIDTH))
    return builder.bitcast(builder.add(builder.bitcast(value, _INTEGERS), exponent), _REGISTER)


@intrinsic
def exp_of_difference(typing: Any, a: Any, b: Any) -> Any:
    """Return exp(a - b), to about 1e-7 of its value, for differences up to 80; exp(-50) for all from -50 down.

    This is expf of the Cephes library: x = n ln 2 + r with n whole, a polynomial of degree 7 in r, and n added to the
    exponent bits. The lower bound stays clear of denormal numbers, which are slow.
    """
    return a(a, b), _for_each_register(_exp_of_difference)
