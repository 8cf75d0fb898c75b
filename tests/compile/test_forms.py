"""What torch.compile sees of the activation: the rule, the selection, and that the fused form keeps the semantics."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import dreluop
from dreluop._internal import env
from dreluop.backends import compile_policy, selection
from dreluop.ops import inductor, schemas
from tests.support import fresh_python, oracle
from tests.support.cases import Case, special_values

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(autouse=True)
def default_rule() -> Any:
    with dreluop.use_backend(None), dreluop.compile_mode("auto"):
        yield


def overloads_seen(function: Callable[..., Any], *arguments: Any) -> list[str]:
    """The overloads of ours that Dynamo traces, as "operator.overload"."""
    seen: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        targets = [node.target for node in graph.graph.nodes]
        ours = [target for target in targets if getattr(target, "namespace", "") == schemas.NAMESPACE]
        seen.extend(str(target).removeprefix("dreluop.") for target in ours)
        return graph.forward

    torch.compile(function, backend=keep, fullgraph=True)(*arguments)
    return seen


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 3, 4), torch.rand(3) + 0.2


FUSED = f"capped_relu.{schemas.FUSED}"
NOTHING = contextlib.nullcontext
RULE: dict[str, tuple[Callable[[], Any], dict[str, Any], list[str]]] = {
    "default": (NOTHING, {}, [FUSED]),
    "in place": (NOTHING, {"inplace": True}, [f"capped_relu_.{schemas.FUSED}"]),
    "penalty": (NOTHING, {"balancer": 0.5}, [FUSED, "cap_penalty.default"]),
    "mask": (NOTHING, {"save": "mask"}, ["capped_relu_with_aux.default"]),
    "mask, asked to fuse": (
        lambda: dreluop.compile_mode("decompose"),
        {"save": "mask"},
        ["capped_relu_with_aux.default"],
    ),
    "asked to be opaque": (lambda: dreluop.compile_mode("opaque"), {}, ["capped_relu.default"]),
    "asked to be opaque, in place": (
        lambda: dreluop.compile_mode("opaque"),
        {"inplace": True},
        ["capped_relu_.default"],
    ),
    "on a chosen backend": (lambda: dreluop.use_backend("reference"), {}, ["capped_relu.reference"]),
}


@pytest.mark.parametrize("name", RULE)
def test_the_rule(name: str) -> None:
    context, keywords, expected = RULE[name]
    with context():
        assert overloads_seen(lambda x, cap: dreluop.capped_relu(x, cap, **keywords), *data()) == expected


def test_asked_to_fuse_on_a_chosen_backend() -> None:
    with dreluop.use_backend("reference"), dreluop.compile_mode("decompose"):
        assert overloads_seen(dreluop.capped_relu, *data()) == [FUSED]


def test_a_subclass_of_tensor_sees_the_operators_that_it_may_have_rules_for() -> None:
    x, cap = data()
    assert overloads_seen(dreluop.capped_relu, TwoTensor(x, x), cap) == ["capped_relu.default"]


def test_export_is_distinguished_from_compile() -> None:
    assert not compile_policy.exporting()
    program = torch.export.export(dreluop.SReLU(0.5), (torch.randn(3),))
    assert [str(node.target) for node in program.graph.nodes if node.op == "call_function"] == [
        "dreluop.capped_relu.default"
    ]


def test_the_choice_is_traced_anew_and_ends() -> None:
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(dreluop.capped_relu, backend=counter, fullgraph=True)
    arguments = data()
    for _ in range(2):
        compiled(*arguments)
        with dreluop.compile_mode("opaque"):
            compiled(*arguments)
    assert counter.frame_count == 2
    with pytest.raises(KeyError), dreluop.compile_mode("opaque"):
        raise KeyError
    assert selection.chosen_form() == "auto"


def test_every_thread_has_its_own_choice() -> None:
    seen: list[str] = []
    with dreluop.compile_mode("opaque"):
        thread = threading.Thread(target=lambda: seen.append(selection.chosen_form()))
        thread.start()
        thread.join()
    assert seen == [env.requested_form()]


@pytest.mark.parametrize("wrong", ["fused", "", None, 1])
def test_unknown_form(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r'form: got .*; expected "auto", "decompose" or "opaque"'):
        dreluop.compile_mode(wrong)
    assert selection.chosen_form() == "auto"


@pytest.mark.parametrize("asked", ["opaque", "later"])
def test_the_environment_chooses(asked: str) -> None:
    program = "import dreluop; from dreluop.backends import selection; print(selection.chosen_form())"
    done = fresh_python.run(program, environment={**os.environ, env.FORM_VARIABLE: asked})
    if asked == "opaque":
        assert done.stdout.split() == ["opaque"]
    else:
        assert 'DRELUOP_COMPILE: got "later"; expected "auto", "decompose" or "opaque"' in done.stderr


def graphs_of(function: Callable[..., Any], *arguments: Tensor) -> list[torch.fx.GraphModule]:
    """What a compiler gets of forward and backward, parted as inductor parts them."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    torch.compile(function, backend=backend, fullgraph=True)(*arguments).sum().backward()
    return graphs


