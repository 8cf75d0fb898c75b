"""The order in which a pass traverses x, and which elements share a cap: csrc/include/dreluop/layout.h, for Python."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dreluop._internal.shapes import granularity_of
from dreluop.backends.triton.plan import Layout


@dataclass(frozen=True)
class Traversal:
    """``order``: dimensions of x, outermost first. ``cap_order``: those of a tensor of the cap's shape, as met."""

    order: tuple[int, ...]
    cap_order: tuple[int, ...]
    layout: Layout
    # One cap, but a bias per channel: the layout counts channels, and all of them use the one cap.
    shared_cap: bool = False


def traversal_of(
    sizes: Sequence[int], order: Sequence[int], cap_shape: Sequence[int], dim: int, bias_shape: Sequence[int] | None
) -> Traversal:
    """Traverse x in ``order`` where one (outer, caps, inner) view allows it; else with the batch outermost."""
    granularity = granularity_of(sizes, cap_shape, dim)
    shared_cap = False
    if granularity == "layer" and bias_shape is not None and math.prod(bias_shape) > 0:
        # Without channels the one cap stays, and has its gradient.
        granularity, shared_cap = "channel", True
    if granularity == "layer":
        return Traversal(tuple(order), tuple(range(len(cap_shape))), Layout(1, 1, math.prod(sizes)))
    if granularity == "channel":
        at = order.index(dim % len(sizes))
        outer, inner = (math.prod(sizes[d] for d in part) for part in (order[:at], order[at + 1 :]))
        return Traversal(tuple(order), (0,), Layout(outer, sizes[order[at]], inner), shared_cap)
    # A dimension of size one lies anywhere in memory.
    real = [d for d in order if sizes[d] != 1 or d == 0]
    if real[-1] == 0 and real[0] != 0 and sizes[0] != 1:
        layout = Layout(1, math.prod(cap_shape), sizes[0])
    else:
        if real[0] != 0:
            order = [0, *(d for d in order if d != 0)]
        layout = Layout(sizes[0], math.prod(cap_shape), 1)
    return Traversal(tuple(order), tuple(d - 1 for d in order if d != 0), layout)


def dense_strides(sizes: Sequence[int]) -> list[int]:
    strides = [1] * len(sizes)
    for d in range(len(sizes) - 1, 0, -1):
        strides[d - 1] = strides[d] * max(1, sizes[d])
    return strides


def is_dense(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie side by side in the order of the dimensions."""
    return all(got == want or size == 1 for size, got, want in zip(sizes, strides, dense_strides(sizes), strict=True))


def merge_dimensions(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The same elements with as few dimensions as all the tensors allow, at least one."""
    merged: list[int] = []
    merged_strides: list[list[int]] = [[] for _ in strides]
    for d, size in enumerate(sizes):
        if size == 1:
            continue
        if merged and all(result[-1] == size * of[d] for result, of in zip(merged_strides, strides, strict=True)):
            merged[-1] *= size
            for result, of in zip(merged_strides, strides, strict=True):
                result[-1] = of[d]
        else:
            merged.append(size)
            for result, of in zip(merged_strides, strides, strict=True):
                result.append(of[d])
    return (merged, merged_strides) if merged else ([1], [[0] for _ in strides])
