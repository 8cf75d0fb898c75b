"""Sums of squares of caps: the penalty inside a forward launch, and over many tensors of caps by itself."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import load, round_to, upcast
from dreluop.backends.triton.kernels.sums import add, is_last_program, sum_partials, sum_tile, total_of


@triton.jit
def _add_squares(source, stride, begin, end, step, value, error, TILE: tl.constexpr):
    first = begin
    while first < end:
        place = first + tl.arange(0, TILE)
        m = upcast(load(source + place * stride, place < end)).to(value.dtype)
        value, error = add(value, error, m * m)
        first += step
    return value, error


@triton.jit
def penalty_program(
    cap, stride, count, program, result, partials, counter, balancer, PROGRAMS: tl.constexpr, TILE: tl.constexpr
):
    """What program `program` of PROGRAMS does: its share of the squares, and if it is the last one, the penalty."""
    value = tl.zeros((TILE,), result.dtype.element_ty)
    error = tl.zeros((TILE,), result.dtype.element_ty)
    value, error = _add_squares(cap, stride, program * TILE, count, PROGRAMS * TILE, value, error, TILE)
    value, error = sum_tile(value[:, None], error[:, None])
    one = tl.arange(0, 1)
    if PROGRAMS == 1:
        tl.store(result + one, total_of(value, error) * tl.full((1,), balancer, value.dtype))
    else:
        tl.store(partials + program + one, value)
        tl.store(partials + PROGRAMS + program + one, error)
        if is_last_program(counter, PROGRAMS):
            value, error = sum_partials(partials, partials + PROGRAMS, 0, 1, PROGRAMS, 1, 64, 1)
            tl.store(result + one, total_of(value, error) * tl.full((1,), balancer, value.dtype))


@triton.jit(do_not_specialize=["first_segments", "counts", "first_segment", "expected", "segments"])
def penalty_kernel(
    caps, counts, first_segments, first_segment, result, partials, errors, counter, expected, segments,
    balancer: tl.float64, SEGMENT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Program p sums segment `first_segment + p` of all caps; the last of the `expected` of the last launch adds up.

    Cap k has the segments from ``first_segments[k]`` on. ``counter`` is None in all launches but the last one.
    """
    segment = first_segment + tl.program_id(0)
    value = tl.zeros((TILE,), result.dtype.element_ty)
    error = tl.zeros((TILE,), result.dtype.element_ty)
    for k in tl.static_range(len(caps)):
        begin = (segment - first_segments[k]) * SEGMENT
        # Nothing where the segment belongs to another tensor.
        end = tl.where(begin >= 0, tl.minimum(counts[k], begin + SEGMENT), begin)
        value, error = _add_squares(caps[k], 1, begin, end, TILE, value, error, TILE)
    value, error = sum_tile(value[:, None], error[:, None])
    one = tl.arange(0, 1)
    tl.store(partials + segment + one, value)
    tl.store(errors + segment + one, error)
    if counter is not None:
        if is_last_program(counter, expected):
            value, error = sum_partials(partials, errors, 0, 1, segments, 1, 256, 1)
            tl.store(result + one, total_of(value, error) * tl.full((1,), balancer, value.dtype))


@triton.jit(do_not_specialize=["first_segments", "counts"])
def penalty_backward_kernel(
    grad, caps, gradients, counts, first_segments, factor: tl.float64, SEGMENT: tl.constexpr, TILE: tl.constexpr
):
    """gradients[k] = factor * grad * caps[k]; program p does the p-th segment of all caps."""
    weight = upcast(tl.load(grad + tl.arange(0, 1)))
    weight = tl.full((1,), factor, weight.dtype) * weight
    for k in tl.static_range(len(caps)):
        begin = (tl.program_id(0) - first_segments[k]) * SEGMENT
        end = tl.where(begin >= 0, tl.minimum(counts[k], begin + SEGMENT), begin)
        first = begin
        while first < end:
            place = first + tl.arange(0, TILE)
            m = upcast(load(caps[k] + place, place < end))
            product = weight * m
            tl.store(gradients[k] + place, round_to(product, gradients[k].dtype.element_ty), mask=place < end)
            first += TILE
