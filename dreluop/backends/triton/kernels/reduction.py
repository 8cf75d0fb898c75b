"""From the sums of programs to the gradients of cap and bias, in the same launch or in a second one."""

import triton
import triton.language as tl

from dreluop.backends.triton.kernels.elements import load, offset_of, round_to, upcast
from dreluop.backends.triton.kernels.sums import add, is_last_program, sum_partials, sum_tile, total_of


@triton.jit
def _write_gradient(
    to, total, first, count, sizes, strides, cap, cap_strides, grad_penalty, factor, COLUMNS: tl.constexpr
):
    """For the caps [first, first + count), the penalty's gradient with it."""
    column = tl.arange(0, COLUMNS)
    mask = column < count
    c = first + column
    if grad_penalty is not None:
        # Of the cap as given, not as rounded to x's dtype.
        scale = tl.full((1,), factor, total.dtype) * upcast(tl.load(grad_penalty + tl.arange(0, 1))).to(total.dtype)
        total += scale * upcast(load(cap + offset_of(c, sizes, cap_strides), mask)).to(total.dtype)
    tl.store(to + offset_of(c, sizes, strides), round_to(total, to.dtype.element_ty), mask=mask)


@triton.jit
def _leave(partials, errors, value, error, block, columns, first, count, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    place = block.to(tl.int64) * columns + first + column
    tl.store(partials + place, value, mask=column < count)
    tl.store(errors + place, error, mask=column < count)


@triton.jit
def reduction(
    cap_value, cap_error, bias_value, bias_error, set_, block, blocks, first, count, columns,
    dcap, dbias, cap, cap_sizes, cap_strides, dcap_strides, dbias_strides, grad_penalty, factor,
    cap_partials, cap_errors, bias_partials, bias_errors, counters,
    ALONE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What a program does with its sums over the columns [first, first + count), caps where it may write gradients.

    ``ALONE``: no other program has these columns. Else it leaves them as the partial sums of `block`, and with
    ``counters`` the last of `blocks` programs adds them up.
    """
    if ALONE:
        if dcap is not None:
            _write_gradient(dcap, total_of(cap_value, cap_error), first, count, cap_sizes, dcap_strides, cap,
                            cap_strides, grad_penalty, factor, COLUMNS)  # fmt: skip
        if dbias is not None:
            _write_gradient(dbias, total_of(bias_value, bias_error), first, count, cap_sizes, dbias_strides, cap,
                            cap_strides, None, factor, COLUMNS)  # fmt: skip
    else:
        if dcap is not None:
            _leave(cap_partials, cap_errors, cap_value, cap_error, block, columns, first, count, COLUMNS)
        if dbias is not None:
            _leave(bias_partials, bias_errors, bias_value, bias_error, block, columns, first, count, COLUMNS)
        if counters is not None:
            if is_last_program(counters + set_, blocks):
                if dcap is not None:
                    value, error = sum_partials(cap_partials, cap_errors, first, count, blocks, columns, ROWS, COLUMNS)
                    _write_gradient(dcap, total_of(value, error), first, count, cap_sizes, dcap_strides, cap,
                                    cap_strides, grad_penalty, factor, COLUMNS)  # fmt: skip
                if dbias is not None:
                    value, error = sum_partials(
                        bias_partials, bias_errors, first, count, blocks, columns, ROWS, COLUMNS
                    )
                    _write_gradient(dbias, total_of(value, error), first, count, cap_sizes, dbias_strides, cap,
                                    cap_strides, None, factor, COLUMNS)  # fmt: skip


@triton.jit(do_not_specialize=["caps", "terms", "columns", "repeat", "period", "inner", "sizes", "strides",
                               "cap_strides"])  # fmt: skip
def reduction_kernel(
    partials, errors, caps, terms, columns, repeat, period, inner, to, sizes, strides, cap, cap_strides,
    grad_penalty, factor: tl.float64, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The second launch: cap c is the sum of partials[b * columns + q * period + c * inner + r] over all b, q, r.

    ``terms`` is the number of b times `repeat` times `inner`.
    """
    first = tl.program_id(0) * COLUMNS
    c = first + tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    value = tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty)
    error = tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty)
    begin = 0
    while begin < terms:
        term = begin + row
        mask = (term < terms) & (c < caps)
        run = term // inner
        block = run // repeat
        place = block.to(tl.int64) * columns + (run - block * repeat) * period + c * inner + (term - run * inner)
        value, error = add(value, error, load(partials + place, mask))
        error += load(errors + place, mask)
        begin += ROWS
    value, error = sum_tile(value, error)
    _write_gradient(to, total_of(value, error), first, caps - first, sizes, strides, cap, cap_strides, grad_penalty,
                    factor, COLUMNS)  # fmt: skip
