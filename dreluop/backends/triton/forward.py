"""forward on Triton kernels, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.operator_checks import ELEMENTS_PER_BYTE
from dreluop._internal.zeroed import ABOVE, NAN
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall, nothing, same_device
from dreluop.backends.triton.kernels.forward import forward_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.call import Call
from dreluop.ops.composite import accumulation_dtype, mask_order


def capped_relu(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> Tensor:
    return _activate(Call(x, cap, dim, bias=bias, residual=residual, zeroed=zeroed))[0]


def capped_relu_(
    x: Tensor,
    cap: Tensor,
    dim: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    zeroed: int = 0,
) -> None:
    _activate(Call(x, cap, dim, bias=bias, residual=residual, zeroed=zeroed, inplace=True))


def capped_relu_with_aux(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _activate(Call(*arguments, **keywords))


def capped_relu_with_aux_(*arguments: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    return _activate(Call(*arguments, **keywords)._replace(inplace=True))[1:]


def _activate(given: Call) -> tuple[Tensor, Tensor, Tensor]:
    x, cap, dim, wants_mask, balancer, bias, residual, zeroed, inplace = given
    operator_checks.inputs(x, cap, dim, bias, residual, zeroed)
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
        PENALTY_TILE=plan.PENALTY_TILE, ZERO_ABOVE=bool(zeroed & ABOVE), ZERO_NAN=bool(zeroed & NAN),
    )  # fmt: skip
    return y, packed, penalty
