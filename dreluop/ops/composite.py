"""The rule in differentiable PyTorch, written once: values, gradients, regions, the packed mask, the penalty.

Functions with an optional ``out`` call functional operators only when it is missing, so they can be traced into a graph
(``ops.decompose``); with it a result gets the strides that an operator promises.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dreluop._internal import operator_checks, torch_private
from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop._internal.shapes import bias_view, broadcast_shape, has_unknown_sizes, may_be
from dreluop._internal.zeroed import ABOVE, NAN
from dreluop.ops.call import BackwardCall, Call

OFF, INSIDE, CAPPED = 0, 1, 2
BITS_PER_REGION = 2


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """dtype of sums and penalties as seen from outside: fp64 if any tensor is, else fp32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def memory_order(t: Tensor) -> list[int]:
    """Dimensions of t from the outermost to the innermost in memory."""
    if has_unknown_sizes(t) and torch_private.is_contiguous_or_false(t):
        return list(range(t.ndim))
    return sorted(range(t.ndim), key=t.stride, reverse=True)


def mask_order(y: Tensor, cap: Tensor) -> list[int]:
    """Dimensions in which the regions of y are packed, outermost first: y's memory order.

    With a neuron cap the batch is moved to the front if it lies between other dimensions: no single run over memory
    would meet the caps in order there.
    """
    order = memory_order(y)
    if cap.ndim > 1 and order[0] != 0:
        real = [d for d in order if y.shape[d] != 1 or d == 0]
        if real[0] != 0 and (real[-1] != 0 or y.shape[0] == 1):
            order = [0, *(d for d in order if d != 0)]
    return order


def sum_dtype(device: torch.device) -> torch.dtype:
    # MPS has no fp64; torch sums fp32 in cascade there.
    return torch.float32 if device.type == "mps" else torch.float64


def effective_cap(cap: Tensor, x: Tensor, dim: int) -> Tensor:
    """The cap as it is compared: rounded to x's dtype, in a shape that broadcasts against x."""
    return cap.to(x.dtype).reshape(broadcast_shape(x.shape, cap.shape, dim))


