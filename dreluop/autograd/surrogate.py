"""What attacks put in place of the activation (``dreluop.adaptive``), and which form this thread asked for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from dreluop._internal import checks, dtensor, torch_private
from dreluop._internal.interrupts import left_for_certain
from dreluop._internal.shapes import granularity_of
from dreluop._internal.zeroed import ABOVE, NAN
from dreluop.autograd.base import derivative_may_be_asked, in_backward
from dreluop.autograd.function import STRAIGHT_THROUGH, KernelActivation, soft
from dreluop.autograd.penalty import penalty_of
from dreluop.backends.selection import operators_for
from dreluop.ops.call import Call
from dreluop.ops.composite import accumulation_dtype, effective_cap, fused_sum
from dreluop.ops.schemas import FORWARDS, NAMESPACE

# Whether any thread is inside a context: all that an ordinary call asks. Compiled graphs are guarded on it.
active = False
# The blocks that are open, in all threads, with their forms.
_blocks: set[tuple[object, str]] = set()
_lock = threading.Lock()
_of_thread = threading.local()


@dataclass(frozen=True)
class Surrogate:
    """What a context asks for. ``look``: only look at every call (what is capped, the cap, dim)."""

    form: Literal["straight_through", "soft", "smooth"]
    tau: float = 1.0
    std: float | Mapping[Tensor, float | Tensor] | None = None
    look: Callable[[Tensor, Tensor, int], None] | None = None

    @property
    def entered_by(self) -> str:
        return "smooth_forward" if self.form == "smooth" else "surrogate_backward"

    def width(self, x: Tensor, cap: Tensor, dim: int) -> Tensor:
        """tau times the standard deviation per cap, of the cap's shape."""
        if self.std is None:
            return self.tau * batch_std(x, cap, dim)
        std = self.std.get(cap) if isinstance(self.std, Mapping) else self.std
        if std is None:
            raise ValueError(
                f"std: holds nothing for a cap of shape {tuple(cap.shape)} that is called; expected an entry for every "
                "cap (measure_std gives them)"
            )
        if not isinstance(std, Tensor):
            return torch.full(cap.shape, self.tau * std, dtype=accumulation_dtype(x), device=cap.device)
        if std.device != cap.device:
            raise ValueError(f"std: got a tensor on {std.device}; expected the cap's device, {cap.device}")
        return self.tau * std.to(accumulation_dtype(x))


def of_this_thread() -> Surrogate | None:
    """What the innermost block that this thread is inside asks for."""
    wanted: Surrogate | None = getattr(_of_thread, "surrogate", None)
    return wanted


def chosen(surrogate: Surrogate) -> AbstractContextManager[None]:
    """The surrogate of this thread inside the block."""
    block, before = (object(), surrogate.form), of_this_thread()

    def enter() -> None:
        _count(_blocks.add, block)
        _of_thread.surrogate = surrogate

    def leave() -> None:
        _of_thread.surrogate = before
        _count(_blocks.discard, block)

    return left_for_certain(enter, leave)


def _count(change: Callable[[tuple[object, str]], None], block: tuple[object, str]) -> None:
    global active  # noqa: PLW0603 (a class attribute would cost every ordinary call a second look-up)
    with _lock:
        change(block)
        active = bool(_blocks)
        guarded = any(form == "smooth" for _, form in _blocks)
        for operator, call, guard in _direct_calls():
            operator._op = guard if guarded else call


def refuse_operator(name: str, differentiated: bool) -> None:
    """Raise if this thread has a surrogate that an operator called directly would ignore, in values or gradients."""
    wanted = of_this_thread()
    if wanted is not None and (differentiated or wanted.form == "smooth"):
        raise RuntimeError(
            f"{wanted.entered_by} does not reach torch.ops.dreluop.{name} called directly, as exported programs do; "
            "call dreluop.capped_relu or a module"
        )


