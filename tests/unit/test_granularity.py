"""The shape rule of a cap stands in Python and in csrc/include/dreluop/layout.h: both must be one rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreluop._internal.shapes import broadcast_shape, granularity_of

_C = pytest.importorskip("dreluop._C")
SIZES = st.integers(0, 4)


@given(x=st.lists(SIZES, max_size=4), cap=st.lists(SIZES, max_size=3), dim=st.integers(-5, 5), fit=st.integers(0, 3))
def test_python_and_cpp_accept_the_same_caps(x: list[int], cap: list[int], dim: int, fit: int) -> None:
    # Caps drawn at random hardly ever fit; most of these do.
    if fit == 1 and x:
        cap = [x[dim % len(x)]]
    elif fit == 2:
        cap = x[1:]
    strides = [max(1, size) for size in x]
    try:
        granularity = granularity_of(x, cap, dim)
    except ValueError:
        with pytest.raises(ValueError, match=r"^(cap|dim): got "):
            _C.cpu_plan(x, strides, cap, dim)
        return
    plan = _C.cpu_plan(x, strides, cap, dim)
    caps = 1 if granularity == "layer" else x[dim] if granularity == "channel" else _product(x[1:])
    assert plan["caps"] == caps
    assert plan["outer"] * plan["caps"] * plan["inner"] == _product(x)
    assert _product(broadcast_shape(x, cap, dim)) == caps


def _product(sizes: list[int] | tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
