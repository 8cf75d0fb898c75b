"""surrogate_backward: what it changes, in every way of calling, and that nothing of it is left outside the block."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck

import dreluop
from dreluop import surrogate
from dreluop.adaptive import measure_std, surrogate_backward
from tests import oracle
from tests.cases import FEW_CASES, LAYOUTS, OVERLAPPING, Case, dtype_id

MODES = pytest.mark.parametrize("mode", ["straight_through", "soft"])
STD = 0.7
TAU = 0.4
# Every granularity and both memory formats; a slice.
SOME_CASES = (FEW_CASES[0], FEW_CASES[4], FEW_CASES[5], FEW_CASES[8])


def entered(mode: str, tau: float = TAU, std: Any = STD) -> Any:
    return surrogate_backward(mode, tau, std=std if mode == "soft" else None)


def assert_gradient(got: Tensor, mode: str, grad: Tensor, t: Tensor, cap: Tensor, dim: int = 1) -> None:
    if mode == "straight_through":
        oracle.assert_same_bits(got, oracle.straight_through(grad, t, cap, dim))
    else:
        width = torch.full(cap.shape, TAU * STD, dtype=oracle.accumulator(t))
        oracle.assert_soft(got, grad, t, cap, width, dim)


def bias_for(case: Case) -> Tensor:
    return torch.randn(case.cap_shape if len(case.cap_shape) > 1 else (case.shape[case.dim],))


@MODES
@pytest.mark.parametrize("adds", [False, True], ids=["", "bias-residual"])
@pytest.mark.parametrize("save", ["output", "code"])
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
        dreluop.DReLU((3, 4), init=0.4, save="code"),
        lazy,
        dreluop.SReLU(0.4, inplace=True, save="code"),
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
def test_it_passes_where_the_exact_gradient_is_zero(mode: str) -> None:
    x = torch.tensor([[0.3, 0.5, 2.0]], requires_grad=True)
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


def exact(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a new forward has the ordinary backward: 0 at the cap."""
    x = torch.tensor([2.0], requires_grad=True)
    return torch.autograd.grad(function(x), x)[0].item() == 0


def activation(x: Tensor) -> Tensor:
    return dreluop.capped_relu(x, 1.0)


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
        assert 0 < outer < 0.25
        with surrogate_backward("soft", 4.0, std=1.0):
            assert outer < gradient() <= 0.25
        with entered("straight_through"):
            assert gradient() == 1
        assert gradient() == outer
        assert surrogate.active
    assert not surrogate.active


@MODES
def test_it_holds_for_its_thread_only(mode: str) -> None:
    results: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    def attack() -> None:
        with entered(mode):
            results["attacker before"] = exact(activation)
            inside.set()
            done.wait(10)
            results["attacker after"] = exact(activation)
        results["attacker outside"] = exact(activation)

    def work() -> None:
        results["started inside"] = exact(activation)

    thread = threading.Thread(target=attack)
    thread.start()
    assert inside.wait(10)
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


def test_an_ordinary_call_asks_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("asked although no thread is inside")

    monkeypatch.setattr(surrogate, "capped", fail)
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


