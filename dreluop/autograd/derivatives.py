"""Backward and its derivatives: every order, forward and reverse mode, vmap.

The derivative of ``CappedReLUBackwardFunction`` with respect to the incoming gradient is ``CappedReLUTangentFunction``,
whose derivative is again the backward: the two are closed, so every order is exact. Derivatives of the region masks are
zero almost everywhere and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import dtensor, torch_private
from dreluop.autograd import vmap
from dreluop.autograd.base import (
    Function,
    backward_on_backend_of_forward,
    below_autograd,
    derivative_may_be_asked,
    functionalizing,
    jvp_on_backend_of_forward,
    save_for_backward,
)
from dreluop.autograd.penalty import penalty_gradient, penalty_tangent
from dreluop.backends.selection import operators, using
from dreluop.ops import decompose
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import bias_gradient, fused_sum, surrogate_values
from dreluop.ops.handles import Operators


class CappedReLUBackwardFunction(Function):
    """(dx, dcap, dbias) from (grad, saved, cap); linear in grad, and through the penalty in grad_penalty and cap."""

    @staticmethod
    def forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``apply(*BackwardCall)``, without the bias where there is none."""
        with below_autograd():
            return operators().capped_relu_backward(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call = BackwardCall(*inputs)
        grad, saved, cap, ctx.dim, ctx.order, ctx.need_x, ctx.need_cap, ctx.balancer, grad_penalty, *_ = call
        ctx.bias, ctx.zeroed = call.bias, call.zeroed
        ctx.arguments = len(inputs)
        ctx.operators = operators()
        ctx.set_materialize_grads(False)
        needed = (ctx.need_x, ctx.need_cap, ctx.bias is not None)
        ctx.mark_non_differentiable(*(t for t, wanted in zip(output, needed, strict=True) if not wanted))
        ctx.has_penalty = ctx.balancer is not None and grad_penalty is not None and ctx.need_cap
        ctx.shape, ctx.dtype, ctx.device = grad.shape, grad.dtype, grad.device
        tensors = (saved, cap, grad_penalty) if ctx.has_penalty else (saved, cap)
        save_for_backward(ctx, *tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    @backward_on_backend_of_forward
    def backward(ctx: Any, saved_tensors: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, cap, *rest = saved_tensors
        grad_dx, grad_dcap, grad_dbias = grads
        dgrad: Tensor | None = None
        dcap: Tensor | None = None
        dpenalty: Tensor | None = None
        if ctx.needs_input_grad[0] and not (grad_dx is None and grad_dcap is None and grad_dbias is None):
            # dbias is a sum over dx.
            u = fused_sum(_or_zeros(grad_dx, ctx, saved), ctx.dim, grad_dbias, None)
            dgrad = tangent(u, grad_dcap, saved, cap, ctx.dim, ctx.order, ctx.zeroed)
        if ctx.has_penalty and grad_dcap is not None:
            if ctx.needs_input_grad[2]:
                dcap = penalty_gradient(rest[0], (grad_dcap,), ctx.balancer)[0].to(cap.dtype)
            if ctx.needs_input_grad[8]:
                dpenalty = penalty_tangent((cap,), (grad_dcap,), ctx.balancer).to(rest[0].dtype)
        return (dgrad, None, dcap, None, None, None, None, None, dpenalty, None, None)[: ctx.arguments]

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad_tangent, cap_tangent, penalty_tangent = tangents[0], tangents[2], tangents[8]
        saved, cap, *rest = ctx.saved_for_forward
        grad = _or_zeros(grad_tangent, ctx, saved)
        call = BackwardCall(
            grad, saved, cap, ctx.dim, ctx.order, ctx.need_x, ctx.need_cap, bias=ctx.bias, zeroed=ctx.zeroed
        )
        dx, dcap, dbias = gradients(call)
        if ctx.has_penalty:
            if cap_tangent is not None:
                dcap = dcap + penalty_gradient(rest[0], (cap_tangent,), ctx.balancer)[0]
            if penalty_tangent is not None:
                dcap = dcap + penalty_gradient(penalty_tangent, (cap,), ctx.balancer)[0]
        return dx if ctx.need_x else None, dcap if ctx.need_cap else None, dbias if ctx.bias is not None else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        grad, saved, cap, dim, _, need_x, need_cap, balancer, _, bias, zeroed = BackwardCall(*args)
        if balancer is not None or bias is not None:
            raise RuntimeError("backward: neither balancer nor bias can be batched; use penalty_backward, and sum dx")
        if saved.dtype == torch.uint8:
            return _of_mask_under_vmap(decompose.capped_relu_backward, info, in_dims, args)
        fold = vmap.Fold(info.batch_size, in_dims[0], grad, in_dims[2], cap, dim, per_sample_cap=need_cap)
        dx, dcap, nothing = CappedReLUBackwardFunction.apply(
            fold.like_x(grad, in_dims[0]),
            fold.like_x(saved, in_dims[1]),
            fold.cap(cap, in_dims[2]),
            fold.dim,
            (),
            need_x,
            need_cap,
            None,
            None,
            None,
            zeroed,
        )
        dx, dx_dim = fold.restore_x(dx) if need_x else (dx, None)
        dcap, dcap_dim = fold.restore_cap(dcap) if need_cap else (dcap, None)
        return (dx, dcap, nothing), (dx_dim, dcap_dim, None)


class CappedReLUTangentFunction(Function):
    """u where the element is inside, v (cast to u's dtype) where it is capped, 0 elsewhere; linear in (u, v)."""

    @staticmethod
    def forward(
        u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
    ) -> Tensor:
        with below_autograd():
            return operators().capped_relu_jvp(u, v, saved, cap, dim, order, *((zeroed,) if zeroed else ()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        u, v, saved, cap, ctx.dim, ctx.order, *zeroed = inputs
        ctx.zeroed = zeroed[0] if zeroed else 0
        ctx.arguments = len(inputs)
        ctx.has_v = v is not None
        ctx.operators = operators()
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.dtype, ctx.device = u.shape, u.dtype, u.device
        save_for_backward(ctx, saved, cap)
        ctx.save_for_forward(saved, cap)

    @staticmethod
    @backward_on_backend_of_forward
    def backward(ctx: Any, saved_tensors: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if grad is None:
            return tuple([None] * ctx.arguments)
        saved, cap = saved_tensors
        need_u, need_v = ctx.needs_input_grad[:2]
        call = BackwardCall(grad, saved, cap, ctx.dim, ctx.order, need_u, need_v, zeroed=ctx.zeroed)
        du, dv, _ = gradients(call)
        return (du if need_u else None, dv if need_v else None, *(None,) * (ctx.arguments - 2))

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        saved, cap = ctx.saved_for_forward
        return tangent(_or_zeros(tangents[0], ctx, saved), tangents[1], saved, cap, ctx.dim, ctx.order, ctx.zeroed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        u, v, saved, cap, dim, _, *zeroed = args
        if saved.dtype == torch.uint8:
            return _of_mask_under_vmap(decompose.capped_relu_jvp, info, in_dims, args)
        per_sample = v is not None and in_dims[1] is not None
        fold = vmap.Fold(info.batch_size, in_dims[0], u, in_dims[3], cap, dim, per_sample_cap=per_sample)
        out = CappedReLUTangentFunction.apply(
            fold.like_x(u, in_dims[0]),
            None if v is None else fold.cap(v, in_dims[1]),
            fold.like_x(saved, in_dims[2]),
            fold.cap(cap, in_dims[3]),
            fold.dim,
            (),
            *zeroed,
        )
        return fold.restore_x(out)


def exact_gradients(
    chosen: Operators, grad: Tensor | None, *rest: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(dx, dcap, dbias) by these operators from the fields of a ``BackwardCall``; any gradient may be absent."""
    if grad is not None:
        return gradients_by(chosen, BackwardCall(grad, *rest))
    _, cap, _, _, _, need_cap, balancer, grad_penalty, *_ = rest
    if grad_penalty is None or not need_cap:
        return None, None, None
    with using(chosen):
        return None, penalty_gradient(grad_penalty, (cap,), balancer)[0], None


def gradients_by(chosen: Operators, call: BackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """``gradients`` by these operators. Small tensors feel every microsecond, so the operator is asked at once."""
    if chosen.plain_derivatives or derivative_may_be_asked(call.grad, call.cap):
        with using(chosen):
            return gradients(call)
    with below_autograd():
        return chosen.capped_relu_backward(*call.of_operator)


def gradients(call: BackwardCall) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dcap, dbias), differentiable where a derivative may be asked; what is not wanted has no elements."""
    if operators().plain_derivatives or functionalizing():
        return (operators() if operators().plain_derivatives else decompose).capped_relu_backward(*call)
    bias, balancer = call.bias, call.balancer
    if (balancer is not None or bias is not None) and torch_private.transforms_active():
        # A forward outside a transform whose backward runs inside one: only plain torch batches penalty and bias.
        need_x = call.need_x or bias is not None
        dx, dcap, dbias = gradients(call._replace(need_x=need_x, balancer=None, grad_penalty=None, bias=None))
        if call.need_cap and call.grad_penalty is not None and balancer is not None:
            dcap = dcap + penalty_gradient(call.grad_penalty, (call.cap,), balancer)[0]
        return dx, dcap, dbias if bias is None else bias_gradient(dx, bias, call.dim)
    arguments = call.of_operator
    result: tuple[Tensor, Tensor, Tensor]
    if derivative_may_be_asked(call.grad, call.cap):
        result = CappedReLUBackwardFunction.apply(*arguments)
        return result
    with below_autograd():
        result = operators().capped_relu_backward(*arguments)
    return result


def tangent(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    if operators().plain_derivatives or functionalizing():
        by_plain_torch = operators().capped_relu_jvp if operators().plain_derivatives else decompose.capped_relu_jvp
        return by_plain_torch(u, v, saved, cap, dim, order, zeroed)
    out: Tensor = CappedReLUTangentFunction.apply(u, v, saved, cap, dim, order, *((zeroed,) if zeroed else ()))
    return out


def surrogate_gradient(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    """What attacks get in place of dx."""
    surrogate = operators().capped_relu_surrogate_backward
    return (surrogate_values if torch_private.transforms_active() else surrogate)(grad, saved, cap, dim, order, width)


def _or_zeros(t: Tensor | None, ctx: Any, saved: Tensor) -> Tensor:
    if t is None and dtensor.is_distributed(saved):
        return torch.zeros_like(saved)
    # Expanded from one element: an absent gradient costs no memory.
    return t if t is not None else torch.zeros((), dtype=ctx.dtype, device=ctx.device).expand(ctx.shape)


def _of_mask_under_vmap(
    function: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], args: tuple[Any, ...]
) -> tuple[Any, Any]:
    """A mask has no dimension that a batch could be folded into, so plain torch unpacks it."""
    result = torch.vmap(function, in_dims, randomness=info.randomness)(*args)
    return result, (0,) * len(result) if isinstance(result, tuple) else 0
