"""What the dispatcher does above the backends: derivatives, and the version counters of in-place operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks, torch_private
from dreluop.autograd import surrogate
from dreluop.autograd.base import below_autograd, write_over
from dreluop.autograd.derivatives import CappedReLUBackwardFunction, CappedReLUTangentFunction, gradients, tangent
from dreluop.autograd.function import Activated, KernelActivation
from dreluop.autograd.penalty import CapPenaltyFunction, penalty_gradient, penalty_of
from dreluop.backends import reference, selection
from dreluop.ops import composite, handles
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.composite import accumulation_dtype, packed_mask
from dreluop.ops.schemas import FORWARDS, FUSED, IN_PLACE, library, overload, overloads_of

Given = Tensor | None


def _forward(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Given = None, residual: Given = None, zeroed: int = 0
) -> Tensor:
    return KernelActivation.run(Call(x, cap, dim, bias=bias, residual=residual, zeroed=zeroed)).y


def _forward_(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Given = None, residual: Given = None, zeroed: int = 0
) -> None:
    KernelActivation.run(Call(x, cap, dim, bias=bias, residual=residual, zeroed=zeroed, inplace=True))


def _with_aux(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _tensors(KernelActivation.run(Call(*arguments)), arguments[1])


def _with_aux_(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _tensors(KernelActivation.run(Call(*arguments)._replace(inplace=True)), arguments[1])[1:]


def _tensors(results: Activated, cap: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the operators return: an empty tensor for what is not asked for."""
    y, mask, penalty = results
    return (
        y,
        y.new_empty((0,), dtype=torch.uint8) if mask is None else mask,
        cap.new_empty((0,), dtype=accumulation_dtype(cap)) if penalty is None else penalty,
    )


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


def _transformed_with_aux(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Call(*arguments)
    y, _, penalty = KernelActivation.run(call._replace(mask=False))
    # Packed by plain torch: what a Function saves under vmap is no mask.
    packed = packed_mask(y, call.cap, call.dim, call.zeroed) if call.mask else None
    return _tensors(Activated(y, packed, penalty), call.cap)


def _transformed_with_aux_(*arguments: Any) -> tuple[Tensor, Tensor]:
    y, packed, penalty = _transformed_with_aux(*arguments)
    write_over(arguments[0], y)
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
    others = rest[2:] if name in ("capped_relu_with_aux", "capped_relu_with_aux_") else rest
    operator_checks.inputs(x, cap, dim, *others)
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
