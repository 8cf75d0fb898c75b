"""What the operators refuse, in Python as in csrc/torch: bad input is named before anything is computed or changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import torch_private
from dreluop._internal.checks import bias_for, float_tensor, residual_for
from dreluop._internal.shapes import granularity_of, has_unknown_sizes, may_be
from dreluop._internal.zeroed import MOST

ELEMENTS_PER_BYTE = 4


def inputs(
    x: Tensor,
    cap: Tensor,
    dim: int,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> None:
    float_tensor("x", x)
    float_tensor("cap", cap)
    granularity_of(x.shape, cap.shape, dim)
    if bias is not None:
        bias_for(x, cap, bias, dim)
    if residual is not None:
        residual_for(x, residual)
    _known(zeroed)


def _known(zeroed: int) -> None:
    if not 0 <= zeroed <= MOST:
        raise ValueError(f"zeroed: got {zeroed}; expected one of 0 to {MOST}")


def writable(x: Tensor) -> None:
    if overlaps_itself(x):
        raise ValueError(
            f"inplace: x of shape {tuple(x.shape)} and strides {x.stride()} has several elements at one address; "
            "use inplace=False"
        )


def saved(
    name: str, like: Tensor, tensor: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> None:
    """`like`, a tensor of x's shape called `name`, must fit the cap and what forward saved."""
    float_tensor(name, like)
    float_tensor("cap", cap)
    if tensor.dtype == torch.uint8:
        if sorted(order) != list(range(like.ndim)):
            raise ValueError(f"order: got {tuple(order)}; expected each of {like.ndim} dimensions once")
        size = (like.numel() + ELEMENTS_PER_BYTE - 1) // ELEMENTS_PER_BYTE
        if tensor.shape != (size,):
            raise ValueError(f"saved: got a mask of shape {tuple(tensor.shape)}; expected ({size},)")
    elif tensor.shape != like.shape:
        raise ValueError(
            f"{name}: got shape {tuple(like.shape)}; expected that of the saved output, {tuple(tensor.shape)}"
        )
    elif tensor.dtype != like.dtype:
        raise ValueError(f"{name}: got dtype {like.dtype}; expected that of the saved output, {tensor.dtype}")
    _known(zeroed)
    granularity_of(like.shape, cap.shape, dim)


def backward(call: Any) -> None:
    """``call``: a ``BackwardCall``."""
    saved("grad", call.grad, call.saved, call.cap, call.dim, call.order, call.zeroed)
    if call.bias is not None:
        bias_for(call.grad, call.cap, call.bias, call.dim)
    if call.grad_penalty is not None:
        one_element("grad_penalty", call.grad_penalty)


def width(given: Tensor, tensor: Tensor, cap: Tensor) -> None:
    """The soft form needs x itself: neither the mask nor y tells where x lies beside the cap."""
    float_tensor("width", given)
    if given.shape != cap.shape:
        raise ValueError(f"width: got shape {tuple(given.shape)}; expected the cap's, {tuple(cap.shape)}")
    if tensor.dtype == torch.uint8:
        raise ValueError("saved: got a mask beside a width; expected the activation before the cap")


def one_element(name: str, value: Tensor) -> None:
    if value.numel() != 1:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}; expected one element")


def some_caps(caps: Sequence[Tensor]) -> None:
    if not caps:
        raise ValueError("caps: got no tensor; expected at least one")
    for cap in caps:
        float_tensor("cap", cap)


def overlaps_itself(x: Tensor) -> bool:
    """Whether two elements of x have one address. A size that a compiler does not know counts as more than one."""
    if has_unknown_sizes(x) and torch_private.is_non_overlapping_and_dense_or_false(x):
        return False
    dims = sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if may_be(size > 1))
    span = 1
    for stride, size in dims:
        if stride < span:
            break
        span += stride * (size - 1)
    else:
        return False
    if has_unknown_sizes(x):
        return True
    if x.numel() == 0:
        return False
    # Strides that interleave without nesting are rare: look at every address, as a number also where tensors are fake.
    with torch_private.disable_modes(), torch_private.ExcludeKeys(torch_private.FUNCTIONALIZE):
        offsets = torch.zeros((), dtype=torch.int64)
        for stride, size in dims:
            offsets = offsets.unsqueeze(-1) + stride * torch.arange(size)
        return len(torch.unique(offsets)) < x.numel()
