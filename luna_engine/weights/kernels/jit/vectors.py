"""Sixteen floats at a time for numba: a type for LLVM's vectors and the few operations that the block kernels use.

LLVM cuts a vector of sixteen to what the processor has: one AVX-512 register, two of AVX2, four of NEON. No operation
is reassociated or contracted, so each lane computes exactly what scalar C computes.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class Lanes(types.Type):
    """Sixteen float32 values in a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


LANES_TYPE = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


def _operator(function: Any, instruction: str) -> None:
    """Make an operator of Python an instruction on two vectors."""

    @infer_global(function)
    class _Template(ConcreteTemplate):
        cases = [signature(LANES_TYPE, LANES_TYPE, LANES_TYPE)]  # noqa: RUF012 - numba's way

    @lower_builtin(function, LANES_TYPE, LANES_TYPE)
    def _lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_operator(operator.add, "fadd")
_operator(operator.sub, "fsub")
_operator(operator.mul, "fmul")
_operator(operator.truediv, "fdiv")


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any, to: Any) -> Any:
    """Return the address of an element as a pointer to a vector."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), to.as_pointer())


def _call(builder: Any, name: str, result: Any, arguments: Any, flags: tuple[str, ...] = ()) -> Any:
    """Call an LLVM intrinsic."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, arguments, fastmath=flags)


@intrinsic
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """Return array[index : index + 16] (float32, C order, no bounds check)."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
        return builder.load(pointer, align=4)

    return LANES_TYPE(array, types.intp), code


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write a vector to array[index : index + 16]."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _FLOATS)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def store_bytes(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write whole numbers from -128 to 255 to array[index : index + 16] (uint8), negative ones as two's complement."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _BYTES)
        whole = builder.fptosi(args[2], _INTS)
        builder.store(builder.trunc(whole, _BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def store_nibbles(typing_context: Any, array: Any, index: Any, low: Any, high: Any) -> Any:
    """Write the lower four bits of two vectors of whole numbers 0..31 to array[index : index + 16] (uint8)."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _BYTES)
        lower = builder.and_(builder.fptosi(args[2], _INTS), ir.Constant(_INTS, [15] * LANES))
        upper = builder.shl(builder.fptosi(args[3], _INTS), ir.Constant(_INTS, [4] * LANES))
        builder.store(builder.trunc(builder.or_(lower, upper), _BYTES), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, low, high), code


@intrinsic
def fifth_bits(typing_context: Any, vector: Any) -> Any:
    """Return of whole numbers 0..31 which are above 15, lane i in bit i, as uint16."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        whole = builder.fptosi(args[0], _INTS)
        is_above = builder.icmp_signed(">", whole, ir.Constant(_INTS, [15] * LANES))
        return builder.bitcast(is_above, ir.IntType(16))

    return types.uint16(LANES_TYPE), code


@intrinsic
def splat(typing_context: Any, value: Any) -> Any:
    """Return a vector of one float32 in every lane."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        empty = ir.Constant(_FLOATS, ir.Undefined)
        one = builder.insert_element(empty, args[0], ir.Constant(ir.IntType(32), 0))
        return builder.shuffle_vector(one, empty, ir.Constant(_INTS, [0] * LANES))

    return LANES_TYPE(types.float32), code


@intrinsic
def where_less(typing_context: Any, left: Any, right: Any, yes: Any, no: Any) -> Any:
    """Return yes in lanes where left < right, elsewhere no; a NaN is never less."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return LANES_TYPE(LANES_TYPE, LANES_TYPE, LANES_TYPE, LANES_TYPE), code


@intrinsic
def magnitude(typing_context: Any, vector: Any) -> Any:
    """Return the vector without its signs."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.fabs.v{LANES}f32", _FLOATS, args)

    return LANES_TYPE(LANES_TYPE), code


@intrinsic
def square_root(typing_context: Any, vector: Any) -> Any:
    """Return the square root of each lane, correctly rounded."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.sqrt.v{LANES}f32", _FLOATS, args)

    return LANES_TYPE(LANES_TYPE), code


@intrinsic
def with_sign(typing_context: Any, vector: Any, signs: Any) -> Any:
    """Return the magnitudes of one vector with the signs of another."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.copysign.v{LANES}f32", _FLOATS, args)

    return LANES_TYPE(LANES_TYPE, LANES_TYPE), code


@intrinsic
def nearest(typing_context: Any, vector: Any) -> Any:
    """Round to whole numbers as ggml does: the low 23 bits of x + 1.5 * 2^23, so that beyond 2^22 they wrap round."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        moved = builder.fadd(args[0], ir.Constant(_FLOATS, [12582912.0] * LANES))
        bits = builder.and_(builder.bitcast(moved, _INTS), ir.Constant(_INTS, [0x007FFFFF] * LANES))
        return builder.sitofp(builder.sub(bits, ir.Constant(_INTS, [0x00400000] * LANES)), _FLOATS)

    return LANES_TYPE(LANES_TYPE), code


@intrinsic
def larger_size(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the greater of two vectors without signs, lane by lane: by their bits, so that NaN is above infinity."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = builder.bitcast(args[0], _INTS), builder.bitcast(args[1], _INTS)
        return builder.select(builder.icmp_unsigned("<", left, right), args[1], args[0])

    return LANES_TYPE(LANES_TYPE, LANES_TYPE), code


@intrinsic
def greatest_size(typing_context: Any, vector: Any) -> Any:
    """Return the greatest lane of a vector without signs as float32; NaN is above infinity."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        top = _call(builder, f"llvm.vector.reduce.umax.v{LANES}i32", ir.IntType(32), [bits])
        return builder.bitcast(top, ir.FloatType())

    return types.float32(LANES_TYPE), code


@intrinsic
def greatest(typing_context: Any, vector: Any) -> Any:
    """Return the greatest lane of a vector of numbers (no NaN) as float32."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, f"llvm.vector.reduce.fmax.v{LANES}f32", ir.FloatType(), args, ("nnan",))

    return types.float32(LANES_TYPE), code


@intrinsic
def half_bits(typing_context: Any, value: Any) -> Any:
    """Return the bits of a float32 rounded to half, to nearest, ties to even, as uint16."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), code


@intrinsic
def half_value(typing_context: Any, bits: Any) -> Any:
    """Return the float32 that a half of these bits stands for."""

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), code
