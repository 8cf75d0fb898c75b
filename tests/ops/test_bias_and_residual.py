"""bias and residual in the raw operators: added in fp32 (fp64), rounded once; gradients from what forward saved."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.cases import CASES, DTYPES, FEW_CASES, WRITABLE_CASES, Case, dtype_id, special_values

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
GIVEN = {"bias": (True, False), "residual": (False, True), "both": (True, True)}
by_given = pytest.mark.parametrize("given", GIVEN)
WITH_CHANNELS = [case for case in CASES[::2] if -len(case.shape) <= case.dim < len(case.shape)]


def bias_and_residual(
    case: Case, dtype: torch.dtype, given: str, bias_dtype: torch.dtype | None = None
) -> list[Tensor | None]:
    wants_bias, wants_residual = GIVEN[given]
    bias_shape = case.cap_shape if len(case.cap_shape) > 1 else (case.shape[case.dim],)
    generator = torch.Generator().manual_seed(5)
    bias = torch.randn(bias_shape, generator=generator).to(bias_dtype or dtype) if wants_bias else None
    return [bias, case.grad(dtype, seed=4) if wants_residual else None]


@by_given
@by_dtype
@pytest.mark.parametrize("case", WITH_CHANNELS, ids=str)
def test_forward_and_backward(backend: Any, case: Case, dtype: torch.dtype, given: str) -> None:
    x, cap = case.inputs(dtype)
    bias, residual = bias_and_residual(case, dtype, given)
    total = oracle.fused_sum(x, bias, residual, case.dim)
    expected = oracle.forward(total, cap, case.dim)
    y, mask, penalty = backend.capped_relu_with_aux(x, cap, case.dim, True, 0.5, bias, residual)
    for got in (y, backend.capped_relu(x, cap, case.dim, bias, residual)):
        oracle.assert_same_bits(got, expected)
        assert got.stride() == torch.empty_like(x).stride()
    order = oracle.mask_order(y, cap)
    oracle.assert_same_bits(mask, oracle.mask(total, cap, case.dim, order))
    assert penalty.item() == pytest.approx(oracle.penalty([cap], 0.5), rel=1e-6)
    if bias is None:
        return
    grad = case.grad(dtype)
    for saved, saved_order in ((y, ()), (mask, order)):
        for need_x, need_cap in ((True, True), (False, False)):
            dx, dcap, dbias = backend.capped_relu_backward(
                grad, saved, cap, case.dim, saved_order, need_x, need_cap, None, None, bias
            )
            if need_x:
                oracle.assert_same_bits(dx, oracle.grad_x(grad, total, cap, case.dim))
                oracle.assert_grad_cap(dcap, grad, total, cap, case.dim)
            assert dbias.dtype == bias.dtype
            sums = oracle.grad_bias(grad, total, cap, bias, case.dim)
            oracle.assert_sum(dbias, *sums, oracle.accumulator(grad, bias))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "step", "narrow", "expanded_last"])
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "narrow"])
@pytest.mark.parametrize("cap_shape", [(), (6,), (6, 9, 7)], ids=["layer", "channel", "neuron"])
def test_residual_with_other_strides(backend: Any, cap_shape: tuple[int, ...], x_layout: str, layout: str) -> None:
    case = Case((5, 6, 9, 7), cap_shape, layout=x_layout)
    x, cap = case.inputs(torch.bfloat16)
    residual = Case(case.shape, cap_shape, layout=layout).lay_out(case.grad(x.dtype))
    expected = oracle.forward(oracle.fused_sum(x, None, residual), cap)
    oracle.assert_same_bits(backend.capped_relu(x, cap, 1, None, residual), expected)


@by_given
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("case", [case for case in WRITABLE_CASES if case in WITH_CHANNELS], ids=str)
def test_in_place(backend: Any, case: Case, dtype: torch.dtype, given: str) -> None:
    x, cap = case.inputs(dtype)
    more = bias_and_residual(case, dtype, given)
    expected = oracle.forward(oracle.fused_sum(x, *more, case.dim), cap, case.dim)
    extra = case.lay_out(x.clone())
    backend.capped_relu_(x, cap, case.dim, *more)
    oracle.assert_same_bits(x, expected)
    packed, _ = backend.capped_relu_with_aux_(extra, cap, case.dim, True, None, *more)
    oracle.assert_same_bits(extra, expected)
    assert packed.numel() == math.ceil(x.numel() / 4)


@pytest.mark.parametrize("bias_dtype", DTYPES, ids=dtype_id)
@by_dtype
@pytest.mark.parametrize("case", FEW_CASES[2:], ids=str)
def test_bias_of_another_dtype(backend: Any, case: Case, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    bias, residual = bias_and_residual(case, dtype, "both", bias_dtype)
    assert bias is not None
    total = oracle.fused_sum(x, bias, residual, case.dim)
    y = backend.capped_relu(x, cap, case.dim, bias, residual)
    oracle.assert_same_bits(y, oracle.forward(total, cap, case.dim))
    grad = case.grad(dtype)
    dbias = backend.capped_relu_backward(grad, y, cap, case.dim, (), False, False, None, None, bias)[2]
    assert dbias.dtype == bias_dtype
    accumulator = oracle.accumulator(grad, bias)
    oracle.assert_sum(dbias, *oracle.grad_bias(grad, total, cap, bias, case.dim), accumulator)


@by_dtype
def test_special_values(backend: Any, dtype: torch.dtype) -> None:
    values = special_values(dtype)
    x = values[:, None, None].expand(-1, values.numel(), values.numel()).contiguous()
    bias = values
    residual = values.expand(x.shape).contiguous()
    cap = torch.tensor(1.0, dtype=dtype)
    expected = oracle.forward(oracle.fused_sum(x, bias, residual), cap)
    oracle.assert_same_bits(backend.capped_relu(x, cap, 1, bias, residual), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_the_sum_is_rounded_once(backend: Any, dtype: torch.dtype) -> None:
    # Half an ulp of 1 twice: eager rounds each away, one rounding keeps their sum.
    half_ulp = torch.finfo(dtype).eps / 2
    x, residual = torch.ones(1, 1, dtype=dtype), torch.full((1, 1), half_ulp, dtype=dtype)
    bias = torch.full((1,), half_ulp, dtype=dtype)
    assert ((x + bias) + residual).item() == 1
    assert backend.capped_relu(x, torch.tensor(8.0), 1, bias, residual).item() == 1 + torch.finfo(dtype).eps


def test_the_bias_is_added_before_the_residual(backend: Any) -> None:
    x, bias, residual = torch.ones(1, 1), torch.tensor([1e8]), torch.full((1, 1), -1e8)
    assert backend.capped_relu(x, torch.tensor(8.0), 1, bias, residual).item() == 0


def test_gradient_of_the_bias_does_not_depend_on_threads(native_backend: Any, threads: Any) -> None:
    x, cap = torch.randn(64, 48, 17, 19), torch.rand(1) + 0.5
    bias, grad = torch.randn(48), torch.randn(x.shape)
    results = []
    for count in (1, 2, 5):
        threads(count)
        y = native_backend.capped_relu(x, cap, 1, bias, None)
        results.append(native_backend.capped_relu_backward(grad, y, cap, 1, (), True, True, None, None, bias))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            oracle.assert_same_bits(got, want)


@pytest.mark.parametrize("shape", [(4, 0, 3), (0, 4, 3), (4, 3, 0)], ids=str)
def test_without_elements_one_cap_still_has_its_penalty(backend: Any, shape: tuple[int, ...]) -> None:
    x, cap, bias = torch.randn(shape), torch.tensor([2.0]), torch.randn(shape[1])
    y, _, penalty = backend.capped_relu_with_aux(x, cap, 1, True, 0.5, bias, None)
    assert penalty.item() == 2
    dx, dcap, dbias = backend.capped_relu_backward(x, y, cap, 1, (), True, True, 0.5, torch.ones(()), bias)
    assert dx.shape == shape
    assert dcap.tolist() == [2.0]
    assert dbias.tolist() == [0.0] * shape[1]


X, CAP = torch.ones(2, 3, 4), torch.ones(3)
BAD: dict[str, tuple[tuple[Any, ...], str]] = {
    "bias shape": ((CAP, 1, torch.ones(4), None), r"bias: got shape \(4,\)"),
    "bias of a layer cap": ((torch.ones(()), 2, torch.ones(3), None), r"bias: got shape \(3,\)"),
    "bias of neuron caps": ((torch.ones(3, 4), 1, torch.ones(3), None), r"bias: got shape \(3,\)"),
    "dim of a layer cap": ((torch.ones(()), 3, torch.ones(3), None), "dim: got 3"),
    "bias dtype": ((CAP, 1, torch.ones(3, dtype=torch.int32), None), "bias: got dtype"),
    "residual shape": ((CAP, 1, None, torch.ones(2, 3, 1)), r"residual: got shape \(2, 3, 1\)"),
    "residual dtype": ((CAP, 1, None, X.double()), "residual: got dtype"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_change_nothing(backend: Any, name: str) -> None:
    (cap, dim, bias, residual), message = BAD[name]
    x = X * 5
    for call in (backend.capped_relu, backend.capped_relu_):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(x, cap, dim, bias, residual)
    for call in (backend.capped_relu_with_aux, backend.capped_relu_with_aux_):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
            call(x, cap, dim, True, 0.5, bias, residual)
    assert bool((x == 5).all())
