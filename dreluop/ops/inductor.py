"""The operators in the overload ``schemas.FUSED``: traced, they become the aten operators that a compiler can fuse.

Where a graph with them runs as it was traced by Dynamo (``backend="eager"``), they are those of the default rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from dreluop.ops import handles
from dreluop.ops.call import BackwardCall
from dreluop.ops.composite import effective_cap, fused_sum, gradients, regions_of_output, tangent_of, value
from dreluop.ops.decompose import cap_per_element, differentiable_value
from dreluop.ops.schemas import FUSED, FUSIBLE, NAMESPACE, library, overload

_BITS_OF_HALF = torch.int16


def rounded_cap(cap: Tensor, x: Tensor, dim: int) -> Tensor:
    """The cap as it is compared, rounded also where inductor writes Triton code.

    That code leaves out a rounding to a half type between two operators that it fuses (``to_dtype`` in inductor's
    ``codegen/triton.py``). Then y, which lies rounded in memory, would not equal its cap, and the cap would get no
    gradient.
    """
    m = effective_cap(cap, x, dim)
    return m if cap.dtype == m.dtype else _rounded(m)


def _rounded(t: Tensor) -> Tensor:
    """Inductor rounds what is to be read as integers. Its C++ code rounds by itself."""
    return t if t.is_cpu or t.element_size() > 2 else t.view(_BITS_OF_HALF).view(t.dtype)


def capped_relu(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> Tensor:
    return value(fused_sum(x, dim, bias, residual), rounded_cap(cap, x, dim), zeroed=zeroed)


def differentiable(t: Tensor, cap: Tensor, dim: int, zeroed: int) -> Tensor:
    """The activation of t inside transforms, which find the derivatives in it."""
    return differentiable_value(t, rounded_cap(cap, t, dim), cap_per_element(cap, t, dim), zeroed)


def capped_relu_backward(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = BackwardCall(*arguments, **keywords)
    return gradients(call, regions_of_output(call.saved, rounded_cap(call.cap, call.saved, call.dim), call.zeroed))


def capped_relu_jvp(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    return tangent_of(u, v, regions_of_output(saved, rounded_cap(cap, saved, dim), zeroed), dim)


def _traced(mode: Any, _op: Any, _types: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor:
    with mode:
        return capped_relu(*arguments, **keywords)


def register() -> None:
    for name in FUSIBLE:
        library.impl(overload(name, FUSED), getattr(handles.DEFAULT, name), "CompositeExplicitAutograd")
    full_name = f"{NAMESPACE}::{overload('capped_relu', FUSED)}"
    torch.library.register_torch_dispatch(full_name, ProxyTorchDispatchMode, _traced, lib=library)
    # These are called while a compiler traces, never from a graph: no operator is needed.
    handles.FUSED.capped_relu_backward, handles.FUSED.capped_relu_jvp = capped_relu_backward, capped_relu_jvp
