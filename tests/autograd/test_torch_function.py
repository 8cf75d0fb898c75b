"""``__torch_function__``: torch.fx, wrappers, modes and subclasses of Tensor, as with ``F.prelu``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import dreluop
from dreluop import DReLU, LazyDReLU, SReLU, capped_relu, surgery
from tests.support import oracle
from tests.support.optional import torchvision_or_skip

X = torch.randn(3, 4)
CAP = torch.rand(4)
MODULE = DReLU(4, 0.5)


class Wrapped:
    """No Tensor. It notes each call in ``calls`` and wraps the results."""

    calls: ClassVar[list[tuple[Any, tuple[Any, ...], dict[str, Any]]]] = []

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append((function, args, kwargs or {}))
        args, kwargs = tree_map(lambda one: one.tensor if isinstance(one, cls) else one, (args, kwargs or {}))
        return tree_map(lambda one: cls(one) if isinstance(one, Tensor) else one, function(*args, **kwargs))


class Subclass(Tensor):
    """With Tensor's own ``__torch_function__``."""


class Refusing:
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class Seen(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.functions: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


# Each with a tensor in one place after the other; `make` wraps it.
CALLS: dict[str, tuple[Any, Callable[[Callable[[Tensor], Any]], Any]]] = {
    "x": (capped_relu, lambda make: capped_relu(make(X), CAP)),
    "x_number": (capped_relu, lambda make: capped_relu(make(X), 0.5)),
    "cap": (capped_relu, lambda make: capped_relu(X, make(CAP))),
    "bias": (capped_relu, lambda make: capped_relu(X, CAP, bias=make(CAP))),
    "residual": (capped_relu, lambda make: capped_relu(X, CAP, residual=make(X.cos()))),
    "balancer": (capped_relu, lambda make: capped_relu(make(X), CAP, balancer=0.5, save="mask")),
    "inplace": (capped_relu, lambda make: capped_relu(make(X.clone()), CAP, inplace=True)),
    "dim": (capped_relu, lambda make: capped_relu(make(X.T), CAP, dim=0)),
    "DReLU": (capped_relu, lambda make: DReLU(4, 0.5)(make(X), bias=CAP)),
    "SReLU": (capped_relu, lambda make: SReLU(0.5)(X, make(X))),
    "penalty": (dreluop.cap_penalty, lambda make: dreluop.cap_penalty(make(CAP), 0.5)),
    "penalties": (dreluop.cap_penalty, lambda make: dreluop.cap_penalty([CAP, make(CAP)], 0.5)),
    "saturation": (dreluop.saturation, lambda make: dreluop.saturation(make(X), CAP)),
    "saturation_cap": (dreluop.saturation, lambda make: dreluop.saturation(X, make(CAP), dim=1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrapper_gets_the_call_and_its_result(name: str) -> None:
    function, call = CALLS[name]
    Wrapped.calls.clear()
    got, want = call(Wrapped), call(lambda tensor: tensor)
    assert [called for called, _, _ in Wrapped.calls] == [function]
    pairs = zip(*((one if isinstance(one, tuple) else (one,)) for one in (got, want)), strict=True)
    assert all(torch.equal(a.tensor, b) for a, b in pairs)


def test_a_handler_gets_every_argument() -> None:
    Wrapped.calls.clear()
    x, bias = Wrapped(X), CAP.cos()
    capped_relu(x, CAP, dim=-1, save="mask", balancer=0.5, bias=bias, above="zero")
    expected = {"dim": -1, "inplace": False, "save": "mask", "balancer": 0.5, "bias": bias, "residual": None}
    expected |= {"above": "zero", "nan": "propagate"}
    _, args, kwargs = Wrapped.calls[0]
    assert args[0] is x and args[1] is CAP and kwargs == expected


@pytest.mark.parametrize("options", [{"above": "propagate"}, {"nan": "cap"}, {"above": ["zero"]}])
def test_a_wrong_option_is_refused_for_any_type(options: dict[str, Any]) -> None:
    for x in (X, Wrapped(X), X.as_subclass(Subclass)):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: got"):
            capped_relu(x, CAP, dim=-1, **options)


def test_a_type_that_handles_nothing_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="capped_relu"):
        capped_relu(Refusing(), 1.0)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", CALLS)
def test_a_subclass_gives_what_it_gives_to_prelu(name: str) -> None:
    _, call = CALLS[name]
    results = call(lambda tensor: tensor.as_subclass(Subclass))
    assert type(functional.prelu(X.as_subclass(Subclass), CAP)) is Subclass
    for got, want in zip(results if isinstance(results, tuple) else (results,), _tuple(call(lambda t: t)), strict=True):
        assert type(got) is Subclass
        oracle.assert_same_bits(got.as_subclass(Tensor), want)


def _tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def test_a_subclass_learns() -> None:
    x, cap = (t.clone().requires_grad_() for t in (X, CAP))
    capped_relu(x.as_subclass(Subclass), cap).sum().backward()
    assert x.grad is not None and cap.grad is not None
    oracle.assert_same_bits(torch.Tensor(x.grad), oracle.grad_x(torch.ones_like(X), X, CAP))
    oracle.assert_grad_cap(torch.Tensor(cap.grad), torch.ones_like(X), X, CAP)


def test_a_subclass_in_place_is_written() -> None:
    x = X.clone().as_subclass(Subclass)
    assert capped_relu(x, CAP, inplace=True) is x
    oracle.assert_same_bits(x.as_subclass(Tensor), oracle.forward(X, CAP))


@pytest.mark.usefixtures("both_nodes")
@pytest.mark.parametrize("name", CALLS)
def test_a_mode_sees_one_call(name: str) -> None:
    function, call = CALLS[name]
    want = _tuple(call(lambda tensor: tensor))
    with Seen() as mode:
        got = _tuple(call(lambda tensor: tensor))
    assert mode.functions.count(function) == 1
    assert not any("dreluop" in str(seen) for seen in mode.functions if seen is not function)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_default_device_is_a_mode() -> None:
    with torch.device("cpu"):
        oracle.assert_same_bits(capped_relu(X, CAP), oracle.forward(X, CAP))


def test_the_caps_of_a_module_under_a_mode() -> None:
    with Seen():
        assert dreluop.cap_penalty(nn.Sequential(DReLU(2, 2.0)), 0.5).item() == 4


def test_saturation_is_still_a_named_tuple() -> None:
    counted = dreluop.saturation(X, CAP)
    by_name = dreluop.Saturation(**counted._asdict())
    for baseline in (by_name, pickle.loads(pickle.dumps(counted)), dreluop.Saturation(*counted), counted._replace()):
        assert type(baseline) is dreluop.Saturation and torch.equal(baseline.has_gradient, counted.has_gradient)


class Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.capped, self.fixed = nn.Linear(4, 4), DReLU(4, 0.5, save="mask"), SReLU(0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.capped(self.linear(x), x, bias=self.linear.bias)
        y, penalty = capped_relu(y, self.capped.cap, balancer=0.5)
        penalty = penalty + self.capped.penalty(0.1) + dreluop.cap_penalty(self, 0.2)
        return self.fixed(y), penalty, dreluop.saturation(y, self.capped.cap).has_gradient


def test_symbolic_trace_makes_one_node_of_each_call() -> None:
    model = Everything()
    traced = fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    counts = [targets.count(f) for f in (capped_relu, dreluop.cap_penalty, dreluop.saturation)]
    assert counts == [3, 2, 1]
    assert {"capped.cap", "fixed.cap"} <= {node.target for node in traced.graph.nodes if node.op == "get_attr"}
    assert all(torch.equal(a, b) for a, b in zip(traced(X), model(X), strict=True))
    y, penalty, _ = traced(X)
    (y.sum() + penalty).backward()
    got = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    y, penalty, _ = model(X)
    (y.sum() + penalty).backward()
    assert all(a is not None and torch.equal(a, p.grad) for a, p in zip(got, model.parameters(), strict=True))


def test_tracing_in_place_and_pickling_what_was_traced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), DReLU(4, 0.5, inplace=True))
    traced = fx.symbolic_trace(model)
    assert torch.equal(traced(X), model(X))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(X), model(X))


def test_fusing_a_convolution_and_its_batch_norm() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), DReLU(4, 0.5)).eval()
    fused = fuse(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fused(x), model(x))


