"""u where inside, v of the cap where capped, else 0: forward mode and double backward."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    CAPPED,
    INSIDE,
    load,
    offset_of,
    read_per_cap,
    region_of_packed,
    regions_of_output,
    regions_of_vecs,
    round_to,
)


@triton.jit
def _jvp_tile(
    u, v, y, packed, out, cap, vec, numel, inner, caps, cap_stride, v_stride,
    sizes, u_strides, y_strides, out_strides, packed_strides, packed_step,
    VEC: tl.constexpr, MODE: tl.constexpr, V_MODE: tl.constexpr, AT_ONCE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    first = vec * VEC
    i = first[:, None] + tl.arange(0, VEC)[None, :]
    mask = None
    if MASKED:
        mask = i < numel
    dtype: tl.constexpr = u.dtype.element_ty
    given = load(u + offset_of(i, sizes, u_strides), mask)
    if packed is None:
        saved = load(y + offset_of(i, sizes, y_strides), mask)
        m = None
        if cap is not None:
            m = round_to(read_per_cap(cap, cap_stride, first, inner, caps, VEC, MODE), dtype)
        inside, capped = regions_of_output(saved, m)
    else:
        if AT_ONCE:
            region = regions_of_vecs(packed, vec, None, VEC)
        else:
            region = region_of_packed(packed, i, mask, sizes, packed_strides, packed_step)
        inside = region == INSIDE
        capped = region == CAPPED
    other = tl.zeros_like(given)
    if v is not None:
        other = tl.where(capped, round_to(read_per_cap(v, v_stride, first, inner, caps, VEC, V_MODE), dtype), other)
    tl.store(out + offset_of(i, sizes, out_strides), tl.where(inside, given, other), mask=mask)


@triton.jit(do_not_specialize=["numel", "full", "inner", "caps", "sizes", "u_strides", "y_strides", "out_strides",
                               "packed_strides", "packed_step"])  # fmt: skip
def jvp_kernel(
    u, v, y, packed, out, cap, numel, full, inner, caps, cap_stride, v_stride,
    sizes, u_strides, y_strides, out_strides, packed_strides, packed_step,
    TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, V_MODE: tl.constexpr, WIDE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """u where inside, v of the cap where capped, else 0."""
    program = tl.program_id(0)
    vec = program * TILE + tl.arange(0, TILE)
    if WIDE:
        vec = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    if program < full:
        _jvp_tile(
            u, v, y, packed, out, cap, vec, numel, inner, caps, cap_stride, v_stride, sizes, u_strides, y_strides,
            out_strides, packed_strides, packed_step, VEC, MODE, V_MODE, AT_ONCE, False,
        )  # fmt: skip
    else:
        _jvp_tile(
            u, v, y, packed, out, cap, vec, numel, inner, caps, cap_stride, v_stride, sizes, u_strides, y_strides,
            out_strides, packed_strides, packed_step, VEC, MODE, V_MODE, False, True,
        )  # fmt: skip
