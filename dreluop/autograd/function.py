"""The activation as torch.autograd.Functions: first and second order, forward and reverse mode, vmap.

``CappedReLUFunction`` is differentiated by ``CappedReLUBackwardFunction``, whose derivative with respect to the
incoming gradient is ``CappedReLUTangentFunction``, whose derivative is again the backward: the three are closed, so
every order is exact. Derivatives of the region masks are zero almost everywhere and left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import dtensor, torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import vmap
from dreluop.autograd.base import (
    BelowAutograd,
    Function,
    backward_on_backend_of_forward,
    below_autograd,
    derivative_may_be_asked,
    derivatives_by_plain_torch,
    functionalizing,
    jvp_on_backend_of_forward,
    save_for_backward,
    saved_for_backward,
    write_over,
)
from dreluop.autograd.penalty import penalty_gradient, penalty_of, penalty_tangent
from dreluop.backends.selection import operators, operators_for, using
from dreluop.ops import decompose, inductor
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import bias_gradient, extras, fused_sum, mask_order
from dreluop.ops.handles import Operators


class SavedMask:
    """Passed as ``save`` to a call in place: carries the mask to backward without making it a second result.

    autograd refuses functions that write over a view and return more than one tensor.
    """

    mask: Tensor | None = None


class CappedReLUFunction(Function):
    """``y = max(0, min(x, cap))`` as an autograd.Function; ``dreluop.capped_relu`` checks its arguments and calls it.

    ``apply(x, cap, dim, inplace, save, balancer)``, all positionally, and where there is one
    ``apply(..., bias, residual)``. Returns y, or a tuple: y, then the packed mask if ``save="mask"`` (under
    ``torch.vmap`` y again), then the penalty if ``balancer`` is a number. Shapes, dtypes and granularities are those of
    ``dreluop.capped_relu``. Saved for backward: the cap, and y or the mask (N/4 bytes), and a bias that needs a
    gradient; nothing when no input needs one.
    """

    @classmethod
    def apply(
        cls,
        x: Tensor,
        cap: Tensor,
        dim: int,
        inplace: bool,
        save: str | SavedMask,
        balancer: float | None,
        *bias_and_residual: Tensor | None,
    ) -> Any:
        if not derivatives_by_plain_torch():
            return super().apply(x, cap, dim, inplace, save, balancer, *bias_and_residual)
        # The derivatives below are of this form only; plain torch has those of the rest.
        t = fused_sum(x, dim, *bias_and_residual) if bias_and_residual else x
        saves_mask = save != "output"
        mask: Tensor | None
        if _by_plain_torch():
            y = inductor.differentiable(t, cap, dim)
            mask = extras(y, cap, dim, saves_mask, None)[0]
        else:
            result = super().apply(t, cap, dim, False, "mask" if saves_mask else "output", None)
            y, mask = result if saves_mask else (result, None)
        if isinstance(save, SavedMask):
            save.mask = mask
        outputs: list[Tensor | None] = [write_over(x, y) if inplace else y]
        if save == "mask":
            outputs.append(mask)
        if balancer is not None:
            outputs.append(penalty_of([cap], balancer))
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    @staticmethod
    def forward(
        x: Tensor,
        cap: Tensor,
        dim: int,
        inplace: bool,
        save: str | SavedMask,
        balancer: float | None,
        *bias_and_residual: Tensor | None,
    ) -> Tensor | tuple[Tensor, ...]:
        operators = operators_for(x)
        if inplace:
            # Functionalization hides a write without grad mode from autograd, as one under no_grad. `apply` ends this.
            torch_private.set_grad_enabled(True)
        with BelowAutograd():
            y, mask, penalty = operators.activate(x, cap, dim, inplace, save != "output", balancer, bias_and_residual)
        if mask is None and penalty is None:
            return y
        if isinstance(save, SavedMask):
            save.mask = mask
        outputs = [one for one in (y, mask if save == "mask" else None, penalty) if one is not None]
        return tuple(outputs) if len(outputs) > 1 else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, cap, ctx.dim, ctx.inplace, save, ctx.balancer, *bias_and_residual = inputs
        outputs = output if isinstance(output, tuple) else (output,)
        saved = y = outputs[0]
        ctx.arity, ctx.order = len(outputs), ()
        ctx.operators = operators()
        ctx.set_materialize_grads(False)
        if ctx.inplace:
            ctx.mark_dirty(x)
        # The penalty of a frozen cap must not require a gradient because x does.
        frozen = outputs[-1:] if ctx.balancer is not None and not ctx.needs_input_grad[1] else ()
        if save != "output":
            saved = outputs[1] if save == "mask" else save.mask
            if saved.dtype == torch.uint8:
                ctx.order = mask_order(y, cap)
        if save == "mask" or frozen:
            ctx.mark_non_differentiable(*(outputs[1:2] if save == "mask" else ()), *frozen)
        if True in ctx.needs_input_grad:
            # The bias only for its shape and dtype.
            bias = bias_and_residual[:1] if bias_and_residual and ctx.needs_input_grad[6] else ()
            save_for_backward(ctx, saved, cap, *bias)
        # Torch keeps this after an exception of a pack hook, when y would keep its node alive.
        ctx.save_for_forward(y.detach(), cap)

    @staticmethod
    @backward_on_backend_of_forward
    def backward(ctx: Any, saved_tensors: tuple[Tensor, ...], *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, cap, *bias = saved_tensors
        needs = ctx.needs_input_grad
        need_x, need_cap = needs[:2]
        need_residual = len(needs) > 6 and needs[7]
        balancer = ctx.balancer
        grad = grads[0]
        grad_penalty = grads[-1] if balancer is not None else None
        dx: Tensor | None = None
        dcap: Tensor | None = None
        dbias: Tensor | None = None
        if grad is not None:
            call = BackwardCall(
                grad, saved, cap, ctx.dim, ctx.order, need_x or need_residual, need_cap, balancer, grad_penalty, *bias
            )
            dx, dcap, dbias = gradients(call)
        elif grad_penalty is not None and need_cap:
            dcap = penalty_gradient(grad_penalty, (cap,), balancer)[0]
        result = (dx if need_x else None, dcap if need_cap else None, None, None, None, None)
        if len(needs) == 6:
            return result
        return *result, dbias if bias else None, dx if need_residual else None

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x_tangent, cap_tangent = tangents[:2]
        # `apply` adds them first, but for a level of forward mode in what torch.compile traced, which it cannot see.
        if any(t is not None for t in tangents[6:]):
            raise RuntimeError("capped_relu: no tangents of bias and residual here; add them to x before")
        y, cap = ctx.saved_for_forward
        u = x_tangent if x_tangent is not None else y.new_zeros(()).expand(y.shape)
        y_tangent = tangent(u, cap_tangent, y, cap, ctx.dim, ())
        if ctx.inplace:
            # autograd requires the tangent of an in-place function to be written in place too.
            y_tangent = x_tangent.copy_(y_tangent) if x_tangent is not None else y_tangent
        if ctx.arity == 1:
            return y_tangent
        extras: list[Tensor | None] = [None] * (ctx.arity - 1)
        if ctx.balancer is not None:
            extras[-1] = penalty_tangent((cap,), (cap_tangent,), ctx.balancer)
        return (y_tangent, *extras)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        x, cap, dim, _, save, _ = args
        fold = vmap.Fold(info.batch_size, in_dims[0], x, in_dims[1], cap, dim, per_sample_cap=False)
        y = CappedReLUFunction.apply(
            fold.like_x(x, in_dims[0]), fold.cap(cap, in_dims[1]), fold.dim, False, "output", None
        )
        y, y_dim = fold.restore_x(y)
        if save != "mask":
            return y, y_dim
        # A packed mask has no batch dimension, so the output is saved in its place.
        return (y, y.detach()), (y_dim, y_dim)


class PlainCappedReLUFunction(torch.autograd.Function):
    """``CappedReLUFunction`` for the usual call in eager mode: ``apply(x, cap, dim, inplace)``, y and the cap saved.

    It serves only where ``fast_path`` does not: with other torch versions, and views in place. A small tensor feels
    every microsecond of Python, and this has no more of it than the derivatives need. Not for ``torch.func`` and
    forward mode.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: Tensor, dim: int, inplace: bool) -> Tensor:
        ctx.operators = operators()
        with BelowAutograd():
            y: Tensor = ctx.operators.activate(x, cap, dim, inplace, False, None)[0]
        if inplace:
            ctx.mark_dirty(x)
        ctx.dim = dim
        save_for_backward(ctx, y, cap)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        y, cap = saved_for_backward(ctx)
        return *plain_backward(ctx.operators, grad, y, cap, ctx.dim, *ctx.needs_input_grad[:2]), None, None


