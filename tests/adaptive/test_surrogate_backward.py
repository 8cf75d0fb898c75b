"""surrogate_backward: what it changes, in every way of calling, and that nothing of it is left outside the block."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import dreluop
from dreluop.adaptive import surrogate_backward
from dreluop.autograd import surrogate
from tests.support import oracle
from tests.support.cases import LAYOUTS, OVERLAPPING, Case, dtype_id
from tests.support.patience import PATIENCE
from tests.support.surrogates import MODES, SOME_CASES, STD, TAU, activation, assert_gradient, entered, exact


def bias_for(case: Case) -> Tensor:
    return torch.randn(case.cap_shape if len(case.cap_shape) > 1 else (case.shape[case.dim],))


@MODES
@pytest.mark.parametrize("adds", [False, True], ids=["", "bias-residual"])
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", SOME_CASES, ids=str)
def test_values_stay_and_gradients_change(
    case: Case, dtype: torch.dtype, inplace: bool, save: str, adds: bool, mode: str
) -> None:
    x, cap = (t.requires_grad_() for t in case.inputs(dtype, torch.float32))
    grad = case.grad(dtype)
    adds = adds and len(case.shape) > 1
    bias = bias_for(case).requires_grad_() if adds else None
    residual = case.grad(dtype, seed=8).requires_grad_() if adds else None
    more: dict[str, Any] = {"dim": case.dim, "save": save, "balancer": 0.5, "bias": bias, "residual": residual}
    y, penalty = dreluop.capped_relu(x, cap, **more)
    base = torch.empty_like(x).copy_(x)
    with entered(mode):
        got, got_penalty = dreluop.capped_relu(base if inplace else x, cap, inplace=inplace, **more)
    oracle.assert_same_bits(got, y)
    assert got.stride() == y.stride()
    assert (got is base) is inplace
    oracle.assert_same_bits(got_penalty, penalty)

    inputs = [t for t in (x, cap, bias, residual) if t is not None]
    dx, dcap, *rest = torch.autograd.grad((got, got_penalty), inputs, (grad, torch.ones_like(got_penalty)))
    t = oracle.fused_sum(x.detach(), bias, residual, case.dim).detach()
    assert_gradient(dx, mode, grad, t, cap.detach(), case.dim)
    expected = torch.autograd.grad((y, penalty), cap, (grad, torch.ones_like(penalty)))[0]
    torch.testing.assert_close(dcap, expected)
    if adds:
        dbias, dresidual = rest
        oracle.assert_same_bits(dresidual, dx)
        if mode == "straight_through":
            total, size = oracle.sum_to_bias(dx, bias, case.dim)
            oracle.assert_sum(dbias, total, size, torch.float32)
        else:
            # Of terms that are rounded after they are added up.
            want, slack = oracle.soft(grad, t, cap.detach(), torch.full(cap.shape, TAU * STD), case.dim)
            total, size = oracle.sum_to_bias(want, bias, case.dim)
            # Where x is rounded to half, so is every term on its way back.
            error = torch.finfo(dtype).eps * size + oracle.sum_to_bias(slack, bias, case.dim)[0]
            assert (dbias.double() - total).abs().le(error + 1e-30).all()


@MODES
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize(
    "layouts",
    [("contiguous", "channels_last"), ("channels_last", "step"), ("step", "swapped"), ("expanded", "transposed")],
)
def test_values_have_the_strides_of_x_whatever_is_added(layouts: tuple[str, str], inplace: bool, mode: str) -> None:
    all_layouts = LAYOUTS | OVERLAPPING
    x, residual = (all_layouts[layout](torch.randn(3, 4, 5, 7)).requires_grad_() for layout in layouts)
    cap = torch.tensor([0.2, 0.5, 1.0, 3.0])
    y = dreluop.capped_relu(x, cap, residual=residual)
    base = torch.empty_like(x).copy_(x) if inplace else x
    with entered(mode):
        got = dreluop.capped_relu(base, cap, residual=residual, inplace=inplace)
    oracle.assert_same_bits(got, y)
    assert got.stride() == y.stride()
    grad = torch.randn(3, 4, 5, 7)
    dx, dresidual = torch.autograd.grad(got, (x, residual), grad)
    assert_gradient(dx, mode, grad, (x + residual).detach(), cap)
    oracle.assert_same_bits(dresidual, dx)


@MODES
def test_modules_of_every_kind(mode: str) -> None:
    lazy = dreluop.LazyDReLU("neuron", init=0.4)
    lazy(torch.randn(2, 3, 4))
    modules = [
        dreluop.DReLU(init=0.4),
        dreluop.DReLU(3, init=0.4, inplace=True),
        dreluop.DReLU((3, 4), init=0.4, save="mask"),
        lazy,
        dreluop.SReLU(0.4, inplace=True, save="mask"),
        dreluop.SReLU(torch.tensor([0.4, 0.2, 3.0])),
    ]
    for module in modules:
        x, grad = torch.randn(5, 3, 4, requires_grad=True), torch.randn(5, 3, 4)
        with entered(mode):
            y = module(x * 1)
        oracle.assert_same_bits(y, module(x * 1))
        assert_gradient(torch.autograd.grad(y, x, grad)[0], mode, grad, x.detach(), module.cap.detach())


@MODES
@pytest.mark.parametrize("needs", ["x", "cap", "bias", "residual"])
def test_only_what_is_asked_for_gets_a_gradient(mode: str, needs: str) -> None:
    tensors = {"x": torch.randn(6, 3), "cap": torch.rand(3), "bias": torch.randn(3), "residual": torch.randn(6, 3)}
    tensors[needs].requires_grad_()
    with entered(mode):
        y = dreluop.capped_relu(**tensors)
    y.sum().backward()
    assert [name for name, t in tensors.items() if t.grad is not None] == [needs]
    with torch.no_grad(), entered(mode):
        assert dreluop.capped_relu(**tensors).grad_fn is None


@MODES
def test_it_passes_where_the_exact_gradient_is_zero(device: torch.device, mode: str) -> None:
    x = torch.tensor([[0.3, 0.5, 2.0]], device=device, requires_grad=True)
    m = 0.1
    assert not torch.autograd.grad(dreluop.capped_relu(x, m).sum(), x)[0].any()
    with entered(mode):
        y = dreluop.capped_relu(x, m)
    gradient = torch.autograd.grad(y.sum(), x)[0]
    assert (gradient > 0).all()
    if mode == "straight_through":
        assert gradient.tolist() == [[1, 1, 1]]


@MODES
@pytest.mark.parametrize("cap", [0.0, -1.0])
def test_under_a_cap_that_is_not_positive_nothing_passes(mode: str, cap: float) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with entered(mode):
        y = dreluop.capped_relu(x, cap)
    assert not y.any()
    assert not torch.autograd.grad(y.sum(), x)[0].any()


@MODES
def test_the_choice_is_made_by_the_forward(mode: str) -> None:
    x = torch.tensor([2.0], requires_grad=True)
    outside = activation(x)
    with entered(mode):
        inside = activation(x)
        assert torch.autograd.grad(outside, x)[0].item() == 0
    assert exact(activation)
    assert torch.autograd.grad(inside, x)[0].item() > 0


@MODES
def test_nothing_is_left_after_the_block(mode: str) -> None:
    def fail() -> None:
        with entered(mode):
            assert not exact(activation)
            raise KeyError("in the block")

    def unfinished() -> Any:
        with entered(mode):
            yield

    assert exact(activation)
    with pytest.raises(KeyError):
        fail()
    assert exact(activation)
    generator = unfinished()
    next(generator)
    assert not exact(activation)
    generator.close()
    assert exact(activation)
    with pytest.raises(ValueError, match="tau"), entered(mode, tau=-1):
        pass
    assert exact(activation)
    assert not surrogate.active
    decorated = entered(mode)(lambda: exact(activation))
    assert not decorated()
    assert exact(activation)


def test_blocks_nest() -> None:
    x = torch.tensor([0.6], requires_grad=True)

    def gradient() -> float:
        return torch.autograd.grad(activation(x), x)[0].item()

    assert gradient() == 1
    with entered("soft"):
        outer = gradient()
        assert 0 < outer < 1
        with surrogate_backward("soft", 4.0, std=1.0):
            assert 0 < gradient() < outer / 2
        with entered("straight_through"):
            assert gradient() == 1
        assert gradient() == outer
        assert surrogate.active
    assert not surrogate.active


@pytest.mark.usefixtures("fresh_compiler")
def test_a_graph_that_was_left_for_it_does_not_keep_the_function_from_being_compiled() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: object) -> Any:
        graphs.append(graph)
        return graph

    with entered("soft"):
        torch.compile(lambda x: activation(x * 2), backend=keep)(x)
    graphs.clear()
    counters.clear()
    torch.compile(dreluop.capped_relu, backend=keep)(x, torch.ones(3))
    assert len(graphs) == 1
    assert counters["frames"] == {"total": 1, "ok": 1}


@MODES
def test_it_holds_for_its_thread_only(mode: str) -> None:
    results: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    def attack() -> None:
        with entered(mode):
            results["attacker before"] = exact(activation)
            inside.set()
            done.wait(PATIENCE)
            results["attacker after"] = exact(activation)
        results["attacker outside"] = exact(activation)

    def work() -> None:
        results["started inside"] = exact(activation)

    thread = threading.Thread(target=attack)
    thread.start()
    assert inside.wait(PATIENCE)
    assert surrogate.active
    results["trainer"] = exact(activation)
    with entered(mode):
        other = threading.Thread(target=work)
        other.start()
        other.join()
    results["trainer after its own block"] = exact(activation)
    done.set()
    thread.join()
    attackers = {"attacker before", "attacker after"}
    assert {name for name, is_exact in results.items() if not is_exact} == attackers
    assert len(results) == 6
    assert not surrogate.active


@MODES
def test_training_beside_attacks_is_training(mode: str) -> None:
    """Steps of an optimizer between attacks give the bits that they give without them."""

    def weights(attacks: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), dreluop.DReLU(8, init=0.2), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data, target = torch.randn(16, 6), torch.randint(3, (16,))
        for _ in range(3):
            loss = nn.functional.cross_entropy(model(data), target) + dreluop.cap_penalty(model, 0.01)
            if attacks:
                x = data.clone().requires_grad_()
                with entered(mode):
                    torch.autograd.grad(model(x).square().sum(), x)
                    # A graph of the training step may meet its backward in here.
                    optimizer.zero_grad()
                    loss.backward()
            else:
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    for with_attacks, without in zip(weights(True), weights(False), strict=True):
        oracle.assert_same_bits(with_attacks, without)


def test_under_a_large_cap_the_soft_gradient_is_near_the_exact_one() -> None:
    body = [nn.Linear(8, 32), dreluop.DReLU(1, init=100), nn.Linear(32, 32), dreluop.DReLU(init=100), nn.Linear(32, 1)]
    model, x = nn.Sequential(*body), torch.randn(64, 8, requires_grad=True)
    exact_gradient = torch.autograd.grad(model(x).sum(), x)[0]
    with surrogate_backward("soft", 0.1):
        gradient = torch.autograd.grad(model(x).sum(), x)[0]
    assert (gradient.sign() == exact_gradient.sign()).float().mean() > 0.9
    assert nn.functional.cosine_similarity(gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.95
    assert float(gradient.norm() / exact_gradient.norm()) == pytest.approx(1, abs=0.1)


def test_an_ordinary_call_asks_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("asked although no thread is inside")

    monkeypatch.setattr(surrogate, "run", fail)
    activation(torch.ones(3, requires_grad=True)).sum().backward()


@MODES
def test_in_place_writes_over_x(mode: str) -> None:
    x = torch.randn(5, 3, requires_grad=True)
    for view in (lambda t: t, lambda t: t[1:], lambda t: t.view(15)):
        base, ordinary = x * 1, x * 1
        dreluop.capped_relu(view(ordinary), 0.5, dim=0, inplace=True)
        with entered(mode):
            y = dreluop.capped_relu(view(base), 0.5, dim=0, inplace=True)
        oracle.assert_same_bits(base, ordinary)
        assert y.data_ptr() == view(base).data_ptr()
        grad = torch.randn(base.shape)
        part = view(x.detach()).clone()
        got = torch.autograd.grad(base, x, grad)[0]
        assert_gradient(view(got), mode, view(grad).contiguous(), part, torch.tensor(0.5), 0)
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="leaf"), entered(mode):
        dreluop.capped_relu(leaf, 1.0, inplace=True)
    assert leaf.tolist() == [1, 1, 1]


@MODES
def test_what_is_kept_for_backward(mode: str) -> None:
    x = torch.randn(64, 64, requires_grad=True)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), entered(mode):
        y = dreluop.capped_relu(x, 1.0)
        mask = dreluop.capped_relu(x, 1.0, save="mask")
    full = [t for t in kept if t.numel() == x.numel()]
    if mode == "straight_through":
        assert [t.data_ptr() for t in full] == [y.data_ptr()]
        assert sum(t.dtype == torch.uint8 and t.numel() == x.numel() // 4 for t in kept) == 1
    else:
        assert [t.data_ptr() for t in full] == [x.data_ptr()] * 2
    assert mask.shape == x.shape


@MODES
def test_empty_and_meta_tensors(mode: str) -> None:
    for shape, cap_shape in (((0, 4), (4,)), ((4, 0), (0,)), ((0, 3, 4), (3, 4)), ((0,), ())):
        for device in ("cpu", "meta"):
            x = torch.empty(shape, device=device, requires_grad=True)
            with surrogate_backward(mode):
                y = dreluop.capped_relu(x, torch.ones(cap_shape, device=device))
            assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    x = torch.empty(4, 3, device="meta", requires_grad=True)
    with surrogate_backward(mode):
        y = dreluop.capped_relu(x, torch.ones(3, device="meta"), residual=torch.empty(4, 3, device="meta"))
    assert torch.autograd.grad(y.sum(), x)[0].is_meta
