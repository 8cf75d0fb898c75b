"""Every operator by pytest-benchmark, for looking at one: `pytest benchmarks/kernels/bench_operators.py -k ...`.

By backend, granularity, memory format, dtype and size, on the processor and, where there is one, on the GPU (with the
launch and the wait for it). It is no test: pytest collects it only when named. Figures to quote come from the suites.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import dreluop
from benchmarks.harness.interleave import threads
from benchmarks.harness.table import DTYPES, size_name
from benchmarks.kernels.operators import every_call
from benchmarks.kernels.suite import Case, make_data
from benchmarks.kernels.targets import THREADS
from dreluop.backends.selection import operators_of

SIZES = (2**16, 2**22, 2**26)  # bytes of x
INPUTS = {
    "channel-NCHW": ("channel", (64, 32, 32), False),
    "channel-channels_last": ("channel", (64, 32, 32), True),
    "layer-NCHW": ("layer", (64, 32, 32), False),
    "neuron-dense": ("neuron", (1024,), False),
}
NAMES = (
    *(
        "capped_relu",
        "capped_relu with bias and residual",
        "capped_relu_",
        "capped_relu_with_aux",
        "capped_relu_with_aux_",
    ),
    *(
        "capped_relu_backward",
        "capped_relu_backward with bias",
        "capped_relu_backward from mask",
        "capped_relu_jvp",
        "capped_relu_surrogate_backward",
        "capped_relu_surrogate_backward, soft",
    ),
    *("cap_saturation", "cap_penalty", "cap_penalty_backward"),
)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
PLACES = [(device, backend) for device in DEVICES for backend in dreluop.available_backends(device)]


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    with threads(THREADS):
        yield


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size_name(size).replace(" ", ""))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=lambda dtype: DTYPES[str(dtype)[6:]])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize(("device", "backend"), PLACES, ids=lambda value: value)
@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.replace(", ", "-").replace(" ", "-"))
def test_speed(
    benchmark: BenchmarkFixture, name: str, device: str, backend: str, kind: str, dtype: torch.dtype, size: int
) -> None:
    granularity, rest, channels_last = INPUTS[kind]
    per_sample = torch.Size(rest).numel() * dtype.itemsize
    case = Case(kind, granularity, (max(1, size // per_sample), *rest), dtype, (), channels_last)
    data = make_data(case, device=device)
    call = every_call(case, data, operators_of(backend))[name]
    wait = torch.cuda.synchronize if device == "cuda" else None

    def run() -> None:
        call()
        if wait is not None:
            wait()

    benchmark.group = f"{name}, {kind}, {DTYPES[case.dtype_name]}, {size_name(size)}, {device}"
    benchmark.extra_info["x_bytes"] = case.x_bytes
    benchmark.pedantic(run, rounds=10, warmup_rounds=2)
