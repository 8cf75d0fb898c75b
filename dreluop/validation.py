"""Argument checks of the public functions: every message names the argument, what came and what was expected."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dreluop.granularity import check_bias, granularity_of, same_shape

FLOAT_DTYPES = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
SAVE_MODES = ("output", "code")
_DTYPE_NAMES = "float32, float64, float16 or bfloat16"


def float_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: got dtype {value.dtype}; expected {_DTYPE_NAMES}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: got layout {value.layout}; expected torch.strided")
    return value


def cap_for(x: Tensor, cap: Any, dim: Any) -> Tensor:
    """The cap as a tensor that fits x: a number becomes a layer cap of x's dtype."""
    if not isinstance(cap, Tensor) and isinstance(cap, Real) and not isinstance(cap, bool):
        cap = torch.full((), float(cap), dtype=x.dtype, device=x.device)
    result = float_tensor("cap", cap)
    if cap.device != x.device:
        raise ValueError(f"cap: got a tensor on {cap.device}; expected x's device, {x.device}")
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"dim: got {type(dim).__name__}; expected an int")
    granularity_of(x.shape, cap.shape, dim)
    return result


def bias_for(x: Tensor, cap: Tensor, bias: Any, dim: int) -> Tensor:
    float_tensor("bias", bias)
    if bias.device != x.device:
        raise ValueError(f"bias: got a tensor on {bias.device}; expected x's device, {x.device}")
    check_bias(x.shape, cap.shape, bias.shape, dim)
    result: Tensor = bias
    return result


def residual_for(x: Tensor, residual: Any) -> Tensor:
    float_tensor("residual", residual)
    if residual.device != x.device:
        raise ValueError(f"residual: got a tensor on {residual.device}; expected x's device, {x.device}")
    if not same_shape(residual.shape, x.shape):
        raise ValueError(f"residual: got shape {tuple(residual.shape)}; expected x's, {tuple(x.shape)}")
    if residual.dtype != x.dtype:
        raise TypeError(f"residual: got dtype {residual.dtype}; expected x's, {x.dtype}")
    result: Tensor = residual
    return result


def addends_for(x: Tensor, cap: Tensor, dim: int, bias: Any, residual: Any) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if bias is None else bias_for(x, cap, bias, dim),
        None if residual is None else residual_for(x, residual),
    )


def save_mode(save: Any) -> str:
    if save not in SAVE_MODES:
        raise ValueError(f'save: got {save!r}; expected "output" or "code"')
    return str(save)


def penalty_weight(balancer: Any) -> float:
    return at_least_zero("balancer", balancer)


def at_least_zero(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a number")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: got {value}; expected a finite number >= 0")
    return number


def initial_cap(init: Any) -> float:
    if not isinstance(init, Real) or isinstance(init, bool):
        raise TypeError(f"init: got {type(init).__name__}; expected a number")
    value = float(init)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"init: got {init}; expected a finite number > 0 (a cap <= 0 gives 0 and never learns)")
    return value


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a bool")


def writable_in_place(x: Tensor, **others: Tensor | None) -> None:
    """Raise where autograd or an argument forbids writing over x; the operators refuse an x that overlaps itself."""
    given = {name: other for name, other in others.items() if other is not None}
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError(
            "inplace: x was made in inference mode and may be written over only there; use inplace=False or x.clone()"
        )
    if x.requires_grad and torch.is_grad_enabled():
        if x.is_leaf:
            raise ValueError(
                "inplace: x is a leaf tensor that requires grad, and autograd cannot record a write over it; "
                "use inplace=False"
            )
        if x._is_view() and x._base is not None and x._base.is_leaf:
            raise ValueError(
                "inplace: x is a view of a leaf tensor that requires grad, and autograd cannot record a write over it; "
                "use inplace=False"
            )
    if torch.is_grad_enabled() and torch._C._any_requires_grad(x, *given.values()) and x._is_view():
        made = torch._C._autograd._get_creation_meta(x)
        if made != torch._C._autograd.CreationMeta.DEFAULT:
            raise ValueError(
                f"inplace: x is a view that autograd does not let be written over ({made.name.lower()}: made by chunk, "
                "split or unbind, or without gradients); use inplace=False"
            )
    for name, other in given.items():
        if other.is_inference() and torch.is_grad_enabled() and torch._C._any_requires_grad(x, *given.values()):
            raise ValueError(
                f"inplace: {name} was made in inference mode and cannot be saved for backward; pass a copy of the "
                f"{name}"
            )
        if not torch._C._are_functorch_transforms_active() and _share_memory(x, other):
            raise ValueError(
                f"inplace: {name} lies in the memory of x, which would be overwritten; pass a copy of the {name}"
            )


def _share_memory(x: Tensor, other: Tensor) -> bool:
    # Subclasses (fake tensors, wrappers) may have no address.
    if any(type(t) not in (Tensor, torch.nn.Parameter) or t.is_meta or t.numel() == 0 for t in (x, other)):
        return False
    (x_first, x_last), (first, last) = _addresses(x), _addresses(other)
    return x_first <= last and first <= x_last


def _addresses(t: Tensor) -> tuple[int, int]:
    last = sum(stride * (size - 1) for stride, size in zip(t.stride(), t.shape, strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size() - 1
