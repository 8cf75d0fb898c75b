"""smooth_forward: the values and derivatives of a smoothed activation; reached_caps: what the contexts change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

import dreluop
from dreluop.adaptive import reached_caps, smooth_forward, surrogate_backward
from dreluop.autograd import surrogate
from tests.support import oracle
from tests.support.surrogates import SOME_CASES, STD, TAU, activation

WIDTH = TAU * STD


def by_integration(t: Tensor, cap: Tensor, width: float) -> Tensor:
    """The activation averaged over a logistic density around t, by sums; fp64."""
    z = torch.linspace(-45, 45, 900_001, dtype=torch.float64)
    density = z.sigmoid() * (-z).sigmoid() * (z[1] - z[0])
    rows = zip(t.double().flatten(), cap.double().flatten(), strict=True)
    return torch.stack([((a + width * z).clamp(min=0).clamp(max=c) * density).sum() for a, c in rows]).view(t.shape)


@pytest.mark.parametrize("cap", [1e-9, 1e-3, 0.2, WIDTH, 1.0, 50.0])
def test_it_is_the_activation_averaged_over_the_width(cap: float) -> None:
    t = torch.tensor([-8.0, -1.0, -0.1, 0.0, 0.05, 0.5, 1.0, 3.0, 49.9, 60.0], dtype=torch.float64)
    caps = torch.full_like(t, cap)
    expected = by_integration(t, caps, WIDTH)
    for dtype, rtol in ((torch.float64, 1e-4), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        with smooth_forward(TAU, std=STD):
            y = dreluop.capped_relu(t.to(dtype), torch.tensor(cap, dtype=torch.float64), dim=0)
        assert y.dtype == dtype
        rounded = by_integration(t.to(dtype), caps.to(dtype), WIDTH) if dtype == torch.bfloat16 else expected
        torch.testing.assert_close(y.double(), rounded, rtol=rtol, atol=0)


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("case", SOME_CASES, ids=str)
def test_its_slope_is_that_of_the_soft_form(case: Any, inplace: bool) -> None:
    x, cap = case.inputs(torch.float32)
    residual = case.grad(torch.float32)
    bias = torch.randn(cap.shape if cap.ndim > 1 else x.shape[case.dim]) if x.ndim > 1 else None
    leaf, cap = torch.empty_like(x).copy_(x).requires_grad_(), cap.requires_grad_()
    more: dict[str, Any] = {"dim": case.dim, "balancer": 0.5, "bias": bias, "residual": residual}
    _, penalty = dreluop.capped_relu(leaf, cap, **more)
    base = torch.empty_like(leaf).copy_(leaf) if inplace else leaf
    with smooth_forward(TAU, std=STD):
        y, got_penalty = dreluop.capped_relu(base, cap, inplace=inplace, **more)
    assert y.stride() == leaf.stride()
    assert (y is base) is inplace
    oracle.assert_same_bits(got_penalty, penalty)
    grad = case.grad(torch.float32, seed=4)
    dx, dcap = torch.autograd.grad(y, (leaf, cap), grad)
    t = oracle.fused_sum(x, bias, residual, case.dim)
    width = torch.full(cap.shape, WIDTH)
    want, _ = oracle.soft(grad, t, cap.detach(), width, case.dim)
    torch.testing.assert_close(dx.double(), want, rtol=1e-4, atol=1e-6)
    # y grows with the cap where t is above it: sigmoid((t - cap) / width).
    m = oracle.spread(cap.detach(), t, case.dim)
    above = torch.where(m > 0, ((t - m) / WIDTH).double().sigmoid() * grad, 0)
    owner = oracle.spread(torch.arange(cap.numel()).reshape(cap.shape), t, case.dim)
    sums = torch.zeros(cap.numel(), dtype=torch.float64).index_add_(0, owner.flatten(), above.double().flatten())
    torch.testing.assert_close(dcap.double().flatten(), sums, rtol=1e-3, atol=1e-4)


def test_every_order_of_derivative_is_its_own() -> None:
    x = torch.tensor([[-0.4, 0.1, 0.3, 0.8], [0.0, 0.2, -0.1, 2.0]], dtype=torch.float64, requires_grad=True)
    cap = torch.tensor([1e-3, 0.2, 0.5, 3.0], dtype=torch.float64, requires_grad=True)

    def smooth(x: Tensor, cap: Tensor) -> Tensor:
        with smooth_forward(TAU, std=STD):
            return dreluop.capped_relu(x, cap)

    assert gradcheck(smooth, (x, cap))
    assert torch.autograd.gradgradcheck(smooth, (x, cap))


def test_special_values() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 3.0, -3.0], requires_grad=True)
    for cap, expected in (
        (0.5, [0.5, 0.0, math.nan, 0.5, 0.0]),
        (0.01, [0.01, 0.0, math.nan, 0.01, 0.0]),
        (0.0, [0.0, 0.0, math.nan, 0.0, 0.0]),
        (-1.0, [0.0, 0.0, math.nan, 0.0, 0.0]),
        (math.nan, [math.nan] * 5),
    ):
        with smooth_forward(0.1, std=0.5):
            y = dreluop.capped_relu(x, torch.tensor(cap))
        torch.testing.assert_close(y, torch.tensor(expected), equal_nan=True, rtol=1e-5, atol=1e-5)
        dx = torch.autograd.grad(y.sum(), x)[0]
        assert torch.equal(dx.isnan(), y.isnan())
        assert (dx[~y.isnan()].abs() < 1e-5).all()
    with smooth_forward(0.1, std=0.5):
        open_ended = dreluop.capped_relu(x, cap := torch.tensor(math.inf, requires_grad=True))
    torch.testing.assert_close(open_ended, nn.functional.softplus(x, 1 / 0.05), equal_nan=True)
    dx, dcap = torch.autograd.grad(open_ended.sum(), (x, cap))
    torch.testing.assert_close(dx, torch.tensor([1.0, 0.0, math.nan, 1.0, 0.0]), equal_nan=True)
    assert dcap.item() == 0


@pytest.mark.slow
def test_values_change_with_and_without_gradients_and_only_inside() -> None:
    model = nn.Sequential(nn.Linear(5, 4), dreluop.DReLU(4, init=0.2), dreluop.SReLU(0.1))
    x = torch.randn(7, 5)
    ordinary = model(x)
    with smooth_forward(0.5, std=1.0):
        smooth = model(x)
        with torch.no_grad():
            oracle.assert_same_bits(model(x), smooth)
        with surrogate_backward():
            oracle.assert_same_bits(model(x), ordinary)
        oracle.assert_same_bits(torch.compile(model, backend="aot_eager")(x), smooth)
    assert not torch.allclose(smooth, ordinary)
    oracle.assert_same_bits(model(x), ordinary)
    assert not surrogate.active
    with pytest.raises(ValueError, match="tau: got 0; expected a finite number > 0"), smooth_forward(0):
        pass
    with pytest.raises(TypeError, match="std: got str; expected a number"), smooth_forward(std="1"):
        pass
    with smooth_forward(std=1.0), pytest.raises(RuntimeError, match=r"smooth_forward: not inside torch\.vmap"):
        torch.vmap(activation)(x)
    with smooth_forward(), pytest.raises(ValueError, match="give std"):
        activation(torch.ones(3))


def test_a_narrow_width_gives_the_activation() -> None:
    x, cap = torch.randn(50, 4, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0, 5.0], dtype=torch.float64)
    with smooth_forward(1e-6, std=1.0):
        y = dreluop.capped_relu(x, cap)
    torch.testing.assert_close(y, dreluop.capped_relu(x, cap), rtol=0, atol=1e-5)


def test_exported_programs_are_refused_and_not_left_as_they_are() -> None:
    x = torch.randn(3, 5)
    program = torch.export.export(nn.Sequential(nn.Linear(5, 6), dreluop.DReLU(6)), (x,)).module()
    with smooth_forward(std=1.0), pytest.raises(RuntimeError, match="as exported programs do"):
        program(x.requires_grad_())
    for mode in (torch.no_grad, torch.inference_mode):
        expected = program(x).detach()
        with smooth_forward(std=1.0), mode():
            with pytest.raises(RuntimeError, match="as exported programs do"):
                program(x)
            with pytest.raises(RuntimeError, match="smooth_forward does not reach"):
                torch.ops.dreluop.capped_relu(x * 1, torch.ones(5))
            with surrogate_backward():
                oracle.assert_same_bits(program(x), expected)
        with mode():
            oracle.assert_same_bits(program(x), expected)
    # Ordinary direct calls pay for no guard.
    assert all(operator._op is call for operator, call, _ in surrogate._direct_calls())


def test_reached_caps() -> None:
    first, fixed, tensor = dreluop.DReLU(4, init=0.3), dreluop.SReLU(0.5), torch.full((4,), 0.2)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.first, self.fixed, self.unused = nn.Linear(4, 4), first, fixed, dreluop.DReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(self.fixed(self.first(self.linear(x))))
            return dreluop.capped_relu(dreluop.capped_relu(x, tensor), 0.7).clamp(0, 0.1)

    caps = reached_caps(Model(), torch.randn(3, 4))
    assert [cap is known for cap, known in zip(caps, (first.cap, fixed.cap, first.cap, tensor), strict=False)] == [
        True
    ] * 4
    assert len(caps) == 5
    assert caps[4].item() == pytest.approx(0.7)
    assert reached_caps(nn.Sequential(nn.Linear(4, 4), nn.ReLU6()), torch.randn(3, 4)) == []
    # One sample, or a constant layer, has no standard deviation, and still is reached.
    assert len(reached_caps(first, torch.ones(1, 4))) == 1
    assert not surrogate.active
