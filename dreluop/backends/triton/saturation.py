"""Counts of regions on a Triton kernel, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall, same_device
from dreluop.backends.triton.kernels.saturation import saturation_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.composite import mask_order


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
