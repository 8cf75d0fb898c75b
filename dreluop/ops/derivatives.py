"""What the dispatcher does above the backends: derivatives, and the version counters of in-place operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dreluop import surrogate
from dreluop.autograd import (
    CappedReLUBackwardFunction,
    CappedReLUFunction,
    CappedReLUTangentFunction,
    KeptCode,
)
from dreluop.backends import choice, reference
from dreluop.backends.reference import accumulation_dtype, fused_sum
from dreluop.function import below_autograd, derivatives_by_plain_torch
from dreluop.ops import calls
from dreluop.ops.schemas import FUSED, IN_PLACE, library, overload, overloads_of
from dreluop.penalty import CapPenaltyFunction, penalty_gradient

_below_view = torch._C._AutoDispatchBelowADInplaceOrView


def _add_first(x: Tensor, dim: int, inplace: bool, addends: tuple[Tensor | None, ...]) -> tuple[Tensor, Any]:
    """x and the addends that are left for the operator: none where only plain torch has the derivatives."""
    if not addends or not derivatives_by_plain_torch():
        return x, addends
    total = fused_sum(x, dim, *addends, *[None] * (2 - len(addends)))
    return x.copy_(total) if inplace else total, ()


def _with_both(addends: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return (*addends, None) if len(addends) == 1 else addends


def _forward(x: Tensor, cap: Tensor, dim: int = 1, *addends: Tensor | None) -> Tensor:
    x, addends = _add_first(x, dim, False, addends)
    y: Tensor = CappedReLUFunction.apply_at_this_level(x, cap, dim, False, "output", None, *_with_both(addends))
    return y


def _forward_(x: Tensor, cap: Tensor, dim: int = 1, *addends: Tensor | None) -> None:
    x, addends = _add_first(x, dim, True, addends)
    CappedReLUFunction.apply_at_this_level(x, cap, dim, True, "output", None, *_with_both(addends))


def _forward_extra(
    x: Tensor, cap: Tensor, dim: int, code: bool, balancer: float | None, *addends: Tensor | None
) -> tuple[Tensor, ...]:
    save = "code" if code else "output"
    x, addends = _add_first(x, dim, False, addends)
    result = CappedReLUFunction.apply_at_this_level(x, cap, dim, False, save, balancer, *_with_both(addends))
    outputs = list(result) if isinstance(result, tuple) else [result]
    if not code:
        outputs.insert(1, x.new_empty((0,), dtype=torch.uint8))
    if balancer is None:
        outputs.append(cap.new_empty((0,), dtype=accumulation_dtype(cap)))
    return tuple(outputs)


def _forward_extra_(
    x: Tensor, cap: Tensor, dim: int, code: bool, balancer: float | None, *addends: Tensor | None
) -> tuple[Tensor, Tensor]:
    kept = KeptCode()
    x, addends = _add_first(x, dim, True, addends)
    # autograd refuses a second result of a function that writes over a view.
    fused = None if x._is_view() else balancer
    save = kept if code else "output"
    result = CappedReLUFunction.apply_at_this_level(x, cap, dim, True, save, fused, *_with_both(addends))
    packed = x.new_empty((0,), dtype=torch.uint8) if kept.code is None else kept.code
    if balancer is None:
        return packed, cap.new_empty((0,), dtype=accumulation_dtype(cap))
    return packed, _penalty([cap], balancer) if fused is None else result[1]


def _penalty(caps: list[Tensor], balancer: float) -> Tensor:
    total: Tensor = CapPenaltyFunction.apply_at_this_level(balancer, *caps)
    return total


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "forward_": _forward_,
    "forward_extra": _forward_extra,
    "forward_extra_": _forward_extra_,
    "backward": CappedReLUBackwardFunction.apply_at_this_level,
    "tangent": CappedReLUTangentFunction.apply_at_this_level,
    # Whatever derivative may be asked, plain torch has it.
    "surrogate": reference.surrogate,
    "penalty": _penalty,
    "penalty_backward": penalty_gradient,
}


def _register_autograd(name: str, which: str, differentiable: Callable[..., Any]) -> None:
    operators = calls.BY_OVERLOAD[which]
    op = getattr(operators, name)
    is_forward = name.startswith("forward")
    # What torch.compile traced enters a level of forward mode behind forward_ad's back.
    always = which == FUSED

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        if always or (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)) or forward_ad._current_level >= 0:
            if is_forward and surrogate.active:
                surrogate.refuse_operator(name)
            with choice.using(operators):
                return differentiable(*args)
        with below_autograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    library.impl(overload(name, which), kernel, "Autograd", with_keyset=True)


def _register_version_bump(name: str, which: str) -> None:
    op = getattr(calls.BY_OVERLOAD[which], name)

    def kernel(keyset: torch._C.DispatchKeySet, x: Tensor, *args: Any) -> Any:
        with _below_view():
            result = op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, x, *args)
        torch.autograd.graph.increment_version(x)
        return result

    library.impl(overload(name, which), kernel, "ADInplaceOrView", with_keyset=True)


for _name, _differentiable in DIFFERENTIABLE.items():
    for _which in overloads_of(_name):
        _register_autograd(_name, _which, _differentiable)
        if _name in IN_PLACE:
            _register_version_bump(_name, _which)
