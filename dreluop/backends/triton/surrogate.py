"""Surrogate gradients on a Triton kernel, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dreluop._internal import operator_checks
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall, SavedInfo, same_device
from dreluop.backends.triton.kernels.surrogate import surrogate_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.composite import empty_as_saved


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
