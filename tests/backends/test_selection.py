"""Which backend serves: the default rule, the choice of a thread, its errors, and what torch.compile makes of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import dreluop
from dreluop._internal import env
from dreluop.backends import selection
from dreluop.ops import schemas
from tests.support import fresh_python
from tests.support.backends import INTERPRETED, native_or_skip

OTHERS = ("reference", *(("triton",) if INTERPRETED else ()))


@pytest.fixture(autouse=True)
def default_rule() -> Iterator[None]:
    with dreluop.use_backend(None):
        yield


class Called(TorchDispatchMode):
    """The overloads of our operators that reach the backends, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == schemas.NAMESPACE:
            self.names.append(f"{function._schema.name.removeprefix('dreluop::')}.{function._overloadname}")
        return function(*args, **(kwargs or {}))


def inputs() -> tuple[Tensor, Tensor]:
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    return x, torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64, requires_grad=True)


def bias_for(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[1], dtype=x.dtype)


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "plain": dreluop.capped_relu,
    "no gradient": lambda x, cap: dreluop.capped_relu(x.detach(), cap.detach()),
    "in place": lambda x, cap: dreluop.capped_relu(x * 1, cap, inplace=True),
    "mask": lambda x, cap: dreluop.capped_relu(x, cap, save="mask"),
    "penalty in the pass": lambda x, cap: sum(dreluop.capped_relu(x, cap, balancer=0.1)),
    "bias": lambda x, cap: dreluop.capped_relu(x, cap, bias=bias_for(x)),
    "penalty": lambda x, cap: dreluop.cap_penalty([cap], 0.1),
    "saturation": lambda x, cap: dreluop.saturation(x, cap).off,
    "module": lambda x, cap: torch.nn.Sequential(dreluop.DReLU(3, init=0.5).double())(x),
}


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_forward_and_backward_are_on_the_chosen_backend(backend: Any, call: Callable[..., Tensor]) -> None:
    x, cap = inputs()
    called, elsewhere, later = Called(), Called(), Called()
    with called, dreluop.use_backend(backend):
        result = call(x, cap)

    def backward() -> None:
        with elsewhere:
            result.sum().backward()

    if result.requires_grad:
        # The choice is over, and was never made in this thread.
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
        assert {name.split(".")[1] for name in elsewhere.names} == {backend}
    with later:
        call(x, cap)
    assert {name.split(".")[1] for name in called.names} == {backend}
    assert {name.split(".")[1] for name in later.names} == {"default"}


@pytest.mark.parametrize("backend", OTHERS)
def test_second_derivatives_stay_on_the_backend_of_the_forward(backend: Any) -> None:
    x, cap = inputs()
    with dreluop.use_backend(backend):
        y = dreluop.capped_relu(x.square(), cap, balancer=0.1)
    with Called() as called:
        first = torch.autograd.grad(sum(map(torch.sum, y)), (x, cap), create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in first), (x, cap))
    assert called.names and {name.split(".")[1] for name in called.names} == {backend}


@pytest.mark.parametrize("backend", OTHERS)
def test_the_overloads_have_derivatives_of_their_own(backend: str) -> None:
    x, cap = inputs()
    operators = selection.operators_of(backend)
    assert torch.autograd.gradcheck(lambda x, cap: operators.capped_relu(x, cap, 1), (x, cap))
    with Called() as called:
        operators.capped_relu(x, cap, 1).sum().backward()
    assert called.names == [f"capped_relu.{backend}", f"capped_relu_backward.{backend}"]


def test_raw_in_place_overloads_bump_the_version() -> None:
    for which in OTHERS:
        x, cap = torch.randn(5), torch.tensor(0.5)
        before = x._version
        selection.operators_of(which).capped_relu_(x, cap, 0)
        assert x._version == before + 1


def test_as_a_function_it_holds_until_changed() -> None:
    x, cap = inputs()
    dreluop.use_backend("reference")
    with Called() as called:
        dreluop.capped_relu(x, cap)
    assert called.names == ["capped_relu.reference"]


def test_the_choice_ends_with_an_error_and_nests() -> None:
    with pytest.raises(KeyError), dreluop.use_backend("reference"):
        with dreluop.use_backend(None):
            assert selection.operators().backend is None
        assert selection.operators().backend == "reference"
        raise KeyError
    assert selection.operators().backend is None


