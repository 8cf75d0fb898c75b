"""torch.library.opcheck: schema, fake kernel, autograd registration and AOT dispatch of every operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dreluop.backends import native
from dreluop.ops import schemas
from tests.support import oracle
from tests.support.backends import INTERPRETED, native_or_skip
from tests.support.cases import FEW_CASES, Case, dtype_id

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


def capped_relu(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(leaf(x, needs_grad), leaf(cap, needs_grad), case.dim)]


def capped_relu_(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, leaf(cap, needs_grad), case.dim)]


def capped_relu_with_aux(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    x, cap = leaf(x, needs_grad), leaf(cap, needs_grad)
    return [(x, cap, case.dim, mask, balancer) for mask in (False, True) for balancer in (None, 0.5)]


def capped_relu_with_aux_(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, leaf(cap, needs_grad), case.dim, mask, balancer) for mask in (False, True) for balancer in (None, 0.5)]


def saved_both_ways(case: Case, x: Tensor, cap: Tensor) -> list[tuple[Tensor, list[int]]]:
    y, mask, _ = operator("capped_relu_with_aux")(x, cap, case.dim, True, None)
    return [(y, []), (mask, oracle.mask_order(y, cap))]


def capped_relu_backward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
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


def capped_relu_jvp(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    u, v = leaf(case.grad(x.dtype), needs_grad), leaf(torch.ones_like(cap), needs_grad)
    return [
        (u, given, saved, cap, case.dim, order) for saved, order in saved_both_ways(case, x, cap) for given in (v, None)
    ]


def capped_relu_surrogate_backward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    grad = leaf(case.grad(x.dtype), needs_grad)
    width = leaf(torch.full_like(cap, 0.5), needs_grad)
    through = [(grad, saved, cap, case.dim, order, None) for saved, order in saved_both_ways(case, x, cap)]
    return [*through, (grad, leaf(x, needs_grad), leaf(cap, needs_grad), case.dim, [], width)]


def cap_saturation(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [(x, cap, case.dim)] if x.ndim else []


def cap_penalty(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    return [([leaf(cap, needs_grad), torch.ones(3)], 0.5), ([leaf(cap, needs_grad)], 0.0)]


def cap_penalty_backward(case: Case, x: Tensor, cap: Tensor, needs_grad: bool) -> list[tuple[Any, ...]]:
    grad = leaf(torch.ones((), dtype=oracle.accumulator(cap)), needs_grad)
    return [(grad, [leaf(cap, needs_grad), torch.ones(3)], 0.5)]


SAMPLES: dict[str, Callable[[Case, Tensor, Tensor, bool], list[tuple[Any, ...]]]] = {
    f.__name__: f
    for f in (
        capped_relu, capped_relu_, capped_relu_with_aux, capped_relu_with_aux_, capped_relu_backward, capped_relu_jvp,
        capped_relu_surrogate_backward, cap_saturation, cap_penalty, cap_penalty_backward,
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
    for sample in SAMPLES[name](case, x, cap, name != "capped_relu_with_aux_"):
        torch.library.opcheck(operator(name, which), sample, test_utils=QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("case", [FEW_CASES[6], pytest.param(FEW_CASES[4], marks=pytest.mark.full)], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck_aot_dispatch(name: str, case: Case) -> None:
    x, cap = case.inputs(torch.float32)
    # The check adds up an operator's results to differentiate them, and fails where the first is an integer: the mask.
    needs_grad = name != "capped_relu_with_aux_"
    # Of the twelve of backward: output and mask, with and without each gradient, with and without a penalty.
    for sample in SAMPLES[name](case, x, cap, needs_grad)[:: 5 if name == "capped_relu_backward" else 1]:
        torch.library.opcheck(operator(name), sample, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_every_operator_has_a_native_kernel(name: str) -> None:
    native_or_skip()
    assert native.load_error is None
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dreluop::{name}", "CPU")


@pytest.mark.parametrize("name", schemas.SCHEMAS)
def test_every_operator_has_a_reference_and_an_autograd_kernel(name: str) -> None:
    keys = ["CompositeExplicitAutograd"] + ([] if name == "cap_saturation" else ["Autograd"])
    for which in schemas.OVERLOADS:
        for key in keys:
            qualified = f"dreluop::{schemas.overload(name, which)}"
            assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified, key), (qualified, key)
