"""Batch normalization with a capped activation: one operator where only plain autograd watches, else torch's own."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dreluop._internal import checks, torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import route, surrogate
from dreluop.autograd.base import (
    BelowAutograd,
    Function,
    derivative_may_be_asked,
    in_transform_or_forward_mode,
    save_for_backward,
    saved_for_backward,
)
from dreluop.backends.selection import by_default_rule, unavailable_reason
from dreluop.ops.batch_norm import DIM, Normalization, gradients, regions, statistics
from dreluop.ops.composite import accumulation_dtype

_TENSORS = frozenset({Tensor, nn.Parameter})


class NormCall(NamedTuple):
    """The arguments of ``dreluop.capped_batch_norm``, checked; ``training``: whether the statistics are those of x."""

    x: Tensor
    cap: Tensor
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    residual: Tensor | None
    training: bool
    momentum: float
    eps: float

    @classmethod
    def checked(
        cls,
        x: Tensor,
        cap: Tensor | float,
        parameters: dict[str, Tensor | None],
        residual: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
    ) -> NormCall:
        """What the public function was given, or the error that names what is wrong with it."""
        checks.float_tensor("x", x)
        if x.ndim < 2:
            raise ValueError(f"x: got shape {tuple(x.shape)}; expected at least two dimensions, the second of channels")
        cap = checks.cap_for(x, cap, DIM)
        for name, parameter in parameters.items():
            if parameter is not None:
                _check_per_channel(name, parameter, x)
        running = [parameters["running_mean"] is not None, parameters["running_var"] is not None]
        if running[0] != running[1]:
            raise ValueError("running_mean, running_var: got one of them; expected both or none")
        training, momentum = checks.flag("training", training), checks.number("momentum", momentum)
        if not training and not running[0]:
            raise ValueError("training: got False without running_mean and running_var; expected both")
        if training and x.numel() == x.shape[DIM]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, one value per channel; expected more when training")
        if residual is not None:
            checks.residual_for(x, residual)
        return cls(
            x, cap, parameters["weight"], parameters["bias"], parameters["running_mean"], parameters["running_var"],
            residual, training, momentum, _checked_eps(eps),
        )  # fmt: skip

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in self if isinstance(t, Tensor))


def _checked_eps(eps: float) -> float:
    number = checks.number("eps", eps)
    if not 0 < number < math.inf:
        raise ValueError(f"eps: got {eps}; expected a finite number > 0")
    return number


def _check_per_channel(name: str, t: Tensor, x: Tensor) -> None:
    checks.float_tensor(name, t)
    if t.device != x.device:
        raise ValueError(f"{name}: got a tensor on {t.device}; expected x's device, {x.device}")
    if tuple(t.shape) != (x.shape[DIM],):
        raise ValueError(
            f"{name}: got shape {tuple(t.shape)} for x of shape {tuple(x.shape)}; expected ({x.shape[DIM]},)"
        )


def run(call: NormCall) -> Tensor:
    """y; the running statistics are written over."""
    if torch.compiler.is_compiling() or not _is_served(call):
        return composite(call)
    try:
        y: Tensor
        if torch.is_grad_enabled() and torch_private.any_requires_grad(*call.tensors):
            y = CappedBatchNorm.apply(call, call.x, call.cap, call.weight, call.bias, call.residual)
        else:
            y = _forward(call, packs=False)[0]
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise
    return y


def _is_served(call: NormCall) -> bool:
    """Whether the compiled kernels serve, and nothing but plain autograd watches the call."""
    return (
        call.x.device.type in ("cpu", "cuda")
        and by_default_rule(call.x)
        and unavailable_reason("native", call.x.device.type) is None
        and not surrogate.active
        and call.cap.ndim <= 1
        and call.x.numel() > 0
        and all(type(t) in _TENSORS for t in call.tensors)
        and not in_transform_or_forward_mode()
        and torch_private.dispatch_modes() == 0
        and not torch_private.is_traced_or_fake()
    )


def composite(call: NormCall) -> Tensor:
    """By torch's batch norm and ``capped_relu``: with every derivative, on any device, fused by a compiler."""
    y = route.check_and_run(before_cap(call), call.cap, DIM, False, "output", None, None, None)
    assert isinstance(y, Tensor)
    return y


def before_cap(call: NormCall) -> Tensor:
    """What the call caps, by torch's batch norm; the running statistics are written over."""
    x, residual = call.x, call.residual
    if residual is None and _torch_takes(call):
        return _batch_norm(call, x)
    # Half types are rounded once, after the sum.
    wide = accumulation_dtype(x)
    t = _batch_norm(call, x.to(wide))
    return (t if residual is None else t + residual.to(wide)).to(x.dtype)


