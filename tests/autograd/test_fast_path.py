"""The compiled node of the usual call: which calls it serves, and that it does what Python does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import dreluop
from dreluop._internal.errors import raise_as_of_torch
from dreluop.autograd import fast_path
from tests.autograd.calls import both, inputs
from tests.support import oracle
from tests.support.cases import FEW_CASES, MIXED_DTYPES, Case, mixed_id

NAME = "CappedReLUBackward"


@pytest.fixture
def served(compiled: None, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each call that reached the compiled node: whether it served."""
    call = fast_path.capped_relu
    found: list[bool] = []

    def seen(*arguments: Any) -> Tensor | None:
        assert call is not None
        result = call(*arguments)
        found.append(result is not None)
        return result

    monkeypatch.setattr(fast_path, "capped_relu", seen)
    return found


@pytest.fixture
def asked_python(compiled: None) -> Iterator[list[tuple[Any, ...]]]:
    """The arguments with which the compiled node asked Python for a backward."""
    from dreluop import _autograd  # noqa: PLC0415 (not there everywhere)

    asked: list[tuple[Any, ...]] = []

    def seen(*arguments: Any) -> Any:
        asked.append(arguments)
        return fast_path.backward_in_python(*arguments)

    _autograd.set_python(seen, raise_as_of_torch)
    yield asked
    _autograd.set_python(fast_path.backward_in_python, raise_as_of_torch)


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def jvp(x: Tensor, cap: Tensor) -> None:
    torch.func.jvp(lambda x: dreluop.capped_relu(x, cap), (x,), (x,))


def in_mode(
    mode: Callable[[], AbstractContextManager[Any]], function: Callable[[Tensor, Tensor], Any] = dreluop.capped_relu
) -> Callable[[Tensor, Tensor], None]:
    def call(x: Tensor, cap: Tensor) -> None:
        with mode():
            function(x, cap)

    return call


def refused(function: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], None]:
    def call(x: Tensor, cap: Tensor) -> None:
        with pytest.raises((TypeError, ValueError)):
            function(x, cap)

    return call


def batch_of_caps(x: Tensor, cap: Tensor) -> None:
    torch.vmap(dreluop.capped_relu, (0, None))(x.view(4, 1, 3), cap)


USUAL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "plain": dreluop.capped_relu,
    "module": lambda x, _: dreluop.DReLU(3)(x),
    "inplace": lambda x, cap: dreluop.capped_relu(x * 1, cap, inplace=True),
    "inplace_view": lambda x, cap: dreluop.capped_relu((x * 1)[:2], cap, inplace=True),
    "inplace_view_no_grad": in_mode(torch.no_grad, lambda x, cap: dreluop.capped_relu(x[:2], cap, inplace=True)),
    "mask": lambda x, cap: dreluop.capped_relu(x, cap, save="mask"),
    "balancer": lambda x, cap: dreluop.capped_relu(x, cap, balancer=0.5),
    "bias": lambda x, cap: dreluop.capped_relu(x, cap, bias=cap),
    "residual": lambda x, cap: dreluop.capped_relu(x, cap, residual=x),
    "fused_module": lambda x, cap: dreluop.DReLU(3, save="mask")(x, x, bias=cap),
    "native": in_mode(lambda: dreluop.use_backend("native")),
    "compile_mode": in_mode(lambda: dreluop.compile_mode("opaque")),
    "inplace_data": lambda x, cap: dreluop.capped_relu(x.detach().clone(), cap, inplace=True),
    "inplace_no_grad": in_mode(torch.no_grad, lambda x, cap: dreluop.capped_relu(x, cap, inplace=True)),
    "parameter_x": lambda x, cap: dreluop.capped_relu(nn.Parameter(x.detach()), cap),
    "no_grad": in_mode(torch.no_grad),
    "no_gradient_asked": lambda x, cap: dreluop.capped_relu(x.detach(), cap.detach()),
    "autocast": in_mode(lambda: torch.autocast("cpu", torch.bfloat16)),
    "hooks": in_mode(lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)),
    "anomaly": in_mode(torch.autograd.detect_anomaly),
}
UNUSUAL: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "balancer_inplace_view": lambda x, cap: dreluop.capped_relu((x * 1)[:2], cap, inplace=True, balancer=0.5),
    "balancer_of_int": lambda x, cap: dreluop.capped_relu(x, cap, balancer=1),
    "unwritable_leaf": refused(lambda x, cap: dreluop.capped_relu(x, cap, inplace=True)),
    "unwritable_view": refused(lambda x, cap: dreluop.capped_relu((x * 1).chunk(2)[0], cap, inplace=True)),
    "residual_in_x": refused(lambda x, cap: dreluop.capped_relu(y := x * 1, cap, inplace=True, residual=y)),
    "bias_of_another_shape": refused(lambda x, cap: dreluop.capped_relu(x, cap, bias=cap[:2])),
    "residual_of_another_dtype": refused(lambda x, cap: dreluop.capped_relu(x, cap, residual=x.double())),
    "number": lambda x, _: dreluop.capped_relu(x, 1.0),
    "subclass": lambda x, cap: dreluop.capped_relu(x.as_subclass(Subclass), cap),
    "backend": in_mode(lambda: dreluop.use_backend("reference")),
    "surrogate": in_mode(dreluop.adaptive.surrogate_backward),
    "dispatch_mode": in_mode(Dispatch),
    "fake": in_mode(lambda: FakeTensorMode(allow_non_fake_inputs=True)),
    "inference": in_mode(torch.inference_mode),
    "dual_level": in_mode(forward_ad.dual_level),
    "jvp": jvp,
    "vmap": batch_of_caps,
    "func_grad": lambda x, cap: torch.func.grad(lambda x: dreluop.capped_relu(x, cap).sum())(x),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", USUAL)