@pytest.mark.parametrize(("mode", "tensors"), [("straight_through", 1), ("soft", 1)])
def test_what_is_kept_for_backward(mode: str, tensors: int) -> None:
    x = torch.randn(64, 64, requires_grad=True)
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), entered(mode):
        y = dreluop.capped_relu(x, 1.0)
        code = dreluop.capped_relu(x, 1.0, save="code")
    full = [t for t in kept if t.numel() == x.numel()]
    if mode == "straight_through":
        assert [t.data_ptr() for t in full] == [y.data_ptr()]
        assert sum(t.dtype == torch.uint8 and t.numel() == x.numel() // 4 for t in kept) == 1
    else:
        assert [t.data_ptr() for t in full] == [x.data_ptr()] * 2
    assert code.shape == x.shape


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


@MODES
@pytest.mark.parametrize("more", [{}, {"save": "code"}, {"adds": True}, {"balancer": 0.5}], ids=str)
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
        for name, arguments in (("forward", ()), ("forward_extra", (1, True, None))):
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
        y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
        oracle.assert_same_bits(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=dtype_id)
@pytest.mark.parametrize("case", SOME_CASES, ids=str)
def test_the_standard_deviation_of_the_batch(case: Case, dtype: torch.dtype) -> None:
    x, cap = case.inputs(dtype)
    x = torch.empty_like(x).copy_(x + 100 * oracle.spread(torch.rand(cap.shape), x, case.dim)).requires_grad_()
    grad = case.grad(dtype)
    with surrogate_backward("soft", TAU):
        y = dreluop.capped_relu(x, cap, dim=case.dim)
    got = torch.autograd.grad(y, x, grad, retain_graph=True)[0]
    owner = oracle.spread(torch.arange(cap.numel()).reshape(cap.shape), x, case.dim)
    groups = [x.detach().double()[owner == c].std(correction=0) for c in range(cap.numel())]
    std = torch.stack(groups).reshape(cap.shape)
    torch.testing.assert_close(surrogate.batch_std(x, cap, case.dim), std.to(oracle.accumulator(x)), rtol=1e-4, atol=0)
    with surrogate_backward("soft", TAU, std={cap: std}):
        given = dreluop.capped_relu(x, cap, dim=case.dim)
    expected = torch.autograd.grad(given, x, grad)[0]
    torch.testing.assert_close(got, expected, rtol=3e-2, atol=1e-4)
    # It is no constant of the graph for nothing: its own derivative is left out.
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_a_constant_cap_gets_the_width_of_the_others() -> None:
    x = torch.randn(50, 4)
    x[:, 1] = 0.1  # Whose mean in float32 is another number.
    x[:, 3] = 0.0
    std = surrogate.batch_std(x, torch.ones(4), 1)
    own = x[:, [0, 2]].std(0, correction=0)
    torch.testing.assert_close(std[[0, 2]], own)
    torch.testing.assert_close(std[[1, 3]], own.square().mean().sqrt().expand(2))


@pytest.mark.parametrize(
    ("x", "cap"),
    [
        (torch.randn(1, 3), torch.ones(3)),
        (torch.randn(1, 3, 4), torch.ones(3, 4)),
        (torch.full((8, 3), 0.1), torch.ones(())),
        (torch.full((8, 3), 0.1), torch.ones(3)),
        (torch.randn(()), torch.ones(())),
        (torch.randn(3), torch.ones(3)),
    ],
    ids=["one sample", "one sample, neuron", "constant", "constant channels", "scalar", "vector"],
)
def test_a_batch_without_a_standard_deviation_is_an_error(x: Tensor, cap: Tensor) -> None:
    x.requires_grad_()
    dim = 0 if x.ndim == 1 else 1
    with surrogate_backward("soft"), pytest.raises(ValueError, match=r"std: x of shape .* give std"):
        dreluop.capped_relu(x, cap, dim=dim)
    with surrogate_backward("soft", std=1.0):
        dreluop.capped_relu(x, cap, dim=dim).sum().backward()
    assert x.grad is not None


def test_measured_standard_deviations() -> None:
    shared = dreluop.DReLU(4, init=0.3)
    model = nn.Sequential(nn.Linear(5, 4), shared, nn.Linear(4, 4), shared, dreluop.DReLU((4,), init=0.2))
    data, before = torch.randn(64, 5), shared.cap.detach().clone()
    model.train()
    found = measure_std(model, data)
    assert set(found) == {shared.cap, model[4].cap}
    first = model[0](data)
    second = model[2](shared(first))
    expected = torch.stack([t.std(0, correction=0) for t in (first, second)]).square().mean(0).sqrt()
    torch.testing.assert_close(found[shared.cap], expected.detach())
    assert torch.equal(shared.cap, before)
    assert model.training
    x = data[:1].clone().requires_grad_()
    with surrogate_backward("soft", std=found):
        gradient = torch.autograd.grad(model(x).sum(), x)[0]
    assert gradient.any()
    with surrogate_backward("soft", std={shared.cap: 1.0}), pytest.raises(ValueError, match="std: holds nothing for"):
        model(x)
    with pytest.raises(ValueError, match="model: a Linear called no capped activation"):
        measure_std(nn.Linear(5, 4), data)
    biased = dreluop.DReLU(4)
    residual, bias = torch.randn(64, 4), torch.randn(4)
    model = nn.Linear(5, 4)
    found = measure_std(lambda t: biased(model(t), residual, bias=bias), data)
    torch.testing.assert_close(found[biased.cap], (model(data) + bias + residual).std(0, correction=0).detach())
    assert exact(activation)


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


BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "mode": (("hard",), {}, ValueError, "mode: got 'hard'; expected \"straight_through\" or \"soft\""),
    "tau_zero": (("soft", 0), {}, ValueError, "tau: got 0; expected a finite number > 0"),
    "tau_nan": (("soft", math.nan), {}, ValueError, "tau: got nan; expected a finite number > 0"),
    "tau_text": (("soft", "1"), {}, TypeError, "tau: got str; expected a number"),
    "tau_bool": (("soft", True), {}, TypeError, "tau: got bool; expected a number"),
    "std_of_the_other_form": ((), {"std": 1.0}, ValueError, 'std: got one for mode="straight_through"'),
    "std_negative": (("soft",), {"std": -1.0}, ValueError, "std: got -1.0; expected a finite number > 0"),
    "std_tensor": (("soft",), {"std": torch.ones(3)}, TypeError, "std: got Tensor; expected a number"),
    "std_key": (("soft",), {"std": {"a": 1.0}}, TypeError, "std: a cap: got str; expected a torch.Tensor"),
    "std_value": (("soft",), {"std": {torch.ones(3): "1"}}, TypeError, "std: got str; expected a number"),
    "std_shape": (
        ("soft",), {"std": {torch.ones(3): torch.ones(4)}}, ValueError, "std: got shape (4,); expected the cap's, (3,)",
    ),
    "std_zero": (
        ("soft",), {"std": {torch.ones(2): torch.tensor([1.0, 0.0])}}, ValueError,
        "std: got values that are not finite and > 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    arguments, keywords, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)), surrogate_backward(*arguments, **keywords):
        raise AssertionError("entered")
    assert not surrogate.active


def test_bad_input_of_the_activation_keeps_its_message() -> None:
    with surrogate_backward(), pytest.raises(ValueError, match="cap: got shape"):
        dreluop.capped_relu(torch.ones(2, 3, requires_grad=True), torch.ones(4))
