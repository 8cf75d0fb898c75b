"""Every operator in one call, a way to keep a stream busy, and the kernels that a call launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import DeviceType

from dreluop.ops import schemas
from tests.support import oracle
from tests.support.cases import Case
from tests.support.devices import moved

ops = getattr(torch.ops, schemas.NAMESPACE)

# One per traversal of the backward kernels, each with several blocks that share a cap.
TRAVERSALS = (
    Case((300_001,), ()),
    Case((401, 1009), (1009,)),
    Case((60_013, 7), (7,)),
    Case((5, 11, 7001), (11,)),
    Case((16, 32, 33, 31), (32,), layout="channels_last"),
    Case((90, 61, 73), (61, 73)),
)


def inputs(case: Case, dtype: torch.dtype, device: torch.device | str = "cuda") -> tuple[Tensor, Tensor, Tensor]:
    """x, cap and a gradient of y."""
    x, cap = case.inputs(dtype)
    grad = torch.empty_like(x).copy_(case.grad(dtype))
    return moved(x, device), moved(cap, device), moved(grad, device)


def every_result(x: Tensor, cap: Tensor, grad: Tensor, dim: int = 1, *, soft: bool = True) -> list[Tensor]:
    """What all operators give, on the current stream; nothing here waits for the device.

    ``soft``: with what has other last bits on another device: batch norm, and the exponential of the soft surrogate.
    """
    y, mask, penalty = ops.capped_relu_with_aux(x, cap, dim, True, 0.5)
    results = [y, mask, penalty, ops.capped_relu(x, cap, dim)]
    in_place, overwritten = x.clone(), x.clone()
    ops.capped_relu_(in_place, cap, dim)
    results += [in_place, *ops.capped_relu_with_aux_(overwritten, cap, dim, True, 0.5), overwritten]
    weight = torch.ones((), dtype=penalty.dtype, device=x.device)
    for saved, order in ((y, []), (mask, oracle.mask_order(y, cap))):
        results += ops.capped_relu_backward(grad, saved, cap, dim, order, True, True, 0.5, weight)
        results.append(ops.capped_relu_jvp(grad, cap, saved, cap, dim, order))
        results.append(ops.capped_relu_surrogate_backward(grad, saved, cap, dim, order, None))
    if soft:
        results.append(ops.capped_relu_surrogate_backward(grad, x, cap, dim, [], torch.full_like(cap, 0.5)))
        results += batch_norm_results(x, cap, grad)
    if x.ndim:
        results += ops.cap_saturation(x, cap, dim)
    results.append(ops.cap_penalty([cap, cap], 0.5))
    return [*results, *ops.cap_penalty_backward(weight, [cap, cap], 0.5)]


def batch_norm_results(x: Tensor, cap: Tensor, grad: Tensor) -> list[Tensor]:
    """What batch norm gives in training and inference, without and with a residual, where it takes x and cap."""
    if x.ndim < 2 or x.numel() == 0 or cap.ndim > 1 or cap.numel() not in (1, x.shape[1]):
        return []
    weight, bias = (torch.full(x.shape[1:2], number, device=x.device) for number in (1.5, 0.5))
    mean: Tensor | None = None
    var: Tensor | None = None
    results: list[Tensor] = []
    for training in (True, False):
        for residual in (None, grad):
            masked = residual is not None
            found = ops.capped_batch_norm(x, cap, weight, bias, mean, var, residual, 1e-5, masked)
            used = found[1:3] if training else (mean, var)
            packed = found[3] if masked else None
            needs = [True] * 4 + [masked]
            results += found
            results += ops.capped_batch_norm_backward(grad, x, cap, weight, bias, *used, packed, 1e-5, training, *needs)
        mean, var = used
    return results


def assert_all_same_bits(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        oracle.assert_same_bits(one.cpu(), other.cpu())


def sleep() -> None:
    """Keep the current stream busy for about 0.1 s; returns at once."""
    torch.cuda._sleep(200_000_000)


def kernels_of(function: Callable[[], object]) -> list[str]:
    """Names of the kernels (not of memsets and copies) that a call launches; skips where the profiler sees none."""
    function()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.ones(1, device="cuda")
        torch.cuda.synchronize()
    found = [event for event in profile.events() if event.device_type == DeviceType.CUDA]
    if not found:
        pytest.skip("the profiler records no kernels on this machine")
    names = [event.name for event in sorted(found, key=lambda event: event.time_range.start)]
    # The last one is the fill that shows whether anything is recorded.
    return [name for name in names[:-1] if not name.startswith(("Memset", "Memcpy"))]
