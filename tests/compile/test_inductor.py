"""What inductor itself compiles: every way to call the activation, with any batch size, and with CUDA graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import cudagraph_trees

import dreluop
from tests.support.devices import DEVICES

pytestmark = pytest.mark.usefixtures("fresh_compiler")

CHANNELS = 6
BATCH = 7


@pytest.fixture(params=["opaque", "decompose"])
def form(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the compiler is to see."""
    with dreluop.compile_mode(request.param):
        yield request.param


# How each of the calls goes; all of them are made of one x.
FUNCTIONAL: list[dict[str, Any]] = [
    {"save": save, "balancer": balancer, "bias_and_residual": bias_and_residual, "inplace": inplace}
    for save in ("output", "mask")
    for balancer, bias_and_residual, inplace in (
        (None, False, False),
        (0.5, False, True),
        (None, True, True),
        (0.5, True, False),
    )
]


class Everything(nn.Module):
    """Every way to call the functions and the modules, each with a cap of its own: one compilation tests them all."""

    def __init__(self) -> None:
        super().__init__()
        self.modules_alone = nn.ModuleList(
            [
                dreluop.DReLU(CHANNELS, init=0.5),
                dreluop.DReLU(init=0.4, save="mask"),
                dreluop.DReLU((CHANNELS, 4), init=0.3),
                dreluop.SReLU(0.6),
            ]
        )
        self.with_bias_and_residual = nn.ModuleList(
            [dreluop.DReLU(CHANNELS, init=0.5), dreluop.DReLU(CHANNELS, init=0.5, save="mask")]
        )
        self.caps = nn.ParameterList([torch.rand(CHANNELS) for _ in FUNCTIONAL])
        self.bias = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x: Tensor, residual: Tensor) -> list[Tensor]:
        results = [module(x) for module in self.modules_alone]
        results += [module(x, residual, bias=self.bias) for module in self.with_bias_and_residual]
        for how, cap in zip(FUNCTIONAL, self.caps, strict=True):
            added = {"bias": self.bias, "residual": residual} if how["bias_and_residual"] else {}
            start = x * 1 if how["inplace"] else x
            result = dreluop.capped_relu(
                start, cap, save=how["save"], balancer=how["balancer"], inplace=how["inplace"], **added
            )
            results += result if isinstance(result, tuple) else [result]
        return [*results, dreluop.cap_penalty(self, 0.25)]


def everything_on(device: torch.device) -> Everything:
    torch.manual_seed(0)
    return Everything().to(device)


def step(
    model: nn.Module, call: Callable[..., list[Tensor]], batch: int, device: torch.device, seed: int = 0
) -> list[Tensor]:
    """All results and all gradients, copied: the next replay of a CUDA graph writes over them."""
    generator = torch.Generator().manual_seed(seed)
    x, residual, grad = (torch.randn(batch, CHANNELS, 4, generator=generator).to(device) for _ in range(3))
    leaves = [x.requires_grad_(), residual.requires_grad_(), *model.parameters()]
    results = call(x, residual)
    # Another gradient for each call, and for each element.
    loss = sum((number + 1) * (grad * y if y.ndim else y).sum() for number, y in enumerate(results))
    gradients = torch.autograd.grad(loss, leaves)
    return [t.detach().clone() for t in (*results, *gradients)]


def assert_close(got: list[Tensor], want: list[Tensor]) -> None:
    for index, (one, other) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=1e-4, msg=lambda text, index=index: f"result {index}: {text}"
        )
        assert other.abs().sum() > 0, "a result of zeros tests nothing"


@pytest.mark.usefixtures("form")
def test_any_batch_size_is_compiled_once(device: torch.device) -> None:
    model = everything_on(device)
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(model, fullgraph=True, backend=counter)

    def call(x: Tensor, residual: Tensor) -> list[Tensor]:
        # An error where the compiler finds that the size has to be a constant.
        for t in (x, residual):
            torch._dynamo.mark_dynamic(t, 0)
        return compiled(x, residual)

    for batch in (5, BATCH, 64, 2):
        assert_close(step(model, call, batch, device), step(model, model, batch, device))
    assert counter.frame_count == 1


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every replay of a CUDA graph by inductor."""
    seen: list[int] = []
    replay = cudagraph_trees.CUDAGraphNode.run

    def counted(node: cudagraph_trees.CUDAGraphNode, *arguments: Any) -> Any:
        seen.append(node.id.id)
        return replay(node, *arguments)

    monkeypatch.setattr(cudagraph_trees.CUDAGraphNode, "run", counted)
    return seen


# On a CPU, where there are no CUDA graphs, this is another compilation of the same.
MARKS = {"cpu": pytest.mark.full, "cuda": pytest.mark.gpu}


@pytest.mark.parametrize("device", [pytest.param(name, marks=MARKS[name]) for name in DEVICES], indirect=True)
@pytest.mark.usefixtures("form")
def test_reduced_overhead(device: torch.device, replays: list[int]) -> None:
    model = everything_on(device)
    compiled = torch.compile(model, fullgraph=True, mode="reduce-overhead")
    counters.clear()
    # A first run as it is, one that is recorded, and replays with other data.
    for run in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        assert_close(step(model, compiled, BATCH, device, run), step(model, model, BATCH, device, run))
    if device.type == "cuda":
        assert counters["inductor"]["cudagraph_skips"] == 0
        # Of the five runs, three are replays, of a graph forward and one backward.
        assert sum(count >= 2 for count in Counter(replays).values()) >= 2, replays