@cache
def _direct_calls() -> list[tuple[Any, Callable[..., Any], Callable[..., Any]]]:
    """The operators that give values, in all their overloads: what each calls, and the same with a guard.

    Inference mode skips the dispatcher's Autograd key, under which direct calls are refused otherwise.
    """

    def guard(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if torch.is_inference_mode_enabled() and not in_backward():
                refuse_operator(name, differentiated=False)
            return call(*args, **kwargs)

        return guarded

    packets = {name: getattr(getattr(torch.ops, NAMESPACE), name) for name in FORWARDS}
    operators = [
        (name, operator)
        for name, packet in packets.items()
        for operator in (packet, *(getattr(packet, overload) for overload in packet.overloads()))
    ]
    return [(operator, operator._op, guard(name, operator._op)) for name, operator in operators]


def run(call: Call) -> Tensor | tuple[Tensor, Tensor] | None:
    """`capped_relu` under this thread's surrogate; None where the ordinary one is to be used."""
    wanted = of_this_thread()
    if wanted is None:
        return None
    if wanted.look is not None:
        if in_backward():
            return None
        with torch.no_grad():
            wanted.look(_sum(call), call.cap, call.dim)
        return None
    # The gradient of the cap alone is the ordinary one.
    if wanted.form != "smooth" and not derivative_may_be_asked(call.x, call.bias, call.residual):
        return None
    _refuse_transforms(wanted.entered_by)
    if call.zeroed & ABOVE:
        raise ValueError(
            f'above: got "zero" inside {wanted.entered_by}; expected "cap", as the gradient of what is zeroed has no '
            "surrogate"
        )
    operators_for(call.x)
    if call.inplace:
        checks.writable_in_place(call.x, cap=call.cap, bias=call.bias, residual=call.residual)
    y = _FORMS[wanted.form](call, wanted)
    return y if call.balancer is None else (y, penalty_of([call.cap], call.balancer))


# Dynamo leaves its graph for this call, and goes on behind it.
run_outside_graphs = torch_private.disable_dynamo(run)


def _sum(call: Call) -> Tensor:
    """What is capped: x itself where nothing is added."""
    return fused_sum(call.x, call.dim, call.bias, call.residual)


def _with_nan_as_zero(call: Call) -> tuple[Tensor, Tensor]:
    """What is capped and the cap; 0 in place of a NaN that is zeroed, of which neither has a gradient then."""
    total, cap = _sum(call), call.cap
    if not call.zeroed & NAN:
        return total, cap
    return total.masked_fill(total.isnan(), 0), cap.masked_fill(cap.isnan(), 0)


def _straight_through(call: Call, _: Surrogate) -> Tensor:
    without_penalty = call if call.balancer is None else call._replace(balancer=None)
    return KernelActivation.run(without_penalty, STRAIGHT_THROUGH).y


def _soft(call: Call, wanted: Surrogate) -> Tensor:
    x, dim = call.x, call.dim
    total, cap = _with_nan_as_zero(call)
    if total is x and call.inplace:
        total = x.clone()
    if total is not x:
        # y has the strides of what it is computed from.
        like = torch.empty_like(x, device="meta").stride()
        total = total if total.stride() == like else torch.empty_like(x).copy_(total)
    y = KernelActivation.run(Call(total, cap, dim), soft(wanted.width(total, call.cap, dim))).y
    return x.copy_(y) if call.inplace else y


def _smooth(call: Call, wanted: Surrogate) -> Tensor:
    x = call.x
    total, cap = _with_nan_as_zero(call)
    y = smooth_values(total, cap, call.dim, wanted.width(total, call.cap, call.dim).detach())
    if call.zeroed & NAN:
        y = y.masked_fill(_sum(call).isnan(), 0)
    return x.copy_(y) if call.inplace else torch.empty_like(x).copy_(y)


def smooth_values(t: Tensor, cap: Tensor, dim: int, width: Tensor) -> Tensor:
    """``w * (softplus(t / w) - softplus((t - cap) / w))``: the activation smoothed by a logistic density of width w.

    Its derivative is that of the soft form. 0 under a cap <= 0.
    """
    wide, like = accumulation_dtype(t), t.dtype
    m = effective_cap(cap, t, dim).to(wide)
    w = width.to(wide).reshape(m.shape)
    t = t.to(wide)
    # The difference cancels where the cap is far below w. The clamp keeps infinities out of the branch not taken.
    small = -torch.log1p((t / w).sigmoid() * torch.expm1(-(m / w).clamp(0, 1)))
    # It cancels above the cap too: there softplus(z) is z + softplus(-z). Beyond its threshold it is z, in fp64 too.
    high = t > m / 2
    # Every t is infinitely far below an infinite cap.
    near, far = (torch.where(high, -z, z) for z in (t / w, torch.where(m == math.inf, -m, t - m) / w))
    large = F.softplus(near, threshold=40) - F.softplus(far, threshold=40) + torch.where(high, m / w, 0)
    return torch.where((m <= 0) & ~t.isnan(), 0, w * torch.where(m < w, small, large)).to(like)


_FORMS = {"straight_through": _straight_through, "soft": _soft, "smooth": _smooth}


def batch_std(x: Tensor, cap: Tensor, dim: int) -> Tensor:
    """Standard deviation of x over the elements that share a cap; the cap's shape, float32 (float64 for float64).

    A cap whose x is constant gets the root mean square of the others.

    Raises:
        ValueError: no cap has two different elements.
    """
    wide = x.detach().to(accumulation_dtype(x))
    if x.numel() == 0:
        return wide.new_ones(cap.shape)
    granularity = granularity_of(x.shape, cap.shape, dim)
    shared = {
        "layer": list(range(x.ndim)),
        "channel": [d for d in range(x.ndim) if d != dim % max(x.ndim, 1)],
        "neuron": [0],
    }[granularity]
    if not shared:
        mean, std = wide, torch.zeros_like(wide)  # Without dimensions torch would reduce all.
    else:
        # A fifth of the time of torch.std on a CPU.
        mean = wide.mean(shared, keepdim=True)
        std = (wide - mean).square().mean(shared, keepdim=True).sqrt()
    mean, std = mean.reshape(cap.shape), std.reshape(cap.shape)
    # The mean of equal numbers is not always one of them.
    constant = std <= 8 * torch.finfo(std.dtype).eps * mean.abs()
    if not checks.has_values(x):
        return _of_the_others(std, constant, (~constant).sum())
    count = int(dtensor.full_tensor(constant.sum()))
    if count == std.numel():
        raise ValueError(
            f"std: x of shape {tuple(x.shape)} has no two different elements under any cap of shape "
            f"{tuple(cap.shape)}, so this batch has no standard deviation; give std (measure_std takes it from a "
            "larger batch)"
        )
    return _of_the_others(std, constant, std.numel() - count) if count else std


def _of_the_others(std: Tensor, constant: Tensor, others: int | Tensor) -> Tensor:
    """std, and where it is constant the root mean square of those where it is not."""
    return torch.where(constant, (std.masked_fill(constant, 0).square().sum() / others).sqrt(), std)


def _refuse_transforms(context: str) -> None:
    if torch_private.forward_level() >= 0:
        _refuse(context, "forward mode (torch.func.jvp, torch.autograd.forward_ad)")
    if torch_private.Transform.Vmap in torch_private.transforms():
        _refuse(context, "torch.vmap")


def _refuse(context: str, what: str) -> NoReturn:
    raise RuntimeError(f"{context}: not inside {what}; take gradients with torch.autograd or torch.func.grad")
