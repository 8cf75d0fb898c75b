"""surrogate_backward under more than plain autograd: higher orders, torch.func, compiled and exported models."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck
from torch.utils.checkpoint import CheckpointError, checkpoint

import dreluop
from dreluop.adaptive import surrogate_backward
from tests.support import oracle
from tests.support.surrogates import MODES, STD, TAU, activation, entered, exact


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("cap_shape", [(), (3,), (3, 4)], ids=["layer", "channel", "neuron"])
def test_the_gradient_can_be_differentiated(mode: str, cap_shape: tuple[int, ...]) -> None:
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    cap = torch.rand(cap_shape, dtype=torch.float64).add_(0.3).requires_grad_()
    grad = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)

    def first(x: Tensor, cap: Tensor, grad: Tensor) -> Tensor:
        with entered(mode):
            y = dreluop.capped_relu(x, cap)
        return torch.autograd.grad(y, x, grad, create_graph=True)[0]

    def of_the_cap(grad: Tensor) -> Tensor:
        with entered(mode):
            y = dreluop.capped_relu(x, cap)
        return torch.autograd.grad(y, cap, grad, create_graph=True)[0]

    assert gradcheck(first, (x, cap, grad))
    assert gradcheck(of_the_cap, (grad,))
    if mode == "soft":
        second = torch.autograd.grad(first(x, cap, grad).sum(), x, create_graph=True)[0]
        assert second.any()
        assert gradcheck(
            lambda x: torch.autograd.grad(first(x, cap, grad).square().sum(), x, create_graph=True)[0],
            (x,),
            fast_mode=True,
        )


def test_second_derivatives_far_outside_the_cap_are_finite() -> None:
    x = torch.tensor([[-1e3, 1.0, 1e3, 2.0]], dtype=torch.float64, requires_grad=True)
    grad = torch.ones(1, 4, dtype=torch.float64, requires_grad=True)
    with entered("soft"):
        y = dreluop.capped_relu(x, torch.tensor([-1e3, -1e3, 0.0, math.inf], dtype=torch.float64))
    dx = torch.autograd.grad(y, x, grad, create_graph=True)[0]
    second = torch.autograd.grad(dx.sum(), (x, grad))
    assert second[0][:, :3].tolist() == second[1][:, :3].tolist() == [[0, 0, 0]]
    slope = (x.detach() / (TAU * STD)).sigmoid()[:, 3]
    torch.testing.assert_close(second[1][:, 3], slope)
    torch.testing.assert_close(second[0][:, 3], slope * (1 - slope) / (TAU * STD))


@MODES
@pytest.mark.parametrize("more", [{}, {"save": "mask"}, {"adds": True}, {"balancer": 0.5}], ids=str)
def test_torch_func_grad(mode: str, more: dict[str, Any]) -> None:
    more = dict(more)
    if more.pop("adds", False):
        more |= {"bias": torch.randn(3), "residual": torch.randn(6, 3)}
    x, cap = torch.randn(6, 3), torch.tensor([0.3, 0.5, 1.0])
    weight = torch.randn(6, 3)

    def loss(x: Tensor, cap: Tensor) -> Tensor:
        result = dreluop.capped_relu(x, cap, **more)
        return (result * weight).sum() if isinstance(result, Tensor) else (result[0] * weight).sum() + result[1]

    with entered(mode):
        leaves = x.clone().requires_grad_(), cap.clone().requires_grad_()
        expected = torch.autograd.grad(loss(*leaves), leaves)
        got = torch.func.grad(loss, argnums=(0, 1))(x, cap)
        twice = torch.func.grad(lambda x: torch.func.grad(loss)(x, cap).square().sum())(x)
        jacobian = torch.func.jacrev(lambda x: dreluop.capped_relu(x, cap))(x)
    torch.testing.assert_close(got, expected)
    assert bool(twice.any()) is (mode == "soft")
    if not more:
        torch.testing.assert_close(torch.einsum("ij,ijkl->kl", weight, jacobian), expected[0])
    assert exact(activation)


@MODES
@pytest.mark.parametrize("what", ["vmap", "vmap of grad", "jvp", "forward_ad"])
def test_where_there_is_no_surrogate_it_says_so(mode: str, what: str) -> None:
    x = torch.randn(4, 3)

    def in_a_dual_level() -> None:
        with forward_ad.dual_level():
            activation(forward_ad.make_dual(x, x))

    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "vmap": (lambda: torch.vmap(activation)(x.requires_grad_()), "torch.vmap"),
        "vmap of grad": (lambda: torch.vmap(torch.func.grad(lambda row: activation(row).sum()))(x), "torch.vmap"),
        "jvp": (lambda: torch.func.jvp(activation, (x,), (x,)), "forward mode"),
        "forward_ad": (in_a_dual_level, "forward mode"),
    }
    call, where = calls[what]
    with entered(mode), pytest.raises(RuntimeError, match=f"surrogate_backward: not inside {where}"):
        call()


@MODES
def test_batched_gradients(mode: str) -> None:
    x, grads = torch.randn(6, 3, requires_grad=True), torch.randn(4, 6, 3)
    with entered(mode):
        y = dreluop.capped_relu(x, 0.5)
    batched = torch.autograd.grad(y, x, grads, retain_graph=True, is_grads_batched=True)[0]
    one_by_one = [torch.autograd.grad(y, x, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


@pytest.mark.slow
@MODES
def test_a_compiled_model_follows(mode: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), dreluop.DReLU(6, init=0.1), nn.Linear(6, 4), dreluop.SReLU(0.1))
    x = torch.randn(8, 5, requires_grad=True)

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.autograd.grad(function(x).square().sum(), x)[0]

    compiled = torch.compile(model, backend="aot_eager")
    ordinary = gradient(model)
    oracle.assert_same_bits(gradient(compiled), ordinary)
    for _ in range(2):
        with entered(mode):
            expected, got = gradient(model), gradient(compiled)
            oracle.assert_same_bits(compiled(x), model(x))
        assert not torch.equal(expected, ordinary)
        oracle.assert_same_bits(got, expected)
        oracle.assert_same_bits(gradient(compiled), ordinary)


@pytest.mark.slow
def test_a_whole_graph_cannot_follow() -> None:
    whole = torch.compile(lambda x: activation(x) * 2, backend="aot_eager", fullgraph=True)
    assert exact(whole)
    with surrogate_backward(), pytest.raises(torch._dynamo.exc.Unsupported):
        exact(whole)
    assert exact(whole)


def test_operators_called_directly_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 6), dreluop.DReLU(6))
    x = torch.randn(3, 5, requires_grad=True)
    program = torch.export.export(model, (x,)).module()
    with surrogate_backward():
        for name, arguments in (("capped_relu", ()), ("capped_relu_with_aux", (1, True, None))):
            with pytest.raises(RuntimeError, match=rf"does not reach torch.ops.dreluop.{name} called directly"):
                getattr(torch.ops.dreluop, name)(x, torch.ones(5), *arguments)
        with pytest.raises(RuntimeError, match="as exported programs do"):
            program(x)
        with torch.no_grad():
            oracle.assert_same_bits(program(x), model(x))
    torch.autograd.grad(program(x).sum(), x)


@MODES
def test_checkpoints_inside_the_block(mode: str) -> None:
    model = nn.Sequential(nn.Linear(5, 6), dreluop.DReLU(6, init=0.1), nn.Linear(6, 4))
    x = torch.randn(8, 5, requires_grad=True)
    with entered(mode):
        expected = torch.autograd.grad(model(x).sum(), x)[0]
        y = checkpoint(model, x, use_reentrant=False)
        oracle.assert_same_bits(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize("granularity", [1, 4])
@pytest.mark.parametrize("inside", ["capped_relu", "capped_relu_backward"])
def test_a_checkpoint_cannot_mix_soft_and_exact(inside: str, granularity: int) -> None:
    x = torch.randn(64, 4, requires_grad=True)
    module = dreluop.DReLU(granularity, init=0.5)
    soft = surrogate_backward("soft")
    nothing = contextlib.nullcontext()
    with soft if inside == "capped_relu" else nothing:
        y = checkpoint(module, x, use_reentrant=False)
    with pytest.raises(CheckpointError), soft if inside == "capped_relu_backward" else nothing:
        y.sum().backward()
    assert module.cap.grad is None
