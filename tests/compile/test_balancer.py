"""A balancer under torch.compile, and the gradient of a penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import dreluop
from dreluop import capped_relu
from tests.support import oracle

X = torch.randn(3, 4)
CAP = torch.tensor([0.25, 0.5, 1.0, 2.0])
SQUARES = 5.3125
CALLS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "output": lambda x, cap, b: capped_relu(x, cap, balancer=b),
    "mask": lambda x, cap, b: capped_relu(x, cap, balancer=b, save="mask"),
    "inplace": lambda x, cap, b: capped_relu(x * 1, cap, balancer=b, inplace=True, bias=cap),
    "penalty": lambda x, cap, b: (capped_relu(x, cap), dreluop.cap_penalty([cap], b)),
}


@pytest.mark.parametrize("form", ["decompose", "opaque"])
@pytest.mark.parametrize("name", CALLS)
def test_a_balancer_that_changes_is_compiled_twice_at_most(fresh_compiler: None, name: str, form: Any) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    with dreluop.compile_mode(form):
        compiled = torch.compile(CALLS[name], backend=counter, fullgraph=True)
        for balancer in (0.5, 0.1, 0.3, 0.0, 1e-3, 7.0, 2.0, 1e3, 1e-5, 0.25):
            x, cap = X.clone().requires_grad_(), CAP.clone().requires_grad_()
            y, penalty = compiled(x, cap, balancer)
            torch.testing.assert_close(penalty.item(), balancer * SQUARES, rtol=3e-7, atol=0)
            assert torch.equal(y, CALLS[name](X, CAP, balancer)[0])
            (penalty * 3).backward(inputs=[cap])
            torch.testing.assert_close(cap.grad, 6 * balancer * CAP, rtol=3e-7, atol=0)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["output", "mask", "penalty"])
def test_a_penalty_whose_squares_alone_would_overflow(fresh_compiler: None, name: str) -> None:
    compiled = torch.compile(CALLS[name], backend="aot_eager", fullgraph=True)
    cap = torch.full((4,), 3e19, requires_grad=True)
    for balancer in (1e-3, 2e-3):
        penalty = compiled(X, cap, balancer)[1]
        torch.testing.assert_close(penalty.item(), balancer * 3.6e39, rtol=3e-7, atol=0)
        (grad,) = torch.autograd.grad(penalty, cap)
        torch.testing.assert_close(grad, torch.full((4,), balancer * 6e19), rtol=3e-7, atol=0)


def test_a_bad_balancer_is_refused_also_where_the_compiler_does_not_know_it(fresh_compiler: None) -> None:
    compiled = torch.compile(CALLS["output"], backend="eager")
    for good in (0.5, 0.25):
        compiled(X, CAP, good)
    # Infinity first: after an error the compiler leaves the function alone.
    for bad in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match=r"balancer: got .*; expected a finite number >= 0"):
            compiled(X, CAP, bad)


FORMS: dict[str, dict[str, Any]] = {
    "output": {}, "mask": {"save": "mask"}, "bias": {"bias": CAP.cos()}, "inplace": {"inplace": True},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("frozen", ["cap", "number"])
def test_the_penalty_of_a_frozen_cap_requires_no_gradient(form: str, frozen: str) -> None:
    x = X.clone().requires_grad_()
    y, penalty = capped_relu(x * 1, CAP if frozen == "cap" else 0.5, balancer=0.5, **FORMS[form])
    assert y.requires_grad and not penalty.requires_grad
    torch.testing.assert_close(penalty.item(), 0.5 * (SQUARES if frozen == "cap" else 0.25))


@pytest.mark.parametrize("mask", [False, True])
def test_the_penalty_of_a_frozen_cap_requires_no_gradient_in_the_operators(mask: bool) -> None:
    x = X.clone().requires_grad_()
    y, packed, penalty = torch.ops.dreluop.capped_relu_with_aux(x, CAP, 1, mask, 0.5)
    assert y.requires_grad and not packed.requires_grad and not penalty.requires_grad
    written = x * 1
    packed, penalty = torch.ops.dreluop.capped_relu_with_aux_(written, CAP, 1, mask, 0.5)
    assert written.requires_grad and not packed.requires_grad and not penalty.requires_grad
    want = torch.autograd.grad(oracle.plain(x, CAP).sum(), x)[0]
    assert torch.equal(torch.autograd.grad(y.sum() + penalty, x)[0], want)
    assert torch.equal(torch.autograd.grad(written.sum() + penalty, x)[0], want)
    y, _, penalty = torch.ops.dreluop.capped_relu_with_aux(X, CAP.clone().requires_grad_(), 1, mask, 0.5)
    assert y.requires_grad and penalty.requires_grad


@pytest.mark.parametrize("form", ["decompose", "opaque"])
def test_the_penalty_of_a_frozen_cap_requires_none_when_compiled(fresh_compiler: None, form: Any) -> None:
    with dreluop.compile_mode(form):
        compiled = torch.compile(CALLS["mask" if form == "opaque" else "output"], backend="aot_eager", fullgraph=True)
        y, penalty = compiled(X.clone().requires_grad_(), CAP, 0.5)
    assert y.requires_grad and not penalty.requires_grad and penalty.item() == SQUARES / 2


def test_a_frozen_cap_may_carry_a_tangent() -> None:
    with torch.autograd.forward_ad.dual_level():
        cap = torch.autograd.forward_ad.make_dual(CAP, torch.ones(4))
        _, penalty = capped_relu(X.clone().requires_grad_(), cap, balancer=0.5)
        assert torch.autograd.forward_ad.unpack_dual(penalty).tangent.item() == CAP.sum().item()


def test_a_number_as_a_cap_may_change(fresh_compiler: None) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(capped_relu, backend=counter, fullgraph=True)
    x = torch.tensor([-1.0, 0.3, 0.7, math.inf, math.nan], dtype=torch.float16)
    for cap in (0.5, 0.1, 0.3, 0.0, -1.0, 2.0, 1e5, 65519.0, 1e300, math.inf, 1e-9):
        oracle.assert_same_bits(compiled(x, cap), oracle.forward(x, torch.tensor(cap, dtype=torch.float64)))
    assert counter.frame_count <= 3
