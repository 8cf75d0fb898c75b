"""torch.library.opcheck: schema, fake kernel, autograd registration and AOT dispatch of every operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dreluop.ops import native, schemas
from tests import oracle
from tests.cases import FEW_CASES, Case, dtype_id
from tests.conftest import INTERPRETED, native_or_skip

MORE_CASES = (
    *FEW_CASES,
    Case((), ()),
    Case((0, 4), (4,)),
    Case((7, 3, 5, 6), (3, 5, 6), layout="swapped"),
    Case((7, 3, 5, 6), (3, 5, 6), layout="permuted"),
)


CHOSEN = tuple(which for which in schemas.CHOSEN if which != "triton" or INTERPRETED)


def operator(name: str, which: str = "default") -> Any:
    return getattr(getattr(torch.ops.dreluop, name), which)


def leaf(t: Tensor, needs_grad: bool) -> Tensor:
    return t.detach().requires_grad_(needs_grad)


def forward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(leaf(x, needs_grad), leaf(cap, needs_grad), case.dim)]


def forward_(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, leaf(cap, needs_grad), case.dim)]


def forward_extra(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    x, cap = leaf(x, needs_grad), leaf(cap, needs_grad)
    return [(x, cap, case.dim, code, balancer) for code in (False, True) for balancer in (None, 0.5)]


def forward_extra_(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, leaf(cap, needs_grad), case.dim, code, balancer) for code in (False, True) for balancer in (None, 0.5)]


def saved_both_ways(case: Case, x: Tensor, cap: Tensor) -> list[tuple[Tensor, list[int]]]:
    y, code, _ = operator("forward_extra")(x, cap, case.dim, True, None)
    return [(y, []), (code, oracle.code_order(y, cap))]


def backward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    grad, penalty = (
        leaf(case.grad(x.dtype), needs_grad),
        leaf(torch.ones((), dtype=oracle.accumulator(cap)), needs_grad),
    )
    return [
        (grad, saved, leaf(cap, needs_grad), case.dim, order, need_x, need_cap, *rest)
        for saved, order in saved_both_ways(case, x, cap)
        for need_x, need_cap in ((True, True), (True, False), (False, True))
        for rest in ((None, None), (0.5, penalty))
    ]


def tangent(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    u, v = leaf(case.grad(x.dtype), needs_grad), leaf(torch.ones_like(cap), needs_grad)
    return [
        (u, given, saved, cap, case.dim, order) for saved, order in saved_both_ways(case, x, cap) for given in (v, None)
    ]


def surrogate(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    grad = leaf(case.grad(x.dtype), needs_grad)
    width = leaf(torch.full_like(cap, 0.5), needs_grad)
    through = [(grad, saved, cap, case.dim, order, None) for saved, order in saved_both_ways(case, x, cap)]
    return [*through, (grad, leaf(x, needs_grad), leaf(cap, needs_grad), case.dim, [], width)]


def saturation(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, cap, case.dim)] if x.ndim else []


def penalty(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [([leaf(cap, needs_grad), torch.ones(3)], 0.5), ([leaf(cap, needs_grad)], 0.0)]


def penalty_backward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    grad = leaf(torch.ones((), dtype=oracle.accumulator(cap)), needs_grad)
    return [(grad, [leaf(cap, needs_grad), torch.ones(3)], 0.5)]


SAMPLES: dict[str, Callable[[Case, Tensor, Tensor, bool], list[tuple[Any, ...]]]] = {
    f.__name__: f
    for f in (
        forward, forward_, forward_extra, forward_extra_, backward, tangent, surrogate, saturation, penalty,
        penalty_backward,
    )
}  # fmt: skip


def test_every_operator_is_checked() -> None:
    assert set(SAMPLES) == set(schemas.SCHEMAS)


# AOT dispatch compiles: seconds for many samples, so it has its own, smaller test.
QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", MORE_CASES, ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str, case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    for needs_grad in (False, True):
        for sample in SAMPLES[name](case, x, cap, needs_grad):
            torch.library.opcheck(operator(name), sample, test_utils=QUICK)


@pytest.mark.parametrize("case", [FEW_CASES[4], FEW_CASES[6]], ids=str)
@pytest.mark.parametrize("which", CHOSEN)
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_of_a_chosen_backend(name: str, which: str, case: Case) -> None:
    x, cap = case.inputs(torch.float32)
    for sample in SAMPLES[name](case, x, cap, name != "forward_extra_"):
        torch.library.opcheck(operator(name, which), sample, test_utils=QUICK)


@pytest.mark.parametrize("case", [FEW_CASES[4], FEW_CASES[6]], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_aot_dispatch(name: str, case: Case) -> None:
    x, cap = case.inputs(torch.float32)
    # The check adds up an operator's results to differentiate them, and fails where the first is an integer: the code.
    needs_grad = name != "forward_extra_"
    # Of the twelve of backward: output and code, with and without each gradient, with and without a penalty.
    for sample in SAMPLES[name](case, x, cap, needs_grad)[:: 5 if name == "backward" else 1]:
        torch.library.opcheck(operator(name), sample, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_every_operator_has_a_native_kernel(name: str) -> None:
    native_or_skip()
    assert native.load_error is None
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dreluop::{name}", "CPU")


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_every_operator_has_a_reference_and_an_autograd_kernel(name: str) -> None:
    keys = ["CompositeExplicitAutograd"] + ([] if name == "saturation" else ["Autograd"])
    for which in schemas.OVERLOADS:
        for key in keys:
            qualified = f"dreluop::{schemas.overload(name, which)}"
            assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key), (qualified, key)
