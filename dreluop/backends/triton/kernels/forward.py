"""y = max(0, min((x + bias) + residual, cap)), with what else forward may leave: the packed mask, the penalty."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    capped_value,
    load,
    offset_of,
    read_per_cap,
    regions_of_output,
    round_to,
    store_packed,
    upcast,
)
from dreluop.backends.triton.kernels.penalty import penalty_program


@triton.jit
def _tile(
    x, y, residual, cap, bias, packed, vec, numel, inner, caps, cap_stride, bias_stride,
    sizes, x_strides, y_strides, residual_strides,
    TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, BIAS_MODE: tl.constexpr, MASKED: tl.constexpr,
    ZERO_ABOVE: tl.constexpr, ZERO_NAN: tl.constexpr,
):  # fmt: skip
    first = vec * VEC
    i = first[:, None] + tl.arange(0, VEC)[None, :]
    mask = None
    if MASKED:
        mask = i < numel
    values = load(x + offset_of(i, sizes, x_strides), mask)
    if residual is not None:
        added = load(residual + offset_of(i, sizes, residual_strides), mask)
    dtype: tl.constexpr = x.dtype.element_ty
    m = round_to(read_per_cap(cap, cap_stride, first, inner, caps, VEC, MODE), dtype)
    if (bias is not None) or (residual is not None):
        total = upcast(values)
        if bias is not None:
            total += upcast(read_per_cap(bias, bias_stride, first, inner, caps, VEC, BIAS_MODE)).to(total.dtype)
        if residual is not None:
            total += upcast(added)
        values = round_to(total, dtype)
    result = capped_value(values, m, ZERO_ABOVE, ZERO_NAN)
    tl.store(y + offset_of(i, sizes, y_strides), result, mask=mask)
    if packed is not None:
        if ZERO_ABOVE:
            m = None
        inside, capped = regions_of_output(result, m)
        regions = inside.to(tl.int32) + capped.to(tl.int32) * 2
        if MASKED:
            regions = tl.where(mask, regions, 0)
        store_packed(packed, first, regions, numel, VEC, TILE, MASKED)


@triton.jit(do_not_specialize=["numel", "full", "inner", "caps", "sizes", "x_strides", "y_strides", "residual_strides",
                               "penalty_caps"])  # fmt: skip
def forward_kernel(
    x, y, residual, cap, bias, packed, numel, full, inner, caps, cap_stride, bias_stride,
    sizes, x_strides, y_strides, residual_strides,
    penalty, penalty_caps, penalty_partials, penalty_counter, balancer: tl.float64,
    TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, BIAS_MODE: tl.constexpr, WIDE: tl.constexpr,
    PENALTY_PROGRAMS: tl.constexpr, PENALTY_TILE: tl.constexpr, ZERO_ABOVE: tl.constexpr, ZERO_NAN: tl.constexpr,
):  # fmt: skip
    """Programs 0 to PENALTY_PROGRAMS sum squares, the next `full` take whole tiles, the last one the rest."""
    program = tl.program_id(0) - PENALTY_PROGRAMS
    if PENALTY_PROGRAMS > 0:
        if program < 0:
            penalty_program(
                cap, cap_stride, penalty_caps, tl.program_id(0), penalty, penalty_partials, penalty_counter, balancer,
                PENALTY_PROGRAMS, PENALTY_TILE,
            )  # fmt: skip
    vec = program * TILE + tl.arange(0, TILE)
    if WIDE:
        vec = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    if (program >= 0) & (program < full):
        _tile(
            x, y, residual, cap, bias, packed, vec, numel, inner, caps, cap_stride, bias_stride,
            sizes, x_strides, y_strides, residual_strides, TILE, VEC, MODE, BIAS_MODE, False,
            ZERO_ABOVE, ZERO_NAN,
        )  # fmt: skip
    if program >= full:
        _tile(
            x, y, residual, cap, bias, packed, vec, numel, inner, caps, cap_stride, bias_stride,
            sizes, x_strides, y_strides, residual_strides, TILE, VEC, MODE, BIAS_MODE, True,
            ZERO_ABOVE, ZERO_NAN,
        )  # fmt: skip
