"""Batch normalization with a capped activation, in PyTorch: the rule, its gradients, and the operators by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop._internal.shapes import broadcast_shape
from dreluop.ops.composite import (
    accumulation_dtype,
    effective_cap,
    memory_order,
    pack,
    regions_of_output,
    selected,
    sum_dtype,
    unpack,
    value,
)
from dreluop.ops.schemas import BATCH_NORM, NAMESPACE, library

DIM = 1  # of the channels, as in torch's batch norm


class Normalization(NamedTuple):
    """What normalizes x: parameters and statistics per channel; weight and bias may be None, for 1 and 0."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    var: Tensor
    eps: float


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, in the dtype of sums; differentiable."""
    dims = [d for d in range(x.ndim) if d != DIM]
    var, mean = torch.var_mean(x.to(sum_dtype(x.device)), dims, correction=0)
    return mean, var


def normalized(x: Tensor, by: Normalization, residual: Tensor | None = None) -> Tensor:
    """t of the operator, rounded once to x's dtype; differentiable."""
    wide = accumulation_dtype(x)
    t = distances(x, by) * _per_channel(_scale(by), x)
    if by.bias is not None:
        t = t + _per_channel(by.bias, x)
    if residual is not None:
        t = t + residual.to(wide)
    return t.to(x.dtype)


def distances(x: Tensor, by: Normalization) -> Tensor:
    """x - mean, in fp32 (fp64)."""
    return x.to(accumulation_dtype(x)) - _per_channel(by.mean, x)


def gradients(
    grad: Tensor, x: Tensor, cap: Tensor, by: Normalization, regions: tuple[Tensor, Tensor], training: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias, dcap, dresidual) from the masks (inside, capped); differentiable in grad, x and weight."""
    wide = sum_dtype(x.device)
    inside = selected(regions[0], grad)
    u, distance = inside.to(wide), distances(x, by).to(wide)
    dims = [d for d in range(x.ndim) if d != DIM]
    inverse = _inverse_deviation(by)
    dbias, dweight = u.sum(dims), (u * distance).sum(dims) * inverse
    rest = u
    if training:
        count = x.numel() // x.shape[DIM]
        rest = u - _view(dbias / count, x) - distance * _view(dweight * inverse / count, x)
    dx = rest * _view(_scale(by).to(wide), x)
    view = broadcast_shape(x.shape, cap.shape, DIM)
    to_cap = selected(regions[1], grad).to(wide)
    dcap = (to_cap.sum() if not view else to_cap.sum(dims)).reshape(cap.shape)
    return dx.to(x.dtype), dweight, dbias, dcap, inside


def capped_batch_norm(
    x: Tensor,
    cap: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    residual: Tensor | None,
    eps: float,
    mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch_mean, batch_var = x.new_empty(0, dtype=accumulation_dtype(x)), x.new_empty(0, dtype=accumulation_dtype(x))
    if mean is None or var is None:
        mean, var = (t.to(accumulation_dtype(x)) for t in statistics(x))
        batch_mean, batch_var = mean, var
    m = effective_cap(cap, x, DIM)
    y = value(normalized(x, Normalization(weight, bias, mean, var, eps), residual), m, torch.empty_like(x))
    packed = pack(*regions_of_output(y, m), memory_order(x)) if mask else x.new_empty(0, dtype=torch.uint8)
    return y, batch_mean, batch_var, packed


def capped_batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    cap: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    mask: Tensor | None,
    eps: float,
    training: bool,
    *needed: bool,
) -> tuple[Tensor, ...]:
    by = Normalization(weight, bias, mean, var, eps)
    found = gradients(grad, x, cap, by, regions(x, cap, by, mask), training)
    return _wanted(found, (x, weight, bias, cap, x), needed)


def regions(x: Tensor, cap: Tensor, by: Normalization, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The masks (inside, capped), from the packed one or, without a residual, found again from x."""
    if mask is not None:
        return unpack(mask, x.shape, memory_order(x))
    m = effective_cap(cap, x, DIM)
    return regions_of_output(value(normalized(x, by), m), m)


def _wanted(found: tuple[Tensor, ...], like: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> tuple[Tensor, ...]:
    """Each gradient with the dtype and strides of what it is of; one that is not needed has no elements."""
    first = like[0]
    assert first is not None
    return tuple(
        torch.empty_like(t).copy_(gradient) if need and t is not None else first.new_empty(0)
        for gradient, t, need in zip(found, like, needed, strict=True)
    )


def _inverse_deviation(by: Normalization) -> Tensor:
    # Not rsqrt, which the kernels would have to round alike.
    return 1 / (by.var.to(sum_dtype(by.var.device)) + by.eps).sqrt()


def _scale(by: Normalization) -> Tensor:
    inverse = _inverse_deviation(by)
    return inverse if by.weight is None else by.weight.to(inverse.dtype) * inverse


def _per_channel(t: Tensor, x: Tensor) -> Tensor:
    return _view(t.to(accumulation_dtype(x)), x)


def _view(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape([-1 if d == DIM else 1 for d in range(x.ndim)])


def _fake(
    x: Tensor,
    cap: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    residual: Tensor | None,
    eps: float,
    mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = x.shape[DIM] if mean is None else 0
    batch_mean, batch_var = (x.new_empty((channels,), dtype=accumulation_dtype(x)) for _ in range(2))
    size = (x.numel() + ELEMENTS_PER_BYTE - 1) // ELEMENTS_PER_BYTE if mask else 0
    return torch.empty_like(x), batch_mean, batch_var, x.new_empty((size,), dtype=torch.uint8)


def _fake_backward(
    grad: Tensor, x: Tensor, cap: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: object
) -> tuple[Tensor, ...]:
    needed = rest[-5:]
    like = (x, weight, bias, cap, x)
    return tuple(
        torch.empty_like(t) if need and t is not None else x.new_empty(0) for t, need in zip(like, needed, strict=True)
    )


def register() -> None:
    implementations: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "capped_batch_norm": (capped_batch_norm, _fake),
        "capped_batch_norm_backward": (capped_batch_norm_backward, _fake_backward),
    }
    for name in BATCH_NORM:
        implementation, fake = implementations[name]
        library.impl(name, implementation, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
