"""The penalty over many caps, and its gradients, on Triton kernels.

The tensors travel as a tuple of up to `plan.CAPS_PER_LAUNCH` pointers in the kernel's arguments: a list of pointers in
memory would have to be copied to the device, which waits, and which a captured CUDA graph would repeat with addresses
that are no longer true. More caps are more launches, whose partial sums the last one adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreluop.backends import checks
from dreluop.backends.reference import accumulation_dtype
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import same_device
from dreluop.backends.triton.kernels.squares import penalty_backward_kernel, penalty_kernel
from dreluop.backends.triton.launch import launch


def penalty(caps: Sequence[Tensor], balancer: float) -> Tensor:
    checks.some_caps(caps)
    _same_devices(caps)
    device = caps[0].device
    result = torch.empty((), dtype=accumulation_dtype(*caps), device=device)
    flat = [cap.contiguous() for cap in caps]
    groups = [_Listed(flat, first, last) for first, last in plan.launches_of([cap.numel() for cap in flat])]
    # An empty list of caps is one piece of nothing.
    pieces = max(1, sum(group.pieces for group in groups))
    partials = torch.empty(2, pieces, dtype=result.dtype, device=device)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    first_piece = 0
    for group in groups:
        is_last = group is groups[-1]
        programs = max(1, group.pieces) if is_last else group.pieces
        launch(
            penalty_kernel, programs, device,
            group.caps, group.counts, tuple(first_piece + k for k in group.first_pieces), first_piece, result,
            partials[0], partials[1], counter if is_last else None, programs, pieces, balancer,
            PIECE=plan.PIECE_OF_CAPS, TILE=plan.SQUARES_TILE,
        )  # fmt: skip
        first_piece += group.pieces
    return result


def penalty_backward(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
    checks.one_element("grad", grad)
    checks.some_caps(caps)
    _same_devices(caps)
    same_device(caps[0], "the first cap", grad=grad)
    gradients = [torch.empty(cap.shape, dtype=cap.dtype, device=cap.device) for cap in caps]
    flat = [cap.contiguous() for cap in caps]
    for first, last in plan.launches_of([cap.numel() for cap in flat]):
        group = _Listed(flat, first, last)
        launch(
            penalty_backward_kernel, group.pieces, grad.device,
            grad, group.caps, group.padded(gradients[first:last]), group.counts, group.first_pieces, 2 * balancer,
            PIECE=plan.PIECE_OF_CAPS, TILE=plan.SQUARES_TILE,
        )  # fmt: skip
    return gradients


class _Listed:
    """The caps of one launch, filled up to a power of two so that few numbers of caps need a kernel of their own."""

    def __init__(self, caps: Sequence[Tensor], first: int, last: int) -> None:
        some = caps[first:last]
        self.pieces = 0
        first_pieces = []
        for cap in some:
            first_pieces.append(self.pieces)
            self.pieces += plan.up_to(cap.numel(), plan.PIECE_OF_CAPS)
        more = plan.power_of_two(len(some)) - len(some)
        self.caps = self.padded(some)
        self.counts = (*(cap.numel() for cap in some), *(0,) * more)
        self.first_pieces = (*first_pieces, *(0,) * more)

    def padded(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*tensors, *[tensors[-1]] * (plan.power_of_two(len(tensors)) - len(tensors)))


def _same_devices(caps: Sequence[Tensor]) -> None:
    for cap in caps:
        same_device(caps[0], "the first cap", caps=cap)