def test_surgery_looks_into_a_forward_that_calls_the_function() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.cap = nn.Linear(4, 4), nn.Parameter(CAP.clone())

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.linear(capped_relu(x, self.cap)))

    model = Block()
    report = surgery.replace_activations(model, granularity="layer", init=0.25)
    assert len(report.sites) == 1 and not report.remaining
    want = oracle.forward(model.linear(oracle.forward(X, CAP)).detach(), torch.tensor(0.25))
    oracle.assert_same_bits(model(X).detach(), want)
    assert torch.equal(fx.symbolic_trace(model)(X), model(X))


def test_a_lazy_module_says_that_it_must_run_before() -> None:
    with pytest.raises(TypeError, match=r"x: got Proxy; expected a torch.Tensor in the first call .* before tracing"):
        fx.symbolic_trace(nn.Sequential(LazyDReLU("channel")))


def test_an_uninitialized_cap_keeps_its_message() -> None:
    with pytest.raises(ValueError, match=r"caps\[0\]: got the cap of a LazyDReLU without a shape"):
        dreluop.cap_penalty(LazyDReLU().cap, 1.0)


def test_torch_compile_leaves_subclasses_to_the_operators(fresh_compiler: None) -> None:
    y = torch.compile(lambda x: capped_relu(x, CAP), backend="eager", fullgraph=True)(X.as_subclass(Subclass))
    assert type(y) is Subclass
    oracle.assert_same_bits(y.as_subclass(Tensor), oracle.forward(X, CAP))


