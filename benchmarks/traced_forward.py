"""The forward kernel of ``dreluop.backends.triton`` as a ``torch.library.triton_op``, into which torch.compile looks.

The launch is planned on the host, at a real x, before anything is traced: the plan asks for addresses, and a traced
tensor has none. Shapes are static in what is measured with this, so the plan is the one that the operator itself makes.
The kernel is called by one of few arguments, because inductor (torch 2.11) knows no tuples as arguments of a kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dreluop.backends.triton import plan
from dreluop.backends.triton.call import KernelCall
from dreluop.backends.triton.kernels.forward import forward_kernel
from dreluop.ops.composite import mask_order

NAME = "dreluop_measured::forward"


class Launch(NamedTuple):
    """How the kernel is launched for an x and its channel caps: arguments of the same names."""

    programs: int
    numel: int
    full: int
    inner: int
    caps: int
    cap_stride: int
    warps: int
    tile: int
    vec: int
    mode: int
    wide: bool


def planned(x: Tensor, cap: Tensor) -> Launch:
    """What ``dreluop.backends.triton`` does for a forward pass with caps of dimension 1.

    Raises:
        ValueError: x is not dense in memory, or cap is not of shape (channels,).
    """
    if cap.ndim != 1:
        raise ValueError(f"cap: got shape {tuple(cap.shape)}; expected (channels,)")
    call = KernelCall(x, cap, 1, mask_order(x, cap), x=x, y=x)
    if call.sizes:
        raise ValueError(f"x: got strides {x.stride()} for shape {tuple(x.shape)}; expected a dense tensor")
    flat = plan.flat_plan(call.vec, call.numel, call.tuning.flat_tile)
    return Launch(
        flat.programs, flat.numel, flat.full, call.layout.inner, call.layout.caps, call.stride_of(cap),
        call.tuning.flat_warps, flat.tile, call.vec, call.mode(cap), call.wide,
    )  # fmt: skip


@triton.jit(do_not_specialize=["numel", "full", "inner", "caps"])
def few_arguments(
    x, y, cap, numel, full, inner, caps, cap_stride,
    TILE: tl.constexpr, VEC: tl.constexpr, MODE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    forward_kernel(
        x, y, None, cap, None, None, numel, full, inner, caps, cap_stride, 0, (), (), (), (), None, 0, None, None, 0.0,
        TILE, VEC, MODE, 0, WIDE, 0, 1024, False, False,
    )  # fmt: skip


@torch.library.triton_op(NAME, mutates_args={})
def forward(x: Tensor, cap: Tensor, launch: list[int]) -> Tensor:
    """y of x's shape, dtype and strides; ``launch`` holds the fields of a ``Launch``."""
    of = Launch(*launch)
    y = torch.empty_like(x)
    torch.library.wrap_triton(few_arguments)[(of.programs,)](
        x, y, cap, of.numel, of.full, of.inner, of.caps, of.cap_stride,
        TILE=of.tile, VEC=of.vec, MODE=of.mode, WIDE=bool(of.wide), num_warps=of.warps,
    )  # fmt: skip
    return y
