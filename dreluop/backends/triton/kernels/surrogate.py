"""What attacks put in place of the exact gradient (csrc/include/dreluop/surrogate.h): straight through, or soft."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    OFF,
    load,
    offset_of,
    read_per_cap,
    region_of_packed,
    regions_of_vecs,
    round_to,
    upcast,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _exp_parts(a):
    """A power of 2 and a rest, with exp(a) = power * (1 + rest) for a <= 0. Below ``least``, a is taken for that."""
    if a.dtype == tl.float64:
        least: tl.constexpr = -708.0
        high: tl.constexpr = 0.693145751953125
        low: tl.constexpr = 1.42860682030941723212e-6
        terms: tl.constexpr = 13
    else:
        least: tl.constexpr = -87.0
        high: tl.constexpr = 0.693359375
        low: tl.constexpr = -2.12194440e-4
        terms: tl.constexpr = 7
    bounded = tl.where(a < least, tl.full(a.shape, least, a.dtype), a)
    n = tl.floor(bounded * LOG2_E + 0.5)
    r = (bounded - n * high) - n * low
    # Horner's rule on r (1 + r/2 (1 + r/3 (...))).
    series = tl.full(a.shape, 1.0, a.dtype)
    for k in tl.static_range(terms - 1):
        series = 1.0 + series * r * (1.0 / (terms - k))
    exponent = tl.where(n == n, n, 0.0)
    if a.dtype == tl.float64:
        power = ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        power = ((exponent.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return power, series * r


@triton.jit
def _exp_of_negative(a):
    """exp(a) for a <= 0, within 2 eps: the fast exponential of the GPU is not. 0 where it would be subnormal."""
    least: tl.constexpr = -708.0 if a.dtype == tl.float64 else -87.0
    power, rest = _exp_parts(a)
    return tl.where(a < least, tl.zeros_like(a), (1.0 + rest) * power)


@triton.jit
def _divide(a, b, ROUNDED: tl.constexpr):
    # In fp32 `/` is off by up to 2 ulp, which the exponential enlarges: too much for fp32 results, nothing for halves.
    result = a / b
    if ROUNDED:
        result = tl.div_rn(a, b)
    return result


@triton.jit
def _sigmoid(z, ROUNDED: tl.constexpr):
    e = _exp_of_negative(tl.where(z < 0, z, -z))
    return _divide(tl.where(z < 0, e, 1.0), 1.0 + e, ROUNDED)


@triton.jit
def _softened(g, x, m, width, ROUNDED: tl.constexpr):
    """g * (sigmoid(x / width) - sigmoid((x - m) / width)); 0 under a cap that is not positive."""
    x, width = tl.broadcast(x, width)
    x, m = tl.broadcast(x, m)
    # As a product: the difference cancels where m is far below width.
    power, rest = _exp_parts(_divide(-m, width, ROUNDED))
    # Every x is infinitely far below an infinite m.
    to_cap = tl.where(m == float("inf"), m, m - x)
    slope = _sigmoid(_divide(x, width, ROUNDED), ROUNDED) * _sigmoid(_divide(to_cap, width, ROUNDED), ROUNDED)
    slope *= (1.0 - power) - power * rest
    return tl.where(m <= 0, tl.zeros_like(g), g * slope)


@triton.jit
def _tile(
    grad, saved, packed, out, cap, width, vec, numel, inner, caps, cap_stride, width_stride,
    sizes, grad_strides, saved_strides, out_strides, packed_strides, packed_step,
    VEC: tl.constexpr, MODE: tl.constexpr, WIDTH_MODE: tl.constexpr, AT_ONCE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    first = vec * VEC
    i = first[:, None] + tl.arange(0, VEC)[None, :]
    mask = None
    if MASKED:
        mask = i < numel
    dtype: tl.constexpr = grad.dtype.element_ty
    g = load(grad + offset_of(i, sizes, grad_strides), mask)
    if width is not None:
        x = load(saved + offset_of(i, sizes, saved_strides), mask)
        m = upcast(round_to(read_per_cap(cap, cap_stride, first, inner, caps, VEC, MODE), dtype))
        w = read_per_cap(width, width_stride, first, inner, caps, VEC, WIDTH_MODE)
        wide = upcast(g)
        result = round_to(_softened(wide, upcast(x), m, round_to(w, wide.dtype), dtype == tl.float32), dtype)
    else:
        if packed is None:
            y = upcast(load(saved + offset_of(i, sizes, saved_strides), mask))
            passes = (y > 0) | (y != y)
        elif AT_ONCE:
            passes = regions_of_vecs(packed, vec, None, VEC) != OFF
        else:
            passes = region_of_packed(packed, i, mask, sizes, packed_strides, packed_step) != OFF
        result = tl.where(passes, g, tl.zeros_like(g))
    tl.store(out + offset_of(i, sizes, out_strides), result, mask=mask)


@triton.jit(do_not_specialize=["numel", "full", "inner", "caps", "sizes", "grad_strides", "saved_strides",
                               "out_strides", "packed_strides", "packed_step"])  # fmt: skip
def surrogate_kernel(
    grad, saved, packed, out, cap, width, numel, full, inner, caps, cap_stride, width_stride,
    sizes, grad_strides, saved_strides, out_strides, packed_strides, packed_step,
    TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, WIDTH_MODE: tl.constexpr, WIDE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    vec = program * TILE + tl.arange(0, TILE)
    if WIDE:
        vec = program.to(tl.int64) * TILE + tl.arange(0, TILE)
    if program < full:
        _tile(
            grad, saved, packed, out, cap, width, vec, numel, inner, caps, cap_stride, width_stride,
            sizes, grad_strides, saved_strides, out_strides, packed_strides, packed_step,
            VEC, MODE, WIDTH_MODE, AT_ONCE, False,
        )  # fmt: skip
    else:
        _tile(
            grad, saved, packed, out, cap, width, vec, numel, inner, caps, cap_stride, width_stride,
            sizes, grad_strides, saved_strides, out_strides, packed_strides, packed_step,
            VEC, MODE, WIDTH_MODE, False, True,
        )  # fmt: skip
