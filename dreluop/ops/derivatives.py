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
    gradients,
    tangent,
)
from dreluop.backends import checks, choice, reference
from dreluop.backends.reference import accumulation_dtype, extras
from dreluop.function import below_autograd, write_over
from dreluop.ops import calls
from dreluop.ops.schemas import FUSED, IN_PLACE, library, overload, overloads_of
from dreluop.penalty import CapPenaltyFunction, penalty_gradient, penalty_of

_below_view = torch._C._AutoDispatchBelowADInplaceOrView


def _with_both(addends: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return (*addends, None) if len(addends) == 1 else addends


def _forward(x: Tensor, cap: Tensor, dim: int = 1, *addends: Tensor | None) -> Tensor:
    y: Tensor = CappedReLUFunction.apply(x, cap, dim, False, "output", None, *_with_both(addends))
    return y


def _forward_(x: Tensor, cap: Tensor, dim: int = 1, *addends: Tensor | None) -> None:
    CappedReLUFunction.apply(x, cap, dim, True, "output", None, *_with_both(addends))


def _forward_extra(
    x: Tensor, cap: Tensor, dim: int, code: bool, balancer: float | None, *addends: Tensor | None
) -> tuple[Tensor, ...]:
    save = "code" if code else "output"
    result = CappedReLUFunction.apply(x, cap, dim, False, save, balancer, *_with_both(addends))
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
    # autograd refuses a second result of a function that writes over a view.
    fused = None if x._is_view() else balancer
    save = kept if code else "output"
    result = CappedReLUFunction.apply(x, cap, dim, True, save, fused, *_with_both(addends))
    packed = x.new_empty((0,), dtype=torch.uint8) if kept.code is None else kept.code
    if balancer is None:
        return packed, cap.new_empty((0,), dtype=accumulation_dtype(cap))
    return packed, _penalty([cap], balancer) if fused is None else result[1]


def _penalty(caps: list[Tensor], balancer: float) -> Tensor:
    total: Tensor = CapPenaltyFunction.apply(balancer, *caps)
    return total


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "forward_": _forward_,
    "forward_extra": _forward_extra,
    "forward_extra_": _forward_extra_,
    "backward": CappedReLUBackwardFunction.apply,
    "tangent": CappedReLUTangentFunction.apply,
    # Whatever derivative may be asked, plain torch has it.
    "surrogate": reference.surrogate,
    "penalty": _penalty,
    "penalty_backward": penalty_gradient,
}


def _transformed_forward_extra(
    x: Tensor, cap: Tensor, dim: int, code: bool, balancer: float | None, *addends: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    y = _forward(x, cap, dim, *addends)
    # Packed by plain torch: what a Function saves under vmap is no code.
    packed, nothing = extras(y, cap, dim, code, None)
    return y, packed, nothing if balancer is None else penalty_of([cap], balancer)


def _transformed_forward_extra_(
    x: Tensor, cap: Tensor, dim: int, code: bool, balancer: float | None, *addends: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, packed, penalty = _transformed_forward_extra(x, cap, dim, code, balancer, *addends)
    write_over(x, y)
    return packed, penalty


# Inside torch.func transforms. What the public functions call there, so that both have the same derivatives.
TRANSFORMED: dict[str, Callable[..., Any]] = {
    "forward": _forward,
    "forward_": _forward_,
    "forward_extra": _transformed_forward_extra,
    "forward_extra_": _transformed_forward_extra_,
    "backward": gradients,
    "tangent": tangent,
    "surrogate": reference.surrogate_values,
    "saturation": reference.saturation,
    "penalty": penalty_of,
    "penalty_backward": penalty_gradient,
}


def _check_forward(name: str, x: Tensor, cap: Tensor, dim: int = 1, *rest: Any) -> None:
    addends = rest[2:] if name in ("forward_extra", "forward_extra_") else rest
    checks.inputs(x, cap, dim, *addends)
    if name in IN_PLACE:
        checks.writable(x)


def _has_tangent(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    # Unseen by a tracer, in whose graph looking would be a node.
    with torch._C._DisableTorchDispatch():
        return torch._VF._unpack_dual(value, level=0)[1] is not None


def _register_transforms(name: str, which: str, transformed: Callable[..., Any]) -> None:
    """Replace the operator before functorch takes it from level to level.

    Below Autograd, where a Function of ours calls its operator, grad mode is off: so the next level would see a call
    without derivatives, and give zeros. vmap would call the operator once for every member.
    """
    operators = calls.BY_OVERLOAD[which]
    is_forward = name.startswith("forward")

    def kernel(*args: Any) -> Any:
        if is_forward:
            if surrogate.active:
                surrogate.refuse_operator(name, torch.is_grad_enabled())
            _check_forward(name, *args)
        with choice.using(operators):
            return transformed(*args)

    library.impl(overload(name, which), kernel, "FuncTorchDynamicLayerFrontMode")


def _register_autograd(name: str, which: str, differentiable: Callable[..., Any]) -> None:
    operators = calls.BY_OVERLOAD[which]
    op = getattr(operators, name)
    is_forward = name.startswith("forward")

    def asked(args: tuple[Any, ...]) -> bool:
        if (torch.is_grad_enabled() and torch._C._any_requires_grad(*args)) or forward_ad._current_level >= 0:
            return True
        # What torch.compile traced enters a level of forward mode behind forward_ad's back.
        return which == FUSED or (torch._C._len_torch_dispatch_stack() > 0 and any(map(_has_tangent, args)))

    def kernel(keyset: torch._C.DispatchKeySet, *args: Any) -> Any:
        differentiated = asked(args)
        if is_forward and surrogate.active:
            surrogate.refuse_operator(name, differentiated)
        if differentiated:
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


for _name, _transformed in TRANSFORMED.items():
    for _which in overloads_of(_name):
        _register_transforms(_name, _which, _transformed)
for _name, _differentiable in DIFFERENTIABLE.items():
    for _which in overloads_of(_name):
        _register_autograd(_name, _which, _differentiable)
        if _name in IN_PLACE:
            _register_version_bump(_name, _which)
