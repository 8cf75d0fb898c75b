"""capped_relu with bias and residual: derivatives of every order and mode, what is saved, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import dreluop
from tests.autograd.test_derivatives import GRANULARITIES, Granularity
from tests.support import oracle
from tests.support.devices import moved

by_granularity = pytest.mark.parametrize("granularity", [g for g in GRANULARITIES if g.shape], ids=str)
by_save = pytest.mark.parametrize("save", ["output", "mask"])
by_balancer = pytest.mark.parametrize("balancer", [None, 0.7], ids=["", "balancer"])


def inputs(granularity: Granularity, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, cap, bias, residual: fp64 leaves whose sum keeps its distance from every tie."""
    total, cap = granularity.inputs()
    neuron = len(granularity.cap_shape) > 1
    shape = granularity.cap_shape if neuron else (granularity.shape[granularity.dim],)
    bias, residual = torch.randn(shape, dtype=torch.float64), torch.randn(granularity.shape, dtype=torch.float64)
    added = bias if neuron else oracle.spread_channels(bias, total, granularity.dim)
    x = (total.detach() - added - residual).clone(memory_format=torch.preserve_format)
    x, cap, bias, residual = (moved(t.detach(), device).requires_grad_() for t in (x, cap, bias, residual))
    return x, cap, bias, residual


