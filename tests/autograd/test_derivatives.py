"""Derivatives through autograd: gradcheck in every mode, the rule at ties, higher orders, what backward keeps alive."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import dreluop
from tests.support import oracle
from tests.support.backends import storages
from tests.support.cases import DTYPES, dtype_id
from tests.support.devices import moved

pytestmark = pytest.mark.usefixtures("both_nodes")


@dataclass(frozen=True)
class Granularity:
    name: str
    shape: tuple[int, ...]
    cap_shape: tuple[int, ...]
    dim: int = 1
    channels_last: bool = False

    def __str__(self) -> str:
        return self.name

    def inputs(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """fp64 leaves, every x at least 0.05 away from 0 and from its cap; one cap of several is negative."""
        cap = torch.rand(self.cap_shape, dtype=torch.float64) + 0.5
        if cap.numel() > 2:
            cap.view(-1)[1] = -0.6
        x = torch.randn(self.shape, dtype=torch.float64)
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        m = oracle.spread(cap, x, self.dim)
        for tie in (torch.zeros_like(m), m):
            x = torch.where((x - tie).abs() < 0.05, tie + 0.1, x)
        assert all(((x - tie).abs() >= 0.05).all() for tie in (m, torch.zeros(())))
        return moved(x, device).requires_grad_(), moved(cap, device).requires_grad_()


GRANULARITIES = (
    Granularity("layer", (3, 5), ()),
    Granularity("layer_1", (3, 5), (1,)),
    Granularity("scalar_x", (), ()),
    Granularity("channel", (2, 3, 2, 2), (3,)),
    Granularity("channels_last", (2, 3, 2, 2), (3,), channels_last=True),
    Granularity("last_channel", (2, 3, 4), (4,), dim=-1),
    Granularity("neuron", (3, 2, 3), (2, 3)),
    Granularity("empty", (0, 3), (3,)),
)
by_granularity = pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
by_save = pytest.mark.parametrize("save", ["output", "mask"])
by_balancer = pytest.mark.parametrize("balancer", [None, 0.7], ids=["", "balancer"])


def function_of(granularity: Granularity, save: str, balancer: float | None) -> Callable[..., Tensor]:
    return lambda x, cap: dreluop.capped_relu(x, cap, dim=granularity.dim, save=save, balancer=balancer)


@by_granularity
@by_save
@by_balancer
def test_gradcheck(device: torch.device, granularity: Granularity, save: str, balancer: float | None) -> None:
    function = function_of(granularity, save, balancer)
    batched = save == "output"
    assert gradcheck(function, granularity.inputs(device), check_forward_ad=True, check_batched_grad=batched)


@by_granularity
@by_save
@by_balancer
def test_gradgradcheck(device: torch.device, granularity: Granularity, save: str, balancer: float | None) -> None:
    function = function_of(granularity, save, balancer)
    batched = save == "output"
    assert gradgradcheck(function, granularity.inputs(device), check_fwd_over_rev=True, check_batched_grad=batched)


@by_save
@pytest.mark.parametrize("needed", ["x", "cap"])
def test_gradcheck_of_one_argument(needed: str, save: str) -> None:
    x, cap = Granularity("channel", (2, 3, 4), (3,)).inputs()
    (cap if needed == "x" else x).requires_grad_(False)
    function = function_of(GRANULARITIES[3], save, 0.7)
    assert gradcheck(function, (x, cap), check_forward_ad=True)
    assert gradgradcheck(function, (x, cap), check_fwd_over_rev=True)


def test_gradcheck_of_cap_penalty() -> None:
    caps = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((), (3,), (2, 2), (0,))]

    def function(*caps: Tensor) -> Tensor:
        return dreluop.cap_penalty(caps, 0.7)

    assert gradcheck(function, caps, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, caps, check_fwd_over_rev=True, check_batched_grad=True)


NAN, INF = math.nan, math.inf
TIES = (
    # x, cap, gradient of y -> gradient of x, gradient of the cap
    ("x_is_cap", 1.0, 1.0, 3.0, 0.0, 3.0),
    ("x_is_zero", 0.0, 1.0, 3.0, 0.0, 0.0),
    ("x_is_minus_zero", -0.0, 1.0, 3.0, 0.0, 0.0),
    ("all_zero", 0.0, 0.0, 3.0, 0.0, 0.0),
    ("cap_is_zero", 1.0, 0.0, 3.0, 0.0, 0.0),
    ("cap_is_minus_zero", 1.0, -0.0, 3.0, 0.0, 0.0),
    ("cap_is_negative", 1.0, -1.0, 3.0, 0.0, 0.0),
    ("both_are_negative_ties", -1.0, -1.0, 3.0, 0.0, 0.0),
    ("just_inside", 1.0 - 2**-20, 1.0, 3.0, 3.0, 0.0),
    ("subnormal_inside", 1e-44, 1.0, 3.0, 3.0, 0.0),
    ("x_is_nan", NAN, 1.0, 3.0, 3.0, 0.0),
    ("cap_is_nan", 1.0, NAN, 3.0, 3.0, 0.0),
    ("nan_beats_a_negative_cap", NAN, -1.0, 3.0, 3.0, 0.0),
    ("x_is_inf", INF, 1.0, 3.0, 0.0, 3.0),
    ("both_are_inf", INF, INF, 3.0, 0.0, 3.0),
    ("cap_is_inf", 1.0, INF, 3.0, 3.0, 0.0),
    ("x_is_minus_inf", -INF, 1.0, 3.0, 0.0, 0.0),
    ("off_with_inf_gradient", -1.0, 1.0, INF, 0.0, 0.0),
    ("inside_with_inf_gradient", 0.5, 1.0, INF, INF, 0.0),
    ("capped_with_inf_gradient", 2.0, 1.0, -INF, 0.0, -INF),
)


@by_save
@pytest.mark.parametrize("tie", TIES, ids=[tie[0] for tie in TIES])
def test_rule_at_ties_and_special_values(
    device: torch.device, tie: tuple[str, float, float, float, float, float], save: str
) -> None:
    def tensor(value: float, requires_grad: bool = False) -> Tensor:
        return torch.tensor([value], device=device, requires_grad=requires_grad)

    _, x_value, cap_value, g, dx, dcap = tie
    x, cap = tensor(x_value, requires_grad=True), tensor(cap_value, requires_grad=True)
    y = dreluop.capped_relu(x, cap, save=save)
    got = torch.autograd.grad(y, (x, cap), tensor(g), create_graph=True)
    assert [t.item() for t in got] == [dx, dcap]
    # The same regions serve the second derivative: u if inside, v if capped.
    if math.isfinite(g):
        grad = tensor(g, requires_grad=True)
        y = dreluop.capped_relu(x, cap, save=save)
        got = torch.autograd.grad(y, (x, cap), grad, create_graph=True)
        second = torch.autograd.grad(got, grad, (tensor(5.0), tensor(7.0)))[0]
        assert second.item() == 5 * (dx != 0) + 7 * (dcap != 0)


@by_save
@pytest.mark.parametrize("tie", TIES, ids=[tie[0] for tie in TIES])
def test_forward_mode_at_ties_and_special_values(
    device: torch.device, tie: tuple[str, float, float, float, float, float], save: str
) -> None:
    _, x_value, cap_value, _, dx, dcap = tie
    with forward_ad.dual_level():
        x, cap = (
            forward_ad.make_dual(torch.tensor([value], device=device), torch.tensor([tangent], device=device))
            for value, tangent in ((x_value, 5.0), (cap_value, 7.0))
        )
        tangent = forward_ad.unpack_dual(dreluop.capped_relu(x, cap, save=save)).tangent
        assert tangent is not None
        assert tangent.item() == 5 * (dx != 0) + 7 * (dcap != 0)


@by_save
@by_granularity
def test_third_order(device: torch.device, granularity: Granularity, save: str) -> None:
    x, cap = granularity.inputs(device)

    def third(function: Callable[..., tuple[Tensor, Tensor]]) -> list[Tensor]:
        y, penalty = function(x, cap)
        # The factor x keeps mixed derivatives of y alive.
        value = (y**4 * (1 + x)).sum() + penalty**3 + (y * cap.sum()).sum() * penalty
        results = []
        for _ in range(3):
            gradients = torch.autograd.grad(value, (x, cap), create_graph=True)
            results += gradients
            value = sum((g * g * 0.5 + g).sum() for g in gradients)
        return results

    ours = third(function_of(granularity, save, 0.7))
    plain = third(lambda x, cap: oracle.plain(x, cap, granularity.dim, 0.7))
    for got, want in zip(ours, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@by_save
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_gradient_of_every_dtype(device: torch.device, dtype: torch.dtype, save: str) -> None:
    x, cap, grad = torch.randn(64, 33).to(dtype), torch.rand(33).add(0.3), torch.randn(64, 33).to(dtype)
    x_leaf, cap_leaf = (moved(t, device).requires_grad_() for t in (x, cap))
    y = dreluop.capped_relu(x_leaf, cap_leaf, save=save)
    oracle.assert_same_bits(y.cpu(), oracle.forward(x, cap))
    y.backward(moved(grad, device))
    oracle.assert_same_bits(x_leaf.grad.cpu(), oracle.grad_x(grad, x, cap))
    oracle.assert_grad_cap(cap_leaf.grad.cpu(), grad, x, cap)


@by_save
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_gradient_of_a_sum(channels_last: bool, save: str) -> None:
    # The gradient of y is one element, expanded.
    x = torch.randn(2, 3, 5, 7)
    x = (x.to(memory_format=torch.channels_last) if channels_last else x).requires_grad_()
    cap = torch.full((3,), 0.5, requires_grad=True)
    dreluop.capped_relu(x, cap, save=save).sum().backward()
    assert torch.equal(x.grad, ((x > 0) & (x < 0.5)).float())
    assert torch.equal(cap.grad, (x >= 0.5).sum((0, 2, 3)).float())
    assert x.grad.stride() == x.stride()


BALANCER = 0.7


def penalty_of(how: str, cap: Tensor) -> Tensor:
    if how == "cap_penalty":
        return dreluop.cap_penalty(cap, BALANCER)
    return dreluop.capped_relu(torch.ones(2, 4, dtype=cap.dtype), cap, balancer=BALANCER)[1]


@pytest.mark.parametrize("how", ["cap_penalty", "capped_relu"])
def test_formulas_of_the_penalty(how: str) -> None:
    m, v, s = torch.randn(4).requires_grad_(), torch.randn(4), torch.tensor(1.5, requires_grad=True)
    penalty = penalty_of(how, m)
    assert penalty.item() == pytest.approx(BALANCER * m.square().sum().item())
    (dm,) = torch.autograd.grad(penalty, m, s, create_graph=True)
    torch.testing.assert_close(dm, 2 * BALANCER * m * s)
    second_m, second_s = torch.autograd.grad(dm, (m, s), v)
    torch.testing.assert_close(second_m, 2 * BALANCER * s.detach() * v)
    torch.testing.assert_close(second_s, 2 * BALANCER * (m.detach() * v).sum())
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(penalty_of(how, forward_ad.make_dual(m.detach(), v))).tangent
    torch.testing.assert_close(tangent, 2 * BALANCER * (m.detach() * v).sum())


@by_save
def test_gradient_of_the_penalty_alone(save: str) -> None:
    x, cap = torch.randn(5, 3, requires_grad=True), torch.rand(3, requires_grad=True)
    dreluop.capped_relu(x, cap, save=save, balancer=0.5)[1].backward()
    torch.testing.assert_close(cap.grad, cap.detach())
    assert x.grad is None or not x.grad.any()


@by_save
def test_penalty_and_activation_give_the_sum_of_their_gradients(save: str) -> None:
    x, cap = torch.full((5, 3), 2.0, requires_grad=True), torch.ones(3, requires_grad=True)
    y, penalty = dreluop.capped_relu(x, cap, save=save, balancer=0.5)
    (y.sum() + 2 * penalty).backward(retain_graph=True)
    assert cap.grad.tolist() == [5 + 2] * 3
    cap.grad = None
    y.sum().backward()
    assert cap.grad.tolist() == [5] * 3


@pytest.mark.parametrize("how", ["cap_penalty", "capped_relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_gradient_of_the_penalty_has_the_dtype_of_the_cap(how: str, dtype: torch.dtype) -> None:
    cap = torch.full((4,), 100.0, dtype=dtype, requires_grad=True)
    penalty = penalty_of(how, cap)
    assert penalty.dtype == oracle.accumulator(cap)
    penalty.backward()
    assert cap.grad.dtype == dtype
    torch.testing.assert_close(cap.grad.double(), torch.full((4,), 140.0).double(), rtol=1e-2, atol=0)


@by_balancer
@pytest.mark.parametrize("needed", ["x", "cap", "both"])
@pytest.mark.parametrize("numel", [1, 7, 4096])
def test_bytes_saved(
    device: torch.device, saved: list[Tensor], numel: int, needed: str, balancer: float | None
) -> None:
    x = torch.randn(numel, device=device, requires_grad=needed != "cap")
    cap = torch.ones(1, device=device, requires_grad=needed != "x")
    result = dreluop.capped_relu(x, cap, balancer=balancer)
    y = result if balancer is None else result[0]
    assert storages(*saved).keys() <= storages(y, cap).keys()
    saved.clear()
    result = dreluop.capped_relu(x, cap, save="mask", balancer=balancer)
    y = result if balancer is None else result[0]
    kept = storages(*saved)
    kept.pop(cap.data_ptr(), None)
    assert y.data_ptr() not in kept and x.data_ptr() not in kept
    assert sum(kept.values()) == -(-numel // 4)


@by_save
@by_balancer
def test_nothing_is_saved_where_no_gradient_is_needed(
    device: torch.device, saved: list[Tensor], save: str, balancer: float | None
) -> None:
    x, cap = torch.randn(4, 3, device=device), torch.ones(3, device=device)
    dreluop.capped_relu(x, cap, save=save, balancer=balancer)
    with torch.no_grad():
        dreluop.capped_relu(x.clone().requires_grad_(), cap, save=save, balancer=balancer)
    assert saved == []


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@by_save
@by_balancer
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.usefixtures("no_garbage_collection")
def test_no_reference_cycle_keeps_y(save: str, balancer: float | None, inplace: bool) -> None:
    x, cap = torch.randn(4, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    result = dreluop.capped_relu(x * 1, cap, save=save, balancer=balancer, inplace=inplace)
    y = result if balancer is None else result[0]
    # Nodes of C++ cannot be referred to weakly.
    held_by_node = Granularity("any", (), ())
    y.grad_fn.metadata["held"] = held_by_node
    node, y_alive = weakref.ref(held_by_node), weakref.ref(y)
    del result, y, held_by_node
    assert y_alive() is None
    assert node() is None


@pytest.mark.usefixtures("no_garbage_collection")
def test_mask_mode_frees_y_while_the_graph_lives() -> None:
    x, cap = torch.randn(4, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    y = dreluop.capped_relu(x, cap, save="mask")
    total, y_alive = y.sum(), weakref.ref(y)
    del y
    assert y_alive() is None
    total.backward()
    assert x.grad is not None


@by_save
def test_backward_twice(save: str) -> None:
    x, cap = torch.randn(4, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    y = dreluop.capped_relu(x, cap, save=save)
    first = torch.autograd.grad(y.sum(), (x, cap), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (x, cap))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


def test_output_that_was_changed_after_it_was_saved_is_an_error() -> None:
    x, cap = torch.randn(4, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    y = dreluop.capped_relu(x, cap)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_mask_mode_lets_the_output_be_changed() -> None:
    x, cap = torch.full((4, 3), 0.5, requires_grad=True), torch.ones(3, requires_grad=True)
    dreluop.capped_relu(x, cap, save="mask").add_(1).sum().backward()
    assert torch.equal(x.grad, torch.ones(4, 3))


def test_function_is_public_and_equal() -> None:
    x, cap = torch.randn(4, 3, requires_grad=True), torch.ones(3, requires_grad=True)
    y = dreluop.CappedReLUFunction.apply(x, cap)
    assert torch.equal(y, dreluop.capped_relu(x, cap)) and y.requires_grad
    assert issubclass(dreluop.CappedReLUFunction, torch.autograd.Function)
    _, mask, penalty = dreluop.CappedReLUFunction.apply(x, cap, 1, False, "mask", 0.5)
    assert (mask.dtype, mask.requires_grad, penalty.item()) == (torch.uint8, False, 1.5)
