"""The base of our autograd.Functions, and the question whether one is needed at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop._internal.errors import raise_as_of_torch
from dreluop.backends.selection import using

# Spares operators called within it our Autograd kernels, which find nothing to do. Only where Dynamo never traces.
BelowAutograd = torch_private.BelowAutograd
_nothing = nullcontext()


def below_autograd() -> AbstractContextManager[Any]:
    """``BelowAutograd`` for what a ``backward`` calls.

    Compiled autograd traces that by Dynamo, which knows no such guard.
    """
    return _nothing if torch.compiler.is_dynamo_compiling() else BelowAutograd()


class Function(torch.autograd.Function):
    """autograd.Function whose apply skips the 50 us that torch spends on binding default arguments."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        if torch_private.transforms_active():
            return super().apply(*args)
        return super(torch.autograd.Function, cls).apply(*args)  # type: ignore[misc]


def in_backward() -> bool:
    """Whether this thread runs a backward pass. A module called there is recomputed by a checkpoint."""
    return bool(torch_private.current_graph_task_id() != -1)


def save_for_backward(ctx: Any, *tensors: Tensor) -> None:
    ctx.saved_count = len(tensors)
    ctx.save_for_backward(*tensors)


def saved_for_backward(ctx: Any) -> tuple[Tensor, ...]:
    """What ``save_for_backward`` was given.

    Raises:
        RuntimeError: a hook on saved tensors raised an exception, so forward did not save all of it.
    """
    saved: tuple[Tensor, ...] = ctx.saved_tensors
    # After such an exception, torch still has what was saved for forward mode, and gives it for `saved_tensors`.
    if len(saved) != ctx.saved_count or ctx.saved_for_forward is not None:
        raise RuntimeError(
            "capped_relu: a hook on saved tensors raised an exception in forward, so x has no gradient; "
            "expected a forward pass that saves all its tensors"
        )
    return saved


def in_transform_or_forward_mode() -> bool:
    """Whether forward-mode tangents or functorch may ask for derivatives that only plain torch operators have."""
    return torch_private.forward_level() >= 0 or torch_private.transforms_active()


def functionalizing() -> bool:
    """Whether torch.func.functionalize is among the transforms: it has no rule for an autograd.Function."""
    return torch_private.Transform.Functionalize in torch_private.transforms()


def write_over(x: Tensor, y: Tensor) -> Tensor:
    """x with the values of y, differentiable inside transforms too.

    Raises:
        ValueError: torch.vmap has one x for all members of its batch, and a y for each.
    """
    if torch_private.transforms_active() and not _batched_at(y) <= _batched_at(x):
        raise ValueError(
            "inplace: x has no dimension for the batch of torch.vmap, which the cap, bias or residual has; "
            "use inplace=False"
        )
    # functionalize would make aten::copy of it, which has no derivative.
    return x.zero_().add_(y) if functionalizing() else x.copy_(y)


def _batched_at(t: Tensor) -> set[int]:
    """The levels of torch.vmap at which t has a batch dimension."""
    functorch, levels = torch_private.functorch, set()
    while (level := functorch.maybe_get_level(t)) != -1:
        if functorch.is_batchedtensor(t):
            levels.add(level)
        t = functorch.get_unwrapped(t)
    return levels


def derivative_may_be_asked(*tensors: Tensor | None) -> bool:
    """Whether calling an operator on these tensors must go through an autograd.Function."""
    return (torch.is_grad_enabled() and torch_private.any_requires_grad(*tensors)) or in_transform_or_forward_mode()


def backward_on_backend_of_forward(method: Callable[..., Any]) -> Callable[..., Any]:
    """For ``backward`` of a Function whose ctx has the ``operators`` that its forward used: called with what it saved.

    That is unpacked before: hooks on saved tensors, and checkpoints that compute them again, have their own choice.
    """

    @functools.wraps(method)
    def run(ctx: Any, *grads: Any) -> Any:
        saved = saved_for_backward(ctx)
        try:
            with using(ctx.operators):
                return method(ctx, saved, *grads)
        except RuntimeError as error:
            raise_as_of_torch(error)
            raise

    return run


def jvp_on_backend_of_forward(method: Callable[..., Any]) -> Callable[..., Any]:
    """The same for ``jvp``."""

    @functools.wraps(method)
    def run(ctx: Any, *tangents: Any) -> Any:
        with using(ctx.operators):
            return method(ctx, *tangents)

    return run
