"""``torch.jit.trace``: the graph holds the operators, and learns after loading."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dreluop
from dreluop import DReLU, SReLU, capped_relu

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Calls(nn.Module):
    """One call, with the parameters that it may use."""

    def __init__(self, call: Callable[[Calls, Tensor], Tensor], frozen: bool = False) -> None:
        super().__init__()
        self.linear, self.capped, self.fixed = nn.Linear(4, 4), DReLU(4, 0.5), SReLU(0.3)
        self.capped.cap.requires_grad_(not frozen)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.linear(x))


def with_penalty(model: Calls, x: Tensor) -> Tensor:
    y, penalty = capped_relu(x, model.capped.cap, balancer=0.1)
    return y + penalty


CALLS: dict[str, Callable[[Calls, Tensor], Tensor]] = {
    "DReLU": lambda model, x: model.capped(x),
    "SReLU": lambda model, x: model.fixed(x),
    "number": lambda _, x: capped_relu(x, 0.5),
    "mask": lambda model, x: capped_relu(x, model.capped.cap, save="mask"),
    "in_place": lambda model, x: capped_relu(x, model.capped.cap, inplace=True),
    "in_place_on_a_view": lambda model, x: capped_relu(
        x[:, 1:], model.capped.cap[1:], inplace=True, residual=x[:, 1:] * 2
    ),
    "bias_and_residual": lambda model, x: model.capped(x, x.cos(), bias=model.linear.bias),
    "balancer": with_penalty,
    "penalty": lambda model, x: model.capped(x) + model.capped.penalty(0.1) + dreluop.cap_penalty(model, 0.2),
}  # fmt: skip


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.usefixtures("both_nodes")
def test_a_trace_is_saved_and_learns(name: str, frozen: bool, tmp_path: Path) -> None:
    model, x = Calls(CALLS[name], frozen), torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(model, (x,)).save(str(tmp_path / "trace.pt"))
    loaded = torch.jit.load(str(tmp_path / "trace.pt"))
    other = torch.randn(5, 4)
    results = []
    for run in (model, loaded):
        y = run(other)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in run.parameters() if p.grad is not None)])
    got, want = results
    assert len(got) == len(want) > 2
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_trace_without_gradients_holds_the_operator(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(5, 3), DReLU(3, init=0.5)), torch.randn(4, 5)
    with torch.no_grad():
        traced = torch.jit.trace(model, (x,))
    assert "dreluop::capped_relu" in str(traced.inlined_graph)
    assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: capped_relu(x, torch.ones(3)), r"cap: got shape \(3,\)"),
        (lambda x: capped_relu(x, 1.0, inplace=True, residual=x), "inplace: residual lies in the memory of x"),
        (lambda x: capped_relu(x, 1.0, dim="a"), "dim: got str"),
    ],
    ids=["shape", "memory", "dim"],
)
def test_bad_input_is_named_in_a_trace_too(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        torch.jit.trace(call, (torch.randn(2, 4),))
    assert not torch.jit.is_tracing()


TRANSFORMED: dict[str, Callable[[Tensor], Tensor]] = {
    "vmap": torch.vmap(lambda x: capped_relu(x, 1.0)),
    "grad": torch.func.grad(lambda x: capped_relu(x, torch.ones(4), save="mask", inplace=True).sum()),
    "functionalize": torch.func.functionalize(lambda x: capped_relu(x, 1.0)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_are_refused_in_a_sentence(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"capped_relu: not in torch\.jit\.trace of torch\.vmap or another"):
        torch.jit.trace(TRANSFORMED[name], (torch.randn(2, 4),))


def test_the_graph_of_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard._pytorch_graph import graph  # noqa: PLC0415 (not there everywhere)

    definition, _ = graph(nn.Sequential(nn.Linear(4, 4), DReLU(4)), torch.randn(2, 4))
    assert any("dreluop::capped_relu" in node.op for node in definition.node)