def test_the_usual_call_is_served(served: list[bool], name: str) -> None:
    USUAL[name](*inputs())
    assert served == [True]


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_not_usual_is_left_to_python(served: list[bool], name: str) -> None:
    UNUSUAL[name](*inputs())
    assert True not in served


def test_what_torch_traces_is_left_to_python(served: list[bool]) -> None:
    x, cap = (t.detach() for t in inputs())
    traced = torch.jit.trace(dreluop.capped_relu, (x, cap), check_trace=False)
    assert True not in served
    assert torch.equal(traced(x, cap), dreluop.capped_relu(x, cap))


def test_the_node_has_a_name_and_shows_what_it_keeps(compiled: None) -> None:
    x, cap = inputs()
    y = dreluop.capped_relu(x, cap)
    assert (type(y.grad_fn).__name__, y.grad_fn.name()) == (NAME, NAME)
    assert f"grad_fn=<{NAME}>" in repr(y)
    assert y.grad_fn._saved_cap is cap
    assert torch.equal(y.grad_fn._saved_result, y) and y.grad_fn._saved_result.grad_fn is y.grad_fn
    assert [function.variable is t for (function, _), t in zip(y.grad_fn.next_functions, (x, cap), strict=True)]
    y.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        _ = y.grad_fn._saved_result


def results(
    case: Case, dtypes: tuple[torch.dtype, torch.dtype], grad_of: Callable[[Tensor], Tensor], inplace: bool
) -> list[Tensor]:
    torch.manual_seed(0)
    x, cap = (t.requires_grad_() for t in case.inputs(*dtypes))
    given = x.clone() if inplace else x
    y = dreluop.capped_relu(given, cap, dim=case.dim, inplace=inplace)
    assert (y is given) == inplace
    return [y.detach(), *torch.autograd.grad(y, (x, cap), grad_of(y))]


GRADS: dict[str, Callable[[Tensor], Tensor]] = {
    "like_y": torch.randn_like,
    "expanded": lambda y: torch.ones((), dtype=y.dtype).expand(y.shape),
    "strided": lambda y: torch.randn(*y.shape, 2, dtype=y.dtype)[..., 0],
}


@pytest.mark.parametrize("grad", GRADS)
@pytest.mark.parametrize("dtypes", MIXED_DTYPES, ids=mixed_id)
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_it_computes_what_python_does(
    asked_python: list[Any], case: Case, dtypes: tuple[torch.dtype, torch.dtype], grad: str, inplace: bool
) -> None:
    got = results(case, dtypes, GRADS[grad], inplace)
    assert not asked_python
    with fast_path.switched_off():
        want = results(case, dtypes, GRADS[grad], inplace)
    for one, other in zip(got, want, strict=True):
        oracle.assert_same_bits(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize("wanted", ["x", "cap"])
def test_only_what_is_asked_for_is_computed(asked_python: list[Any], wanted: str) -> None:
    x, cap = inputs()
    y = dreluop.capped_relu(x, cap)
    whole = dict(zip(("x", "cap"), torch.autograd.grad(y.sum(), (x, cap), retain_graph=True), strict=True))
    (got,) = torch.autograd.grad(y.sum(), {"x": x, "cap": cap}[wanted], retain_graph=True)
    assert torch.equal(got, whole[wanted])
    torch.autograd.grad(y.sum(), {"x": x, "cap": cap}[wanted], create_graph=True)
    assert [arguments[5:7] for arguments in asked_python] == [(wanted == "x", wanted == "cap")]


@both
@pytest.mark.parametrize("leaf", ["x", "cap"])
def test_an_argument_that_needs_no_gradient_gets_none(leaf: str) -> None:
    x, cap = inputs()
    (cap if leaf == "x" else x).requires_grad_(False)
    dreluop.capped_relu(x, cap).sum().backward()
    assert (x.grad is None, cap.grad is None) == (leaf == "cap", leaf == "x")


ASKS_PYTHON: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "create_graph": lambda y, x, cap: torch.autograd.grad(y, (x, cap), torch.ones_like(y), create_graph=True),
    "batched": lambda y, x, cap: torch.autograd.grad(y, (x, cap), torch.ones(2, *y.shape), is_grads_batched=True),
    "dual": lambda y, x, cap: torch.autograd.grad(
        y, (x, cap), forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y))
    ),
}


