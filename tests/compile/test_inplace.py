"""In place in what torch.compile traces: values and gradients are those of plain torch out of place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import dreluop
from dreluop import DReLU, SReLU, capped_relu
from tests.support import oracle

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CAP = torch.tensor([0.5, 0.25, 0.75, 0.375])
BIAS = torch.tensor([0.125, -0.25, 0.5, 0.0])


@pytest.fixture(params=["opaque", "decompose"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the compiler is to see."""
    with dreluop.use_backend(None), dreluop.compile_mode(request.param):
        yield request.param


def plain(t: Tensor, cap: Tensor) -> Tensor:
    return torch.minimum(t, cap).relu()


# Each writes over x, or over a part of it; beside it, what x then is.
Form = tuple[Callable[[Tensor, Tensor, Tensor, Tensor], Any], Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]]
FORMS: dict[str, Form] = {
    "channel": (lambda x, c, b, r: capped_relu(x, c, inplace=True), lambda x, c, b, r: plain(x, c)),
    "layer": (lambda x, c, b, r: capped_relu(x, c[:1], inplace=True), lambda x, c, b, r: plain(x, c[:1])),
    "number": (lambda x, c, b, r: capped_relu(x, 0.5, inplace=True), lambda x, c, b, r: plain(x, torch.tensor(0.5))),
    "module": (lambda x, c, b, r: SReLU(0.5, inplace=True)(x), lambda x, c, b, r: plain(x, torch.tensor(0.5))),
    "bias": (lambda x, c, b, r: capped_relu(x, c, inplace=True, bias=b), lambda x, c, b, r: plain(x + b, c)),
    "residual": (lambda x, c, b, r: capped_relu(x, c, inplace=True, residual=r), lambda x, c, b, r: plain(x + r, c)),
    "mask": (lambda x, c, b, r: capped_relu(x, c, inplace=True, save="mask"), lambda x, c, b, r: plain(x, c)),
    "balancer": (lambda x, c, b, r: capped_relu(x, c, inplace=True, balancer=0.5), lambda x, c, b, r: plain(x, c)),
    "everything": (
        lambda x, c, b, r: capped_relu(x, c, inplace=True, save="mask", balancer=0.5, bias=b, residual=r),
        lambda x, c, b, r: plain(x + b + r, c),
    ),
    "rows": (
        lambda x, c, b, r: capped_relu(x[2:], c, inplace=True),
        lambda x, c, b, r: torch.cat([x[:2], plain(x[2:], c)]),
    ),
    "columns, mask": (
        lambda x, c, b, r: capped_relu(x[:, :2], c[:2], inplace=True, save="mask"),
        lambda x, c, b, r: torch.cat([plain(x[:, :2], c[:2]), x[:, 2:]], 1),
    ),
    "transposed": (lambda x, c, b, r: capped_relu(x.t(), c, inplace=True, dim=0), lambda x, c, b, r: plain(x, c)),
    "operator": (lambda x, c, b, r: torch.ops.dreluop.capped_relu_(x, c, 1, b), lambda x, c, b, r: plain(x + b, c)),
    "operator, mask": (
        lambda x, c, b, r: torch.ops.dreluop.capped_relu_with_aux_(x, c, 1, True, None),
        lambda x, c, b, r: plain(x, c),
    ),
    "no_grad": (lambda x, c, b, r: without_grad(x, c), lambda x, c, b, r: x + (plain(x, c) - x).detach()),
}


def without_grad(x: Tensor, cap: Tensor) -> None:
    with torch.no_grad():
        capped_relu(x, cap, inplace=True)


def leaves(count: int) -> list[Tensor]:
    """So many x, a cap, a bias and a residual."""
    generator = torch.Generator().manual_seed(0)
    *xs, residual = (torch.randn(6, 4, generator=generator).requires_grad_() for _ in range(count + 1))
    return [*xs, CAP.clone().requires_grad_(), BIAS.clone().requires_grad_(), residual]


# One graph for all forms: each writes over an input of its own, or over a tensor that the graph makes.
@pytest.mark.parametrize(
    "over,dynamic",
    [("inputs", False), ("intermediates", False), ("inputs", True)],
    ids=["", "intermediates", "dynamic"],
)
@pytest.mark.usefixtures("form")
def test_every_form(over: str, dynamic: bool) -> None:
    check_forms(FORMS, "aot_eager", over, dynamic)


def test_inductor() -> None:
    check_forms({name: FORMS[name] for name in ("channel", "columns, mask")}, "inductor", "inputs", False)


