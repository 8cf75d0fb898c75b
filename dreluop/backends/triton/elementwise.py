"""forward, tangent and saturation on Triton kernels, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreluop.backends import checks
from dreluop.backends.checks import CODES_PER_BYTE
from dreluop.backends.reference import accumulation_dtype, code_order, empty_as_saved
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import Call, Saved, nothing, same_device
from dreluop.backends.triton.kernels.forward import forward_kernel
from dreluop.backends.triton.kernels.small import saturation_kernel, tangent_kernel
from dreluop.backends.triton.kernels.surrogate import surrogate_kernel
from dreluop.backends.triton.launch import launch


def forward(x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    checks.inputs(x, cap, dim, bias, residual)
    y = torch.empty_like(x)
    _run_forward(x, y, cap, dim, False, None, bias, residual)
    return y


def forward_(x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None) -> None:
    checks.inputs(x, cap, dim, bias, residual)
    checks.writable(x)
    _run_forward(x, x, cap, dim, False, None, bias, residual)


def forward_extra(
    x: Tensor,
    cap: Tensor,
    dim: int,
    code: bool,
    balancer: float | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    checks.inputs(x, cap, dim, bias, residual)
    y = torch.empty_like(x)
    return y, *_run_forward(x, y, cap, dim, code, balancer, bias, residual)


def forward_extra_(
    x: Tensor,
    cap: Tensor,
    dim: int,
    code: bool,
    balancer: float | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    checks.inputs(x, cap, dim, bias, residual)
    checks.writable(x)
    return _run_forward(x, x, cap, dim, code, balancer, bias, residual)


def _run_forward(
    x: Tensor,
    y: Tensor,
    cap: Tensor,
    dim: int,
    wants_code: bool,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    same_device(x, cap=cap)
    call = Call(x, cap, dim, code_order(y, cap), bias, x=x, y=y, residual=residual)
    code = nothing(x, torch.uint8)
    if wants_code:
        code = x.new_empty((plan.up_to(call.numel, CODES_PER_BYTE),), dtype=torch.uint8)
    penalty = cap.new_empty((0,) if balancer is None else (), dtype=accumulation_dtype(cap))
    programs = 0 if balancer is None else plan.penalty_programs(cap.numel())
    counter, partials = None, None
    if programs > 1:
        counter = torch.zeros(1, dtype=torch.int32, device=x.device)
        partials = torch.empty(2 * programs, dtype=penalty.dtype, device=x.device)
    flat = plan.flat_plan(call.group, call.numel, call.tuning.flat_tile)
    caps, biases = call.readable(cap), None if bias is None else call.readable(bias)
    launch(
        forward_kernel, programs + flat.programs, x.device,
        x, y, residual, caps, biases, code if wants_code else None, flat.numel, flat.full, call.layout.inner,
        call.layout.caps, call.stride_of(caps), 0 if biases is None else call.stride_of(biases),
        call.sizes, call.strides["x"], call.strides["y"], call.strides["residual"],
        penalty if programs else None, cap.numel(), partials, counter, balancer or 0.0,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.group, MODE=call.mode(caps),
        BIAS_MODE=0 if biases is None else call.mode(biases), WIDE=call.wide, PENALTY_PROGRAMS=programs,
        SQUARES_TILE=plan.SQUARES_TILE,
    )  # fmt: skip
    return code, penalty


def tangent(u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int]) -> Tensor:
    checks.saved("u", u, saved, cap, dim, order)
    same_device(u, "u", saved=saved, cap=cap, v=v)
    if v is not None and v.shape != cap.shape:
        raise ValueError(f"v: got shape {tuple(v.shape)}; expected the cap's, {tuple(cap.shape)}")
    kept = Saved(u, saved, cap, order)
    out = empty_as_saved(u, saved, order)
    call = Call(u, cap, dim, kept.walk_order, u=u, y=kept.y, out=out, code=kept.code_strides)
    flat = plan.flat_plan(call.group, call.numel, call.tuning.flat_tile)
    caps, tangents = call.readable(cap), None if v is None else call.readable(v)
    launch(
        tangent_kernel, flat.programs, u.device,
        u, tangents, kept.y, kept.code, out, caps, flat.numel, flat.full, call.layout.inner, call.layout.caps,
        call.stride_of(caps), 0 if tangents is None else call.stride_of(tangents),
        call.sizes, call.strides["u"], call.strides["y"], call.strides["out"], call.strides["code"], kept.code_step,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.group, MODE=call.mode(caps),
        V_MODE=0 if tangents is None else call.mode(tangents), WIDE=call.wide, AT_ONCE=kept.at_once(call),
    )  # fmt: skip
    return out


def surrogate(
    grad: Tensor, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], width: Tensor | None = None
) -> Tensor:
    checks.saved("grad", grad, saved, cap, dim, order)
    same_device(grad, "grad", saved=saved, cap=cap, width=width)
    if width is not None:
        checks.width(width, saved, cap)
    kept = Saved(grad, saved, cap, order)
    out = empty_as_saved(grad, saved, order)
    call = Call(grad, cap, dim, kept.walk_order, grad=grad, y=kept.y, out=out, code=kept.code_strides)
    # The exponential needs registers: half the elements at once.
    tile = call.tuning.flat_tile if width is None else max(1, call.tuning.flat_tile // 2)
    flat = plan.flat_plan(call.group, call.numel, tile)
    caps, widths = call.readable(cap), None if width is None else call.readable(width)
    launch(
        surrogate_kernel, flat.programs, grad.device,
        grad, kept.y, kept.code, out, caps, widths, flat.numel, flat.full, call.layout.inner, call.layout.caps,
        call.stride_of(caps), 0 if widths is None else call.stride_of(widths),
        call.sizes, call.strides["grad"], call.strides["y"], call.strides["out"], call.strides["code"], kept.code_step,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.group, MODE=call.mode(caps),
        WIDTH_MODE=0 if widths is None else call.mode(widths), WIDE=call.wide, AT_ONCE=kept.at_once(call),
    )  # fmt: skip
    return out


def saturation(x: Tensor, cap: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    if x.ndim == 0:
        raise ValueError("x: got 0 dimensions; expected at least one, the sample")
    checks.inputs(x, cap, dim)
    same_device(x, cap=cap)
    order = code_order(x, cap)
    call = Call(x, cap, dim, order, x=x)
    counts = torch.zeros((3, *cap.shape), dtype=torch.int64, device=x.device)
    live = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    flat = plan.flat_plan(call.group, call.numel, call.tuning.flat_tile)
    caps = call.readable(cap)
    sizes, (strides,) = call.cap_sizes(counts[0])
    sample_inner = 1
    for d in reversed(call.walk.order[call.walk.order.index(0) + 1 :]):
        sample_inner *= x.shape[d]
    launch(
        saturation_kernel, flat.programs, x.device,
        x, caps, counts, live.view(torch.uint8), flat.numel, call.layout.inner, call.layout.caps,
        call.stride_of(caps), call.sizes, call.strides["x"], sizes, strides, sample_inner, x.shape[0],
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.group, MODE=call.mode(caps), WIDE=call.wide,
    )  # fmt: skip
    return counts, live