def _torch_takes(call: NormCall) -> bool:
    """Whether the parameters are of x's dtype, or all of float32 beside a half type."""
    found = {t.dtype for t in (call.weight, call.bias, call.running_mean, call.running_var) if t is not None}
    return found <= {call.x.dtype} or (found == {torch.float32} and call.x.dtype.itemsize == 2)


def _batch_norm(call: NormCall, x: Tensor) -> Tensor:
    """By torch, with parameters of x's dtype where it takes no others."""
    if x.dtype == call.x.dtype and _torch_takes(call):
        wide = call
    else:
        names = ("running_mean", "running_var", "weight", "bias")
        wide = call._replace(**{name: t.to(x.dtype) for name in names if (t := getattr(call, name)) is not None})
    t = F.batch_norm(
        x, wide.running_mean, wide.running_var, wide.weight, wide.bias, call.training, call.momentum, call.eps
    )
    for given, updated in ((call.running_mean, wide.running_mean), (call.running_var, wide.running_var)):
        if call.training and given is not None and updated is not None and updated is not given:
            given.copy_(updated)
    return t


class CappedBatchNorm(Function):
    """By the operators. Saved: x, the parameters, mean and variance, and with a residual two bits per element."""

    @staticmethod
    def forward(
        ctx: Any,
        call: NormCall,
        x: Tensor,
        cap: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        """The tensors of the call come once more, as autograd finds them only here."""
        y, mean, var, packed = _forward(call, packs=residual is not None)
        if not call.training:
            # A step of training may write over the running statistics before backward comes.
            mean, var = mean.clone(), var.clone()
        ctx.training, ctx.eps = call.training, call.eps
        ctx.has = (weight is not None, bias is not None, residual is not None)
        save_for_backward(ctx, *(t for t in (x, cap, mean, var, weight, bias, packed) if t is not None))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, cap, mean, var, *rest = saved_for_backward(ctx)
        has_weight, has_bias, has_residual = ctx.has
        weight = rest.pop(0) if has_weight else None
        bias = rest.pop(0) if has_bias else None
        packed = rest.pop(0) if has_residual else None
        by = Normalization(weight, bias, mean, var, ctx.eps)
        need_x, need_cap, need_weight, need_bias, need_residual = ctx.needs_input_grad[1:]
        needs = (need_x, need_weight, need_bias, need_cap, need_residual)
        try:
            if derivative_may_be_asked(grad, x, weight):
                found = _differentiable_gradients(grad, x, cap, by, packed, ctx.training)
            else:
                with BelowAutograd():
                    found = torch.ops.dreluop.capped_batch_norm_backward.default(
                        grad, x, cap, weight, bias, mean, var, packed, ctx.eps, ctx.training, *needs
                    )
        except RuntimeError as error:
            raise_as_of_torch(error)
            raise
        dx, dweight, dbias, dcap, dresidual = (g if need else None for g, need in zip(found, needs, strict=True))
        return None, dx, dcap, dweight, dbias, dresidual


def _forward(call: NormCall, packs: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """y, the mean and variance that normalized x, and the packed mask if wanted; updates the running statistics."""
    mean, var = (None, None) if call.training else (call.running_mean, call.running_var)
    with BelowAutograd():
        y, batch_mean, batch_var, packed = torch.ops.dreluop.capped_batch_norm.default(
            call.x, call.cap, call.weight, call.bias, mean, var, call.residual, call.eps, packs
        )
    if mean is None or var is None:
        mean, var = batch_mean, batch_var
        with torch.no_grad():
            _update(call, batch_mean, batch_var)
    return y, mean, var, packed if packs else None


def _update(call: NormCall, mean: Tensor, var: Tensor) -> None:
    if call.running_mean is None or call.running_var is None:
        return
    count = call.x.numel() // call.x.shape[DIM]
    for running, value, factor in ((call.running_mean, mean, 1.0), (call.running_var, var, count / (count - 1))):
        # Rounded once, and without a batch's variance in half types, which may overflow them.
        running.copy_((running.to(value.dtype) * (1 - call.momentum)).add_(value, alpha=call.momentum * factor))


def _differentiable_gradients(
    grad: Tensor, x: Tensor, cap: Tensor, by: Normalization, packed: Tensor | None, training: bool
) -> tuple[Tensor, ...]:
    """By torch, with the region as a constant: for second derivatives, and batches of gradients under vmap."""
    with torch.no_grad():
        masks = regions(x, cap, by, packed)
    if training:
        mean, var = statistics(x)
        by = by._replace(mean=mean, var=var)
    dx, dweight, dbias, dcap, dresidual = gradients(grad, x, cap, by, masks, training)
    dweight, dbias = (g if t is None else g.to(t.dtype) for g, t in ((dweight, by.weight), (dbias, by.bias)))
    return dx, dweight, dbias, dcap.to(cap.dtype), dresidual
