"""What the operators make +0 where `zeroed` asks for it: elements above their cap, NaN, both; and its derivatives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_bias_and_residual import GIVEN, bias_and_residual
from tests.support import oracle
from tests.support.cases import (
    CASES,
    DTYPES,
    FEW_CASES,
    MIXED_DTYPES,
    WRITABLE_CASES,
    Case,
    all_bit_patterns,
    broadcast_cap,
    dtype_id,
    mixed_id,
    special_values,
)

FORMS = {"above": oracle.ABOVE, "nan": oracle.NAN, "both": oracle.ABOVE | oracle.NAN}
by_form = pytest.mark.parametrize("zeroed", FORMS.values(), ids=FORMS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)


def with_faults(case: Case, dtype: torch.dtype, cap_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Inputs of a case, of which every seventh element is NaN or infinite; one cap of many is infinite, one NaN."""
    cap = case.cap(cap_dtype or dtype)
    if cap.numel() > 4:
        cap.view(-1)[2], cap.view(-1)[3] = torch.inf, torch.nan
    x = case.x(dtype, cap)
    if not case.overlaps:
        faulty = torch.arange(x.numel()).reshape(x.shape) % 7 == 3
        x[faulty] = special_values(dtype)[: 2 * int(faulty.sum())].repeat(x.numel())[: int(faulty.sum())]
    return x, cap


@by_form
@by_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_backward(backend: Any, case: Case, dtype: torch.dtype, zeroed: int) -> None:
    x, cap = with_faults(case, dtype)
    expected = oracle.forward(x, cap, case.dim, zeroed)
    y, mask, _ = backend.capped_relu_with_aux(x, cap, case.dim, True, None, None, None, zeroed)
    for got in (y, backend.capped_relu(x, cap, case.dim, None, None, zeroed)):
        oracle.assert_same_bits(got, expected)
        assert got.stride() == torch.empty_like(x).stride()
    order = oracle.mask_order(y, cap)
    oracle.assert_same_bits(mask, oracle.mask(x, cap, case.dim, order, zeroed))
    grad, u, v = case.grad(dtype), case.grad(dtype, seed=6), case.cap(cap.dtype)
    for saved, saved_order in ((y, ()), (mask, order)):
        for need_x, need_cap in ((True, True), (True, False), (False, True)):
            dx, dcap, _ = backend.capped_relu_backward(
                grad, saved, cap, case.dim, saved_order, need_x, need_cap, None, None, None, zeroed
            )
            if need_x:
                oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, case.dim, zeroed))
            if need_cap:
                oracle.assert_grad_cap(dcap, grad, x, cap, case.dim, zeroed)
        got = backend.capped_relu_jvp(u, v, saved, cap, case.dim, saved_order, zeroed)
        oracle.assert_same_bits(got, oracle.tangent(u, v, x, cap, case.dim, zeroed))


@by_form
@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_cap_of_another_dtype(backend: Any, case: Case, dtypes: tuple[torch.dtype, torch.dtype], zeroed: int) -> None:
    x, cap = with_faults(case, *dtypes)
    y = backend.capped_relu(x, cap, case.dim, None, None, zeroed)
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim, zeroed))
    grad = case.grad(x.dtype)
    dx, dcap, _ = backend.capped_relu_backward(grad, y, cap, case.dim, (), True, True, None, None, None, zeroed)
    oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, case.dim, zeroed))
    oracle.assert_grad_cap(dcap, grad, x, cap, case.dim, zeroed)