@pytest.mark.slow
@by_granularity
@by_save
@by_balancer
def test_derivatives(device: torch.device, granularity: Granularity, save: Any, balancer: float | None) -> None:
    def function(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Any:
        return dreluop.capped_relu(
            x, cap, dim=granularity.dim, save=save, balancer=balancer, bias=bias, residual=residual
        )

    # A mask cannot be batched; forward mode adds first and has the same mask.
    leaves = inputs(granularity, device)
    assert gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=save == "output")
    assert gradgradcheck(function, leaves, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.slow
@by_granularity
@by_save
def test_derivatives_in_place(device: torch.device, granularity: Granularity, save: Any) -> None:
    def function(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Any:
        return dreluop.capped_relu(
            x * 1, cap, dim=granularity.dim, inplace=True, save=save, bias=bias, residual=residual
        )

    assert gradcheck(function, inputs(granularity, device), check_forward_ad=True)
    assert gradgradcheck(function, inputs(granularity, device))


@pytest.mark.slow
@by_granularity
@pytest.mark.parametrize("raw", ["capped_relu", "capped_relu_with_aux", "capped_relu_", "capped_relu_with_aux_"])
def test_derivatives_of_the_raw_operators(granularity: Granularity, raw: str) -> None:
    operator = getattr(torch.ops.dreluop, raw)

    def function(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Any:
        if raw == "capped_relu":
            return operator(x, cap, granularity.dim, bias, residual)
        if raw == "capped_relu_with_aux":
            y, _, penalty = operator(x, cap, granularity.dim, True, 0.5, bias, residual)
            return y, penalty
        y = x * 1
        if raw == "capped_relu_":
            operator(y, cap, granularity.dim, bias, residual)
            return y
        return y, operator(y, cap, granularity.dim, True, 0.5, bias, residual)[1]

    assert gradcheck(function, inputs(granularity), check_forward_ad=True)
    assert gradgradcheck(function, inputs(granularity))


@by_granularity
@by_balancer
def test_torch_func(device: torch.device, granularity: Granularity, balancer: float | None) -> None:
    leaves = tuple(t.detach() for t in inputs(granularity, device))

    def loss(*arguments: Tensor) -> Tensor:
        x, cap, bias, residual = arguments
        out = dreluop.capped_relu(x, cap, dim=granularity.dim, bias=bias, residual=residual, balancer=balancer)
        y, penalty = out if isinstance(out, tuple) else (out, 0)
        return y.square().sum() + penalty

    all_inputs = (0, 1, 2, 3)
    by_func = torch.func.grad(loss, argnums=all_inputs)(*leaves)
    by_autograd = torch.autograd.grad(loss(*(t := [leaf.requires_grad_() for leaf in leaves])), t)
    for got, want in zip(by_func, by_autograd, strict=True):
        torch.testing.assert_close(got, want)
    leaves = tuple(leaf.detach() for leaf in leaves)
    tangents = tuple(torch.randn_like(leaf) for leaf in leaves)
    _, tangent = torch.func.jvp(loss, leaves, tangents)
    torch.testing.assert_close(tangent, sum((g * t).sum() for g, t in zip(by_func, tangents, strict=True)))


def test_vmap_and_per_sample_gradients(device: torch.device) -> None:
    x, residual = (torch.randn(5, 4, 3).to(device) for _ in range(2))
    cap, bias = (torch.rand(3) + 0.5).to(device), torch.randn(3).to(device)

    def one(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return dreluop.capped_relu(x, cap, bias=bias, residual=residual)

    batched = torch.vmap(one, (0, None, None, 0))(x, cap, bias, residual)
    expected = torch.stack([one(a, cap, bias, r) for a, r in zip(x, residual, strict=True)])
    oracle.assert_same_bits(batched.cpu(), expected.cpu())
    grads = torch.vmap(torch.func.grad(lambda *a: one(*a).square().sum(), (1, 2)), (0, None, None, 0))(
        x, cap, bias, residual
    )
    for i in range(5):
        leaves = [cap.clone().requires_grad_(), bias.clone().requires_grad_()]
        expected = torch.autograd.grad(one(x[i], *leaves, residual[i]).square().sum(), leaves)
        for got, want in zip(grads, expected, strict=True):
            torch.testing.assert_close(got[i], want)


@by_save
def test_x_and_residual_share_one_gradient(save: Any) -> None:
    x, residual = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    y = dreluop.capped_relu(x, torch.rand(3) + 0.5, residual=residual, save=save)
    dx, dresidual = torch.autograd.grad(y, (x, residual), torch.randn(4, 3))
    assert dx.data_ptr() == dresidual.data_ptr()


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (3,), (2, 3), (0, 1, 2, 3)], ids=str)
@by_save
def test_only_the_wanted_gradients(needs: tuple[int, ...], save: Any) -> None:
    leaves = [torch.randn(4, 3), torch.rand(3) + 0.5, torch.randn(3), torch.randn(4, 3)]
    for index in needs:
        leaves[index].requires_grad_()
    x, cap, bias, residual = leaves
    y, penalty = dreluop.capped_relu(x, cap, bias=bias, residual=residual, save=save, balancer=0.5)
    grad = torch.randn(4, 3)
    ((y * grad).sum() + penalty).backward()
    total = oracle.fused_sum(x.detach(), bias.detach(), residual.detach())
    want = {
        0: oracle.grad_x(grad, total, cap.detach()),
        1: oracle.grad_cap(grad, total, cap.detach())[0].float() + cap.detach(),
        2: oracle.grad_bias(grad, total, cap.detach(), bias.detach())[0].float(),
    }
    want[3] = want[0]
    for index, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (index in needs)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, want[index])


@by_save
def test_nothing_but_output_or_mask_is_saved(save: Any) -> None:
    saved: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    x, residual = torch.randn(8, 16, requires_grad=True), torch.randn(8, 16, requires_grad=True)
    cap, bias = torch.ones(16, requires_grad=True), torch.zeros(16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = dreluop.capped_relu(x, cap, bias=bias, residual=residual, save=save)
    large = [t for t in saved if t.numel() > 16]
    if save == "output":
        assert [t.data_ptr() for t in large] == [y.data_ptr()]
    else:
        assert [t.numel() * t.element_size() for t in large] == [x.numel() // 4]


@pytest.mark.slow
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@by_save
@by_balancer
def test_compiled(inplace: bool, save: Any, balancer: float | None) -> None:
    leaves = [torch.randn(4, 3, 5), torch.rand(3) + 0.5, torch.randn(3), torch.randn(4, 3, 5)]

    def step(x: Tensor, cap: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        out = dreluop.capped_relu(
            x * 2, cap, inplace=inplace, save=save, balancer=balancer, bias=bias, residual=residual
        )
        y, penalty = out if isinstance(out, tuple) else (out, x.new_zeros(()))
        return y.square().sum() + penalty

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (step, compiled):
        arguments = [leaf.clone().requires_grad_() for leaf in leaves]
        function(*arguments).backward()
        grads.append([a.grad for a in arguments])
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_forward_mode_in_place() -> None:
    x, residual, cap = torch.randn(4, 3), torch.randn(4, 3), torch.rand(3) + 0.5
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.clone(), torch.ones(4, 3))
        y = dreluop.capped_relu(dual, cap, inplace=True, residual=residual)
        tangent = forward_ad.unpack_dual(y).tangent
    oracle.assert_same_bits(tangent, oracle.tangent(torch.ones(4, 3), None, x + residual, cap))


def test_the_function_by_itself_takes_tangents_of_bias_and_residual() -> None:
    x, residual, cap = torch.randn(4, 3), torch.randn(4, 3), torch.rand(3) + 0.5
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(residual, torch.ones(4, 3))
        y = dreluop.CappedReLUFunction.apply(x, cap, residual=dual)
        tangent = forward_ad.unpack_dual(y).tangent
    oracle.assert_same_bits(tangent, oracle.tangent(torch.ones(4, 3), None, oracle.fused_sum(x, None, residual), cap))


def test_modules_take_both() -> None:
    x, residual, bias = torch.randn(4, 3), torch.randn(4, 3), torch.randn(3)
    module = dreluop.DReLU(3, init=0.5)
    oracle.assert_same_bits(
        module(x, residual, bias=bias), oracle.forward(oracle.fused_sum(x, bias, residual), module.cap)
    )
    lazy = dreluop.LazyDReLU("channel", init=0.5)
    oracle.assert_same_bits(lazy(x, residual), oracle.forward(x + residual, torch.full((3,), 0.5)))
    assert isinstance(lazy, nn.Module)


X, CAP = torch.ones(2, 3, 4), torch.ones(3)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "bias no tensor": ({"bias": 1.0}, TypeError, "bias: got float"),
    "bias dtype": ({"bias": torch.ones(3, dtype=torch.int64)}, TypeError, "bias: got dtype torch.int64"),
    "bias shape": ({"bias": torch.ones(4)}, ValueError, r"bias: got shape \(4,\).*expected \(3,\)"),
    "bias device": ({"bias": torch.ones(3, device="meta")}, ValueError, "bias: got a tensor on meta"),
    "residual no tensor": ({"residual": 1.0}, TypeError, "residual: got float"),
    "residual shape": ({"residual": torch.ones(3, 4)}, ValueError, r"residual: got shape \(3, 4\)"),
    "residual dtype": ({"residual": X.bfloat16()}, TypeError, "residual: got dtype torch.bfloat16; expected x's"),
    "residual device": ({"residual": X.to("meta")}, ValueError, "residual: got a tensor on meta"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_bad_arguments(name: str, inplace: bool) -> None:
    keywords, error, message = BAD[name]
    x = X * 5
    with pytest.raises(error, match=message):
        dreluop.capped_relu(x, CAP, inplace=inplace, **keywords)
    assert bool((x == 5).all())


def test_in_place_refuses_others_in_the_memory_of_x() -> None:
    x = torch.randn(4, 3)
    for keywords, name in (({"residual": x}, "residual"), ({"bias": x[0]}, "bias")):
        with pytest.raises(ValueError, match=f"inplace: {name} lies in the memory of x"):
            dreluop.capped_relu(x, torch.ones(3), inplace=True, **keywords)
    # Out of place it is a plain doubling.
    oracle.assert_same_bits(dreluop.capped_relu(x, torch.ones(3), residual=x), oracle.forward(x + x, torch.ones(3)))
