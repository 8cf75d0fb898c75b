"""The activation as one torch.autograd.Function, with a choice of what backward gives to x."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop._internal.zeroed import zeroed
from dreluop.autograd import vmap
from dreluop.autograd.base import (
    BelowAutograd,
    Function,
    functionalizing,
    in_transform_or_forward_mode,
    jvp_on_backend_of_forward,
    save_for_backward,
    saved_for_backward,
    write_over,
)
from dreluop.autograd.derivatives import exact_gradients, gradients, surrogate_gradient, tangent
from dreluop.autograd.penalty import penalty_of, penalty_tangent
from dreluop.backends.selection import operators, operators_for, using
from dreluop.ops import decompose, inductor
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.composite import bias_gradient, fused_sum, mask_order, packed_mask


class Rule(NamedTuple):
    """What backward gives to x (bias, residual). The gradient of the cap is exact under every rule."""

    name: Literal["exact", "straight_through", "soft"]
    width: Tensor | None = None


EXACT = Rule("exact")
STRAIGHT_THROUGH = Rule("straight_through")  # The gradient of y wherever y is on, at the cap too.


def soft(width: Tensor) -> Rule:
    """The slope, smoothed over a width of the cap's shape. Saves x; for calls with neither mask, bias nor residual."""
    return Rule("soft", width.detach())


class Activated(NamedTuple):
    """Results of a call: y, the packed mask if wanted, and the penalty if ``balancer`` is a number."""

    y: Tensor
    mask: Tensor | None
    penalty: Tensor | None


class SavedMask:
    """Carries the mask from forward to backward without making it a result.

    autograd refuses functions that write over a view and return more than one tensor.
    """

    mask: Tensor | None = None