def check_forms(forms: dict[str, Form], backend: str, over: str, dynamic: bool) -> None:
    def function(*tensors: Tensor) -> list[Tensor]:
        *xs, cap, bias, residual = tensors
        if over == "intermediates":
            xs = [x * 1 for x in xs]
        for x, (write, _) in zip(xs, forms.values(), strict=True):
            write(x, cap, bias, residual)
        return xs

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=dynamic)
    *xs, cap, bias, residual = leaves(len(forms))
    written = [x * 1 for x in xs]
    results = compiled(*written, cap, bias, residual)
    if over == "inputs":
        assert all(result is given for result, given in zip(results, written, strict=True))
    want_xs = leaves(len(forms))
    expected = [after(x, *want_xs[-3:]) for x, (_, after) in zip(want_xs, forms.values(), strict=False)]
    grads = torch.randn(len(forms), 6, 4, generator=torch.Generator().manual_seed(1)).unbind()
    for name, y, want in zip(forms, results, expected, strict=True):
        torch.testing.assert_close(y, want, msg=lambda text, name=name: f"{name}: {text}")
    got = torch.autograd.grad(results, (*xs, cap), grads)
    want = torch.autograd.grad(expected, want_xs[:-2], grads)
    for name, one, other in zip((*forms, "cap"), got, want, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"gradient of {name}: {text}")


@pytest.mark.usefixtures("form")
def test_a_cap_alone_that_is_trained_reaches_an_input_without_a_gradient() -> None:
    x, cap = torch.randn(6, 4), CAP.clone().requires_grad_()
    before = x.clone()
    y = torch.compile(lambda x, cap: capped_relu(x, cap, inplace=True), backend="aot_eager", fullgraph=True)(x, cap)
    assert x.requires_grad and x._version == 1
    torch.testing.assert_close(y, x)
    x.sum().backward()
    oracle.assert_grad_cap(cap.grad, torch.ones(6, 4), before, CAP)


class Network(nn.Module):
    def __init__(self, inplace: bool, broken: bool) -> None:
        super().__init__()
        self.broken = broken
        self.linears = nn.ModuleList([nn.Linear(4, 4) for _ in range(5)])
        self.activations = nn.ModuleList(
            [
                DReLU(4, init=0.3, inplace=inplace),
                SReLU(0.4, inplace=inplace),
                DReLU(init=0.3, inplace=inplace, save="mask"),
                DReLU(4, init=0.3, inplace=inplace),
                DReLU(init=0.5),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for index, (linear, activation) in enumerate(zip(self.linears, self.activations, strict=True)):
            h = linear(h)
            if self.broken:
                torch._dynamo.graph_break()
            h = activation(h, x, bias=activation.cap) if index == 3 else activation(h)
        return h


@pytest.mark.parametrize("how", ["graph breaks", "by regions"])
@pytest.mark.usefixtures("form")
def test_networks_whose_activations_begin_a_graph(how: str) -> None:
    torch.manual_seed(0)
    model = Network(True, how == "graph breaks")
    eager = Network(False, False)
    eager.load_state_dict(model.state_dict())
    data = torch.randn(8, 4)
    call: nn.Module = model
    if how == "by regions":
        for activation in model.activations:
            activation.compile(backend="aot_eager", fullgraph=True)
    else:
        call = torch.compile(model, backend="aot_eager")
    for network, run in ((model, call), (eager, eager)):
        run(data).square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
    for (name, one), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


class Pair(nn.Module):
    """Two networks behind convolutions, in one graph: with one channel, and with one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, channels, kernel, padding=kernel // 2),
                DReLU(channels, init=0.3, inplace=True, save="mask"),
                nn.Conv2d(channels, 2, 1),
            )
            for channels, kernel in ((1, 3), (4, 1))
        )

    def forward(self, *xs: Tensor) -> Tensor:
        return sum(network(x).square().sum() for network, x in zip(self.networks, xs, strict=True))


def test_with_a_mask_behind_convolutions_whose_strides_are_ambiguous() -> None:
    torch.manual_seed(0)
    model = Pair()
    eager = copy.deepcopy(model)
    data = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 1, 1)
    torch.compile(model)(*data).backward()
    eager(*data).backward()
    for (name, one), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.usefixtures("form")
def test_no_write_is_left_in_the_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    def function(x: Tensor, cap: Tensor) -> Tensor:
        y, penalty = capped_relu(x.sin(), cap, inplace=True, save="mask", balancer=0.5)
        return capped_relu(y.cos(), cap, inplace=True) + penalty

    x, cap = torch.randn(6, 4).requires_grad_(), CAP.clone().requires_grad_()
    torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)(x, cap).sum().backward()
    assert len(graphs) == 2
    targets = [node.target for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    operators = [target for target in targets if isinstance(target, torch._ops.OpOverload)]
    assert operators and not [operator for operator in operators if operator._schema.is_mutable]
    assert not [target for target in targets if "auto_functionalized" in str(target)]


def test_functionalize() -> None:
    x, cap = torch.randn(6, 4), CAP.clone()

    def function(x: Tensor) -> Tensor:
        h = x * 1
        torch.ops.dreluop.capped_relu_(h[2:], cap, 1)
        torch.ops.dreluop.capped_relu_with_aux_(h[:2], cap, 1, True, None)
        return h

    torch.testing.assert_close(torch.func.functionalize(function)(x), plain(x, cap))
    overlapping = torch.ones(30).as_strided((3, 4), (3, 2))
    with pytest.raises(ValueError, match="has several elements at one address"):
        torch.func.functionalize(lambda x: torch.ops.dreluop.capped_relu_(x, cap, 1))(overlapping)
