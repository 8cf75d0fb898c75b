"""The packed mask: its bytes, and that asking for it (or for the penalty) changes nothing in y."""

from __future__ import annotations

import pytest
import torch

from tests.support import oracle
from tests.support.cases import (
    CASES,
    DTYPES,
    FEW_CASES,
    WRITABLE_CASES,
    Case,
    all_bit_patterns,
    dtype_id,
    special_values,
)

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
SMALL = tuple(case for case in CASES if torch.Size(case.shape).numel() < 20_000)


@by_dtype
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_mask(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    y, mask, penalty = backend.capped_relu_with_aux(x, cap, case.dim, True, None)
    oracle.assert_same_bits(y, backend.capped_relu(x, cap, case.dim))
    assert y.stride() == torch.empty_like(x).stride()
    oracle.assert_same_bits(mask, oracle.mask(x, cap, case.dim, oracle.mask_order(y, cap)))
    assert mask.shape == ((x.numel() + 3) // 4,)
    assert (penalty.shape, penalty.dtype) == ((0,), oracle.accumulator(cap))


@by_dtype
@pytest.mark.parametrize("case", [case for case in SMALL if not case.overlaps], ids=str)
def test_mask_in_place(backend, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    expected_y = oracle.forward(x, cap, case.dim)
    expected_mask = oracle.mask(x, cap, case.dim, oracle.mask_order(x, cap))
    mask, _ = backend.capped_relu_with_aux_(x, cap, case.dim, True, None)
    oracle.assert_same_bits(x, expected_y)
    oracle.assert_same_bits(mask, expected_mask)


@pytest.mark.parametrize("case", [case for case in WRITABLE_CASES if case not in SMALL], ids=str)
def test_mask_of_many_elements(backend, case: Case) -> None:
    x, cap = case.inputs(torch.float32)
    y, mask, _ = backend.capped_relu_with_aux(x, cap, case.dim, True, None)
    oracle.assert_same_bits(y, oracle.forward(x, cap, case.dim))
    oracle.assert_same_bits(mask, oracle.mask(x, cap, case.dim, oracle.mask_order(y, cap)))


@pytest.mark.parametrize("in_place", [False, True], ids=["out_of_place", "in_place"])
def test_bits_lie_low_first_and_the_rest_is_zero(backend, in_place: bool) -> None:
    x = torch.tensor([-1.0, 0.5, 2.0, float("nan"), 2.0, 0.5])  # off, inside, capped, inside | capped, inside
    operator = backend.capped_relu_with_aux_ if in_place else backend.capped_relu_with_aux
    mask = operator(x, torch.ones(()), 1, True, None)[0 if in_place else 1]
    assert [f"{byte:08b}" for byte in mask.tolist()] == ["01100100", "00000110"]


@pytest.mark.parametrize("numel", range(10))
def test_padding(backend, numel: int) -> None:
    mask = backend.capped_relu_with_aux(torch.full((numel,), 2.0), torch.ones(()), 0, True, None)[1]
    assert mask.tolist() == [0b10101010] * (numel // 4) + ([(1 << 2 * (numel % 4)) * 2 // 3] if numel % 4 else [])


@by_dtype
def test_special_values(backend, dtype: torch.dtype) -> None:
    values = special_values(dtype)
    x = values[:, None].expand(-1, values.numel()).contiguous()
    for x_laid_out in (x, x.t().contiguous().t()):
        y, mask, _ = backend.capped_relu_with_aux(x_laid_out, values, 1, True, None)
        oracle.assert_same_bits(y, oracle.forward(x, values))
        oracle.assert_same_bits(mask, oracle.mask(x, values, 1, oracle.mask_order(y, values)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_every_half_value(backend, dtype: torch.dtype) -> None:
    x, cap = all_bit_patterns(dtype), torch.tensor(0.7)
    oracle.assert_same_bits(backend.capped_relu_with_aux(x, cap, 0, True, None)[1], oracle.mask(x, cap, 0, [0]))


@pytest.mark.parametrize("save_mask", [False, True], ids=["output", "mask"])
@pytest.mark.parametrize("balancer", [None, 0.5], ids=["", "balancer"])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_what_is_not_asked_for_is_empty(backend, case: Case, balancer: float | None, save_mask: bool) -> None:
    x, cap = case.inputs(torch.bfloat16)
    y, mask, penalty = backend.capped_relu_with_aux(x, cap, case.dim, save_mask, balancer)
    in_place = case.lay_out(x)
    mask_in_place, penalty_in_place = backend.capped_relu_with_aux_(in_place, cap, case.dim, save_mask, balancer)
    oracle.assert_same_bits(in_place, y)
    assert mask.dtype == torch.uint8
    assert mask.numel() == ((x.numel() + 3) // 4 if save_mask else 0)
    assert penalty.dtype == torch.float32
    assert penalty.shape == (() if balancer is not None else (0,))
    oracle.assert_same_bits(penalty_in_place, penalty)
    if in_place.stride() == y.stride():
        oracle.assert_same_bits(mask_in_place, mask)
