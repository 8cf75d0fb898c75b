"""Gradients to x, cap and bias from the gradient of y and what forward saved, by rows or by columns."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import (
    CAPPED,
    INSIDE,
    cap_of,
    is_capped,
    is_inside,
    load,
    offset_of,
    region_of_code,
    region_of_groups,
    round_to,
    widen,
)
from dreluop.backends.triton.kernels.finish import finish
from dreluop.backends.triton.kernels.sums import add, sum_tile


@triton.jit
def _fetch(
    grad, y, code, i, group, group_mask, mask, sizes, grad_strides, y_strides, code_strides, code_step,
    VEC: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The gradient, and what forward kept: y, or the region out of the code.

    ``AT_ONCE``: the codes of a group are read with one access, for the groups of ``group_mask``; else one by one.
    """
    g = load(grad + offset_of(i, sizes, grad_strides), mask)
    if code is None:
        kept = load(y + offset_of(i, sizes, y_strides), mask)
    elif AT_ONCE:
        kept = region_of_groups(code, group, group_mask, VEC)
    else:
        kept = region_of_code(code, i, mask, sizes, code_strides, code_step)
    return g, kept


@triton.jit
def _route(g, kept, code, dx, i, mask, m, sizes, dx_strides, ACCUMULATE: tl.constexpr):
    """Writes dx; gives the gradient where it belongs to the cap, and where it belongs to x, else 0, to be summed."""
    if code is None:
        inside = is_inside(kept, m)
        capped = is_capped(kept, m)
    else:
        inside = kept == INSIDE
        capped = kept == CAPPED
    zero = tl.zeros_like(g)
    to_x = tl.where(inside, g, zero)
    if dx is not None:
        tl.store(dx + offset_of(i, sizes, dx_strides), to_x, mask=mask)
    return widen(tl.where(capped, g, zero)).to(ACCUMULATE), widen(to_x).to(ACCUMULATE)


@triton.jit(do_not_specialize=["caps", "inner", "chunk", "chunks", "pieces", "per_split", "splits", "sizes",
                               "grad_strides", "y_strides", "dx_strides", "code_strides", "code_step", "cap_sizes",
                               "cap_strides", "dcap_strides", "dbias_strides"])  # fmt: skip
