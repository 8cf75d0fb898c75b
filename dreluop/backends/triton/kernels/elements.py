"""Elements of x: the scalar rule (csrc/include/dreluop/semantics.h), their addresses, their caps, the packed mask.

Vectors are tiles of shape [vecs, VEC]; masks that are the same over a vector leave its 16-byte accesses whole.
"""

import triton
import triton.language as tl

from dreluop.backends.triton import plan

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
ONE = tl.constexpr(plan.ONE)
SPAN = tl.constexpr(plan.SPAN)
ALIGNED = tl.constexpr(plan.ALIGNED)
EACH = tl.constexpr(plan.EACH)
OFF = tl.constexpr(0)
INSIDE = tl.constexpr(1)
CAPPED = tl.constexpr(2)


@triton.jit
def upcast(value):
    """For comparing and adding: fp32, or fp64."""
    if value.dtype == tl.float64:
        wide = value
    elif INTERPRETED and value.dtype == tl.bfloat16:
        # The interpreter loses subnormal numbers.
        wide = (value.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = value.to(tl.float32)
    return wide


@triton.jit
def round_to(value, dtype: tl.constexpr):
    """`value` in another dtype, by way of fp32 where it is narrower, as torch rounds."""
    if dtype == tl.float64:
        result = upcast(value).to(tl.float64)
    elif INTERPRETED and dtype == tl.bfloat16:
        # The interpreter cuts the low bits off where it should round.
        single = upcast(value).to(tl.float32)
        bits = single.to(tl.uint32, bitcast=True)
        rounded = (bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16
        result = tl.where(single != single, 0x7FC0, rounded).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        result = upcast(value).to(tl.float32).to(dtype)
    return result


@triton.jit
def capped_value(x, m, ZERO_ABOVE: tl.constexpr, ZERO_NAN: tl.constexpr):
    """max(0, min(x, m)), NaN where either is; +0 wherever it is off. A selection: nothing is rounded.

    +0 also for ``x > m`` with ZERO_ABOVE, and where it would be NaN with ZERO_NAN.
    """
    wide_x = upcast(x)
    smaller = tl.where((wide_x < upcast(m)) | (wide_x != wide_x), x, m)
    wide = upcast(smaller)
    # Not `> 0 or NaN` selecting the value: -0.0 must not pass.
    off = wide <= 0
    if ZERO_ABOVE:
        off = off | (wide_x > upcast(m))
    if ZERO_NAN:
        off = off | (wide != wide)
    return tl.where(off, tl.zeros_like(smaller), smaller)


@triton.jit
def regions_of_output(y, m):
    """Where y is inside, and where it is capped: nowhere for None in place of caps."""
    wide = upcast(y)
    if m is None:
        inside = (wide > 0) | (wide != wide)
        capped = wide < wide
    else:
        wide_m = upcast(m)
        inside = ((wide > 0) & (wide < wide_m)) | (wide != wide)
        capped = (wide == wide_m) & (wide_m > 0)
    return inside, capped


@triton.jit
def load(pointers, mask):
    if mask is None:
        values = tl.load(pointers)
    else:
        values = tl.load(pointers, mask=mask, other=0)
    return values


@triton.jit
def offset_of(i, sizes, strides):
    """Where element i lies; ``strides`` is empty where elements lie side by side."""
    if len(strides) == 0:
        offset = i
    else:
        offset = i * 0
        for k in tl.static_range(len(strides) - 1):
            outer = i // sizes[len(strides) - 1 - k]
            offset += (i - outer * sizes[len(strides) - 1 - k]) * strides[len(strides) - 1 - k]
            i = outer
        offset += i * strides[0]
    return offset


@triton.jit
def cap_of(i, inner, caps):
    return (i // inner) % caps


@triton.jit
def read_per_cap(source, stride, first, inner, caps, VEC: tl.constexpr, MODE: tl.constexpr):
    """What belongs to the caps of vecs that begin at elements ``first``: [1, 1] for one cap, else [vecs, VEC]."""
    e = tl.arange(0, VEC)[None, :]
    if MODE == ONE:
        values = tl.load(source + tl.zeros((1, 1), tl.int32))
    elif MODE == SPAN:
        run = first // inner
        cap = run % caps
        left = inner - (first - run * inner)
        after = tl.where(cap + 1 == caps, 0, cap + 1)
        # Loaded for every vec: as cheap as asking which need it.
        one = tl.load(source + cap * stride)
        following = tl.load(source + after * stride)
        values = tl.where(e < left[:, None], one[:, None], following[:, None])
    elif MODE == ALIGNED:
        values = tl.load(source + (tl.multiple_of(first % caps, VEC)[:, None] + e))
    elif MODE == EACH:
        values = tl.load(source + cap_of(first[:, None] + e, inner, caps) * stride)
    else:
        cap = (first % caps)[:, None] + e
        values = tl.load(source + tl.where(cap >= caps, cap - caps, cap) * stride)
    return values


@triton.jit
def store_packed(packed, first, regions, numel, VEC: tl.constexpr, VECS: tl.constexpr, MASKED: tl.constexpr):
    """Two bits per element, four to a byte from the low bits up; a vector is whole bytes."""
    shift = (tl.arange(0, VEC) % 4 * 2)[None, :]
    values = tl.sum((regions << shift).reshape(VECS, VEC // 4, 4), axis=2).to(tl.uint8)
    byte = (first // 4)[:, None] + tl.arange(0, VEC // 4)[None, :]
    if MASKED:
        tl.store(packed + byte, values, mask=byte * 4 < numel)
    else:
        tl.store(packed + byte, values)


@triton.jit
def region_of_packed(packed, i, mask, sizes, strides, step):
    """The region of each element, read one by one."""
    place = offset_of(i, sizes, strides)
    byte = load(packed + (place // 4) * step, mask).to(tl.int32)
    return (byte >> ((place % 4) * 2).to(tl.int32)) & 3


@triton.jit
def regions_of_vecs(packed, vec, mask, VEC: tl.constexpr):
    """The regions of whole vectors of a packed mask in traversal order: one access per vec."""
    if VEC == 8:
        word = load(packed.to(tl.pointer_type(tl.uint16)) + vec, mask)
    else:
        word = load(packed + vec, mask)
    return (word.to(tl.int32)[:, None] >> (tl.arange(0, VEC) * 2)[None, :]) & 3