class KernelActivation(Function):
    """The activation by one call of an operator: ``KernelActivation.run(Call(x, cap, ...), rule)``.

    Saved for backward: the cap, and y or the mask (N/4 bytes), and a bias that needs a gradient; nothing when no input
    needs one.
    """

    @classmethod
    def run(cls, call: Call, rule: Rule = EXACT) -> Activated:
        """The results of a call, as autograd is to see it."""
        if in_transform_or_forward_mode():
            return activated_in_transforms(call, rule)
        return activated(call, rule, forward_mode=rule is EXACT)

    @staticmethod
    def forward(
        ctx: Any,
        call: Call,
        rule: Rule,
        saved_mask: SavedMask | None,
        forward_mode: bool,
        x: Tensor,
        cap: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """y, or y and the penalty. The tensors of the call come once more, as autograd finds them only here."""
        operators = operators_for(x)
        if call.inplace:
            # With grad mode off, functionalization would hide this write from autograd. `apply` restores the mode.
            torch_private.set_grad_enabled(True)
            ctx.mark_dirty(x)
        with BelowAutograd():
            y, mask, penalty = operators.activate(call)
        if saved_mask is not None:
            saved_mask.mask = mask
        if forward_mode:
            ctx.mask_is_result = False
        # The penalty of a frozen cap must not require a gradient because x does.
        if penalty is not None and not ctx.needs_input_grad[5]:
            ctx.mark_non_differentiable(penalty)
        _remember(ctx, call, rule, forward_mode, cap, bias, y, mask)
        return y if penalty is None else (y, penalty)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved_tensors = saved_for_backward(ctx)
        need_x, need_cap, *need_added = ctx.needs_input_grad[4:]
        need_bias, need_residual = need_added or (False, False)
        try:
            dx, dcap, dbias = (_exact if ctx.rule == "exact" else _by_surrogate)(
                ctx, saved_tensors, (need_x or need_residual, need_cap, need_bias), *grads
            )
        except RuntimeError as error:
            raise_as_of_torch(error)
            raise
        result = None, None, None, None, dx if need_x else None, dcap if need_cap else None
        if not need_added:
            return result
        return *result, dbias if need_bias else None, dx if need_residual else None

    @staticmethod
    @jvp_on_backend_of_forward
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x_tangent, cap_tangent, *others = tangents[4:]
        # `run` adds bias and residual first, except under forward mode inside compiled code, which it cannot detect.
        if any(t is not None for t in others):
            raise RuntimeError("capped_relu: no tangents of bias and residual here; add them to x before")
        y, cap = ctx.saved_for_forward
        u = x_tangent if x_tangent is not None else y.new_zeros(()).expand(y.shape)
        y_tangent = tangent(u, cap_tangent, y, cap, ctx.dim, (), ctx.zeroed)
        if ctx.inplace:
            # autograd requires the tangent of an in-place function to be written in place too.
            y_tangent = x_tangent.copy_(y_tangent) if x_tangent is not None else y_tangent
        if ctx.balancer is not None:
            return y_tangent, penalty_tangent((cap,), (cap_tangent,), ctx.balancer)
        return (y_tangent, None) if ctx.mask_is_result else y_tangent


class CappedReLUFunction(KernelActivation):
    """``y = max(0, min(x, cap))`` as a torch.autograd.Function, without the checks of ``dreluop.capped_relu``."""

    @classmethod
    def apply(
        cls,
        x: Tensor,
        cap: Tensor,
        dim: int = 1,
        inplace: bool = False,
        save: Literal["output", "mask"] = "output",
        balancer: float | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        above: Literal["cap", "zero"] = "cap",
        nan: Literal["propagate", "zero"] = "propagate",
    ) -> Tensor | tuple[Tensor, ...]:
        """The activation of checked arguments, which are those of ``dreluop.capped_relu``.

        Returns:
            y, or a tuple: y, then the packed mask with ``save="mask"`` (under ``torch.vmap`` y again), then the penalty
            if ``balancer`` is a number.
        """
        call = Call(x, cap, dim, save == "mask", balancer, bias, residual, zeroed(above, nan), inplace)
        results = KernelActivation.run(call)
        found = tuple(result for result in results if result is not None)
        return found if len(found) > 1 else results.y


class TransformedActivation(KernelActivation):
    """The same for functorch, in whose forward there is no context: a call out of place, of x and cap only."""

    @staticmethod
    def forward(call: Call, *others: Any) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        with BelowAutograd():
            y, mask, _ = operators_for(call.x).activate(call)
        return y if mask is None else (y, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        call, rule, _, forward_mode, _, cap = inputs
        ctx.mask_is_result = call.mask
        if call.mask:
            ctx.mark_non_differentiable(output[1])
        y, mask = output if call.mask else (output, None)
        _remember(ctx, call, rule, forward_mode, cap, None, y, mask)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        call, rule, _, _, x, cap = inputs
        x_dim, cap_dim = in_dims[4:]
        fold = vmap.Fold(info.batch_size, x_dim, x, cap_dim, cap, call.dim, per_sample_cap=False)
        folded = Call(fold.like_x(x, x_dim), fold.cap(cap, cap_dim), fold.dim, zeroed=call.zeroed)
        y = TransformedActivation.apply(folded, rule, None, True, folded.x, folded.cap)
        y, y_dim = fold.restore_x(y)
        if not call.mask:
            return y, y_dim
        # A packed mask has no batch dimension, so the output is saved in its place.
        return (y, y.detach()), (y_dim, y_dim)


def _remember(
    ctx: Any,
    call: Call,
    rule: Rule,
    forward_mode: bool,
    cap: Tensor,
    bias: Tensor | None,
    y: Tensor,
    mask: Tensor | None,
) -> None:
    """Save for the derivatives what they need. Not the call, which would keep x."""
    ctx.operators = operators()
    ctx.dim, ctx.inplace, ctx.balancer, ctx.rule, ctx.order = call.dim, call.inplace, call.balancer, rule.name, ()
    ctx.zeroed = call.zeroed
    ctx.set_materialize_grads(False)
    needs = ctx.needs_input_grad
    if rule.width is not None:
        # The width first: if a checkpoint recomputes under another rule, the saved shapes differ and torch reports it.
        save_for_backward(ctx, rule.width, call.x, cap)
    elif True in needs:
        # Under torch.vmap y is in the place of the mask.
        if mask is not None and mask.dtype == torch.uint8:
            ctx.order = mask_order(y, cap)
        saved = y if mask is None else mask
        # The bias only for its shape and dtype.
        if bias is not None and needs[6]:
            save_for_backward(ctx, saved, cap, bias)
        else:
            save_for_backward(ctx, saved, cap)
    if forward_mode:
        # Torch keeps this after an exception of a pack hook, when y would keep its node alive.
        ctx.save_for_forward(y.detach(), cap)


# Past torch's own apply, which binds default arguments for 50 us.
_apply_in_eager_mode = super(torch.autograd.Function, KernelActivation).apply


def activated(call: Call, rule: Rule, forward_mode: bool) -> Activated:
    """``KernelActivation`` outside transforms. ``forward_mode``: whether a tangent may be asked."""
    x, cap, _, mask, balancer, bias, residual, _, inplace = call
    # autograd refuses a second result of a function that writes over a view.
    apart = balancer is not None and inplace and x._is_view()
    if apart:
        call = call._replace(balancer=None)
    saved_mask = SavedMask() if mask else None
    tensors = (x, cap) if bias is None and residual is None else (x, cap, bias, residual)
    result = _apply_in_eager_mode(call, rule, saved_mask, forward_mode, *tensors)
    y, penalty = result if isinstance(result, tuple) else (result, None)
    if apart and balancer is not None:
        penalty = penalty_of([cap], balancer)
    return Activated(y, saved_mask.mask if saved_mask is not None else None, penalty)


def activated_in_transforms(call: Call, rule: Rule) -> Activated:
    """``KernelActivation`` where plain torch has the derivatives of all but the rule itself: sum, write and penalty."""
    x, cap, dim, mask, balancer, bias, residual, number, inplace = call
    t = fused_sum(x, dim, bias, residual)
    packed: Tensor | None = None
    if rule is EXACT and torch_private.transforms_active() and (operators().plain_derivatives or functionalizing()):
        # No autograd.Function of ours for functionalize, nor in what a compiler is to fuse.
        y = inductor.differentiable(t, cap, dim, number)
        packed = packed_mask(y, cap, dim, number) if mask else None
    else:
        # functorch does not let a mask be saved that is neither an argument nor a result.
        wanted = Call(t, cap, dim, mask and rule is EXACT, zeroed=number)
        result = TransformedActivation.apply(wanted, rule, None, rule is EXACT, t, cap)
        y, packed = result if wanted.mask else (result, None)
    penalty = None if balancer is None else penalty_of([cap], balancer)
    return Activated(write_over(x, y) if inplace else y, packed, penalty)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # of x, cap and bias


def _exact(
    ctx: Any,
    saved_tensors: tuple[Tensor, ...],
    needs: tuple[bool, bool, bool],
    grad: Tensor | None,
    *others: Tensor | None,
) -> Gradients:
    saved, cap, *bias = saved_tensors
    grad_penalty = others[-1] if ctx.balancer is not None else None
    return exact_gradients(
        ctx.operators, grad, saved, cap, ctx.dim, ctx.order, needs[0], needs[1], ctx.balancer, grad_penalty,
        bias[0] if bias else None, ctx.zeroed,
    )  # fmt: skip


def _by_surrogate(
    ctx: Any, saved_tensors: tuple[Tensor, ...], needs: tuple[bool, bool, bool], grad: Tensor | None
) -> Gradients:
    if grad is None:
        return None, None, None
    need_x, need_cap, need_bias = needs
    dx: Tensor | None = None
    with using(ctx.operators):
        if ctx.rule == "soft":
            width, x, cap = saved_tensors
            if need_x:
                dx = surrogate_gradient(grad, x, cap, ctx.dim, (), width)
            forward = decompose.capped_relu if torch_private.transforms_active() else operators().capped_relu
            saved = forward(x.detach(), cap.detach(), ctx.dim) if need_cap else x
        else:
            saved, cap, *_ = saved_tensors
            if need_x or need_bias:
                dx = surrogate_gradient(grad, saved, cap, ctx.dim, ctx.order)
        dcap = dbias = None
        if need_cap:
            dcap = gradients(BackwardCall(grad, saved, cap, ctx.dim, ctx.order, False, True))[1]
        if need_bias and dx is not None:
            dbias = bias_gradient(dx, saved_tensors[2], ctx.dim)
    return dx, dcap, dbias
