"""CUDA graphs: captured once, replayed with other data, on other streams, beside eager calls."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import dreluop
from tests.gpu.helpers import TRAVERSALS, assert_all_same_bits, every_result, inputs
from tests.support.cases import DTYPES, Case, dtype_id


def captured(case: Case, x: Tensor, cap: Tensor, grad: Tensor) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    every_result(x, cap, grad, case.dim)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = every_result(x, cap, grad, case.dim)
    return graph, results


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", TRAVERSALS, ids=str)
def test_replays_with_other_data(case: Case, dtype: torch.dtype) -> None:
    x, cap, grad = inputs(case, dtype)
    graph, results = captured(case, x, cap, grad)
    for _ in range(3):
        # Counters that a replay leaves behind would spoil the next one.
        x.copy_(torch.randn(case.shape))
        grad.copy_(torch.randn(case.shape))
        graph.replay()
        got = [t.clone() for t in results]
        assert_all_same_bits(got, every_result(x, cap, grad, case.dim))


@pytest.mark.parametrize("case", TRAVERSALS, ids=str)
def test_replayed_on_another_stream_while_eager_calls_run(case: Case) -> None:
    x, cap, grad = inputs(case, torch.float32)
    others = torch.randn_like(x), cap, torch.randn_like(grad)
    expected, expected_eager = every_result(x, cap, grad, case.dim), every_result(*others, case.dim)
    graph, results = captured(case, x, cap, grad)
    replaying, eager = torch.cuda.Stream(), torch.cuda.Stream()
    copies, eager_results = [], []
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(replaying):
            graph.replay()
            copies.append([t.clone() for t in results])
        with torch.cuda.stream(eager):
            eager_results.append(every_result(*others, case.dim))
    torch.cuda.synchronize()
    for got, got_eager in zip(copies, eager_results, strict=True):
        assert_all_same_bits(got, expected)
        assert_all_same_bits(got_eager, expected_eager)


@pytest.mark.parametrize("case", TRAVERSALS, ids=str)
def test_two_graphs_replayed_at_once(case: Case) -> None:
    sets = [inputs(case, torch.float32), (*(torch.randn_like(t) for t in inputs(case, torch.float32)),)]
    expected = [every_result(*arguments, case.dim) for arguments in sets]
    graphs = [captured(case, *arguments) for arguments in sets]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    for _ in range(20):
        for stream, (graph, _) in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
    torch.cuda.synchronize()
    for (_, results), want in zip(graphs, expected, strict=True):
        assert_all_same_bits(results, want)


def model_of(save: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        dreluop.DReLU(16, init=0.7, save=save),
        nn.Conv2d(16, 8, 3, padding=1),
        dreluop.DReLU((8, 12, 12), init=0.5),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 10),
        dreluop.DReLU(init=0.9),
    ).cuda()


@pytest.mark.parametrize("save", ["output", "mask"])
def test_make_graphed_callables(save: str) -> None:
    model = model_of(save)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), (torch.randn(4, 3, 12, 12, device="cuda"),))
    for _ in range(3):
        data = torch.randn(4, 3, 12, 12, device="cuda")
        gradients = []
        for call in (model, graphed):
            call.zero_grad(set_to_none=True)
            call(data).square().sum().backward()
            gradients.append([p.grad.clone() for p in call.parameters()])
        for got, want in zip(*gradients, strict=True):
            # cuDNN may choose other kernels under capture.
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


class Penalized(nn.Module):
    """Gives the penalty of its caps too: that of the last cap from the activation itself."""

    def __init__(self, save: str) -> None:
        super().__init__()
        self.network = model_of(save)
        self.cap = nn.Parameter(torch.full((10,), 0.6, device="cuda"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, penalty = dreluop.capped_relu(self.network(x), self.cap, save=self.network[1].save, balancer=0.5)
        return y, penalty + dreluop.cap_penalty(self.network, 0.25)


@pytest.mark.parametrize("save", ["output", "mask"])
def test_make_graphed_callables_of_a_module_with_a_penalty(save: str) -> None:
    model = Penalized(save)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(model), (torch.randn(4, 3, 12, 12, device="cuda"),))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(4):
        data = torch.randn(4, 3, 12, 12, device="cuda")
        results = []
        for call in (model, graphed):
            call.zero_grad(set_to_none=True)
            y, penalty = call(data)
            # What a replay gives lies where the next one writes.
            results.append([y.detach().clone(), penalty.detach().clone()])
            (y.square().sum() + penalty).backward()
            results[-1] += [p.grad.clone() for p in call.parameters()]
        assert results[0][-1].any() and results[0][1] > 0
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        # The caps move, the same way in both, so that a penalty of old caps shows.
        optimizer.step()
        graphed.load_state_dict(model.state_dict())


def test_a_whole_training_step_is_captured() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, data: Tensor) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss = model(data).square().sum() + dreluop.cap_penalty(model, 0.1)
        loss.backward()
        optimizer.step()

    def network() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        caps = dreluop.DReLU(64, init=0.5)
        model = nn.Sequential(nn.Linear(32, 64), caps, nn.Linear(64, 64), dreluop.DReLU(init=0.5, save="mask")).cuda()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return model, torch.optim.SGD(model.parameters(), lr=1e-3)

    batches = torch.randn(6, 128, 32, device="cuda")
    eager, eager_optimizer = network()
    for data in batches:
        step(eager, eager_optimizer, data)

    model, optimizer = network()
    data = batches[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(model, optimizer, data)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(model, optimizer, data)
    for batch in batches[1:]:
        data.copy_(batch)
        graph.replay()
    for got, want in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


FIRST_CALL = """
import torch, dreluop
x, cap = torch.randn(64, 128, device="cuda"), torch.rand(128, device="cuda")
torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    y = dreluop.capped_relu(x, cap)
graph.replay()
torch.cuda.synchronize()
print(torch.equal(y, torch.relu(torch.minimum(x, cap))))
"""


def test_capture_as_the_first_call_of_a_process() -> None:
    # Kernels are loaded at their first launch, which here is inside a capture.
    done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stdout + done.stderr