def backward_rows_kernel(
    grad, y, code, dx, cap, cap_stride, caps, inner, chunk, chunks, pieces, per_split, splits,
    sizes, grad_strides, y_strides, dx_strides, code_strides, code_step,
    dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor: tl.float64,
    cap_partials, cap_errors, bias_partials, bias_errors, counters,
    RUNS: tl.constexpr, WIDTH: tl.constexpr, EDGES: tl.constexpr, ALONE: tl.constexpr, ACCUMULATE: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, AT_ONCE: tl.constexpr, PARTIALS: tl.constexpr,
):  # fmt: skip
    """Program b sums the pieces of split ``b // caps`` of cap ``b % caps``, RUNS at a time, WIDTH groups each."""
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
    end = tl.minimum(pieces, (split + 1) * per_split)
    piece = split * per_split
    while piece < end:
        k = piece + tile // WIDTH
        if WIDE:
            k = k.to(tl.int64)
        run = k // chunks
        within = (k - run * chunks) * chunk
        begin = (run * caps + c) * inner + within
        stop = tl.where(k < end, begin + tl.minimum(chunk, inner - within), begin)
        group = (begin + (VEC - 1)) // VEC + tile % WIDTH
        i = group[:, None] * VEC + e
        # Behind the last piece the numbers mean nothing, and may not fit.
        whole = (k < end) & ((group + 1) * VEC <= stop)
        g, kept = _fetch(
            grad, y, code, i, group, whole, whole[:, None], sizes, grad_strides, y_strides, code_strides, code_step,
            VEC, AT_ONCE,
        )  # fmt: skip
        to_cap, to_x = _route(g, kept, code, dx, i, whole[:, None], m, sizes, dx_strides, ACCUMULATE)
        if dcap is not None:
            cap_value, cap_error = add(cap_value, cap_error, tl.sum(to_cap, axis=1))
        if dbias is not None:
            bias_value, bias_error = add(bias_value, bias_error, tl.sum(to_x, axis=1))
        if EDGES:
            k = piece + tl.arange(0, RUNS)
            if WIDE:
                k = k.to(tl.int64)
            run = k // chunks
            within = (k - run * chunks) * chunk
            begin = (run * caps + c) * inner + within
            stop = tl.where(k < end, begin + tl.minimum(chunk, inner - within), begin)
            head_end = tl.minimum((begin + (VEC - 1)) // VEC * VEC, stop)
            tail = tl.maximum(stop // VEC * VEC, head_end)
            of_edge = tl.arange(0, 2 * VEC)[None, :]
            i = tl.where(of_edge < VEC, begin[:, None] + of_edge, tail[:, None] + (of_edge - VEC))
            inside_edge = (k < end)[:, None] & (i < tl.where(of_edge < VEC, head_end[:, None], stop[:, None]))
            g, kept = _fetch(
                grad, y, code, i, i, inside_edge, inside_edge, sizes, grad_strides, y_strides, code_strides, code_step,
                VEC, False,
            )  # fmt: skip
            to_cap, to_x = _route(g, kept, code, dx, i, inside_edge, m, sizes, dx_strides, ACCUMULATE)
            if dcap is not None:
                edge_cap_value, edge_cap_error = add(edge_cap_value, edge_cap_error, tl.sum(to_cap, axis=1))
            if dbias is not None:
                edge_bias_value, edge_bias_error = add(edge_bias_value, edge_bias_error, tl.sum(to_x, axis=1))
        piece += RUNS
    if (dcap is not None) or (dbias is not None):
        cap_total, cap_rest = sum_tile(cap_value[:, None], cap_error[:, None])
        bias_total, bias_rest = sum_tile(bias_value[:, None], bias_error[:, None])
        if EDGES:
            more, more_rest = sum_tile(edge_cap_value[:, None], edge_cap_error[:, None])
            cap_total, cap_rest = add(cap_total, cap_rest + more_rest, more)
            more, more_rest = sum_tile(edge_bias_value[:, None], edge_bias_error[:, None])
            bias_total, bias_rest = add(bias_total, bias_rest + more_rest, more)
        finish(
            cap_total, cap_rest, bias_total, bias_rest, c, split, splits, c, 1, caps,
            dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor,
            cap_partials, cap_errors, bias_partials, bias_errors, counters, ALONE, PARTIALS, 1,
        )  # fmt: skip


@triton.jit
def _add_rows(
    grad, y, code, dx, group, following, valid, following_valid, numel, m, cap_value, cap_error, bias_value, bias_error,
    sizes, grad_strides, y_strides, dx_strides, code_strides, code_step, dcap, dbias,
    ACCUMULATE: tl.constexpr, VEC: tl.constexpr, AT_ONCE: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """Two groups of each column, one below the other: all loads first. ``CUT``: some elements are beyond the last."""
    i = group[:, None] * VEC + tl.arange(0, VEC)[None, :]
    j = following[:, None] * VEC + tl.arange(0, VEC)[None, :]
    mask = valid[:, None]
    following_mask = following_valid[:, None]
    if CUT:
        mask = mask & (i < numel)
        following_mask = following_mask & (j < numel)
    g, kept = _fetch(
        grad, y, code, i, group, valid, mask, sizes, grad_strides, y_strides, code_strides, code_step, VEC, AT_ONCE
    )
    h, below = _fetch(
        grad, y, code, j, following, following_valid, following_mask, sizes, grad_strides, y_strides, code_strides,
        code_step, VEC, AT_ONCE,
    )  # fmt: skip
    to_cap, to_x = _route(g, kept, code, dx, i, mask, m, sizes, dx_strides, ACCUMULATE)
    more_to_cap, more_to_x = _route(h, below, code, dx, j, following_mask, m, sizes, dx_strides, ACCUMULATE)
    if dcap is not None:
        cap_value, cap_error = add(cap_value, cap_error, to_cap + more_to_cap)
    if dbias is not None:
        bias_value, bias_error = add(bias_value, bias_error, to_x + more_to_x)
    return cap_value, cap_error, bias_value, bias_error


@triton.jit(do_not_specialize=["numel", "caps", "inner", "row", "rows", "groups", "tiles", "per_program", "row_blocks",
                               "whole_rows", "sizes", "grad_strides", "y_strides", "dx_strides", "code_strides",
                               "code_step", "cap_sizes", "cap_strides", "dcap_strides", "dbias_strides"])  # fmt: skip
def backward_columns_kernel(
    grad, y, code, dx, cap, cap_stride, numel, caps, inner, row, rows, whole_rows, groups, tiles, per_program,
    row_blocks, sizes, grad_strides, y_strides, dx_strides, code_strides, code_step,
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
        m = tl.load(cap + cap_of(column, inner, caps).to(tl.int64) * cap_stride, mask=(w < groups)[:, None], other=0)
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
    # The last row is cut where the tensor is not whole rows: no group of the others is.
    whole_end = tl.minimum(end, whole_rows)
    groups_of_row = row // VEC
    at = begin
    while at < whole_end:
        place = (at + h) * groups_of_row + w
        cap_value, cap_error, bias_value, bias_error = _add_rows(
            grad, y, code, dx, place, place + HEIGHT * groups_of_row, (w < groups) & (at + h < whole_end),
            (w < groups) & (at + HEIGHT + h < whole_end), numel, m, cap_value, cap_error, bias_value, bias_error,
            sizes, grad_strides, y_strides, dx_strides, code_strides, code_step, dcap, dbias,
            ACCUMULATE, VEC, AT_ONCE, False,
        )  # fmt: skip
        at += 2 * HEIGHT
    if end > whole_rows:
        place = (whole_rows + h) * groups_of_row + w
        cap_value, cap_error, bias_value, bias_error = _add_rows(
            grad, y, code, dx, place, place, (w < groups) & (h == 0), w < 0, numel, m, cap_value, cap_error,
            bias_value, bias_error, sizes, grad_strides, y_strides, dx_strides, code_strides, code_step, dcap, dbias,
            ACCUMULATE, VEC, False, True,
        )  # fmt: skip
    if (dcap is not None) or (dbias is not None):
        rows_of_sums: tl.constexpr = (HEIGHT, WIDTH * VEC)
        cap_total, cap_rest = sum_tile(cap_value.reshape(rows_of_sums), cap_error.reshape(rows_of_sums))
        bias_total, bias_rest = sum_tile(bias_value.reshape(rows_of_sums), bias_error.reshape(rows_of_sums))
        first = tile * (WIDTH * VEC)
        finish(
            cap_total, cap_rest, bias_total, bias_rest, tile, block, row_blocks, first,
            tl.minimum(WIDTH * VEC, row - first), row,
            dcap, dbias, given_cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor,
            cap_partials, cap_errors, bias_partials, bias_errors, counters, ALONE, PARTIALS, WIDTH * VEC,
        )  # fmt: skip