class Holder:
    """No Tensor, with a handler that the compiler can trace."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*[one.tensor if isinstance(one, cls) else one for one in args], **(kwargs or {}))


HELD: dict[str, Callable[[Any], Any]] = {
    "capped_relu": lambda held: capped_relu(held, CAP, dim=-1),
    "number": lambda held: capped_relu(held, 0.5, bias=CAP),
    "module": MODULE,
    "cap_penalty": lambda held: dreluop.cap_penalty(held, 0.5),
    "saturation": lambda held: dreluop.saturation(held, CAP).inside,
}


@pytest.mark.parametrize("name", HELD)
def test_torch_compile_calls_the_handler_of_what_is_no_tensor(fresh_compiler: None, name: str) -> None:
    call = HELD[name]
    got = torch.compile(lambda x: call(Holder(x)), backend="eager", fullgraph=True)(X)
    torch.testing.assert_close(got, call(X), rtol=1e-6, atol=0)


def test_torch_compile_under_a_default_device(fresh_compiler: None) -> None:
    with torch.device("cpu"):
        y = torch.compile(lambda x: capped_relu(x, CAP, bias=CAP), backend="aot_eager", fullgraph=True)(X)
    assert torch.equal(y, capped_relu(X, CAP, bias=CAP))


def test_the_feature_extractor_of_torchvision() -> None:
    extraction = torchvision_or_skip("torchvision.models.feature_extraction")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), DReLU(4, 0.5), nn.Conv2d(4, 2, 3)).eval()
    features = extraction.create_feature_extractor(model, {"1": "activation"})
    x = torch.randn(1, 3, 6, 6)
    assert torch.equal(features(x)["activation"], model[:2](x))
