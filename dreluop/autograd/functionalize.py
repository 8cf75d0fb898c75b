"""The operators that write over x, where torch makes a program functional: torch.compile, export, ``functionalize``.

The operator that does not write computes y, and y becomes the value of x. No write and no copy is left in the graph.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dreluop._internal import operator_checks, torch_private
from dreluop.ops import handles
from dreluop.ops.schemas import IN_PLACE, library, overload, overloads_of


def _become(x: Tensor, y: Tensor) -> None:
    """Make y the value of x, as functionalization does for every in-place operator of torch.

    ``x.copy_(y)`` would become ``aten.copy``, which has no derivative in a decomposed program that is trained.
    """
    if not torch_private.is_functional_tensor(x):
        x.copy_(y)
        return
    torch_private.functionalize_sync(y)
    torch_private.functionalize_replace(x, torch_private.from_functional_tensor(y))
    torch_private.functionalize_commit(x)
    torch_private.functionalize_sync(x)


def _register(name: str, which: str) -> None:
    functional = getattr(handles.BY_OVERLOAD[which], name.removesuffix("_"))

    def kernel(x: Tensor, *args: Any) -> tuple[Tensor, ...] | None:
        operator_checks.writable(x)
        result = functional(x, *args)
        y, *extras = (result,) if isinstance(result, Tensor) else result
        _become(x, y)
        return tuple(extras) or None

    library.impl(overload(name, which), kernel, "Functionalize")


def register() -> None:
    for name in IN_PLACE:
        for which in overloads_of(name):
            _register(name, which)
