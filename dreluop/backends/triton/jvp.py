"""Forward-mode derivatives on a Triton kernel, with the arguments and results of `dreluop.backends.reference`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dreluop._internal import operator_checks
from dreluop._internal.zeroed import ABOVE
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall, SavedInfo, same_device
from dreluop.backends.triton.kernels.jvp import jvp_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.composite import empty_as_saved


def capped_relu_jvp(
    u: Tensor, v: Tensor | None, saved: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0
) -> Tensor:
    operator_checks.saved("u", u, saved, cap, dim, order, zeroed)
    same_device(u, "u", saved=saved, cap=cap, v=v)
    if v is not None and v.shape != cap.shape:
        raise ValueError(f"v: got shape {tuple(v.shape)}; expected the cap's, {tuple(cap.shape)}")
    info = SavedInfo(u, saved, cap, order)
    out = empty_as_saved(u, saved, order)
    call = KernelCall(u, cap, dim, info.traversal_order, u=u, y=info.y, out=out, packed=info.packed_strides)
    flat = plan.flat_plan(call.vec, call.numel, call.tuning.flat_tile)
    caps, tangents = (
        None if of_cap is None else call.readable(of_cap) for of_cap in (None if zeroed & ABOVE else cap, v)
    )
    launch(
        jvp_kernel, flat.programs, u.device,
        u, tangents, info.y, info.packed, out, caps, flat.numel, flat.full, call.layout.inner, call.layout.caps,
        0 if caps is None else call.stride_of(caps), 0 if tangents is None else call.stride_of(tangents),
        call.sizes, call.strides["u"], call.strides["y"], call.strides["out"], call.strides["packed"], info.packed_step,
        warps=call.tuning.flat_warps, TILE=flat.tile, VEC=call.vec, MODE=0 if caps is None else call.mode(caps),
        V_MODE=0 if tangents is None else call.mode(tangents), WIDE=call.wide, AT_ONCE=info.at_once(call),
    )  # fmt: skip
    return out
