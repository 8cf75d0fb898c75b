"""torch.compile and torch.export: no graph break, the same bits; fake tensors have the strides of real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dreluop
from tests.support import oracle
from tests.support.cases import CASES, FEW_CASES, Case
from tests.support.devices import moved

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.fixture(params=["opaque", "decompose"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the compiler is to see."""
    with dreluop.compile_mode(request.param):
        yield request.param


Result = tuple[Tensor, ...]
CHANNELS_LAST = Case((4, 16, 9, 9), (16,), layout="channels_last")


def forward_and_backward(
    function: Callable[..., Any],
    case: Case,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    cap_dtype: torch.dtype | None = None,
) -> Result:
    x, cap = (moved(t, device).requires_grad_() for t in case.inputs(dtype, cap_dtype))
    results = function(x, cap)
    results = results if isinstance(results, tuple) else (results,)
    loss = (results[0] * case.grad(dtype).to(device)).sum() + sum(part.sum() for part in results[1:])
    return (*(part.detach() for part in results), *torch.autograd.grad(loss, (x, cap)))


def assert_same(got: Result, want: Result) -> None:
    *got, dcap = got
    *want, expected = want
    for one, other in zip(got, want, strict=True):
        oracle.assert_same_bits(one.cpu(), other.cpu())
        assert one.stride() == other.stride()
    # Its terms are added in another order where a compiled graph gives y's gradient other strides.
    torch.testing.assert_close(dcap, expected, rtol=1e-4, atol=1e-5)
    assert dcap.stride() == expected.stride()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "output": dreluop.capped_relu,
    "mask": lambda x, cap: dreluop.capped_relu(x, cap, save="mask"),
    "balancer": lambda x, cap: dreluop.capped_relu(x, cap, balancer=0.5),
    "mask_balancer": lambda x, cap: dreluop.capped_relu(x, cap, save="mask", balancer=0.5),
    "inplace": lambda x, cap: dreluop.capped_relu(x * 2, cap, inplace=True),
    "inplace_mask": lambda x, cap: dreluop.capped_relu(x * 2, cap, save="mask", inplace=True),
    "inplace_balancer": lambda x, cap: dreluop.capped_relu(x * 2, cap, balancer=0.5, inplace=True),
    "bias": lambda x, cap: dreluop.capped_relu(x, cap, bias=cap),
    "residual": lambda x, cap: dreluop.capped_relu(x, cap, residual=x * x),
    "everything": lambda x, cap: dreluop.capped_relu(
        x * 2, cap, balancer=0.5, inplace=True, bias=cap * cap, residual=x
    ),
    "everything_mask": lambda x, cap: dreluop.capped_relu(
        x, cap, save="mask", balancer=0.5, bias=cap, residual=x.cos()
    ),
    "number": lambda x, cap: dreluop.capped_relu(x, 0.5) * cap.sum(),
    "cap_penalty": lambda x, cap: (x.relu(), dreluop.cap_penalty([cap, cap * 2], 0.5)),
    "operator_forward": lambda x, cap: torch.ops.dreluop.capped_relu(x, cap, 1),
    "operator_forward_extra": lambda x, cap: torch.ops.dreluop.capped_relu_with_aux(x, cap, 1, True, 0.5)[::2],
}


# aot_eager traces, functionalizes and differentiates as inductor does, in a fraction of its time.
@pytest.mark.parametrize("case", [Case((6, 35, 33), (35,), layout="narrow"), CHANNELS_LAST], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.usefixtures("form")
def test_traced_without_a_graph_break(device: torch.device, name: str, case: Case) -> None:
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got, want = (forward_and_backward(f, case, device=device) for f in (compiled, function))
    assert_same(got, want)


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("case", FEW_CASES, ids=str)
def test_every_granularity_is_traced(case: Case, save: str) -> None:
    def function(x: Tensor, cap: Tensor) -> Any:
        return dreluop.capped_relu(x, cap, dim=case.dim, save=save, balancer=0.5)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same(*(forward_and_backward(f, case, torch.bfloat16, cap_dtype=torch.float32) for f in (compiled, function)))


# Those of the full tier differ from them in what aot_eager traces too.
@pytest.mark.parametrize(
    "name",
    ["output", "everything", *(pytest.param(name, marks=pytest.mark.full) for name in ("mask_balancer", "inplace"))],
)
@pytest.mark.usefixtures("form")
def test_inductor(device: torch.device, name: str) -> None:
    function = FUNCTIONS[name]
    compiled = torch.compile(function, fullgraph=True)
    got, want = (forward_and_backward(f, CHANNELS_LAST, device=device) for f in (compiled, function))
    assert_same(got, want)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("mode", ["default", pytest.param("reduce-overhead", marks=pytest.mark.full)])
def test_inductor_model(mode: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        dreluop.DReLU(6, init=0.3),
        nn.Conv2d(6, 4, 3),
        dreluop.DReLU((4, 5, 5), init=0.3, save="mask"),
        nn.Flatten(),
        nn.Linear(100, 7),
        dreluop.DReLU(init=0.3, inplace=True),
        dreluop.SReLU(0.2),
    )
    data = torch.randn(2, 3, 9, 9)

    def step(call: Callable[[Tensor], Tensor]) -> Result:
        model.zero_grad()
        loss = call(data).square().sum() + dreluop.cap_penalty(model, 0.1)
        loss.backward()
        return loss.detach(), *(p.grad.clone() for p in model.parameters())

    compiled = torch.compile(model, fullgraph=True, mode=mode)
    for got, want in zip(step(compiled), step(model), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "found"])
