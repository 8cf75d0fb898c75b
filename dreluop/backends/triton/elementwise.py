"""forward, tangent and saturation on Triton kernels, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall, SavedInfo, nothing, same_device
from dreluop.backends.triton.kernels.forward import forward_kernel
from dreluop.backends.triton.kernels.small import saturation_kernel, tangent_kernel
from dreluop.backends.triton.kernels.surrogate import surrogate_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.call import Call
from dreluop.ops.composite import accumulation_dtype, empty_as_saved, mask_order


def capped_relu(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    return _activate(Call(x, cap, dim, bias=bias, residual=residual))[0]


def capped_relu_(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> None:
    _activate(Call(x, cap, dim, bias=bias, residual=residual, inplace=True))


def capped_relu_with_aux(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _activate(Call(*arguments, **keywords))


def capped_relu_with_aux_(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    return _activate(Call(*arguments, **keywords)._replace(inplace=True))[1:]


def _activate(given: Call) -> tuple[Tensor, Tensor, Tensor]:
    x, cap, dim, wants_mask, balancer, bias, residual, inplace = given
    operator_checks.inputs(x, cap, dim, bias, residual)
    if inplace:
        operator_checks.writable(x)
    same_device(x, cap=cap)
    y = x if inplace else torch.empty_like(x)
    call = KernelCall(x, cap, dim, mask_order(y, cap), bias, x=x, y=y, residual=residual)
    packed = nothing(x, torch.uint8)
    if wants_mask:
        packed = x.new_empty((plan.up_to(call.numel, ELEMENTS_PER_BYTE),), dtype=torch.uint8)
    penalty = cap.new_empty((0,) if balancer is None else (), dtype=accumulation_dtype(cap))
    programs = 0 if balancer is None else plan.penalty_programs(cap.numel())
    counter, partials = None, None
    if programs > 1:
        counter = torch.zeros(1, dtype=torch.int32, device=x.device)
        partials = torch.empty(2 * programs, dtype=penalty.dtype, device=x.device)
    flat = plan.flat_plan(call.vec, call.numel, call.tuning.flat_tile)
    caps, biases = call.readable(cap), None if bias is None else call.readable(bias)
    launch(
        forward_kernel, programs + flat.programs, x.device,
        x, y, residual, caps, biases, packed if wants_mask else None, flat.numel, flat.full, call.layout.inner,
        call.layout.caps, call.stride_of(caps), 0 if biases is None else call.stride_of(biases),
        call.sizes, call.strides["x"], call.strides["y"], call.strides["residual"],
        penalty if programs else None, cap.numel(), partials, counter, balancer or 0.0,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.vec, MODE=call.mode(caps),
        BIAS_MODE=0 if biases is None else call.mode(biases), WIDE=call.wide, PENALTY_PROGRAMS=programs,
        PENALTY_TILE=plan.PENALTY_TILE,
    )  # fmt: skip
    return y, packed, penalty


def capped_relu_jvp(u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    operator_checks.saved("u", u, saved, cap, dim, order)
    same_device(u, "u", saved=saved, cap=cap, v=v)
    if v is not None and v.shape != cap.shape:
        raise ValueError(f"v: got shape {tuple(v.shape)}; expected the cap's, {tuple(cap.shape)}")
    info = SavedInfo(u, saved, cap, order)
    out = empty_as_saved(u, saved, order)
    call = KernelCall(u, cap, dim, info.traversal_order, u=u, y=info.y, out=out, packed=info.packed_strides)
    flat = plan.flat_plan(call.vec, call.numel, call.tuning.flat_tile)
    caps, tangents = call.readable(cap), None if v is None else call.readable(v)
    launch(
        tangent_kernel, flat.programs, u.device,
        u, tangents, info.y, info.packed, out, caps, flat.numel, flat.full, call.layout.inner, call.layout.caps,
        call.stride_of(caps), 0 if tangents is None else call.stride_of(tangents),
        call.sizes, call.strides["u"], call.strides["y"], call.strides["out"], call.strides["packed"], info.packed_step,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.vec, MODE=call.mode(caps),
        V_MODE=0 if tangents is None else call.mode(tangents), WIDE=call.wide, AT_ONCE=info.at_once(call),
    )  # fmt: skip
    return out


def capped_relu_surrogate_backward(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    operator_checks.saved("grad", grad, saved, cap, dim, order)
    same_device(grad, "grad", saved=saved, cap=cap, width=width)
    if width is not None:
        operator_checks.width(width, saved, cap)
    info = SavedInfo(grad, saved, cap, order)
    out = empty_as_saved(grad, saved, order)
    call = KernelCall(grad, cap, dim, info.traversal_order, grad=grad, y=info.y, out=out, packed=info.packed_strides)
    # The exponential needs registers: half the elements at once.
    tile = call.tuning.flat_tile if width is None else max(1, call.tuning.flat_tile // 2)
    flat = plan.flat_plan(call.vec, call.numel, tile)
    caps, widths = call.readable(cap), None if width is None else call.readable(width)
    launch(
        surrogate_kernel, flat.programs, grad.device,
        grad, info.y, info.packed, out, caps, widths, flat.numel, flat.full, call.layout.inner, call.layout.caps,
        call.stride_of(caps), 0 if widths is None else call.stride_of(widths),
        call.sizes, call.strides["grad"], call.strides["y"], call.strides["out"], call.strides["packed"],
        info.packed_step,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.vec, MODE=call.mode(caps),
        WIDTH_MODE=0 if widths is None else call.mode(widths), WIDE=call.wide, AT_ONCE=info.at_once(call),
    )  # fmt: skip
    return out


def cap_saturation(x: Tensor, cap: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        raise ValueError("x: got 0 dimensions; expected at least one, the sample")
    operator_checks.inputs(x, cap, dim)
    same_device(x, cap=cap)
    order = mask_order(x, cap)
    call = KernelCall(x, cap, dim, order, x=x)
    counts = torch.zeros((3, *cap.shape), dtype=torch.int64, device=x.device)
    has_gradient = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    flat = plan.flat_plan(call.vec, call.numel, call.tuning.flat_tile)
    caps = call.readable(cap)
    sizes, (strides,) = call.cap_sizes(counts[0])
    sample_inner = 1
    for d in reversed(call.traversal.order[call.traversal.order.index(0) + 1 :]):
        sample_inner *= x.shape[d]
    launch(
        saturation_kernel, flat.programs, x.device,
        x, caps, counts, has_gradient.view(torch.uint8), flat.numel, call.layout.inner, call.layout.caps,
        call.stride_of(caps), call.sizes, call.strides["x"], sizes, strides, sample_inner, x.shape[0],
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.vec, MODE=call.mode(caps), WIDE=call.wide,
    )  # fmt: skip
    return counts, has_gradient
