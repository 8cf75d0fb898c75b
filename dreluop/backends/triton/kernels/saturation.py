"""Counts of off, inside and capped elements per cap, and which samples have a gradient."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    ONE,
    cap_of,
    capped_value,
    load,
    offset_of,
    read_per_cap,
    regions_of_output,
    round_to,
)


@triton.jit(do_not_specialize=["numel", "inner", "caps", "sizes", "x_strides", "cap_sizes", "counts_strides",
                               "sample_inner", "samples"])  # fmt: skip
def saturation_kernel(
    x, cap, counts, has_gradient, numel, inner, caps, cap_stride, sizes, x_strides, cap_sizes, counts_strides,
    sample_inner, samples, TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Counts of off, inside and capped elements per cap, added in any order: they are whole numbers."""
    vec = tl.program_id(0) * TILE + tl.arange(0, TILE)
    if WIDE:
        vec = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    first = vec * VEC
    i = first[:, None] + tl.arange(0, VEC)[None, :]
    mask = i < numel
    values = load(x + offset_of(i, sizes, x_strides), mask)
    m = round_to(read_per_cap(cap, cap_stride, first, inner, caps, VEC, MODE), x.dtype.element_ty)
    inside, capped = regions_of_output(capped_value(values, m, False, False), m)
    inside = inside & mask
    capped = capped & mask
    off = mask & (inside == 0) & (capped == 0)
    # All write the same.
    tl.store(has_gradient + (i // sample_inner) % samples, tl.full((TILE, VEC), 1, tl.uint8), mask=inside)
    if MODE == ONE:
        one = tl.arange(0, 1)
        tl.atomic_add(counts + one, tl.sum(tl.sum(off.to(tl.int64), axis=1), axis=0) + one, sem="relaxed")
        tl.atomic_add(counts + 1 + one, tl.sum(tl.sum(inside.to(tl.int64), axis=1), axis=0) + one, sem="relaxed")
        tl.atomic_add(counts + 2 + one, tl.sum(tl.sum(capped.to(tl.int64), axis=1), axis=0) + one, sem="relaxed")
    else:
        place = counts + offset_of(cap_of(i, inner, caps), cap_sizes, counts_strides)
        kind = tl.where(capped, 2, tl.where(inside, 1, 0))
        step = tl.full((TILE, VEC), 1, tl.int64)
        tl.atomic_add(place + kind.to(tl.int64) * caps, step, mask=mask, sem="relaxed")
