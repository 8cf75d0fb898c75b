"""Derivatives of the raw operators: what the dispatcher does without the public functions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import dreluop
from tests.autograd.test_derivatives import GRANULARITIES, Granularity
from tests.support import oracle

ops = torch.ops.dreluop
by_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
by_save = pytest.mark.parametrize("save", ["output", "mask"])


@by_granularity
def test_forward(granularity: Granularity) -> None:
    def function(x: Tensor, cap: Tensor) -> Tensor:
        return ops.capped_relu(x, cap, granularity.dim)

    assert gradcheck(function, granularity.inputs(), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, granularity.inputs(), check_fwd_over_rev=True)


@by_granularity
@by_save
def test_forward_extra(granularity: Granularity, save: str) -> None:
    def function(x: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        y, mask, penalty = ops.capped_relu_with_aux(x, cap, granularity.dim, save == "mask", 0.7)
        assert not mask.requires_grad
        return y, penalty

    assert gradcheck(function, granularity.inputs(), check_forward_ad=True)
    assert gradgradcheck(function, granularity.inputs(), check_fwd_over_rev=True)


@by_granularity
def test_in_place(granularity: Granularity) -> None:
    def capped_relu_(x: Tensor, cap: Tensor) -> Tensor:
        y = x * 1
        ops.capped_relu_(y, cap, granularity.dim)
        return y

    def capped_relu_with_aux_(x: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        _, penalty = ops.capped_relu_with_aux_(y, cap, granularity.dim, True, 0.7)
        return y, penalty

    for function in (capped_relu_, capped_relu_with_aux_):
        assert gradcheck(function, granularity.inputs(), check_forward_ad=True)
        assert gradgradcheck(function, granularity.inputs())


def saved(granularity: Granularity, save: str) -> tuple[Tensor, Tensor, list[int]]:
    x, cap = (t.detach() for t in granularity.inputs())
    y, mask, _ = ops.capped_relu_with_aux(x, cap, granularity.dim, True, None)
    return (y, cap, []) if save == "output" else (mask, cap, oracle.mask_order(y, cap))


@by_granularity
@by_save
def test_backward(granularity: Granularity, save: str) -> None:
    kept, cap, order = saved(granularity, save)
    grad = torch.randn(granularity.shape, dtype=torch.float64, requires_grad=True)
    grad_penalty = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def function(grad: Tensor, grad_penalty: Tensor, cap: Tensor) -> tuple[Tensor, Tensor]:
        return ops.capped_relu_backward(grad, kept, cap, granularity.dim, order, True, True, 0.7, grad_penalty)

    if save == "mask":
        inputs: tuple[Tensor, ...] = (grad, grad_penalty, cap.requires_grad_())
        check = function
    else:
        # A finite difference of the cap would undo the ties that the saved output has with it.
        inputs = (grad, grad_penalty)
        check = partial(function, cap=cap)
    assert gradcheck(check, inputs, check_forward_ad=True)
    assert gradgradcheck(check, inputs)


@by_granularity
@by_save
def test_tangent(granularity: Granularity, save: str) -> None:
    kept, cap, order = saved(granularity, save)
    u = torch.randn(granularity.shape, dtype=torch.float64, requires_grad=True)
    v = torch.randn(granularity.cap_shape, dtype=torch.float64, requires_grad=True)

    def function(u: Tensor, v: Tensor) -> Tensor:
        return ops.capped_relu_jvp(u, v, kept, cap, granularity.dim, order)

    assert gradcheck(function, (u, v), check_forward_ad=True)
    assert gradgradcheck(function, (u, v))
    assert gradcheck(
        lambda u: ops.capped_relu_jvp(u, None, kept, cap, granularity.dim, order), (u,), check_forward_ad=True
    )


@by_granularity
@by_save
def test_surrogate_straight_through(granularity: Granularity, save: str) -> None:
    kept, cap, order = saved(granularity, save)
    grad = torch.randn(granularity.shape, dtype=torch.float64, requires_grad=True)

    def function(grad: Tensor) -> Tensor:
        return ops.capped_relu_surrogate_backward(grad, kept, cap, granularity.dim, order, None)

    assert gradcheck(function, (grad,), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, (grad,), fast_mode=True)


@by_granularity
def test_surrogate_soft(granularity: Granularity) -> None:
    x, cap = granularity.inputs()
    grad = torch.randn(granularity.shape, dtype=torch.float64, requires_grad=True)
    width = torch.rand(granularity.cap_shape, dtype=torch.float64).add_(0.3).requires_grad_()

    def function(grad: Tensor, x: Tensor, cap: Tensor, width: Tensor) -> Tensor:
        return ops.capped_relu_surrogate_backward(grad, x, cap, granularity.dim, [], width)

    # The whole Jacobian of four arguments takes ten seconds, and twice that for its own.
    assert gradcheck(function, (grad, x, cap, width), check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, (grad, x, cap, width), fast_mode=True)
    with torch.no_grad():
        oracle.assert_soft(function(grad, x, cap, width), grad, x, cap, width, granularity.dim)


def test_penalty_and_its_backward() -> None:
    caps = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((), (3,), (2, 2))]
    grad = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *caps: ops.cap_penalty(caps, 0.7), caps, check_forward_ad=True)
    assert gradgradcheck(lambda *caps: ops.cap_penalty(caps, 0.7), caps)

    def backward(grad: Tensor, *caps: Tensor) -> tuple[Tensor, ...]:
        return tuple(ops.cap_penalty_backward(grad, caps, 0.7))

    assert gradcheck(backward, (grad, *caps), check_forward_ad=True)
    assert gradgradcheck(backward, (grad, *caps))


def test_saturation_has_no_derivative() -> None:
    x, cap = torch.randn(3, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    assert not any(t.requires_grad for t in ops.cap_saturation(x, cap, 1))


@by_granularity
def test_raw_operator_and_public_function_agree(granularity: Granularity) -> None:
    x, cap = granularity.inputs()
    grad = torch.randn(granularity.shape, dtype=torch.float64)
    results = [
        torch.autograd.grad(function(x, cap), (x, cap), grad)
        for function in (
            lambda x, cap: ops.capped_relu(x, cap, granularity.dim),
            lambda x, cap: dreluop.capped_relu(x, cap, dim=granularity.dim),
        )
    ]
    for raw, public in zip(*results, strict=True):
        oracle.assert_same_bits(raw, public)


def test_calls_from_several_python_threads() -> None:
    x, cap = torch.randn(64, 1000), torch.rand(1000)
    grad = torch.randn(64, 1000)

    def work(_: int) -> tuple[Tensor, ...]:
        y = ops.capped_relu(x, cap, 1)
        return (
            y,
            *ops.capped_relu_backward(grad, y, cap, 1, [], True, True, None, None),
            *ops.cap_saturation(x, cap, 1),
        )

    expected = work(0)
    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(40)):
            for got, want in zip(results, expected, strict=True):
                oracle.assert_same_bits(got, want)
