"""The penalty over many caps, and its gradients, on Triton kernels.

The tensors travel as a tuple of up to `plan.CAPS_PER_LAUNCH` pointers in the kernel's arguments: a list of pointers in
memory would have to be copied to the device, which waits, and which a captured CUDA graph would repeat with addresses
that are no longer true. More caps are more launches, whose partial sums the last one adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreluop._internal import operator_checks
from dreluop.backends.triton import plan
from dreluop.backends.triton.call import same_device
from dreluop.backends.triton.kernels.penalty import penalty_backward_kernel, penalty_kernel
from dreluop.backends.triton.launch import launch
from dreluop.ops.composite import accumulation_dtype


def cap_penalty(caps: Sequence[Tensor], balancer: float) -> Tensor:
    operator_checks.some_caps(caps)
    _same_devices(caps)
    device = caps[0].device
    result = torch.empty((), dtype=accumulation_dtype(*caps), device=device)
    flat = [cap.contiguous() for cap in caps]
    vecs = [_Listed(flat, first, last) for first, last in plan.launches_of([cap.numel() for cap in flat])]
    # An empty list of caps is one segment of nothing.
    segments = max(1, sum(vec.segments for vec in vecs))
    partials = torch.empty(2, segments, dtype=result.dtype, device=device)
    counter = torch.zeros(1, dtype=torch.int32, device=device)
    first_segment = 0
    for vec in vecs:
        is_last = vec is vecs[-1]
        programs = max(1, vec.segments) if is_last else vec.segments
        launch(
            penalty_kernel, programs, device,
            vec.caps, vec.counts, tuple(first_segment + k for k in vec.first_segments), first_segment, result,
            partials[0], partials[1], counter if is_last else None, programs, segments, balancer,
            SEGMENT=plan.SEGMENT_OF_CAPS, TILE=plan.PENALTY_TILE,
        )  # fmt: skip
        first_segment += vec.segments
    return result


def cap_penalty_backward(grad: Tensor, caps: Sequence[Tensor], balancer: float) -> list[Tensor]:
    operator_checks.one_element("grad", grad)
    operator_checks.some_caps(caps)
    _same_devices(caps)
    same_device(caps[0], "the first cap", grad=grad)
    gradients = [torch.empty(cap.shape, dtype=cap.dtype, device=cap.device) for cap in caps]
    flat = [cap.contiguous() for cap in caps]
    for first, last in plan.launches_of([cap.numel() for cap in flat]):
        vec = _Listed(flat, first, last)
        launch(
            penalty_backward_kernel, vec.segments, grad.device,
            grad, vec.caps, vec.padded(gradients[first:last]), vec.counts, vec.first_segments, 2 * balancer,
            SEGMENT=plan.SEGMENT_OF_CAPS, TILE=plan.PENALTY_TILE,
        )  # fmt: skip
    return gradients


class _Listed:
    """The caps of one launch, filled up to a power of two so that few numbers of caps need a kernel of their own."""

    def __init__(self, caps: Sequence[Tensor], first: int, last: int) -> None:
        some = caps[first:last]
        self.segments = 0
        first_segments = []
        for cap in some:
            first_segments.append(self.segments)
            self.segments += plan.up_to(cap.numel(), plan.SEGMENT_OF_CAPS)
        more = plan.power_of_two(len(some)) - len(some)
        self.caps = self.padded(some)
        self.counts = (*(cap.numel() for cap in some), *(0,) * more)
        self.first_segments = (*first_segments, *(0,) * more)

    def padded(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return (*tensors, *[tensors[-1]] * (plan.power_of_two(len(tensors)) - len(tensors)))


def _same_devices(caps: Sequence[Tensor]) -> None:
    for cap in caps:
        same_device(caps[0], "the first cap", caps=cap)
