"""Sums whose rounding errors are kept, and their reduction over a tile and over programs in a fixed order."""

import triton
import triton.language as tl


@triton.jit
def add(value, error, term):
    """A sum and what rounding took from it, with one more term (Knuth's two-sum)."""
    total = value + term
    back = total - value
    return total, error + ((value - (total - back)) + (term - back))


@triton.jit
def _combine(value, error, other, other_error):
    total = value + other
    back = total - value
    return total, error + other_error + ((value - (total - back)) + (other - back))


@triton.jit
def total_of(value, error):
    """An infinite or NaN sum has a meaningless error."""
    return tl.where(value - value == 0, value + error, value)


@triton.jit
def sum_tile(value, error):
    """Over the rows of a tile [rows, columns]: (value, error), each [columns]."""
    return tl.reduce((value, error), 0, _combine)


@triton.jit
def is_last_program(counter, expected):
    """Whether this program is the last of `expected` to get here: it sees all that the others wrote before."""
    # The count is released by one thread for what all threads of the program wrote.
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1


@triton.jit
def sum_partials(partials, errors, first, count, blocks, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Over partials[block * width + first + k] for k < count, ROWS blocks at a time; (value, error), each [COLUMNS]."""
    column = tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, ROWS)[:, None]
    value = tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty)
    error = tl.zeros((ROWS, COLUMNS), partials.dtype.element_ty)
    begin = 0
    while begin < blocks:
        block = begin + row
        mask = (block < blocks) & (column < count)
        place = block.to(tl.int64) * width + first + column
        # Past the first-level cache, which is not coherent.
        value, error = add(value, error, tl.load(partials + place, mask=mask, other=0.0, cache_modifier=".cg"))
        error += tl.load(errors + place, mask=mask, other=0.0, cache_modifier=".cg")
        begin += ROWS
    return sum_tile(value, error)