def kept_bytes(forward: torch.fx.GraphModule) -> dict[str, int]:
    """What a forward graph returns beside its result, by name."""
    (results,) = next(iter(reversed(forward.graph.nodes))).args
    return {node.name: node.meta["val"].nbytes for node in results[1:] if node.op != "placeholder"}


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
@pytest.mark.parametrize("next_keeps_y", [False, True], ids=["", "next_keeps_y"])
def test_what_is_fused_has_no_operator_of_ours_and_keeps_no_more_than_y(inplace: bool, next_keeps_y: bool) -> None:
    x, cap = (t.requires_grad_() for t in data())

    def function(x: Tensor, cap: Tensor) -> Tensor:
        y = dreluop.capped_relu(x.sin(), cap, inplace=inplace)
        return y.square() if next_keeps_y else y

    forward, backward = graphs_of(function, x, cap)
    for graph in (forward, backward):
        targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert not [t for t in targets if getattr(t, "namespace", "aten") not in ("aten", "prims")]
        assert not [t for t in targets if hasattr(t, "_schema") and t._schema.is_mutable]
    # Where nothing else keeps y, torch may keep two masks of a byte in its place.
    kept = kept_bytes(forward)
    assert sum(kept.values()) <= x.nbytes
    assert len(kept) == 1 or not next_keeps_y
    torch._dynamo.reset()
    with dreluop.compile_mode("opaque"):
        opaque = graphs_of(function, *(t.detach().requires_grad_() for t in (x, cap)))
    assert all("dreluop" in graph.code for graph in opaque)


DTYPES = {
    "fp32": (torch.float32, torch.float32),
    "bf16_cap_fp32": (torch.bfloat16, torch.float32),
    "fp16_cap_fp32": (torch.float16, torch.float32),
}


@pytest.mark.parametrize("name", DTYPES)
def test_inductor_keeps_the_rule_at_ties_and_special_values(device: torch.device, name: str) -> None:
    dtype, cap_dtype = DTYPES[name]
    # The half types have none of these caps between 0.3 and 0.4, and some that they do have.
    cap = torch.cat([special_values(dtype).to(cap_dtype), torch.linspace(0.3, 0.4, 43, dtype=cap_dtype)])
    x = torch.cat([special_values(dtype), cap.to(dtype), torch.linspace(-1, 1, 21).to(dtype)])
    x = x.unsqueeze(1).expand(-1, len(cap)).contiguous()
    grad = torch.linspace(-1, 1, x.numel()).view_as(x).to(dtype)
    leaves = [t.to(device).requires_grad_() for t in (x, cap)]
    with dreluop.compile_mode("decompose"):
        y = torch.compile(dreluop.capped_relu, fullgraph=True)(*leaves)
        y.backward(grad.to(device))
    oracle.assert_same_bits(y.cpu(), oracle.forward(x, cap))
    oracle.assert_same_bits(leaves[0].grad.cpu(), oracle.grad_x(grad, x, cap))
    oracle.assert_grad_cap(leaves[1].grad.cpu(), grad, x, cap)


