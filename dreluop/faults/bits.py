"""Which bits flip, and how to flip them in a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The integers that hold the bits of a dtype, by its size in bytes.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def width_of(dtype: torch.dtype) -> int:
    """Bits of an element."""
    return 8 * dtype.itemsize


def binomial(total: int, rate: float, generator: torch.Generator) -> int:
    """How many of so many bits flip, if each does with this probability."""
    numbers = (torch.tensor(float(total), dtype=torch.float64), torch.tensor(rate, dtype=torch.float64))
    return int(torch.binomial(*numbers, generator=generator))


def distinct(total: int, count: int, generator: torch.Generator) -> Tensor:
    """So many different numbers below ``total``, each set of them as likely as any other; int64, sorted.

    Takes time for the numbers drawn, not for ``total``, unless they are more than half of it.
    """
    if 2 * count > total:
        kept = torch.ones(total, dtype=torch.bool)
        kept[distinct(total, total - count, generator)] = False
        return kept.nonzero().flatten()
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        more = torch.randint(total, (count - len(found),), generator=generator)
        found = torch.cat([found, more]).unique()
    return found


def as_words(t: Tensor) -> Tensor:
    """The memory of t as integers of its size, of t's shape."""
    return t.view(_WORDS[t.element_size()])


def flip(words: Tensor, positions: Tensor, bits: Sequence[int]) -> tuple[tuple[Tensor, ...], Tensor]:
    """Flip bits in place.

    Args:
        words: integers, any shape and strides.
        positions: of the bits, different int64 numbers on the CPU: position n is bit ``bits[n % len(bits)]`` of
            element ``n // len(bits)``, counted in row-major order.
        bits: those of an element that may flip, 0 the least significant.

    Returns:
        Where words were changed, an index per dimension, and what they were.
    """
    elements, place = (positions // len(bits)).unique(return_inverse=True)
    single = torch.bitwise_left_shift(torch.ones((), dtype=torch.int64), torch.tensor(bits)[positions % len(bits)])
    # Different bits of one element: their sum is their union.
    masks = torch.zeros_like(elements).scatter_add_(0, place, single).to(words.dtype).to(words.device)
    where = torch.unravel_index(elements.to(words.device), words.shape) if words.ndim else ()
    before = words[where].clone()
    # Into one element, if there is no dimension.
    words[where] = before ^ masks.view(before.shape)
    return where, before