def plain_backward(
    chosen: Operators, grad: Tensor, y: Tensor, cap: Tensor, dim: int, need_x: bool, need_cap: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Backward of the usual call by these operators: of ``PlainCappedReLUFunction``, and where ``_autograd`` asks."""
    call = BackwardCall(grad, y, cap, dim, (), need_x, need_cap)
    try:
        if derivative_may_be_asked(grad, cap):
            with using(chosen):
                dx, dcap, _ = gradients(call)
        else:
            with below_autograd():
                dx, dcap, _ = chosen.capped_relu_backward(*call[:9])
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise
    return dx if need_x else None, dcap if need_cap else None


class CappedReLUBackwardFunction(Function):
    """(dx, dcap, dbias) from (grad, saved, cap); linear in grad, and through the penalty in grad_penalty and cap."""

    @staticmethod
    def forward(*call: Any) -> tuple[Tensor, Tensor, Tensor]:
        """``apply(*BackwardCall)``, without the bias where there is none."""
        with below_autograd():
            return operators().capped_relu_backward(*call)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad, saved, cap, ctx.dim, ctx.order, ctx.need_x, ctx.need_cap, ctx.balancer, grad_penalty, *bias = inputs
        ctx.bias = bias[0] if bias else None
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
            dgrad = tangent(u, grad_dcap, saved, cap, ctx.dim, ctx.order)
        if ctx.has_penalty and grad_dcap is not None:
            if ctx.needs_input_grad[2]:
                dcap = penalty_gradient(rest[0], (grad_dcap,), ctx.balancer)[0].to(cap.dtype)
            if ctx.needs_input_grad[8]:
                dpenalty = penalty_tangent((cap,), (grad_dcap,), ctx.balancer).to(rest[0].dtype)
        return (dgrad, None, dcap, None, None, None, None, None, dpenalty, None)[: ctx.arguments]

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        grad_tangent, cap_tangent, penalty_tangent = tangents[0], tangents[2], tangents[8]
        saved, cap, *rest = ctx.saved_for_forward
        grad = _or_zeros(grad_tangent, ctx, saved)
        call = BackwardCall(grad, saved, cap, ctx.dim, ctx.order, ctx.need_x, ctx.need_cap, bias=ctx.bias)
        dx, dcap, dbias = gradients(call)
        if ctx.has_penalty:
            if cap_tangent is not None:
                dcap = dcap + penalty_gradient(rest[0], (cap_tangent,), ctx.balancer)[0]
            if penalty_tangent is not None:
                dcap = dcap + penalty_gradient(penalty_tangent, (cap,), ctx.balancer)[0]
        return dx if ctx.need_x else None, dcap if ctx.need_cap else None, dbias if ctx.bias is not None else None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        grad, saved, cap, dim, _, need_x, need_cap, balancer, _, *bias = args
        if balancer is not None or any(b is not None for b in bias):
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
        )
        dx, dx_dim = fold.restore_x(dx) if need_x else (dx, None)
        dcap, dcap_dim = fold.restore_cap(dcap) if need_cap else (dcap, None)
        return (dx, dcap, nothing), (dx_dim, dcap_dim, None)


class CappedReLUTangentFunction(Function):
    """u where the element is inside, v (cast to u's dtype) where it is capped, 0 elsewhere; linear in (u, v)."""

    @staticmethod
    def forward(u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int]) -> Tensor:
        with below_autograd():
            return operators().capped_relu_jvp(u, v, saved, cap, dim, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        u, v, saved, cap, ctx.dim, ctx.order = inputs
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
            return None, None, None, None, None, None
        saved, cap = saved_tensors
        need_u, need_v = ctx.needs_input_grad[:2]
        du, dv, _ = gradients(BackwardCall(grad, saved, cap, ctx.dim, ctx.order, need_u, need_v))
        return du if need_u else None, dv if need_v else None, None, None, None, None

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        saved, cap = ctx.saved_for_forward
        return tangent(_or_zeros(tangents[0], ctx, saved), tangents[1], saved, cap, ctx.dim, ctx.order)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        u, v, saved, cap, dim, _ = args
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
        )
        return fold.restore_x(out)


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
    arguments = call[:9] if bias is None else call
    result: tuple[Tensor, Tensor, Tensor]
    if derivative_may_be_asked(call.grad, call.cap):
        result = CappedReLUBackwardFunction.apply(*arguments)
        return result
    with below_autograd():
        result = operators().capped_relu_backward(*arguments)
    return result


def tangent(u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    if operators().plain_derivatives or functionalizing():
        by_plain_torch = operators().capped_relu_jvp if operators().plain_derivatives else decompose.capped_relu_jvp
        return by_plain_torch(u, v, saved, cap, dim, order)
    out: Tensor = CappedReLUTangentFunction.apply(u, v, saved, cap, dim, order)
    return out


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


def _by_plain_torch() -> bool:
    """Whether transforms must not meet an autograd.Function of ours: functionalize, and what a compiler is to fuse."""
    return torch_private.transforms_active() and (operators().plain_derivatives or functionalizing())
