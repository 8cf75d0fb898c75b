"""Automatic mixed precision: dtypes under autocast, gradients of fp32 caps, and what a GradScaler meets."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import dreluop
from tests.support import oracle
from tests.support.cases import dtype_id

pytestmark = pytest.mark.usefixtures("both_nodes")

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_id)
CALLS = {
    "output": {},
    "mask": {"save": "mask"},
    "inplace": {"inplace": True},
    "balancer": {"balancer": 0.5},
}


@HALF
@pytest.mark.parametrize("name", CALLS)
def test_activations_of_a_half_type_keep_it_and_caps_theirs(
    device: torch.device, dtype: torch.dtype, name: str
) -> None:
    cap = torch.linspace(0.3, 0.4, 6, device=device, requires_grad=True)
    weight, x = torch.randn(6, 8, device=device, requires_grad=True), torch.randn(32, 8, device=device)
    with torch.autocast(device.type, dtype):
        hidden = nn.functional.linear(x, weight)
        kept = hidden.detach().clone()
        result = dreluop.capped_relu(hidden, cap, **CALLS[name])
        y = result[0] if isinstance(result, tuple) else result
    assert (hidden.dtype, y.dtype) == (dtype, dtype)
    oracle.assert_same_bits(y.cpu(), oracle.forward(kept.cpu(), cap.cpu()))
    grad = torch.randn(32, 6).to(dtype)
    (dcap,) = torch.autograd.grad(y, cap, grad.to(device))
    # In fp32, not cast to the activation's dtype on the way.
    oracle.assert_grad_cap(dcap.cpu(), grad, kept.cpu(), cap.cpu())
    assert dcap.dtype == torch.float32 and dcap.any()
    assert bool((dcap != dcap.to(dtype).float()).any())


@HALF
def test_autocast_casts_nothing(device: torch.device, dtype: torch.dtype) -> None:
    for x_dtype in (torch.float32, torch.float64, dtype):
        x, cap = torch.randn(16, 3).to(device, x_dtype), torch.tensor([0.3, 0.5, 0.7], device=device)
        with torch.autocast(device.type, dtype):
            y, penalty = dreluop.capped_relu(x, cap, balancer=0.5)
            total = dreluop.cap_penalty([cap], 0.5)
        oracle.assert_same_bits(y.cpu(), oracle.forward(x.cpu(), cap.cpu()))
        assert penalty.dtype == total.dtype == torch.float32


def trained(
    device: torch.device, scaler: torch.amp.GradScaler | None, blow_up: int | None = None
) -> tuple[list[Tensor], list[float]]:
    """Parameters after some steps under autocast, and the scales; in one step, the loss overflows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), dreluop.DReLU(16, init=0.3), nn.Linear(16, 4), dreluop.DReLU(init=0.5))
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scales = []
    for index in range(6):
        data = torch.randn(64, 8).to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(data).float().square().mean()
        loss = loss + dreluop.cap_penalty(model, 1e-3)
        if index == blow_up:
            loss = loss * math.inf
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            before = [p.detach().clone() for p in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            if index == blow_up:
                assert all(map(torch.equal, before, model.parameters())), "the step was not skipped"
    return [p.detach() for p in model.parameters()], scales


def test_a_scaled_loss_trains_the_same(device: torch.device) -> None:
    # A power of two changes no rounding.
    plain, _ = trained(device, None)
    scaled, scales = trained(device, torch.amp.GradScaler(device.type, init_scale=2.0**10))
    assert set(scales) == {2.0**10}
    for got, want in zip(scaled, plain, strict=True):
        oracle.assert_same_bits(got.cpu(), want.cpu())


def test_a_scaler_sees_the_infinity_that_comes_through_a_cap(device: torch.device) -> None:
    parameters, scales = trained(device, torch.amp.GradScaler(device.type, init_scale=2.0**10), blow_up=3)
    assert scales == [2.0**10] * 3 + [2.0**9] * 3
    assert all(bool(p.isfinite().all()) for p in parameters)


def test_a_capped_unit_alone_passes_an_infinite_gradient_to_its_cap(device: torch.device) -> None:
    x, cap = (torch.tensor(values, device=device, requires_grad=True) for values in ([[5.0, -1.0]], [1.0, 1.0]))
    dreluop.capped_relu(x, cap).backward(torch.tensor([[math.inf, math.inf]], device=device))
    assert cap.grad.tolist() == [math.inf, 0] and x.grad.tolist() == [[0, 0]]