def fused_sum(x: Tensor, dim: int, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """``(x + bias) + residual`` in fp32 (fp64 for fp64), rounded once to x's dtype; differentiable."""
    if bias is None and residual is None:
        return x
    wide = accumulation_dtype(x)
    total = x.to(wide)
    if bias is not None:
        total = total + bias.to(wide).reshape(bias_view(x.shape, bias.shape, dim))
    if residual is not None:
        total = total + residual.to(wide)
    return total.to(x.dtype)


def value(t: Tensor, m: Tensor, out: Tensor | None = None, zeroed: int = 0) -> Tensor:
    """``max(0, min(t, m))`` for an m that broadcasts against t, and 0 where ``zeroed`` says so."""
    y = torch.minimum(t, m, out=out)
    off = off_of(y, t, m, zeroed)
    return torch.where(off, 0, y) if out is None else y.masked_fill_(off, 0)


def off_of(y: Tensor, t: Tensor, m: Tensor, zeroed: int) -> Tensor:
    """Where an activation is 0, for the minimum y of t and m."""
    # `<=` is false for NaN, which stays, and true for -0.0, which becomes +0.0.
    off = y <= 0
    if zeroed & ABOVE:
        off = off | (t > m)
    return off | y.isnan() if zeroed & NAN else off


def mask_and_penalty(y: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Both of a call whose result is y; each is an empty tensor when not asked for."""
    cap, balancer = call.cap, call.balancer
    packed = packed_mask(y, cap, call.dim, call.zeroed) if call.mask else _nothing(y, torch.uint8)
    return packed, cap_penalty([cap], balancer) if balancer is not None else _nothing(cap, accumulation_dtype(cap))


def packed_mask(y: Tensor, cap: Tensor, dim: int, zeroed: int = 0) -> Tensor:
    return pack(*regions_of_output(y, effective_cap(cap, y, dim), zeroed), mask_order(y, cap))


def gradients(
    call: BackwardCall, regions: tuple[Tensor, Tensor], out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dcap, dbias) from the masks (inside, capped)."""
    grad, cap, bias = call.grad, call.cap, call.bias
    inside, capped = regions
    dx, dcap, dbias = _nothing(grad, grad.dtype), _nothing(cap, cap.dtype), _nothing(grad, grad.dtype)
    if call.need_x:
        dx = selected(inside, grad, out)
    if call.need_cap:
        total = _sum_to(selected(capped, grad), broadcast_shape(grad.shape, cap.shape, call.dim))
        total = total.reshape(cap.shape).to(accumulation_dtype(grad, cap))
        if call.balancer is not None and call.grad_penalty is not None:
            total = total + 2 * call.balancer * call.grad_penalty * cap.to(total.dtype)
        dcap = total.to(cap.dtype)
    if bias is not None:
        dbias = bias_gradient(selected(inside, grad), bias, call.dim)
    return dx, dcap, dbias


def selected(mask: Tensor, t: Tensor, out: Tensor | None = None) -> Tensor:
    """t where the mask is, else 0: never a product, in which an infinity would leave its region."""
    return torch.where(mask, t, t.new_zeros(()), out=out)


def bias_gradient(dx: Tensor, bias: Tensor, dim: int) -> Tensor:
    """dx summed over the elements that share a bias; differentiable."""
    total = _sum_to(dx, bias_view(dx.shape, bias.shape, dim))
    return total.reshape(bias.shape).to(accumulation_dtype(dx, bias)).to(bias.dtype)


def _sum_to(terms: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``sum_to_size``, which cannot be traced with a size that a compiler does not know."""
    terms = terms.to(sum_dtype(terms.device))
    if not shape:
        return terms.sum()
    leading = terms.ndim - len(shape)
    dims = [d for d, size in enumerate(terms.shape) if d < leading or (shape[d - leading] == 1 and may_be(size != 1))]
    return terms.sum(dims, keepdim=True).reshape(shape) if dims else terms


def tangent_of(
    u: Tensor, v: Tensor | None, regions: tuple[Tensor, Tensor], dim: int, out: Tensor | None = None
) -> Tensor:
    """`tangent` from the masks (inside, capped)."""
    inside, capped = regions
    result = selected(inside, u, out)
    # Inside and capped exclude each other, so this never overwrites a tangent of x.
    return result if v is None else torch.where(capped, effective_cap(v, u, dim), result, out=out)


def surrogate_values(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    """`surrogate` with any strides: from operators that have every derivative, and can be batched."""
    operator_checks.saved("grad", grad, saved, cap, dim, order)
    if width is None:
        if saved.dtype == torch.uint8:
            inside, capped = unpack(saved, grad.shape, order)
            return torch.where(inside | capped, grad, 0)
        return torch.where((saved > 0) | saved.isnan(), grad, 0)
    operator_checks.width(width, saved, cap)
    wide = accumulation_dtype(grad)
    x, m = saved.to(wide), effective_cap(cap, saved, dim).to(wide)
    width = width.to(wide).reshape(broadcast_shape(saved.shape, cap.shape, dim))
    # sigmoid(x / width) - sigmoid((x - m) / width) as a product: the difference cancels where m is far below width.
    # Every x is infinitely far below an infinite m.
    to_cap = torch.where(m == math.inf, m, m - x)
    # The clamp keeps infinities out of derivatives of the branch that is not taken.
    slope = (x / width).sigmoid() * (to_cap / width).sigmoid() * -(-m.clamp(min=0) / width).expm1()
    return torch.where(m <= 0, 0, grad.to(wide) * slope).to(grad.dtype)


def cap_saturation(x: Tensor, cap: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        raise ValueError("x: got 0 dimensions; expected at least one, the sample")
    operator_checks.inputs(x, cap, dim)
    x, cap = x.detach(), cap.detach()
    m = effective_cap(cap, x, dim)
    inside, capped = regions_of_output(value(x, m), m)
    view = broadcast_shape(x.shape, cap.shape, dim)
    per_cap = [mask.to(torch.int64).sum_to_size(view).reshape(cap.shape) for mask in (inside, capped)]
    shared = x.numel() // cap.numel() if cap.numel() else 0
    counts = torch.stack([shared - per_cap[0] - per_cap[1], *per_cap])
    return counts, inside.reshape(x.shape[0], -1).any(1) if x.numel() else inside.new_zeros(x.shape[0])


def cap_penalty(caps: Sequence[Tensor], balancer: float) -> Tensor:
    operator_checks.some_caps(caps)
    dtype = accumulation_dtype(*caps)
    total = torch.zeros((), dtype=sum_dtype(caps[0].device), device=caps[0].device)
    for cap in caps:
        total = total + cap.to(total.dtype).square().sum()
    return (balancer * total).to(dtype)


def cap_penalty_backward(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
    operator_checks.one_element("grad", grad)
    operator_checks.some_caps(caps)
    dtype = accumulation_dtype(grad, *caps)
    return [(2 * balancer * grad.to(dtype) * cap.to(dtype)).to(cap.dtype).contiguous() for cap in caps]


def pack(inside: Tensor, capped: Tensor, order: Sequence[int]) -> Tensor:
    """Regions of two bits, four to a byte from the low bits up, with the dimensions in `order`."""
    regions = inside.to(torch.uint8) * INSIDE + capped.to(torch.uint8) * CAPPED
    flat = regions.permute(tuple(order)).reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % ELEMENTS_PER_BYTE))
    return (flat.reshape(-1, ELEMENTS_PER_BYTE) << _shifts(flat.device)).sum(1, dtype=torch.uint8)


def unpack(mask: Tensor, shape: Sequence[int], order: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The masks (inside, capped) that `pack` was given."""
    flat = ((mask.unsqueeze(1) >> _shifts(mask.device)) & 3).reshape(-1)
    numel = 1
    for size in shape:
        numel *= size
    regions = flat[:numel].reshape([shape[d] for d in order])
    inverse = [0] * len(order)
    for position, d in enumerate(order):
        inverse[d] = position
    regions = regions.permute(inverse)
    return regions == INSIDE, regions == CAPPED


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(0, 8, BITS_PER_REGION, dtype=torch.uint8, device=device)


def regions_of_output(y: Tensor, m: Tensor, zeroed: int = 0) -> tuple[Tensor, Tensor]:
    """The masks (inside, capped) from y and the effective cap."""
    # Both false for NaN, which is inside.
    off, reached = y <= 0, y >= m
    if zeroed & ABOVE:
        return ~off, torch.zeros_like(off)
    return ~(off | reached), reached & ~off


def regions_of_saved(
    saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], shape: Sequence[int], zeroed: int = 0
) -> tuple[Tensor, Tensor]:
    if saved.dtype == torch.uint8:
        return unpack(saved, shape, order)
    return regions_of_output(saved, effective_cap(cap, saved, dim), zeroed)


def empty_as_saved(like: Tensor, saved: Tensor, order: Sequence[int]) -> Tensor:
    if saved.dtype == torch.uint8:
        return torch.empty_permuted(like.shape, tuple(order), dtype=like.dtype, device=like.device)
    return torch.empty_like(saved)


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(0, dtype=dtype, device=like.device)
