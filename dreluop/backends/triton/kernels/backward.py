"""Gradients to x, cap and bias from the gradient of y and what forward saved, by rows or by columns."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    CAPPED,
    INSIDE,
    cap_of,
    load,
    offset_of,
    region_of_packed,
    regions_of_output,
    regions_of_vecs,
    round_to,
    upcast,
)
from dreluop.backends.triton.kernels.reduction import reduction
from dreluop.backends.triton.kernels.sums import add, sum_tile


@triton.jit
def _fetch(
    grad, y, packed, i, vec, vec_mask, mask, sizes, grad_strides, y_strides, packed_strides, packed_step,
    VEC: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The gradient, and what forward saved: y, or the region from the packed mask.

    ``AT_ONCE``: the packed regions of a vector are read with one access, for the vecs of ``vec_mask``; else one by one.
    """
    g = load(grad + offset_of(i, sizes, grad_strides), mask)
    if packed is None:
        saved = load(y + offset_of(i, sizes, y_strides), mask)
    elif AT_ONCE:
        saved = regions_of_vecs(packed, vec, vec_mask, VEC)
    else:
        saved = region_of_packed(packed, i, mask, sizes, packed_strides, packed_step)
    return g, saved


@triton.jit
def _route(g, saved, packed, dx, i, mask, m, sizes, dx_strides, ACCUMULATE: tl.constexpr):
    """Writes dx; gives the gradient where it belongs to the cap, and where it belongs to x, else 0, to be summed."""
    if packed is None:
        inside, capped = regions_of_output(saved, m)
    else:
        inside = saved == INSIDE
        capped = saved == CAPPED
    zero = tl.zeros_like(g)
    to_x = tl.where(inside, g, zero)
    if dx is not None:
        tl.store(dx + offset_of(i, sizes, dx_strides), to_x, mask=mask)
    return upcast(tl.where(capped, g, zero)).to(ACCUMULATE), upcast(to_x).to(ACCUMULATE)


@triton.jit(do_not_specialize=["caps", "inner", "segment_size", "segments_per_run", "segments",
                               "per_split", "splits", "sizes",
                               "grad_strides", "y_strides", "dx_strides", "packed_strides", "packed_step", "cap_sizes",
                               "cap_strides", "dcap_strides", "dbias_strides"])  # fmt: skip