def test_entered_later_and_again() -> None:
    chosen = dreluop.use_backend("reference")
    dreluop.use_backend(None)
    for _ in range(2):
        with chosen:
            assert selection.operators().backend == "reference"
            with chosen:
                assert selection.operators().backend == "reference"
            assert selection.operators().backend == "reference"
        assert selection.operators().backend is None


def test_made_here_and_entered_in_another_thread() -> None:
    seen: list[str | None] = []
    chosen = dreluop.use_backend("reference")
    dreluop.use_backend(None)

    def elsewhere() -> None:
        dreluop.use_backend(None)
        with chosen:
            seen.append(selection.operators().backend)
        seen.append(selection.operators().backend)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["reference", None]
    assert selection.operators().backend is None


def test_hooks_on_saved_tensors_have_their_own_choice() -> None:
    seen: list[str | None] = []

    def unpack(t: Tensor) -> Tensor:
        seen.append(selection.operators().backend)
        return t

    for options in ({}, {"save": "mask"}, {"balancer": 0.1}):
        x, cap = inputs()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack), dreluop.use_backend("reference"):
            result = dreluop.capped_relu(x, cap, **options)
        sum(t.sum() for t in (result if isinstance(result, tuple) else (result,))).backward()
    assert seen and set(seen) == {None}


def test_every_thread_has_its_own_choice() -> None:
    seen: list[str | None] = []
    with dreluop.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(selection.operators().backend))
        thread.start()
        thread.join()
    assert seen == [env.requested()]


@pytest.mark.parametrize("wrong", ["cuda", "", "Native", 1])
def test_unknown_backend(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"backend: got .*; expected \"native\", \"triton\" or \"reference\", or None"):
        dreluop.use_backend(wrong)
    assert selection.operators().backend is None


@pytest.mark.skipif(INTERPRETED, reason="the interpreter serves CPU tensors")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_backend_that_cannot_serve_the_tensor_is_an_error(call: Callable[..., Tensor]) -> None:
    x, cap = inputs()
    message = 'the backend "triton" was asked for, but cannot serve a tensor on cpu: Triton has no CPU kernels'
    with dreluop.use_backend("triton"), pytest.raises(RuntimeError, match=message):
        call(x, cap)
    with pytest.raises(
        RuntimeError, match=r"dreluop::capped_relu\.triton: cannot serve a tensor on cpu: Triton has no"
    ):
        selection.operators_of("triton").capped_relu(x.detach(), cap.detach(), 1)
    with pytest.raises(RuntimeError, match="cannot serve a tensor on cpu: Triton has no"):
        selection.operators_of("triton").capped_relu(x, cap, 1)


def test_native_where_it_is_not_loaded_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection.native, "load_error", "no such file")
    x, cap = inputs()
    dreluop.capped_relu(x, cap)
    calls = (
        lambda: dreluop.capped_relu(x, cap),
        lambda: dreluop.CappedReLUFunction.apply(x, cap),
        lambda: dreluop.cap_penalty([cap], 0.1),
    )
    for call in calls:
        with dreluop.use_backend("native"), pytest.raises(RuntimeError, match=r'"native" was asked for.*no such file'):
            call()


def test_native_serves_cpu_and_cuda_only() -> None:
    x = torch.empty(3, device="meta")
    with dreluop.use_backend("native"), pytest.raises(RuntimeError, match="serve cpu and cuda tensors, not meta"):
        dreluop.capped_relu(x, torch.empty((), device="meta"))


def test_available_backends() -> None:
    native_or_skip()
    triton = ("triton",) if INTERPRETED else ()
    assert dreluop.available_backends() == ("native", "reference", *triton)
    assert dreluop.available_backends("meta") == ("reference",)
    assert dreluop.available_backends(torch.device("cuda", 0))[-1] == "reference"


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["native", "triton", "reference"])
def test_the_environment_chooses_for_every_thread(asked: str) -> None:
    if asked == "native":
        native_or_skip()
    program = """
import threading, dreluop
from dreluop.backends import selection
seen = []
thread = threading.Thread(target=lambda: seen.append(selection._chosen.name))
thread.start(); thread.join()
print(selection._chosen.name, *seen)
"""
    done = fresh_python.run(program, environment={**os.environ, env.ENVIRONMENT_VARIABLE: asked})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [asked, asked]


