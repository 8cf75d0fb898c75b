"""surrogate: grad wherever y is on, bit for bit, from either thing saved; or a smoothed slope, within rounding."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.cases import (
    CASES,
    DTYPES,
    FEW_CASES,
    LAYOUTS,
    MIXED_DTYPES,
    Case,
    all_bit_patterns,
    dtype_id,
    mixed_id,
    special_values,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def through(backend: SimpleNamespace, grad: Tensor, x: Tensor, cap: Tensor, dim: int, save: str) -> Tensor:
    y, mask, _ = backend.capped_relu_with_aux(x, cap, dim, save == "mask", None)
    if save == "mask":
        return backend.capped_relu_surrogate_backward(grad, mask, cap, dim, oracle.mask_order(y, cap), None)
    return backend.capped_relu_surrogate_backward(grad, y, cap, dim, (), None)


def widths(case: Case, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(case.cap_shape, generator=torch.Generator().manual_seed(5)).add_(0.1).to(dtype)


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_straight_through_from_output_and_mask(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = torch.empty_like(x).copy_(case.grad(dtype))
    expected = oracle.straight_through(grad, x, cap, case.dim)
    for save in ("output", "mask"):
        oracle.assert_same_bits(through(backend, grad, x, cap, case.dim, save), expected)
    assert through(backend, grad, x, cap, case.dim, "output").stride() == torch.empty_like(x).stride()


@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_soft(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad, width = torch.empty_like(x).copy_(case.grad(dtype)), widths(case)
    got = backend.capped_relu_surrogate_backward(grad, x, cap, case.dim, (), width)
    oracle.assert_soft(got, grad, x, cap, width, case.dim)
    assert got.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_caps_and_widths_of_other_dtypes(backend, case: Case, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, cap = case.inputs(*dtypes)
    grad = case.grad(x.dtype)
    for save in ("output", "mask"):
        got = through(backend, grad, x, cap, case.dim, save)
        oracle.assert_same_bits(got, oracle.straight_through(grad, x, cap, case.dim))
    for dtype in DTYPES:
        width = widths(case, dtype)
        # A width is rounded to what the slope is computed in.
        rounded = width.to(oracle.accumulator(x))
        got = backend.capped_relu_surrogate_backward(grad, x, cap, case.dim, (), width)
        oracle.assert_soft(got, grad, x, cap, rounded, case.dim)


@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "step", "offset", "expanded"])
@pytest.mark.parametrize("cap_shape", [(), (6,), (6, 9, 7)], ids=["layer", "channel", "neuron"])
def test_gradients_and_widths_with_other_strides(
    backend, cap_shape: tuple[int, ...], layout: str, x_layout: str
) -> None:
    case = Case((3, 6, 9, 7), cap_shape, layout=x_layout)
    x, cap = case.inputs(torch.float32)
    grad = case.grad(torch.float32)
    grad = grad[:1].expand(case.shape) if layout == "expanded" else LAYOUTS[layout](grad)
    expected = oracle.straight_through(grad, x, cap)
    for save in ("output", "mask"):
        oracle.assert_same_bits(through(backend, grad, x, cap, 1, save), expected)
    width = LAYOUTS["step"](widths(case)) if cap_shape else widths(case)
    oracle.assert_soft(backend.capped_relu_surrogate_backward(grad, x, cap, 1, (), width), grad, x, cap, width)
    width = torch.tensor(0.5).expand(cap_shape)
    oracle.assert_soft(backend.capped_relu_surrogate_backward(grad, x, cap, 1, (), width), grad, x, cap, width)


@by_dtype
def test_straight_through_selects_and_never_multiplies(backend, dtype: torch.dtype) -> None:
    values = special_values(dtype)
    x = values.repeat(4)[:67].expand(2, values.numel(), 67).contiguous()
    for value in (math.inf, math.nan, -0.0):
        grad = torch.full_like(x, value)
        for save in ("output", "mask"):
            expected = oracle.straight_through(grad, x, values)
            oracle.assert_same_bits(through(backend, grad, x, values, 1, save), expected)


@by_dtype
def test_soft_on_special_values(backend, dtype: torch.dtype) -> None:
    x, cap = special_values(dtype), torch.ones((), dtype=dtype)
    width = torch.tensor(0.5)
    got = backend.capped_relu_surrogate_backward(torch.ones_like(x), x, cap, 0, (), width)
    oracle.assert_soft(got, torch.ones_like(x), x, cap, width, 0)
    assert torch.equal(got.isnan(), x.isnan())
    assert not got[x.isinf()].any()
    # Every x is far below an infinite cap.
    got = backend.capped_relu_surrogate_backward(
        torch.ones_like(x), x, torch.full((), math.inf, dtype=dtype), 0, (), width
    )
    oracle.assert_soft(got, torch.ones_like(x), x, torch.tensor(math.inf), width, 0)
    assert torch.equal(got.isnan(), x.isnan())
    assert got[x == math.inf].unique().tolist() == [1]
    assert got[x == -math.inf].unique().tolist() == [0]
    # A cap that is not positive selects 0 whatever comes in; a NaN is not lost.
    grad = torch.full((2,), math.inf, dtype=dtype)
    x = torch.ones(2, dtype=dtype)
    caps = torch.tensor([-1.0, 0.0], dtype=dtype)
    assert backend.capped_relu_surrogate_backward(grad, x, caps, 0, (), torch.ones(2)).tolist() == [0, 0]
    caps = torch.full((2,), math.nan, dtype=dtype)
    assert backend.capped_relu_surrogate_backward(x, x, caps, 0, (), torch.ones(2)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_every_value_of_a_half_type(backend, dtype: torch.dtype) -> None:
    x, cap, width = all_bit_patterns(dtype), torch.tensor(0.75), torch.tensor(0.3)
    grad = torch.ones_like(x)
    for save in ("output", "mask"):
        got = through(backend, grad, x, cap, 0, save)
        oracle.assert_same_bits(got, oracle.straight_through(grad, x, cap, 0))
    oracle.assert_soft(backend.capped_relu_surrogate_backward(grad, x, cap, 0, (), width), grad, x, cap, width, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
@pytest.mark.parametrize("cap", [2.0**-30, 2.0**-6, 1.0, 64.0, math.inf])
def test_the_slope_is_accurate_wherever_it_is_not_zero(backend, cap: float, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    least = -math.log(info.tiny)
    # Multiples of a power of 2, from which arguments are computed exactly: then the result is nearly exact too.
    step = 2.0 ** (-8 if cap >= 2.0**-6 else -30 if dtype == torch.float64 else -20)
    end = (1.1 * least, 64 + 1.1 * least)
    z = torch.linspace(-end[0], end[1], 100_001, dtype=torch.float64).div(step).round().mul(step).to(dtype)
    grad, caps, width = torch.ones_like(z), torch.full((), cap, dtype=dtype), torch.ones((), dtype=dtype)
    got = backend.capped_relu_surrogate_backward(grad, z, caps, 0, (), width)
    oracle.assert_soft(got, grad, z, caps, width, 0)
    want, _ = oracle.soft(grad, z, caps, width, 0)
    if cap >= 2.0**-6:
        inner = want > 8 * info.tiny
        assert inner.sum() > 50_000
        assert (got.double() / want - 1)[inner].abs().max() < 16 * info.eps
    assert (got >= 0).all()
    # 1 in the middle of a wide cap, cap / 4 at the middle of a narrow one.
    expected = 1.0 if cap == math.inf else math.tanh(cap / 4)
    assert float(got.max()) == pytest.approx(expected, rel=1e-3)


@by_dtype
def test_a_large_cap_passes_the_gradient_between_its_ends(backend, dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0, 50.0, 99.5, 100.0, 100.5, 110.0], dtype=dtype)
    cap, width = torch.tensor(100.0), torch.tensor(0.1)
    got = backend.capped_relu_surrogate_backward(torch.ones_like(x), x, cap, 0, (), width)
    near = 1 / (1 + math.exp(-5))
    expected = torch.tensor([0.0, 1 - near, 0.5, near, 1.0, 1.0, near, 0.5, 1 - near, 0.0])
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=5e-3)