def test_inductor_rounds_the_cap_that_it_compares_y_with(device: torch.device) -> None:
    # The product keeps y, which lies rounded in memory when backward compares it with the cap.
    cap = torch.linspace(0.3, 0.4, 16, device=device, requires_grad=True)
    x = torch.linspace(-1, 1, 64 * 16, device=device).view(64, 16).bfloat16().requires_grad_()

    def function(x: Tensor, cap: Tensor) -> Tensor:
        y = dreluop.capped_relu(x * 3, cap)
        return y * y

    with dreluop.compile_mode("decompose"):
        compiled = torch.compile(function, fullgraph=True)
        got = torch.autograd.grad(compiled(x, cap).float().sum(), (x, cap))
    want = torch.autograd.grad(function(x, cap).float().sum(), (x, cap))
    assert want[1].all()
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", DTYPES)
def test_off_the_cpu_a_rounded_cap_is_read_as_integers(name: str) -> None:
    dtype, cap_dtype = DTYPES[name]
    x, cap = torch.empty(4, 3, dtype=dtype, device="meta"), torch.empty(3, dtype=cap_dtype, device="meta")
    code = make_fx(lambda x, cap: inductor.capped_relu_backward(x, x, cap, 1, (), True, True, None, None))(x, cap).code
    assert ("view.dtype" in code) == (dtype != cap_dtype)


def test_the_sum_over_many_equal_terms_stays_exact(device: torch.device) -> None:
    # Serial sums in fp32 are off by far more than the bound here.
    x, cap = torch.full((1 << 20,), 2.0), torch.tensor(1.0)
    grad = torch.full_like(x, 0.1)
    leaves = [t.to(device).requires_grad_() for t in (x, cap)]
    with dreluop.compile_mode("decompose"):
        torch.compile(dreluop.capped_relu, fullgraph=True)(*leaves).backward(grad.to(device))
    exact = float(grad[0].double()) * x.numel()
    assert math.isclose(leaves[1].grad.item(), exact, rel_tol=8 * torch.finfo(torch.float32).eps)


TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "grad": lambda f: torch.func.grad(lambda x, cap: (f(x, cap) ** 3).sum(), (0, 1)),
    "vmap": lambda f: torch.vmap(f, (0, None)),
    "per-sample gradients": lambda f: torch.vmap(
        torch.func.grad(lambda x, cap: (f(x.unsqueeze(0), cap) ** 3).sum(), (0, 1)), (0, None)
    ),
    "jvp": lambda f: lambda x, cap: torch.func.jvp(f, (x, cap), (x.cos(), cap.sin())),
}


@pytest.mark.parametrize("form", ["opaque", "decompose"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_torch_func_inside_what_is_compiled(name: str, form: str) -> None:
    arguments = torch.randn(6, 3), torch.tensor(0.7)
    function = TRANSFORMS[name](dreluop.capped_relu)
    with dreluop.compile_mode(form):  # type: ignore[arg-type]
        got = torch.compile(function, backend="aot_eager", fullgraph=True)(*arguments)
    torch.testing.assert_close(got, function(*arguments))


@pytest.mark.parametrize("form", ["opaque", "decompose"])
def test_autocast_keeps_the_cap_in_full_precision(form: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), dreluop.DReLU(6, init=0.3, inplace=True))
    data = torch.randn(32, 8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    results = []
    for call in (model, compiled):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), dreluop.compile_mode(form):  # type: ignore[arg-type]
            y = call(data)
        y.float().square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
        assert (y.dtype, model[1].cap.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", ["opaque", "decompose"])
def test_in_place_over_an_argument_is_seen_by_its_owner(form: str) -> None:
    case = Case((6, 5), ())
    x, cap = case.inputs(torch.float32)
    expected = oracle.forward(x, cap)
    with dreluop.compile_mode(form):  # type: ignore[arg-type]
        compiled = torch.compile(
            lambda x, cap: dreluop.capped_relu(x, cap, inplace=True), backend="aot_eager", fullgraph=True
        )
        y = compiled(x, cap)
        oracle.assert_same_bits(x, expected)
        assert y.data_ptr() == x.data_ptr()
        assert x._version
        with torch.inference_mode():
            x = case.inputs(torch.float32)[0]
            compiled(x, cap)
            oracle.assert_same_bits(x, expected)


@pytest.mark.parametrize("form", ["opaque", "decompose"])
@pytest.mark.parametrize("strides", [(0, 1), (3, 2)], ids=["expanded", "interleaved"])
def test_in_place_over_itself_is_refused(strides: tuple[int, int], form: str) -> None:
    x = torch.full((30,), 3.0)
    compiled = torch.compile(lambda x: dreluop.capped_relu(x, 1.0, inplace=True), backend="aot_eager", fullgraph=True)
    with (
        dreluop.compile_mode(form),  # type: ignore[arg-type]
        pytest.raises(Exception, match="has several elements at one address; use inplace=False"),
    ):
        compiled(x.as_strided((3, 4), strides))
    assert bool((x == 3).all())