@pytest.mark.parametrize("name", ASKS_PYTHON)
def test_other_derivatives_of_a_backward_are_those_of_python(asked_python: list[Any], name: str) -> None:
    x, cap = inputs()
    y = dreluop.capped_relu(x, cap)
    with fast_path.switched_off():
        by_python = dreluop.capped_relu(x, cap)
    with forward_ad.dual_level() if name == "dual" else nullcontext():
        got, want = (ASKS_PYTHON[name](one, x, cap) for one in (y, by_python))
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)
            if name == "dual":
                tangents = [forward_ad.unpack_dual(t).tangent for t in (one, other)]
                assert tangents[0] is not None and torch.equal(*tangents)
    assert len(asked_python) == 1


@both
def test_a_gradient_of_another_class_goes_through_its_dispatch() -> None:
    x, cap = inputs()
    grad = TwoTensor(torch.randn(4, 3), torch.randn(4, 3))
    y = dreluop.capped_relu(x, cap)
    got = torch.autograd.grad(y, (x, cap), grad, retain_graph=True)
    for name in ("a", "b"):
        want = torch.autograd.grad(y, (x, cap), getattr(grad, name), retain_graph=True)
        assert all(torch.equal(getattr(one, name), other) for one, other in zip(got, want, strict=True))


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@both
def test_a_gradient_that_is_absent_counts_as_zero() -> None:
    x, cap = inputs()
    NoGradient.apply(dreluop.capped_relu(x, cap)).sum().backward()
    assert not x.grad.any() and not cap.grad.any()


@both
def test_hooks_of_a_node() -> None:
    x, cap = inputs()
    y = dreluop.capped_relu(x, cap)
    seen: list[str] = []
    y.grad_fn.register_prehook(lambda grads: seen.append("before") or tuple(2 * grad for grad in grads))
    y.grad_fn.register_hook(lambda given, _: seen.append("after") or tuple(3 * grad for grad in given))
    doubled = torch.autograd.grad(y.sum(), (x, cap))
    assert seen == ["before", "after"]
    for got, want in zip(doubled, torch.autograd.grad(dreluop.capped_relu(x, cap).sum(), (x, cap)), strict=True):
        torch.testing.assert_close(got, 6 * want)


@both
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_names_the_forward_call() -> None:
    x, cap = inputs()
    with torch.autograd.detect_anomaly():
        y = dreluop.capped_relu(x, cap)
        with pytest.raises(RuntimeError, match="returned nan values"), pytest.warns(UserWarning, match=__name__[-13:]):
            y.backward(torch.full_like(y, torch.nan))


@both
def test_backward_in_other_threads_at_once() -> None:
    x, cap = inputs(64, 96)
    want = torch.autograd.grad(dreluop.capped_relu(x, cap).square().sum(), (x, cap))
    y = dreluop.capped_relu(x, cap).square().sum()
    found: list[Any] = []

    def run(retained: Tensor) -> None:
        for _ in range(50):
            found.append(torch.autograd.grad(retained, (x, cap), retain_graph=True))
            found.append(torch.autograd.grad(dreluop.capped_relu(x, cap).square().sum(), (x, cap)))

    threads = [threading.Thread(target=run, args=(y,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 400
    assert all(torch.equal(one, other) for got in found for one, other in zip(got, want, strict=True))


@both
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_autograd() -> None:
    x, cap = inputs()

    def loss() -> Tensor:
        return dreluop.capped_relu(x, cap).square().sum()

    want = torch.autograd.grad(loss(), (x, cap))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss().backward()
        cap.grad, x.grad = None, None
        loss().backward()
    for got, expected in zip((x.grad, cap.grad), want, strict=True):
        assert torch.equal(got, expected)


def test_a_profiler_shows_the_node(compiled: None) -> None:
    x, cap = inputs()
    with torch.profiler.profile() as profile:
        dreluop.capped_relu(x, cap).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {NAME, "dreluop::capped_relu", "dreluop::capped_relu_backward"} <= names