@by_form
@pytest.mark.parametrize("given", GIVEN)
@by_dtype
@pytest.mark.parametrize("case", FEW_CASES[1:], ids=str)
def test_sums(backend: Any, case: Case, dtype: torch.dtype, given: str, zeroed: int) -> None:
    x, cap = with_faults(case, dtype)
    bias, residual = bias_and_residual(case, dtype, given)
    if residual is not None:
        # Some sums are their caps, some round to them.
        residual[::2] = (broadcast_cap(case, cap).to(dtype) - x - (bias_of(case, bias) if bias is not None else 0))[::2]
    total = oracle.fused_sum(x, bias, residual, case.dim)
    expected = oracle.forward(total, cap, case.dim, zeroed)
    y, mask, penalty = backend.capped_relu_with_aux(x, cap, case.dim, True, 0.5, bias, residual, zeroed)
    oracle.assert_same_bits(y, expected)
    oracle.assert_same_bits(mask, oracle.mask(total, cap, case.dim, oracle.mask_order(y, cap), zeroed))
    assert penalty.item() == pytest.approx(oracle.penalty([cap], 0.5), rel=1e-6, nan_ok=True)
    grad, weight = case.grad(dtype), torch.tensor(3.0)
    dx, dcap, dbias = backend.capped_relu_backward(grad, y, cap, case.dim, (), True, True, 0.5, weight, bias, zeroed)
    oracle.assert_same_bits(dx, oracle.grad_x(grad, total, cap, case.dim, zeroed))
    # The penalty acts on the cap whatever becomes of x.
    sums, magnitude = oracle.grad_cap(grad, total, cap, case.dim, zeroed)
    pull = 3.0 * cap.double()
    oracle.assert_sum(dcap, sums + pull, magnitude + pull.abs(), oracle.accumulator(grad, cap))
    if bias is not None:
        sums = oracle.grad_bias(grad, total, cap, bias, case.dim, zeroed)
        oracle.assert_sum(dbias, *sums, oracle.accumulator(grad, bias))


def bias_of(case: Case, bias: Tensor) -> Tensor:
    return bias if bias.ndim > 1 else oracle.spread_channels(bias, torch.empty(case.shape), case.dim)


@by_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("case", WRITABLE_CASES[::2], ids=str)
def test_in_place(backend: Any, case: Case, dtype: torch.dtype, zeroed: int) -> None:
    x, cap = with_faults(case, dtype)
    expected = oracle.forward(x, cap, case.dim, zeroed)
    extra = case.lay_out(x.clone())
    backend.capped_relu_(x, cap, case.dim, None, None, zeroed)
    oracle.assert_same_bits(x, expected)
    packed, _ = backend.capped_relu_with_aux_(extra, cap, case.dim, True, None, None, None, zeroed)
    oracle.assert_same_bits(extra, expected)
    assert packed.numel() == -(-x.numel() // 4)


@by_form
@by_dtype
def test_special_values(backend: Any, dtype: torch.dtype, zeroed: int) -> None:
    values = special_values(dtype)
    x, cap = values[:, None].expand(-1, values.numel()).contiguous(), values.clone()
    expected = oracle.forward(x, cap, 1, zeroed)
    y, mask, _ = backend.capped_relu_with_aux(x, cap, 1, True, None, None, None, zeroed)
    oracle.assert_same_bits(y, expected)
    oracle.assert_same_bits(mask, oracle.mask(x, cap, 1, [0, 1], zeroed))
    grad = torch.randn(x.shape).to(dtype)
    for saved, order in ((y, ()), (mask, (0, 1))):
        dx, dcap, _ = backend.capped_relu_backward(grad, saved, cap, 1, order, True, True, None, None, None, zeroed)
        oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, 1, zeroed))
        oracle.assert_grad_cap(dcap, grad, x, cap, 1, zeroed)


@by_form
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_every_16_bit_number(backend: Any, dtype: torch.dtype, zeroed: int) -> None:
    x = all_bit_patterns(dtype)
    for cap in (torch.tensor(value, dtype=dtype) for value in (1.5, torch.inf, 0.0, torch.nan, -torch.inf)):
        y = backend.capped_relu(x, cap, 1, None, None, zeroed)
        oracle.assert_same_bits(y, oracle.forward(x, cap, 1, zeroed))
        dx = backend.capped_relu_backward(x, y, cap, 1, (), True, False, None, None, None, zeroed)[0]
        oracle.assert_same_bits(dx, oracle.grad_x(x, x, cap, 1, zeroed))


@pytest.mark.parametrize("zeroed", [-1, 4])
def test_unknown_numbers_are_refused(backend: Any, zeroed: int) -> None:
    x, cap = torch.zeros(2, 3), torch.ones(3)
    words = rf"zeroed: got {zeroed}; expected one of 0 to 3"
    with pytest.raises((ValueError, RuntimeError), match=words):
        backend.capped_relu(x, cap, 1, None, None, zeroed)
    with pytest.raises((ValueError, RuntimeError), match=words):
        backend.capped_relu_backward(x, x, cap, 1, (), True, True, None, None, None, zeroed)
    with pytest.raises((ValueError, RuntimeError), match=words):
        backend.capped_relu_jvp(x, None, x, cap, 1, (), zeroed)
