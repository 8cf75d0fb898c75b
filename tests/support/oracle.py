"""What the operators must give, written anew from the semantics page: plain fp64 rules on logical elements.

Nothing here comes from ``dreluop``, so that the package's reference is tested too. A region is found from x and the
cap; the package finds it from y: that the two agree is one of the things tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OFF, INSIDE, CAPPED = 0, 1, 2
# What is +0 besides: bits of `zeroed`.
ABOVE, NAN = 1, 2
# The bound that the project promises for every sum: this many eps of the accumulator times the sum of magnitudes.
SUM_BOUND = 8
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def accumulator(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def spread(per_cap: Tensor, x: Tensor, dim: int) -> Tensor:
    """A value per cap, at every element of x that has this cap."""
    if per_cap.ndim > 1:
        assert per_cap.shape == x.shape[1:], "neuron cap"
        return per_cap.unsqueeze(0).expand(x.shape)
    if per_cap.ndim == 0 or per_cap.shape[0] == 1:
        return per_cap.reshape([1] * x.ndim).expand(x.shape)
    assert per_cap.shape[0] == x.shape[dim], "channel cap"
    return per_cap.reshape([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)]).expand(x.shape)


def regions(x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> Tensor:
    """OFF, INSIDE or CAPPED for every element; NaN counts as inside where it is not zeroed."""
    value, m = x.double(), spread(cap.to(x.dtype).double(), x, dim)
    region = torch.full(x.shape, OFF)
    region[(value > 0) & (value < m)] = INSIDE
    if zeroed & ABOVE:
        region[(value > 0) & (value == m)] = INSIDE
    else:
        region[(m > 0) & (value >= m)] = CAPPED
    region[value.isnan() | m.isnan()] = OFF if zeroed & NAN else INSIDE
    return region


def forward(x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> Tensor:
    value, m = x.double(), spread(cap.to(x.dtype).double(), x, dim)
    region = regions(x, cap, dim, zeroed)
    y = torch.zeros(x.shape, dtype=torch.float64)
    y[region == INSIDE] = value[region == INSIDE]
    y[region == CAPPED] = m[region == CAPPED]
    y[(value.isnan() | m.isnan()) & (region != OFF)] = math.nan
    return y.to(x.dtype)


def fused_sum(x: Tensor, bias: Tensor | None, residual: Tensor | None, dim: int = 1) -> Tensor:
    """(x + bias) + residual: every sum in the accumulator's dtype, rounded to x's dtype once."""
    total = x.to(accumulator(x))
    if bias is not None:
        total = total + (bias if bias.ndim > 1 else spread_channels(bias, x, dim)).to(total.dtype)
    if residual is not None:
        total = total + residual.to(total.dtype)
    return total.to(x.dtype)


def spread_channels(bias: Tensor, x: Tensor, dim: int) -> Tensor:
    assert bias.shape == (x.shape[dim],), "bias"
    return bias.reshape([-1 if d == dim % x.ndim else 1 for d in range(x.ndim)]).expand(x.shape)


def grad_x(grad: Tensor, x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> Tensor:
    dx = torch.zeros(x.shape, dtype=grad.dtype)
    inside = regions(x, cap, dim, zeroed) == INSIDE
    dx[inside] = grad[inside]
    return dx


def tangent(u: Tensor, v: Tensor | None, x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> Tensor:
    out = grad_x(u, x, cap, dim, zeroed)
    if v is not None:
        capped = regions(x, cap, dim, zeroed) == CAPPED
        out[capped] = spread(v.to(u.dtype), x, dim)[capped]
    return out


def straight_through(grad: Tensor, x: Tensor, cap: Tensor, dim: int = 1) -> Tensor:
    dx = torch.zeros(x.shape, dtype=grad.dtype)
    on = regions(x, cap, dim) != OFF
    dx[on] = grad[on]
    return dx


def soft(grad: Tensor, x: Tensor, cap: Tensor, width: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """grad * (sigmoid(x / width) - sigmoid((x - cap) / width)) in fp64, and the error a wide dtype may make."""
    m = spread(cap.to(x.dtype).double(), x, dim)
    width = spread(width.double(), x, dim)
    # The slope is the same on both sides of cap / 2; from the lower one, no sigmoid is near 1.
    lower = torch.where(x.double() > m / 2, m - x.double(), x.double())
    near, far = lower / width, torch.where(m == math.inf, -m, lower - m) / width
    e = far.exp() * torch.expm1((m / width).clamp(max=1)) / ((1 + near.clamp(max=1).exp()) * (1 + far.exp()))
    slope = torch.where(m < width, e, near.sigmoid() - far.sigmoid())
    dx = torch.where(m <= 0, 0, grad.double() * slope)
    info = torch.finfo(accumulator(x))
    # An argument has two roundings, which exp multiplies by it; exp may flush what is near the smallest number to zero.
    slack = torch.where(dx == 0, 0, (2 * near.clamp(max=0).abs() + 16) * info.eps * dx.abs())
    return dx, slack + 2 * info.tiny * grad.double().abs()


def assert_soft(got: Tensor, grad: Tensor, x: Tensor, cap: Tensor, width: Tensor, dim: int = 1) -> None:
    assert got.dtype == x.dtype
    want, slack = soft(grad, x, cap, width, dim)
    assert_between(got, want, slack, accumulator(x))


def grad_cap(grad: Tensor, x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> tuple[Tensor, Tensor]:
    """The gradient of every cap in fp64, and the sum of magnitudes that its bound is relative to."""
    capped = regions(x, cap, dim, zeroed) == CAPPED
    owner = spread(torch.arange(cap.numel()).reshape(cap.shape), x, dim)
    return _sums(grad, capped, owner, cap)


def grad_bias(
    grad: Tensor, x: Tensor, cap: Tensor, bias: Tensor, dim: int = 1, zeroed: int = 0
) -> tuple[Tensor, Tensor]:
    """As grad_cap: the sum of the gradient of t, for x = t = (x + bias) + residual."""
    numbers = torch.arange(bias.numel()).reshape(bias.shape)
    owner = numbers.expand(x.shape) if bias.ndim > 1 else spread_channels(numbers, x, dim)
    return _sums(grad, regions(x, cap, dim, zeroed) == INSIDE, owner, bias)


def sum_to_bias(dx: Tensor, bias: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """The sum of dx over the elements of each bias, in fp64, and the sum of magnitudes."""
    numbers = torch.arange(bias.numel()).reshape(bias.shape)
    owner = numbers.expand(dx.shape) if bias.ndim > 1 else spread_channels(numbers, dx, dim)
    return _sums(dx, torch.ones(dx.shape, dtype=torch.bool), owner, bias)


def _sums(grad: Tensor, counted: Tensor, owner: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    owner, terms = owner[counted], grad[counted].double()
    if accumulator(grad, like) != torch.float64 or not bool(terms.isfinite().all()):
        zeros = torch.zeros(like.numel(), dtype=torch.float64)
        total, magnitude = zeros.index_add(0, owner, terms), zeros.index_add(0, owner, terms.abs())
    else:
        groups: list[list[float]] = [[] for _ in range(like.numel())]
        for index, term in zip(owner.tolist(), terms.tolist(), strict=True):
            groups[index].append(term)
        total = torch.tensor([math.fsum(group) for group in groups], dtype=torch.float64)
        magnitude = torch.tensor([math.fsum(map(abs, group)) for group in groups], dtype=torch.float64)
    return total.reshape(like.shape), magnitude.reshape(like.shape)


def penalty(caps: Sequence[Tensor], balancer: float) -> float:
    return balancer * math.fsum(value * value for cap in caps for value in cap.double().flatten().tolist())


def saturation(x: Tensor, cap: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    region = regions(x, cap, dim)
    owner = spread(torch.arange(cap.numel()).reshape(cap.shape), x, dim)
    counts = [
        torch.bincount(owner[region == r], minlength=cap.numel()).reshape(cap.shape) for r in (OFF, INSIDE, CAPPED)
    ]
    has_gradient = (region == INSIDE).reshape(x.shape[0], math.prod(x.shape[1:])).any(1)
    return torch.stack(counts), has_gradient


def mask_order(y: Tensor, cap: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost; a batch between neurons moves to the front."""
    order = sorted(range(y.ndim), key=y.stride, reverse=True)
    if cap.ndim > 1:
        real = [d for d in order if d == 0 or y.shape[d] > 1]
        if 0 < real.index(0) < len(real) - 1 or y.shape[0] == 1:
            order = [0, *(d for d in order if d != 0)]
    return order


