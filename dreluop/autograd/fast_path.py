"""The fast path: an optional C++ autograd node, `_autograd`, and what runs the same calls in Python.

torch's autograd has no stable ABI, so the node works only with the exact torch it was built against. With any other
torch, or where `_autograd` is not built, Python gives the same results some microseconds later.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from dreluop._internal import checks, torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop._internal.interrupts import left_for_certain
from dreluop._internal.zeroed import zeroed
from dreluop.autograd.base import BelowAutograd, in_transform_or_forward_mode, save_for_backward, saved_for_backward
from dreluop.autograd.derivatives import exact_gradients, gradients_by
from dreluop.backends import native
from dreluop.backends.selection import operators, operators_for
from dreluop.ops.call import BackwardCall, Call
from dreluop.ops.handles import DEFAULT, Operators

ENVIRONMENT_VARIABLE = "DRELUOP_AUTOGRAD"
CHOICES = ("auto", "python", "compiled")

# Called with the arguments of `dreluop.capped_relu` in their order, by position: what that returns, or None
# for any call but a common eager one. None where it is not available.
capped_relu: Callable[..., Any] | None = None
# Why it is not available; None if it is.
reason: str | None
_TENSORS = frozenset({Tensor, nn.Parameter})


def in_python(x: Tensor, cap: Tensor | float, dim: int, inplace: bool, above: str, nan: str) -> Tensor | None:
    """y, or None for any call but a common eager one.

    Small tensors feel every microsecond, so the operator is asked at once. It refuses whatever the checks would, which
    then have the words for it.
    """
    if (
        type(x) not in _TENSORS
        or not isinstance(cap, Tensor)
        or type(cap) not in _TENSORS
        or type(dim) is not int
        or x.device != cap.device
        or type(inplace) is not bool
        or in_transform_or_forward_mode()
        or torch_private.is_tracing()
    ):
        return None
    number = 0 if above == "cap" and nan == "propagate" else zeroed(above, nan)
    try:
        chosen = operators_for(x)
        if inplace:
            checks.writable_in_place(x, cap=cap)
        if torch.is_grad_enabled() and (x.requires_grad or cap.requires_grad):
            y: Tensor = _apply(x, cap, dim, inplace, number)
            return y
        with BelowAutograd():
            return chosen.activate(Call(x, cap, dim, zeroed=number, inplace=inplace))[0]
    except (RuntimeError, TypeError, ValueError) as error:
        raise_in_our_words(error, x, cap, dim)
        raise


def raise_in_our_words(error: Exception, x: Tensor, cap: Tensor | float, dim: int) -> None:
    raise_as_of_torch(error)
    checks.float_tensor("x", x)
    checks.cap_for(x, cap, checks.integer("dim", dim))


class PlainActivation(torch.autograd.Function):
    """``KernelActivation`` for these calls alone: ``apply(x, cap, dim, inplace, zeroed)``, y and the cap saved.

    Small tensors feel what ``KernelActivation`` does besides (docs/kernels.md). Not for transforms and forward mode.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: Tensor, dim: int, inplace: bool, zeroed: int = 0) -> Tensor:
        ctx.operators = operators()
        with BelowAutograd():
            y: Tensor = ctx.operators.activate(Call(x, cap, dim, zeroed=zeroed, inplace=inplace))[0]
        if inplace:
            ctx.mark_dirty(x)
        ctx.dim, ctx.zeroed = dim, zeroed
        save_for_backward(ctx, y, cap)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        y, cap = saved_for_backward(ctx)
        need_x, need_cap = ctx.needs_input_grad[:2]
        gradients = plain_backward(ctx.operators, grad, y, cap, ctx.dim, need_x, need_cap, ctx.zeroed)
        return *gradients, None, None, None


def plain_backward(
    chosen: Operators, grad: Tensor, y: Tensor, cap: Tensor, dim: int, need_x: bool, need_cap: bool, zeroed: int
) -> tuple[Tensor | None, Tensor | None]:
    """Backward of ``PlainActivation``, by these operators."""
    try:
        dx, dcap, _ = gradients_by(chosen, BackwardCall(grad, y, cap, dim, (), need_x, need_cap, zeroed=zeroed))
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise
    return dx if need_x else None, dcap if need_cap else None


def backward_in_python(*call: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Backward where the C++ node asks for it: called with the fields of a ``BackwardCall``."""
    try:
        return exact_gradients(DEFAULT, *call)
    except RuntimeError as error:
        raise_as_of_torch(error)
        raise


# Past torch's own apply, which binds default arguments for 50 us.
_apply = super(torch.autograd.Function, PlainActivation).apply


def _load() -> str | None:
    choice = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if choice not in CHOICES:
        raise ValueError(f'{ENVIRONMENT_VARIABLE}: got "{choice}"; expected one of {", ".join(CHOICES)}')
    if choice == "python":
        return f"not loaded: {ENVIRONMENT_VARIABLE}=python asks for Python"
    error = _load_module()
    if error is not None and choice == "compiled":
        raise ImportError(f"{ENVIRONMENT_VARIABLE}=compiled, but the compiled autograd node does not serve: {error}")
    return error


def _load_module() -> str | None:
    global capped_relu  # noqa: PLW0603 (what each call reads)
    if importlib.util.find_spec("dreluop._autograd") is None:
        return "dreluop._autograd is not built"
    try:
        # Before it is loaded: another torch may have symbols of the same name and another meaning.
        if of_another_torch():
            return f"built with torch {_built_with()}, and this is torch {torch.__version__}"
        from dreluop import _autograd  # noqa: PLC0415 (not there everywhere)
    except ImportError as error:
        return str(error)
    _autograd.set_python(backward_in_python, raise_as_of_torch)
    _autograd.set_cpu_kernels(native.cpu_kernels())
    capped_relu = _autograd.capped_relu
    return None


def _built_with() -> str:
    from dreluop import _C  # noqa: PLC0415 (not there everywhere)

    return _C.build_info()["torch_headers"]


def of_another_torch() -> bool:
    """Whether the compiled part was built with another torch than this.

    Raises:
        ImportError: there is no compiled part.
    """
    return _built_with() != str(torch.__version__)


def switched_off() -> AbstractContextManager[None]:
    """In the block, Python serves (in all threads)."""
    block = object()
    return left_for_certain(lambda: _switch(_blocks.add, block), lambda: _switch(_blocks.discard, block))


def _switch(change: Callable[[object], None], block: object) -> None:
    global capped_relu  # noqa: PLW0603
    with _lock:
        change(block)
        capped_relu = None if _blocks else _loaded


reason = _load()
_loaded, _lock = capped_relu, threading.Lock()
# The blocks that are open.
_blocks: set[object] = set()
