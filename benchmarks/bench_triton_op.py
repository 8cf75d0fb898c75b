"""What torch.compile makes of our forward kernels, opaque or traced: `python -m benchmarks triton-op --help`.

===============  =====================================================================================
implementation   what the compiler sees of ``capped_relu``, without gradients
===============  =====================================================================================
opaque, Triton   an operator, run by Triton: ``use_backend("triton")``
triton_op        the same kernel and launch, by ``triton_op`` and ``wrap_triton`` (traced_forward.py)
opaque, native   an operator, run by the native kernels
fused            standard operators
===============  =====================================================================================

Two times of a call: by the host's clock over many calls in a row, and between events, the host being ahead.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import dreluop
from benchmarks.bench_compile import COMPILER, graphs_skipped
from benchmarks.harness import cuda_graphs
from benchmarks.harness import implementations as c
from benchmarks.harness.attempts import attempt
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.interleave import Budget, Sampler, Samples, Timed, interleave
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Column, Table, facts, pivot, size_name
from dreluop.backends.selection import BackendName, Form

TRACED = "triton_op"
OPAQUE: dict[str, BackendName] = {"opaque, Triton": "triton", "opaque, native": "native"}
FUSED = "fused"
IMPLEMENTATIONS = ("opaque, Triton", TRACED, "opaque, native", FUSED)

ALONE, POINTWISE, LINEAR = "alone", "x * 2 before, + 1 after", "between linear layers"
FEATURES = 512
SMALL, MIDDLE, LARGE = 2**17, 2**24, 2**28  # bytes of x
BUDGET = Budget(seconds=0.1, min_samples=7, max_samples=15, warmup=1, sample_seconds=0)
WARM_UP = 4  # calls: the last one replays CUDA graphs, which the second records
AHEAD = 5  # calls between events, which the host is to have launched before the first of them begins
HEAD_START = 20 * cuda_graphs.HEAD_START  # clock cycles for that
CYCLES_PER_MS = 2_000_000  # at most: of an H100

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """x of shape (rows, ``FEATURES``), a cap per feature, and what is computed before and after the activation.

    Attributes:
        graphs: compiled with ``mode="reduce-overhead"``.
        seconds: what it takes on an H100, about.
    """

    rows: int
    dtype: torch.dtype
    between: str
    graphs: bool
    implementations: tuple[str, ...] = IMPLEMENTATIONS
    seconds: float = 3.0

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def x_bytes(self) -> int:
        return self.rows * FEATURES * self.dtype.itemsize

    @property
    def calls(self) -> int:
        """Of a sample by the host's clock: some milliseconds."""
        return 20 if self.x_bytes >= LARGE else 100

    @property
    def label(self) -> str:
        graphs = ", CUDA graphs" if self.graphs else ""
        return f"{self.rows} x {FEATURES}, {DTYPES[self.dtype_name]}, {self.between}{graphs}"


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case]:
    """The more telling first; CUDA graphs where the host could be what is waited for."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        # The same shape in both dtypes.
        of = {SMALL: 64, **{size: size // (FEATURES * dtype.itemsize) for size in (MIDDLE, LARGE)}}
        for size, between in ((SMALL, (ALONE, POINTWISE, LINEAR)), (MIDDLE, (ALONE, POINTWISE))):
            found += [Case(of[size], dtype, name, graphs) for name in between for graphs in (False, True)]
        found += [Case(of[LARGE], dtype, name, False) for name in (ALONE, POINTWISE)]
    return found[:1] if settings.get("quick") else found


@contextlib.contextmanager
def chosen(implementation: str) -> Iterator[None]:
    """What torch.compile shall see, and which backend runs it."""
    form: Form = "opaque" if implementation in OPAQUE else "decompose"
    with dreluop.use_backend(OPAQUE.get(implementation)), dreluop.compile_mode(form):
        yield


def activation(implementation: str, x: Tensor, cap: Tensor) -> Function:
    """What an implementation computes the activation of this x by."""
    if implementation != TRACED:
        return dreluop.capped_relu
    from benchmarks import traced_forward  # noqa: PLC0415 (imports triton)

    launch = [int(value) for value in traced_forward.planned(x, cap)]
    return lambda x, cap: traced_forward.forward(x, cap, launch)


def network(between: str, function: Function, weights: tuple[Tensor, Tensor]) -> Function:
    """The activation with its neighbors; the weights are of linear layers."""
    if between == ALONE:
        return function
    if between == POINTWISE:
        return lambda x, cap: function(x * 2, cap) + 1
    first, second = weights
    return lambda x, cap: linear(function(linear(x, first), cap), second)


def run(case: Case, with_: Run) -> list[dict[str, Any]]:
    """Time a call of every implementation; one that fails, is wrong or has no time left is left out, with a reason."""
    platform = with_.platform
    torch._dynamo.reset()
    platform.release()
    generator = torch.Generator(platform.device).manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=platform.device).to(case.dtype)

    x, cap = random(case.rows, FEATURES), random(FEATURES).float().abs()
    weights = random(FEATURES, FEATURES) / FEATURES**0.5, random(FEATURES, FEATURES) / FEATURES**0.5
    if case.graphs:
        for tensor in (x, cap, *weights):
            # As what an earlier layer leaves in a graph: else the graph would copy x first.
            torch._dynamo.mark_static_address(tensor)
    expected = network(case.between, lambda x, cap: c.relu_minimum(x, cap, 1), weights)(x, cap)

    def begin(name: str) -> Callable[[int], None]:
        return _begun(case, name, network(case.between, activation(name, x, cap), weights), (x, cap), expected)

    begun, failures = attempt(case.implementations, begin, platform.release, with_.until)
    sampler: Sampler = platform.sample
    if sampler is cuda_graphs.sample:
        sampler = functools.partial(cuda_graphs.sample, head_start=HEAD_START)
    in_a_row = _samples(begun, case.calls, cuda_graphs.sample_in_a_row)
    ahead = _samples(begun, AHEAD, sampler)
    return [
        *(_row(case, name, found, ahead[name]) for name, found in in_a_row.items()),
        *failures,
    ]


def _begun(
    case: Case, name: str, function: Function, inputs: tuple[Tensor, Tensor], expected: Tensor
) -> Callable[[int], None]:
    """What makes so many calls of the compiled function, which has been compared with what is expected."""
    options: dict[str, Any] = {"mode": "reduce-overhead"} if case.graphs else {}
    compiled = torch.compile(function, dynamic=False, fullgraph=True, backend=COMPILER, **options)
    skipped = graphs_skipped()

    def calls(number: int) -> None:
        with chosen(name):
            for _ in range(number):
                compiled(*inputs)

    calls(WARM_UP)
    if case.graphs and graphs_skipped() > skipped:
        raise RuntimeError("torch.compile left CUDA graphs out")
    with chosen(name):
        torch.testing.assert_close(compiled(*inputs), expected)
    return calls


def _samples(begun: Mapping[str, Callable[[int], None]], number: int, sampler: Sampler) -> dict[str, Samples]:
    def step(calls: Callable[[int], None]) -> Callable[[object], None]:
        return lambda _: calls(number)

    return interleave([Timed(name, (step(calls),)) for name, calls in begun.items()], BUDGET, sampler=sampler)


def _row(case: Case, name: str, in_a_row: Samples, ahead: Samples) -> dict[str, Any]:
    device = {f"device_{key}": value for key, value in ahead.seconds().in_ms(AHEAD).items()}
    return {
        "implementation": name,
        "shape": [case.rows, FEATURES],
        "dtype": case.dtype_name,
        "x_bytes": case.x_bytes,
        "between": case.between,
        "graphs": case.graphs,
        **in_a_row.seconds().in_ms(case.calls),
        "calls_per_sample": case.calls,
        "head_start_cycles": HEAD_START,
        **device,
    }


def _times(row: Mapping[str, Any]) -> str:
    """By the host's clock and by events, where the host had launched all calls in half the head start.

    Else its own time may be between the events.
    """
    was_ahead = AHEAD * row["ms"] < row["head_start_cycles"] / CYCLES_PER_MS / 2
    on_the_gpu = f"{row['device_ms'] * 1e3:.1f}" if was_ahead else MISSING
    return f"{row['ms'] * 1e3:.1f} / {on_the_gpu}"


COLUMNS = (
    Column("x", lambda row: size_name(row["x_bytes"])),
    Column("dtype", lambda row: DTYPES[row["dtype"]]),
    Column("neighbors", "between"),
    Column("mode", lambda row: "CUDA graphs" if row["graphs"] else None),
    *(Column(name, _times, where={"implementation": name}) for name in IMPLEMENTATIONS),
)


def tables(record: Record) -> list[Table]:
    """A line per case: microseconds of a call."""
    title = "A compiled call, us: by the host's clock, calls in a row / between events"
    return [pivot(title, record.frame(), ["case"], COLUMNS)]


def headline(record: Record) -> str:
    return facts(record, BENCH.missing(record))


BENCH = Bench(
    "triton-op", "Time compiled forward passes on a CUDA device: our kernels as opaque operators, and traced.", cases,
    run, ("implementation",), headline, tables, devices=("cuda",),
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