def mask(x: Tensor, cap: Tensor, dim: int, order: Sequence[int], zeroed: int = 0) -> Tensor:
    """Two bits per element in this order, four to a byte from the low bits up, the rest of the last byte zero."""
    in_memory = regions(x, cap, dim, zeroed).permute(tuple(order)).flatten().tolist()
    packed = [0] * -(-len(in_memory) // 4)
    for i, region in enumerate(in_memory):
        packed[i // 4] |= region << 2 * (i % 4)
    return torch.tensor(packed, dtype=torch.uint8)


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    """Equal shape, dtype, NaN positions, and bits everywhere else (so that +0.0 is not -0.0)."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    got, want = got.detach(), want.detach()
    if got.dtype.is_floating_point:
        bits = [t.contiguous().view(_BITS[t.element_size()]) for t in (got, want)]
        wrong = (bits[0] != bits[1]) & ~(got.isnan() & want.isnan())
    else:
        wrong = got != want
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} elements differ, first at {where}: "
            f"got {got[where].item()!r}, want {want[where].item()!r}"
        )


def assert_sum(got: Tensor, total: Tensor, magnitude: Tensor, accumulated_in: torch.dtype) -> None:
    """|got - total| <= 8 eps(accumulator) * magnitude, plus one rounding to got's dtype."""
    unbounded = ~total.isfinite()
    slack = torch.where(unbounded, 0, SUM_BOUND * torch.finfo(accumulated_in).eps * magnitude)
    assert_between(got, total, slack, accumulated_in)


def assert_between(got: Tensor, want: Tensor, slack: Tensor, accumulated_in: torch.dtype) -> None:
    """|got - want| <= slack, plus one rounding to got's dtype; NaN where it is wanted."""
    assert got.shape == want.shape
    low, high = want - slack, want + slack
    if torch.finfo(got.dtype).eps > torch.finfo(accumulated_in).eps:
        # Rounding keeps the order, so the rounded ends bound the rounded value, also where it overflows.
        low, high = (t.to(accumulated_in).to(got.dtype).double() for t in (low, high))
    value = got.detach().double()
    right = ((low <= value) & (value <= high)) | (want.isnan() & value.isnan())
    if not bool(right.all()):
        where = tuple((~right).nonzero()[0].tolist())
        raise AssertionError(
            f"{int((~right).sum())} of {right.numel()} values are off, first at {where}: got {value[where].item()!r}, "
            f"want {want[where].item()!r} +- {slack[where].item():.3g}"
        )


def assert_grad_cap(got: Tensor, grad: Tensor, x: Tensor, cap: Tensor, dim: int = 1, zeroed: int = 0) -> None:
    assert got.dtype == cap.dtype
    total, magnitude = grad_cap(grad, x, cap, dim, zeroed)
    assert_sum(got, total, magnitude, accumulator(grad, cap))


def plain(x: Tensor, cap: Tensor, dim: int = 1, balancer: float | None = None) -> Tensor | tuple[Tensor, Tensor]:
    """The function in differentiable PyTorch, to compare derivatives of any order and kind with."""
    m = spread(cap, x, dim).to(x.dtype)
    y = torch.where((x <= 0) | (m <= 0), torch.zeros_like(x), torch.where(x >= m, m, x))
    return y if balancer is None else (y, balancer * cap.square().sum())
