"""Models on a GPU: autocast, torch.compile, torch.func, training that repeats itself bit for bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dreluop
from dreluop.backends.selection import Form
from tests.support import oracle


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64),
        dreluop.DReLU(64, init=0.5),
        nn.Linear(64, 48),
        dreluop.DReLU(init=0.4, save="mask"),
        nn.Linear(48, 10),
        dreluop.SReLU(2.0),
    )


def train(model: nn.Module, steps: int, autocast: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    device = next(model.parameters()).device
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for _ in range(steps):
        data, labels = torch.randn(64, 32, generator=generator), torch.randint(10, (64,), generator=generator)
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(data.to(device)), labels.to(device))
        (loss + dreluop.cap_penalty(model, 1e-3)).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def test_training_is_that_of_the_cpu() -> None:
    for got, want in zip(train(model_of().cuda(), 20), train(model_of(), 20), strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_training_repeats_itself(autocast: bool) -> None:
    first, second = (train(model_of().cuda(), 20, autocast) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        oracle.assert_same_bits(one.cpu(), other.cpu())


def test_autocast_keeps_the_cap_in_full_precision() -> None:
    model = model_of().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        hidden = model[:2](torch.randn(8, 32, device="cuda"))
    assert hidden.dtype == torch.bfloat16
    hidden.float().sum().backward()
    assert model[1].cap.grad.dtype == torch.float32


def test_a_scaled_loss_under_autocast() -> None:
    model = model_of().cuda()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-2), torch.amp.GradScaler("cuda", init_scale=2.0**10)
    for overflows in (False, True, False):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.randn(64, 32, device="cuda")).float().square().mean()
        scaler.scale((loss + dreluop.cap_penalty(model, 1e-3)) * (math.inf if overflows else 1)).backward()
        assert model[1].cap.grad.dtype == torch.float32
        scaler.step(optimizer)
        scaler.update()
        unchanged = all(map(torch.equal, before, model.parameters()))
        assert unchanged is overflows, "a step is left out where, and only where, a gradient is infinite"
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("form", ["opaque", "decompose"])
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_model(autocast: bool, form: Form) -> None:
    model = model_of().cuda()
    data = torch.randn(16, 32, device="cuda")
    gradients = []
    for call in (model, torch.compile(copy.deepcopy(model), fullgraph=True)):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast), dreluop.compile_mode(form):
            loss = call(data).float().square().sum()
        loss.backward()
        gradients.append([p.grad for p in call.parameters()])
    tolerance = 3e-2 if autocast else 1e-4
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("form", ["opaque", "decompose"])
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_cuda_graphs(form: Form) -> None:
    model = model_of().cuda()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, mode="reduce-overhead")
    counters.clear()
    for _ in range(5):
        data = torch.randn(16, 32, device="cuda")
        gradients = []
        for call in (model, compiled):
            torch.compiler.cudagraph_mark_step_begin()
            call.zero_grad()
            with dreluop.compile_mode(form):
                call(data).square().sum().backward()
            gradients.append([p.grad.clone() for p in call.parameters()])
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert counters["inductor"]["cudagraph_skips"] == 0


def test_torch_func() -> None:
    x, cap = torch.randn(5, 4, 3), torch.rand(3) + 0.5

    def loss(x: Tensor, cap: Tensor) -> Tensor:
        return dreluop.capped_relu(x, cap, dim=-1).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss, (0, 1)), (0, None))
    for got, want in zip(per_sample(x.cuda(), cap.cuda()), per_sample(x, cap), strict=True):
        torch.testing.assert_close(got.cpu(), want)
    _, there = torch.func.jvp(loss, (x.cuda(), cap.cuda()), (x.cuda(), cap.cuda()))
    _, here = torch.func.jvp(loss, (x, cap), (x, cap))
    torch.testing.assert_close(there.cpu(), here)