@pytest.mark.parametrize("case", [Case((1, 16, 4), (16,)), Case((1, 6), ()), Case((1, 3, 4), (3, 4))], ids=str)
@pytest.mark.usefixtures("form")
def test_a_new_batch_size_is_no_reason_to_compile_again(case: Case, dynamic: bool | None) -> None:
    def function(x: Tensor, cap: Tensor) -> Any:
        return dreluop.capped_relu(x * 2, cap, inplace=True, balancer=0.5, residual=x)

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter, dynamic=dynamic)
    for batch in (5, 7, 8, 13):
        one = replace(case, shape=(batch, *case.shape[1:]))
        assert_same(forward_and_backward(compiled, one), forward_and_backward(function, one))
    # Without a mark, torch takes the second size for a sign that there will be more.
    assert counter.frame_count == (1 if dynamic else 2)


@pytest.mark.parametrize("message", ["cap: got shape", "balancer: got -1"])
def test_a_bad_argument_keeps_its_message(message: str) -> None:
    def function(x: Tensor) -> Any:
        if message.startswith("cap"):
            return dreluop.capped_relu(x, torch.ones(7))
        return dreluop.capped_relu(x, 1.0, balancer=-1)

    with pytest.raises(Exception, match=message):
        torch.compile(function, backend="aot_eager")(torch.ones(2, 3))


@pytest.mark.parametrize("inplace", [False, True], ids=["", "inplace"])
def test_export(inplace: bool) -> None:
    model = nn.Sequential(nn.Linear(5, 6), dreluop.DReLU(6, init=0.3, inplace=inplace), dreluop.SReLU(0.2))
    data = torch.randn(4, 5)
    program = torch.export.export(model, (data,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert any("dreluop" in str(node.target) for node in program.graph.nodes)
    for batch in (4, 9):
        data = torch.randn(batch, 5)
        torch.testing.assert_close(program.module()(data), model(data), rtol=0, atol=0)


def signature(results: Any) -> list[tuple[Any, ...]]:
    results = results if isinstance(results, tuple | list) else (results,)
    return [(tuple(t.shape), t.stride(), t.dtype) for t in results]


def every_operator(x: Tensor, cap: Tensor, grad: Tensor, case: Case) -> list[tuple[Any, ...]]:
    ops = torch.ops.dreluop
    y, mask, _ = extra = ops.capped_relu_with_aux(x, cap, case.dim, True, 0.5)
    results = signature(extra) + signature(ops.capped_relu(x, cap, case.dim))
    results += signature(ops.cap_penalty([cap], 0.5)) + signature(
        ops.cap_penalty_backward(cap.new_ones(()), [cap], 0.5)
    )
    if x.ndim:
        results += signature(ops.cap_saturation(x, cap, case.dim))
    for saved, order in ((y, []), (mask, oracle.mask_order(y, cap))):
        for need_x, need_cap in ((True, True), (False, True), (True, False)):
            gradients = ops.capped_relu_backward(grad, saved, cap, case.dim, order, need_x, need_cap, None, None)
            results += signature(gradients)
        results += signature(ops.capped_relu_jvp(grad, cap, saved, cap, case.dim, order))
        results += signature(ops.capped_relu_surrogate_backward(grad, saved, cap, case.dim, order, None))
    results += signature(ops.capped_relu_surrogate_backward(grad, x, cap, case.dim, [], cap))
    if not case.overlaps:
        strided = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
        results += signature(ops.capped_relu_with_aux_(strided, cap, case.dim, True, 0.5))
        results += signature(ops.capped_relu_backward(grad, strided, cap, case.dim, [], True, True, None, None))
    return results


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float64)], ids=["", "mixed"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_and_meta_results_are_laid_out_as_real_ones(
    device: torch.device, case: Case, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    x, cap = (moved(t, device) for t in case.inputs(*dtypes))
    grad = case.grad(x.dtype).to(device)
    real = every_operator(x, cap, grad, case)
    with FakeTensorMode() as mode:
        fakes = (mode.from_tensor(t) for t in (x, cap, grad))
        assert every_operator(*fakes, case) == real
    meta = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (x, cap, grad))
    assert every_operator(*meta, case) == real


@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_public_functions_on_meta_tensors(case: Case, save: str) -> None:
    def run(x: Tensor, cap: Tensor) -> list[tuple[Any, ...]]:
        x, cap = x.detach().requires_grad_(), cap.detach().requires_grad_()
        y, penalty = dreluop.capped_relu(x, cap, dim=case.dim, save=save, balancer=0.5)
        gradients = torch.autograd.grad(y.sum() + penalty, (x, cap))
        return signature((y, penalty, *gradients, dreluop.cap_penalty(cap, 1.0)))

    x, cap = case.inputs(torch.float32)
    meta = (torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in (x, cap))
    assert run(*meta) == run(x, cap)
