"""What the dispatcher does above the backends: derivatives, and the version counters of in-place operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks, torch_private
from dreluop.autograd import surrogate
from dreluop.autograd.base import below_autograd, write_over
from dreluop.autograd.function import (
    CappedReLUBackwardFunction,
    CappedReLUFunction,
    CappedReLUTangentFunction,
    SavedMask,
    gradients,
    tangent,
)
from dreluop.autograd.penalty import CapPenaltyFunction, penalty_gradient, penalty_of
from dreluop.backends import reference, selection
from dreluop.ops import composite, handles
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import accumulation_dtype, extras
from dreluop.ops.schemas import FORWARDS, FUSED, IN_PLACE, library, overload, overloads_of


def _with_both(bias_and_residual: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return (*bias_and_residual, None) if len(bias_and_residual) == 1 else bias_and_residual


def _forward(x: Tensor, cap: Tensor, dim: int = 1, *bias_and_residual: Tensor | None) -> Tensor:
    y: Tensor = CappedReLUFunction.apply(x, cap, dim, False, "output", None, *_with_both(bias_and_residual))
    return y


def _forward_(x: Tensor, cap: Tensor, dim: int = 1, *bias_and_residual: Tensor | None) -> None:
    CappedReLUFunction.apply(x, cap, dim, True, "output", None, *_with_both(bias_and_residual))


def _with_aux(
    x: Tensor, cap: Tensor, dim: int, mask: bool, balancer: float | None, *bias_and_residual: Tensor | None
) -> tuple[Tensor, ...]:
    save = "mask" if mask else "output"
    result = CappedReLUFunction.apply(x, cap, dim, False, save, balancer, *_with_both(bias_and_residual))
    outputs = list(result) if isinstance(result, tuple) else [result]
    if not mask:
        outputs.insert(1, x.new_empty((0,), dtype=torch.uint8))
    if balancer is None:
        outputs.append(cap.new_empty((0,), dtype=accumulation_dtype(cap)))
    return tuple(outputs)


def _with_aux_(
    x: Tensor, cap: Tensor, dim: int, mask: bool, balancer: float | None, *bias_and_residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    saved_mask = SavedMask()
    # autograd refuses a second result of a function that writes over a view.
    fused = None if x._is_view() else balancer
    save = saved_mask if mask else "output"
    result = CappedReLUFunction.apply(x, cap, dim, True, save, fused, *_with_both(bias_and_residual))
    packed = x.new_empty((0,), dtype=torch.uint8) if saved_mask.mask is None else saved_mask.mask
    if balancer is None:
        return packed, cap.new_empty((0,), dtype=accumulation_dtype(cap))
    return packed, _penalty([cap], balancer) if fused is None else result[1]


def _penalty(caps: list[Tensor], balancer: float) -> Tensor:
    total: Tensor = CapPenaltyFunction.apply(balancer, *caps)
    return total


DIFFERENTIABLE: dict[str, Callable[..., Any]] = {
    "capped_relu": _forward,
    "capped_relu_": _forward_,
    "capped_relu_with_aux": _with_aux,
    "capped_relu_with_aux_": _with_aux_,
    "capped_relu_backward": CappedReLUBackwardFunction.apply,
    "capped_relu_jvp": CappedReLUTangentFunction.apply,
    # Whatever derivative may be asked, plain torch has it.
    "capped_relu_surrogate_backward": reference.capped_relu_surrogate_backward,
    "cap_penalty": _penalty,
    "cap_penalty_backward": penalty_gradient,
}


def _transformed_with_aux(
    x: Tensor, cap: Tensor, dim: int, mask: bool, balancer: float | None, *bias_and_residual: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    y = _forward(x, cap, dim, *bias_and_residual)
    # Packed by plain torch: what a Function saves under vmap is no mask.
    packed, nothing = extras(y, cap, dim, mask, None)
    return y, packed, nothing if balancer is None else penalty_of([cap], balancer)


def _transformed_with_aux_(
    x: Tensor, cap: Tensor, dim: int, mask: bool, balancer: float | None, *bias_and_residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, packed, penalty = _transformed_with_aux(x, cap, dim, mask, balancer, *bias_and_residual)
    write_over(x, y)
    return packed, penalty


# Inside torch.func transforms. What the public functions call there, so that both have the same derivatives.
TRANSFORMED: dict[str, Callable[..., Any]] = {
    "capped_relu": _forward,
    "capped_relu_": _forward_,
    "capped_relu_with_aux": _transformed_with_aux,
    "capped_relu_with_aux_": _transformed_with_aux_,
    "capped_relu_backward": lambda *call: gradients(BackwardCall(*call)),
    "capped_relu_jvp": tangent,
    "capped_relu_surrogate_backward": composite.surrogate_values,
    "cap_saturation": reference.cap_saturation,
    "cap_penalty": penalty_of,
    "cap_penalty_backward": penalty_gradient,
}


def _check_forward(name: str, x: Tensor, cap: Tensor, dim: int = 1, *rest: Any) -> None:
    bias_and_residual = rest[2:] if name in ("capped_relu_with_aux", "capped_relu_with_aux_") else rest
    operator_checks.inputs(x, cap, dim, *bias_and_residual)
    if name in IN_PLACE:
        operator_checks.writable(x)


def _has_tangent(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    # Unseen by a tracer, in whose graph looking would be a node.
    with torch_private.DisableTorchDispatch():
        return torch_private.unpack_dual(value, level=0)[1] is not None


def _register_transforms(name: str, which: str, transformed: Callable[..., Any]) -> None:
    """Replace the operator before functorch takes it from level to level.

    Below Autograd, where a Function of ours calls its operator, grad mode is off: so the next level would see a call
    without derivatives, and give zeros. vmap would call the operator once for every member.
    """
    operators = handles.BY_OVERLOAD[which]
    is_forward = name in FORWARDS

    def kernel(*args: Any) -> Any:
        if is_forward:
            if surrogate.active:
                surrogate.refuse_operator(name, torch.is_grad_enabled())
            _check_forward(name, *args)
        with selection.using(operators):
            return transformed(*args)

    library.impl(overload(name, which), kernel, "FuncTorchDynamicLayerFrontMode")


def _register_autograd(name: str, which: str, differentiable: Callable[..., Any]) -> None:
    operators = handles.BY_OVERLOAD[which]
    op = getattr(operators, name)
    is_forward = name in FORWARDS

    def asked(args: tuple[Any, ...]) -> bool:
        if (torch.is_grad_enabled() and torch_private.any_requires_grad(*args)) or torch_private.forward_level() >= 0:
            return True
        # What torch.compile traced enters a level of forward mode behind forward_ad's back.
        return which == FUSED or (torch_private.dispatch_modes() > 0 and any(map(_has_tangent, args)))

    def kernel(keyset: torch_private.Keys, *args: Any) -> Any:
        differentiated = asked(args)
        if is_forward and surrogate.active:
            surrogate.refuse_operator(name, differentiated)
        if differentiated:
            with selection.using(operators):
                return differentiable(*args)
        with below_autograd():
            return op.redispatch(keyset & torch_private.AFTER_AUTOGRAD, *args)

    library.impl(overload(name, which), kernel, "Autograd", with_keyset=True)


def _register_version_bump(name: str, which: str) -> None:
    op = getattr(handles.BY_OVERLOAD[which], name)

    def kernel(keyset: torch_private.Keys, x: Tensor, *args: Any) -> Any:
        with torch_private.BelowInPlaceOrView():
            result = op.redispatch(keyset & torch_private.AFTER_IN_PLACE_OR_VIEW, x, *args)
        torch.autograd.graph.increment_version(x)
        return result

    library.impl(overload(name, which), kernel, "ADInplaceOrView", with_keyset=True)


def register() -> None:
    for name, transformed in TRANSFORMED.items():
        for which in overloads_of(name):
            _register_transforms(name, which, transformed)
    for name, differentiable in DIFFERENTIABLE.items():
        for which in overloads_of(name):
            _register_autograd(name, which, differentiable)
            if name in IN_PLACE:
                _register_version_bump(name, which)