@pytest.mark.slow
def test_compiled_code_follows_the_choice() -> None:
    graphs: list[list[str]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append([node.target._overloadname for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(dreluop.capped_relu, backend=backend, fullgraph=True)
    x, cap = torch.randn(5, 3), torch.rand(3)
    expected = dreluop.capped_relu(x, cap)
    for _ in range(2):
        assert torch.equal(compiled(x, cap), expected)
        with dreluop.use_backend("reference"):
            assert torch.equal(compiled(x, cap), expected)
    assert graphs == [[schemas.FUSED], ["reference"]]


def test_a_choice_inside_compiled_code() -> None:
    names_of: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        names_of.extend(getattr(node.target, "_overloadname", "") for node in graph.graph.nodes)
        return graph.forward

    def function(x: Tensor, cap: Tensor) -> Tensor:
        with dreluop.use_backend("reference"):
            y = dreluop.capped_relu(x, cap)
        return dreluop.capped_relu(y, cap)

    torch.compile(function, backend=backend, fullgraph=True)(torch.randn(5, 3), torch.rand(3))
    assert [name for name in names_of if name] == ["reference", schemas.FUSED]
    assert selection.operators().backend is None


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_compiled_training_on_a_chosen_backend(backend: Any) -> None:
    called: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        ours = [node.target for node in graph.graph.nodes if getattr(node.target, "namespace", "") == "dreluop"]
        called.extend(str(target).removeprefix("dreluop.") for target in ours)
        return make_boxed_func(graph.forward)

    x, cap = inputs()
    compiled = torch.compile(dreluop.capped_relu, backend=aot_autograd(fw_compiler=keep), fullgraph=True)
    with dreluop.use_backend(backend):
        compiled(x, cap).sum().backward()
    assert called == [f"capped_relu.{backend}", f"capped_relu_backward.{backend}"]
    x2, cap2 = (t.detach().requires_grad_() for t in (x, cap))
    dreluop.capped_relu(x2, cap2).sum().backward()
    torch.testing.assert_close((x.grad, cap.grad), (x2.grad, cap2.grad))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter serves CPU tensors")
def test_compiling_for_a_backend_that_cannot_serve_is_the_same_error() -> None:
    compiled = torch.compile(lambda x: dreluop.capped_relu(x, 1.0), backend="eager", fullgraph=True)
    with (
        dreluop.use_backend("triton"),
        pytest.raises(Exception, match="cannot serve a tensor on cpu: Triton has no CPU"),
    ):
        compiled(torch.randn(3))


DEFAULT_RULE = """
import torch, dreluop
from dreluop.backends import selection
selection.native.cuda_reason = lambda: {reason!r}
selection._complete_default_rule("cuda", "CUDA")
selection._complete_default_rule("xpu", "XPU")
has = torch._C._dispatch_has_kernel_for_dispatch_key
for key in ("CUDA", "XPU"):
    print(all(has("dreluop::" + name, key) for name in selection.SCHEMAS))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reason", "asked", "expected"),
    [
        (None, "", ["False", "True"]),
        ("no GPU for it", "", ["True", "True"]),
        ("no GPU for it", "triton", ["True", "True"]),
        ("no GPU for it", "reference", ["False", "False"]),
    ],
)
def test_the_default_rule_goes_on_where_native_does_not_serve(
    reason: str | None, asked: str, expected: list[str]
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != env.ENVIRONMENT_VARIABLE}
    environment |= {env.ENVIRONMENT_VARIABLE: asked} if asked else {}
    done = fresh_python.run(DEFAULT_RULE.format(reason=reason), environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


@pytest.mark.parametrize("serves", [True, False], ids=["triton", "reference"])
def test_the_rest_of_the_default_rule_is_triton_or_else_the_reference(
    serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_triton_reason", lambda device_type: None if serves else "no GPU for it")
    monkeypatch.setattr(selection.triton, "functions", lambda: dict.fromkeys(schemas.SCHEMAS, lambda *_: "triton"))
    monkeypatch.setattr(selection.reference, "cap_penalty", lambda *_: "reference")
    assert selection._by_default("cap_penalty")([torch.ones(())], 0.5) == ("triton" if serves else "reference")
