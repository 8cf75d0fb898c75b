"""The operators that write over x, where torch only marks x as negated: ``z.conj().imag``, ``torch._neg_view(t)``.

torch's own rule for such tensors takes the last result of an operator that writes for the tensor that it wrote. Ours
return none, or others, so that rule would write over whatever lies there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dreluop._internal import operator_checks
from dreluop.ops import handles
from dreluop.ops.schemas import IN_PLACE, library, overload, overloads_of


def _register(name: str, which: str) -> None:
    op = getattr(handles.BY_OVERLOAD[which], name)

    def kernel(x: Tensor, *args: Any) -> tuple[Tensor, ...] | None:
        if x.is_neg():
            # The copy below does not overlap itself where x does.
            operator_checks.writable(x)
        value = x.resolve_neg()
        result: tuple[Tensor, ...] | None = op(
            value, *(arg.resolve_neg() if isinstance(arg, Tensor) else arg for arg in args)
        )
        if value is not x:
            x.copy_(value)
        return result

    library.impl(overload(name, which), kernel, "Negative")


def register() -> None:
    for name in IN_PLACE:
        for which in overloads_of(name):
            _register(name, which)
