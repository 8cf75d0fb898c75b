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
def total_of(value, error):
    """In fp64. An infinite or NaN sum has a meaningless error."""
    wide = value.to(tl.float64)
    return tl.where(value - value == 0, wide + error.to(tl.float64), wide)


@triton.jit
def sum_tile(value, error, LOG_ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Sums over the rows of tiles [2 ** LOG_ROWS, COLUMNS], as (value, error) in fp64, each [COLUMNS]."""
    if value.dtype == tl.float32:
        total = tl.sum(total_of(value, error), axis=0)
        return total, tl.zeros_like(total)
    for step in tl.static_range(LOG_ROWS):
        # Halves of the rows as the last dimension of two.
        other_shape: tl.constexpr = (2, 1 << (LOG_ROWS - 1 - step), COLUMNS)
        value, other = tl.split(tl.permute(tl.reshape(value, other_shape), (1, 2, 0)))
        error, other_error = tl.split(tl.permute(tl.reshape(error, other_shape), (1, 2, 0)))
        value, error = add(value, error + other_error, other)
    return tl.reshape(value, (COLUMNS,)), tl.reshape(error, (COLUMNS,))


@triton.jit
def arrives_last(counter, expected):
    """Whether this program is the last of `expected` to get here: it sees all that the others wrote before."""
    # The count is released by one thread for what all threads of the program wrote.
    tl.debug_barrier()
    return tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1


@triton.jit
def sum_partials(partials, errors, first, count, blocks, width, LOG_ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Over partials[block * width + first + k] for k < count, in the order of blocks; [COLUMNS] each."""
    column = tl.arange(0, COLUMNS)[None, :]
    row = tl.arange(0, 1 << LOG_ROWS)[:, None]
    value = tl.zeros((1 << LOG_ROWS, COLUMNS), tl.float64)
    error = tl.zeros((1 << LOG_ROWS, COLUMNS), tl.float64)
    begin = 0
    while begin < blocks:
        block = begin + row
        mask = (block < blocks) & (column < count)
        place = block.to(tl.int64) * width + first + column
        # Past the first-level cache, which is not coherent.
        value, error = add(value, error, tl.load(partials + place, mask=mask, other=0.0, cache_modifier=".cg"))
        if errors is not None:
            error += tl.load(errors + place, mask=mask, other=0.0, cache_modifier=".cg")
        begin += 1 << LOG_ROWS
    return sum_tile(value, error, LOG_ROWS, COLUMNS)
