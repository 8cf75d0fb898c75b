"""penalty and penalty_backward, and the penalty that capped_relu_with_aux and backward compute in their own pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support import oracle
from tests.support.cases import CASES, DTYPES, FEW_CASES, Case, dtype_id

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
BALANCER = 0.37


def assert_penalty(got: Tensor, caps: list[Tensor], balancer: float) -> None:
    expected = torch.tensor(oracle.penalty(caps, balancer), dtype=torch.float64)
    assert (got.shape, got.dtype) == ((), oracle.accumulator(*caps))
    oracle.assert_sum(got, expected, expected.abs(), got.dtype)


def cap_lists(dtype: torch.dtype) -> dict[str, list[Tensor]]:
    values = torch.randn(4099).to(dtype)
    return {
        "one": [torch.tensor(1.7, dtype=dtype)],
        "empty": [torch.empty(0, dtype=dtype)],
        "empty_among_others": [torch.ones(2, dtype=dtype), torch.empty(0, 3, dtype=dtype), torch.ones((), dtype=dtype)],
        "prime": [values],
        "strided": [values[::3], values[:4096].view(64, 64).t(), values[:1].expand(5, 7)],
        "two_hundred": [values[i : i + i % 13] for i in range(200)],
        "mixed": [values[:5].to(other) for other in DTYPES],
        "mixed_without_double": [values[:5].to(other) for other in (torch.float16, torch.float32, torch.bfloat16)],
    }


LISTS = list(cap_lists(torch.float32))


@by_dtype
@pytest.mark.parametrize("name", LISTS)
def test_penalty(backend, name: str, dtype: torch.dtype) -> None:
    caps = cap_lists(dtype)[name]
    assert_penalty(backend.cap_penalty(caps, BALANCER), caps, BALANCER)
    assert backend.cap_penalty(caps, 0.0).item() == 0


@by_dtype
@pytest.mark.parametrize("name", LISTS)
def test_penalty_backward(backend, name: str, dtype: torch.dtype) -> None:
    caps = cap_lists(dtype)[name]
    grad = torch.tensor(-1.3, dtype=oracle.accumulator(*caps))
    gradients = backend.cap_penalty_backward(grad, caps, BALANCER)
    assert len(gradients) == len(caps)
    for got, cap in zip(gradients, caps, strict=True):
        expected = 2 * BALANCER * grad.double() * cap.double()
        assert got.dtype == cap.dtype
        assert got.is_contiguous()
        oracle.assert_sum(got, expected, expected.abs(), oracle.accumulator(grad, cap))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_id)
def test_half_caps_do_not_overflow(backend, dtype: torch.dtype) -> None:
    caps = torch.full((7,), 100.0, dtype=dtype)
    assert backend.cap_penalty([caps], 1.0).item() == 70_000
    assert backend.capped_relu_with_aux(torch.ones(2, 7, dtype=dtype), caps, 1, False, 1.0)[2].item() == 70_000


@by_dtype
def test_penalty_of_constant_caps(backend, dtype: torch.dtype) -> None:
    # A serial sum in the accumulator's dtype fails the bound here.
    cap = torch.full((2**18,), 0.1, dtype=dtype)
    expected = torch.tensor(cap.numel() * cap[0].double().item() ** 2, dtype=torch.float64)
    oracle.assert_sum(backend.cap_penalty([cap], 1.0), expected, expected, oracle.accumulator(cap))


@by_dtype
@pytest.mark.parametrize("in_place", [False, True], ids=["out_of_place", "in_place"])
@pytest.mark.parametrize("case", [*FEW_CASES, *(case for case in CASES if 0 in case.shape)], ids=str)
def test_penalty_of_the_forward_pass(backend, case: Case, in_place: bool, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    operator = backend.capped_relu_with_aux_ if in_place else backend.capped_relu_with_aux
    assert_penalty(operator(x, cap, case.dim, False, BALANCER)[-1], [cap], BALANCER)


def test_penalty_uses_the_cap_as_given(backend) -> None:
    # Not the cap rounded to x's dtype: 1 + 2^-10 is 1 in bfloat16.
    cap = torch.tensor([1 + 2**-10])
    penalty = backend.capped_relu_with_aux(torch.ones(3, 4, dtype=torch.bfloat16), cap, 1, False, 1.0)[2]
    assert penalty.item() == pytest.approx((1 + 2**-10) ** 2, rel=1e-6)
    dcap = backend.capped_relu_backward(
        torch.zeros(3, 4, dtype=torch.bfloat16),
        torch.ones(3, 4, dtype=torch.bfloat16),
        cap, 1, (), False, True, 1.0, torch.ones(()),
    )[1]  # fmt: skip
    assert dcap.item() == pytest.approx(2 + 2**-9, rel=1e-6)


@by_dtype
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_gradient_of_the_penalty_is_added_in_backward(backend, case: Case, save: str, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    grad = case.grad(dtype)
    y, mask, _ = backend.capped_relu_with_aux(x, cap, case.dim, save == "mask", BALANCER)
    saved, order = (mask, oracle.mask_order(y, cap)) if save == "mask" else (y, ())
    grad_penalty = torch.tensor(2.5, dtype=oracle.accumulator(cap))
    dx, dcap, _ = backend.capped_relu_backward(grad, saved, cap, case.dim, order, True, True, BALANCER, grad_penalty)
    oracle.assert_same_bits(dx, oracle.grad_x(grad, x, cap, case.dim))
    total, magnitude = oracle.grad_cap(grad, x, cap, case.dim)
    penalty = 2 * BALANCER * 2.5 * cap.double()
    oracle.assert_sum(dcap, total + penalty, magnitude + penalty.abs(), oracle.accumulator(grad, cap))


def test_no_gradient_of_the_penalty_without_balancer_or_gradient(backend) -> None:
    x, cap, grad = torch.tensor([[0.5, 3.0]]), torch.tensor([1.0, 1.0]), torch.ones(1, 2)
    y = backend.capped_relu(x, cap, 1)
    for balancer, grad_penalty in ((None, torch.ones(())), (1.0, None), (None, None)):
        dcap = backend.capped_relu_backward(grad, y, cap, 1, (), True, True, balancer, grad_penalty)[1]
        assert dcap.tolist() == [0, 1]


@pytest.mark.parametrize("grad", [0.0, 1.0, float("inf"), float("nan")], ids=str)
def test_special_caps_follow_the_formula(backend, grad: float) -> None:
    # 2 * balancer * grad * m, with the rules of IEEE: a cap that is infinite or NaN is never hidden by a zero gradient.
    caps, weight = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 1.5]), torch.tensor(grad)
    expected = 2 * BALANCER * weight * caps
    oracle.assert_same_bits(backend.cap_penalty_backward(weight, [caps], BALANCER)[0].isnan(), expected.isnan())
    y = torch.zeros(2, 5)
    dcap = backend.capped_relu_backward(torch.ones(2, 5), y, caps, 1, (), False, True, BALANCER, weight)[1]
    oracle.assert_same_bits(dcap.isnan(), expected.isnan())