def backward_rows_kernel(
    grad, y, packed, dx, cap, cap_stride, caps, inner, segment_size, segments_per_run, segments, per_split, splits,
    sizes, grad_strides, y_strides, dx_strides, packed_strides, packed_step,
    dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor: tl.float64,
    cap_partials, cap_errors, bias_partials, bias_errors, counters,
    RUNS: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr, ALONE: tl.constexpr, ACCUMULATE: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, AT_ONCE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Program b sums the segments of split ``b // caps`` of cap ``b % caps``, RUNS at a time, WIDTH vecs each."""
    split = tl.program_id(0) // caps
    c = tl.program_id(0) % caps
    m = None
    if cap is not None:
        m = round_to(tl.load(cap + c.to(tl.int64) * cap_stride + tl.zeros((1, 1), tl.int32)), grad.dtype.element_ty)
    tile = tl.arange(0, RUNS * WIDTH)
    e = tl.arange(0, VEC)[None, :]
    cap_value = tl.zeros((RUNS * WIDTH,), ACCUMULATE)
    cap_error = tl.zeros((RUNS * WIDTH,), ACCUMULATE)
    bias_value = tl.zeros((RUNS * WIDTH,), ACCUMULATE)
    bias_error = tl.zeros((RUNS * WIDTH,), ACCUMULATE)
    edge_cap_value = tl.zeros((RUNS,), ACCUMULATE)
    edge_cap_error = tl.zeros((RUNS,), ACCUMULATE)
    edge_bias_value = tl.zeros((RUNS,), ACCUMULATE)
    edge_bias_error = tl.zeros((RUNS,), ACCUMULATE)
    end = tl.minimum(segments, (split + 1) * per_split)
    segment = split * per_split
    while segment < end:
        k = segment + tile // WIDTH
        if WIDE:
            k = k.to(tl.int64)
        run = k // segments_per_run
        within = (k - run * segments_per_run) * segment_size
        begin = (run * caps + c) * inner + within
        stop = tl.where(k < end, begin + tl.minimum(segment_size, inner - within), begin)
        vec = (begin + (VEC - 1)) // VEC + tile % WIDTH
        i = vec[:, None] * VEC + e
        # Behind the last segment the numbers mean nothing, and may not fit.
        whole = (k < end) & ((vec + 1) * VEC <= stop)
        g, saved = _fetch(
            grad, y, packed, i, vec, whole, whole[:, None], sizes, grad_strides, y_strides, packed_strides, packed_step,
            VEC, AT_ONCE,
        )  # fmt: skip
        to_cap, to_x = _route(g, saved, packed, dx, i, whole[:, None], m, sizes, dx_strides, ACCUMULATE)
        if dcap is not None:
            cap_value, cap_error = add(cap_value, cap_error, tl.sum(to_cap, axis=1))
        if dbias is not None:
            bias_value, bias_error = add(bias_value, bias_error, tl.sum(to_x, axis=1))
        if EDGES:
            k = segment + tl.arange(0, RUNS)
            if WIDE:
                k = k.to(tl.int64)
            run = k // segments_per_run
            within = (k - run * segments_per_run) * segment_size
            begin = (run * caps + c) * inner + within
            stop = tl.where(k < end, begin + tl.minimum(segment_size, inner - within), begin)
            head_end = tl.minimum((begin + (VEC - 1)) // VEC * VEC, stop)
            tail = tl.maximum(stop // VEC * VEC, head_end)
            of_edge = tl.arange(0, 2 * VEC)[None, :]
            i = tl.where(of_edge < VEC, begin[:, None] + of_edge, tail[:, None] + (of_edge - VEC))
            inside_edge = (k < end)[:, None] & (i < tl.where(of_edge < VEC, head_end[:, None], stop[:, None]))
            g, saved = _fetch(
                grad, y, packed, i, i, inside_edge, inside_edge, sizes, grad_strides, y_strides, packed_strides,
                packed_step, VEC, False,
            )  # fmt: skip
            to_cap, to_x = _route(g, saved, packed, dx, i, inside_edge, m, sizes, dx_strides, ACCUMULATE)
            if dcap is not None:
                edge_cap_value, edge_cap_error = add(edge_cap_value, edge_cap_error, tl.sum(to_cap, axis=1))
            if dbias is not None:
                edge_bias_value, edge_bias_error = add(edge_bias_value, edge_bias_error, tl.sum(to_x, axis=1))
        segment += RUNS
    if (dcap is not None) or (dbias is not None):
        cap_total, cap_rest = sum_tile(cap_value[:, None], cap_error[:, None])
        bias_total, bias_rest = sum_tile(bias_value[:, None], bias_error[:, None])
        if EDGES:
            more, more_rest = sum_tile(edge_cap_value[:, None], edge_cap_error[:, None])
            cap_total, cap_rest = add(cap_total, cap_rest + more_rest, more)
            more, more_rest = sum_tile(edge_bias_value[:, None], edge_bias_error[:, None])
            bias_total, bias_rest = add(bias_total, bias_rest + more_rest, more)
        reduction(
            cap_total, cap_rest, bias_total, bias_rest, c, split, splits, c, 1, caps,
            dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor,
            cap_partials, cap_errors, bias_partials, bias_errors, counters, ALONE, PARTIALS, 1,
        )  # fmt: skip


@triton.jit
def _add_rows(
    grad, y, packed, dx, vec, following, valid, following_valid, numel, m, cap_value, cap_error, bias_value, bias_error,
    sizes, grad_strides, y_strides, dx_strides, packed_strides, packed_step, dcap, dbias,
    ACCUMULATE: tl.constexpr, VEC: tl.constexpr, AT_ONCE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Two vecs of each column, one below the other: all loads first. ``CUT``: some elements are beyond the last."""
    i = vec[:, None] * VEC + tl.arange(0, VEC)[None, :]
    j = following[:, None] * VEC + tl.arange(0, VEC)[None, :]
    mask = valid[:, None]
    following_mask = following_valid[:, None]
    if CUT:
        mask = mask & (i < numel)
        following_mask = following_mask & (j < numel)
    g, saved = _fetch(
        grad, y, packed, i, vec, valid, mask, sizes, grad_strides, y_strides, packed_strides, packed_step, VEC, AT_ONCE
    )
    h, below = _fetch(
        grad, y, packed, j, following, following_valid, following_mask, sizes, grad_strides, y_strides, packed_strides,
        packed_step, VEC, AT_ONCE,
    )  # fmt: skip
    to_cap, to_x = _route(g, saved, packed, dx, i, mask, m, sizes, dx_strides, ACCUMULATE)
    more_to_cap, more_to_x = _route(h, below, packed, dx, j, following_mask, m, sizes, dx_strides, ACCUMULATE)
    if dcap is not None:
        cap_value, cap_error = add(cap_value, cap_error, to_cap + more_to_cap)
    if dbias is not None:
        bias_value, bias_error = add(bias_value, bias_error, to_x + more_to_x)
    return cap_value, cap_error, bias_value, bias_error


@triton.jit(do_not_specialize=["numel", "caps", "inner", "row", "rows", "vecs", "tiles", "per_program", "row_blocks",
                               "whole_rows", "sizes", "grad_strides", "y_strides", "dx_strides", "packed_strides",
                               "packed_step", "cap_sizes", "cap_strides", "dcap_strides", "dbias_strides"])  # fmt: skip
def backward_columns_kernel(
    grad, y, packed, dx, cap, cap_stride, numel, caps, inner, row, rows, whole_rows, vecs, tiles, per_program,
    row_blocks, sizes, grad_strides, y_strides, dx_strides, packed_strides, packed_step,
    dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor: tl.float64,
    cap_partials, cap_errors, bias_partials, bias_errors, counters,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, ALONE: tl.constexpr, ACCUMULATE: tl.constexpr, VEC: tl.constexpr,
    WIDE: tl.constexpr, AT_ONCE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Program b sums columns of tile ``b % tiles`` over row block ``b // tiles``, two by HEIGHT rows at a time."""
    tile = tl.program_id(0) % tiles
    block = tl.program_id(0) // tiles
    t = tl.arange(0, WIDTH * HEIGHT)
    w = tile * WIDTH + t % WIDTH
    h = t // WIDTH
    m = None
    if cap is not None:
        column = w[:, None] * VEC + tl.arange(0, VEC)[None, :]
        m = tl.load(cap + cap_of(column, inner, caps).to(tl.int64) * cap_stride, mask=(w < vecs)[:, None], other=0)
        m = round_to(m, grad.dtype.element_ty)
    shape: tl.constexpr = (WIDTH * HEIGHT, VEC)
    cap_value = tl.zeros(shape, ACCUMULATE)
    cap_error = tl.zeros(shape, ACCUMULATE)
    bias_value = tl.zeros(shape, ACCUMULATE)
    bias_error = tl.zeros(shape, ACCUMULATE)
    begin = block * per_program
    end = tl.minimum(rows, begin + per_program)
    if WIDE:
        begin = begin.to(tl.int64)
        end = end.to(tl.int64)
        h = h.to(tl.int64)
    # The last row is cut where the tensor is not whole rows: no vec of the others is.
    whole_end = tl.minimum(end, whole_rows)
    vecs_of_row = row // VEC
    at = begin
    while at < whole_end:
        place = (at + h) * vecs_of_row + w
        cap_value, cap_error, bias_value, bias_error = _add_rows(
            grad, y, packed, dx, place, place + HEIGHT * vecs_of_row, (w < vecs) & (at + h < whole_end),
            (w < vecs) & (at + HEIGHT + h < whole_end), numel, m, cap_value, cap_error, bias_value, bias_error,
            sizes, grad_strides, y_strides, dx_strides, packed_strides, packed_step, dcap, dbias,
            ACCUMULATE, VEC, AT_ONCE, False,
        )  # fmt: skip
        at += 2 * HEIGHT
    if end > whole_rows:
        place = (whole_rows + h) * vecs_of_row + w
        cap_value, cap_error, bias_value, bias_error = _add_rows(
            grad, y, packed, dx, place, place, (w < vecs) & (h == 0), w < 0, numel, m, cap_value, cap_error,
            bias_value, bias_error, sizes, grad_strides, y_strides, dx_strides, packed_strides, packed_step,
            dcap, dbias, ACCUMULATE, VEC, False, True,
        )  # fmt: skip
    if (dcap is not None) or (dbias is not None):
        rows_of_sums: tl.constexpr = (HEIGHT, WIDTH * VEC)
        cap_total, cap_rest = sum_tile(cap_value.reshape(rows_of_sums), cap_error.reshape(rows_of_sums))
        bias_total, bias_rest = sum_tile(bias_value.reshape(rows_of_sums), bias_error.reshape(rows_of_sums))
        first = tile * (WIDTH * VEC)
        reduction(
            cap_total, cap_rest, bias_total, bias_rest, tile, block, row_blocks, first,
            tl.minimum(WIDTH * VEC, row - first), row,
            dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor,
            cap_partials, cap_errors, bias_partials, bias_errors, counters, ALONE, PARTIALS, WIDTH * VEC,
        )  # fmt: skip
