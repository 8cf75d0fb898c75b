"""Every operator and implementation by pytest-benchmark: `pytest benchmarks/bench_operators.py -k ...` looks at one.

Operators by backend, granularity, memory format, dtype and size, on the processor and, where there is one, on the GPU
(with the launch and the wait for it); implementations on the cases of the processor. It is no test: pytest collects it
only when named. Nothing is interleaved: figures to quote come from `python -m benchmarks kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import dreluop
from benchmarks.harness import implementations as c
from benchmarks.harness.activations import BACKWARD, BOTH, FORWARD
from benchmarks.harness.cli import THREADS
from benchmarks.harness.interleave import release_free_memory, threads
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.table import size_name
from benchmarks.harness.workloads import Case, Data, Repeated, make_data
from benchmarks.kernel_cases import cases
from dreluop.backends.selection import operators_of
from dreluop.ops.composite import mask_order
from dreluop.ops.handles import Operators

BALANCER = 0.5
SIZES = (2**16, 2**22, 2**26)  # bytes of x
INPUTS = {
    "channel-NCHW": ("channel", (64, 32, 32), False),
    "channel-channels_last": ("channel", (64, 32, 32), True),
    "layer-NCHW": ("layer", (64, 32, 32), False),
    "neuron-dense": ("neuron", (1024,), False),
}
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
BACKENDS = [(device, backend) for device in DEVICES for backend in dreluop.available_backends(device)]


def every_call(case: Case, data: Data, calls: Operators) -> dict[str, Callable[[], Any]]:
    """One call of each operator, by name, without autograd and without dreluop's Python side.

    In-place calls write over a tensor of their own.

    Args:
        case: says what a bias looks like.
        data: x, cap and gradient of y.
        calls: the operators of a backend.
    """
    x, cap, grad = data.x, data.cap, data.grad
    y, mask, penalty = calls.capped_relu_with_aux(x, cap, 1, True, BALANCER)
    order = mask_order(y, cap)
    weight = torch.ones_like(penalty)
    bias = torch.ones_like(cap) if case.granularity == "neuron" else x.new_ones(case.shape[1])
    scratch = x.clone()
    caps = [cap] * 8
    backward = calls.capped_relu_backward
    return {
        "capped_relu": lambda: calls.capped_relu(x, cap, 1),
        "capped_relu with bias and residual": lambda: calls.capped_relu(x, cap, 1, bias, grad),
        "capped_relu_": lambda: calls.capped_relu_(scratch, cap, 1),
        "capped_relu_with_aux": lambda: calls.capped_relu_with_aux(x, cap, 1, True, BALANCER),
        "capped_relu_with_aux_": lambda: calls.capped_relu_with_aux_(scratch, cap, 1, True, BALANCER),
        "capped_relu_backward": lambda: backward(grad, y, cap, 1, (), True, True, BALANCER, weight),
        "capped_relu_backward with bias": lambda: backward(grad, y, cap, 1, (), True, True, None, None, bias),
        "capped_relu_backward from mask": lambda: backward(grad, mask, cap, 1, order, True, True, None, None),
        "capped_relu_jvp": lambda: calls.capped_relu_jvp(grad, cap, y, cap, 1, ()),
        "capped_relu_surrogate_backward": lambda: calls.capped_relu_surrogate_backward(grad, y, cap, 1, (), None),
        "capped_relu_surrogate_backward, soft": lambda: calls.capped_relu_surrogate_backward(grad, x, cap, 1, (), cap),
        "cap_saturation": lambda: calls.cap_saturation(x, cap, 1),
        "cap_penalty": lambda: calls.cap_penalty(caps, BALANCER),
        "cap_penalty_backward": lambda: calls.cap_penalty_backward(weight, caps, BALANCER),
    }


def _names() -> list[str]:
    tiny = Case("tiny", "channel", (1, 2, 2, 2), torch.float32, ())
    return list(every_call(tiny, make_data(tiny), operators_of("reference")))


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    with threads(THREADS):
        yield


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size_name(size).replace(" ", ""))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=lambda dtype: DTYPES[str(dtype)[6:]])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("device", "backend"), BACKENDS, ids=lambda value: value)
@pytest.mark.parametrize("name", _names(), ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def test_operator(
    benchmark: BenchmarkFixture, name: str, device: str, backend: str, kind: str, dtype: torch.dtype, size: int
) -> None:
    granularity, rest, channels_last = INPUTS[kind]
    per_sample = torch.Size(rest).numel() * dtype.itemsize
    case = Case(kind, granularity, (max(1, size // per_sample), *rest), dtype, (), channels_last)
    call = every_call(case, make_data(case, device=device), operators_of(backend))[name]

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.group = f"{name}, {case.label}, {size_name(size)}, {device}"
    benchmark.extra_info["x_bytes"] = case.x_bytes
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(case, name, id=f"{case.label}-{name}".replace(", ", "-").replace(" ", "-"))
        for case in cases("cpu", {})
        for name in case.implementations
    ],
)
@pytest.mark.parametrize("pass_", [FORWARD, BACKWARD, BOTH])
def test_implementation(benchmark: BenchmarkFixture, case: Case, name: str, pass_: str) -> None:
    c.forget_compiled([name])
    work = Repeated(c.IMPLEMENTATIONS[name], [make_data(case)], 1)
    forward, backward = work.first_forward, work.one_backward
    benchmark.group = f"{case.label}, {pass_}"
    prepared, timed = {
        FORWARD: (lambda: None, forward),
        BACKWARD: (lambda: forward(None), backward),
        BOTH: (lambda: None, lambda _: backward(forward(None))),
    }[pass_]

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        release_free_memory()
        return (prepared(),), {}

    # The warm-up is where torch.compile compiles.
    benchmark.pedantic(timed, setup=setup, rounds=10, warmup_rounds=2)
