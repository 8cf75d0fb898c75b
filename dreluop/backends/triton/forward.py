"""forward on Triton kernels, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import Call, nothing, same_device
from dreluop.backends.triton.kernels.forward import forward_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.composite import accumulation_dtype, mask_order


def capped_relu(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    operator_checks.inputs(x, cap, dim, bias, residual)
    y = torch.empty_like(x)
    _run_forward(x, y, cap, dim, False, None, bias, residual)
    return y


def capped_relu_(
    x: Tensor, cap: Tensor, dim: int = 1, bias: Tensor | None = None, residual: Tensor | None = None
) -> None:
    operator_checks.inputs(x, cap, dim, bias, residual)
    operator_checks.writable(x)
    _run_forward(x, x, cap, dim, False, None, bias, residual)


def capped_relu_with_aux(
    x: Tensor,
    cap: Tensor,
    dim: int,
    mask: bool,
    balancer: float | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    operator_checks.inputs(x, cap, dim, bias, residual)
    y = torch.empty_like(x)
    return y, *_run_forward(x, y, cap, dim, mask, balancer, bias, residual)


def capped_relu_with_aux_(
    x: Tensor,
    cap: Tensor,
    dim: int,
    mask: bool,
    balancer: float | None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    operator_checks.inputs(x, cap, dim, bias, residual)
    operator_checks.writable(x)
    return _run_forward(x, x, cap, dim, mask, balancer, bias, residual)


def _run_forward(
    x: Tensor,
    y: Tensor,
    cap: Tensor,
    dim: int,
    wants_mask: bool,
    balancer: float | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    same_device(x, cap=cap)
    call = Call(x, cap, dim, mask_order(y, cap), bias, x=x, y=y, residual=residual)
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
    return packed, penalty
