"""What torch.compile makes of our forward kernels, opaque or traced: `python -m benchmarks.compiled.triton_op --help`.

===============  =====================================================================================
implementation        what the compiler sees of ``capped_relu``, without gradients
===============  =====================================================================================
opaque, Triton   an operator, which Triton serves: ``use_backend("triton")``
triton_op        the same kernel and launch, by ``torch.library.triton_op`` and ``wrap_triton`` (traced.py)
opaque, native   an operator, which the native kernels serve
fused            standard operators
===============  =====================================================================================

Two times of a call: by the host's clock over many calls in a row, and between events, the host being ahead.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

import dreluop
from benchmarks import resuming
from benchmarks.backend import served_by_cuda
from benchmarks.compiled.suite import graphs_skipped
from benchmarks.gpu import document as gpu
from benchmarks.harness import cuda_graphs as timing
from benchmarks.harness import implementations as c
from benchmarks.harness import machine as results
from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import Budget, Sampler, Samples, Timed, interleave
from benchmarks.harness.table import DTYPES, MISSING, Table, markdown, size_name
from benchmarks.kernels.tables import hardware, left_out, software
from benchmarks.models.attempts import Failure, attempt
from benchmarks.models.steps import Platform, cuda_platform
from benchmarks.running import run_cases
from dreluop.backends.selection import BackendName, Form

FILE_NAME = "triton-op.json"
TRACED = "triton_op"
OPAQUE: dict[str, BackendName] = {"opaque, Triton": "triton", "opaque, native": "native"}
FUSED = "fused"
IMPLEMENTATIONS = ("opaque, Triton", TRACED, "opaque, native", FUSED)

ALONE, POINTWISE, LINEAR = "alone", "x * 2 before, + 1 after", "between linear layers"
FEATURES = 512
SMALL, MIDDLE, LARGE = 2**17, 2**24, 2**28  # bytes of x
BUDGET = Budget(seconds=0.1, min_samples=7, max_samples=15, warmup=1, sample_seconds=0)
COMPILER = "inductor"
WARM_UP = 4  # calls: the last one replays CUDA graphs, which the second records
AHEAD = 5  # calls between events, which the host is to have launched before the first of them begins
HEAD_START = 20 * timing.HEAD_START  # clock cycles for that
CYCLES_PER_MS = 2_000_000  # at most: of an H100
SECONDS = 3.0  # of a case on an H100, about

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """x of shape (rows, ``FEATURES``), a cap per feature, and what stands beside the activation.

    Attributes:
        graphs: compiled with ``mode="reduce-overhead"``.
    """

    rows: int
    dtype: torch.dtype
    between: str
    graphs: bool

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


def cases() -> list[Case]:
    """The more telling first; CUDA graphs where the host could be what is waited for."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        # The same shape in both dtypes.
        of = {SMALL: 64, **{size: size // (FEATURES * dtype.itemsize) for size in (MIDDLE, LARGE)}}
        for size, between in ((SMALL, (ALONE, POINTWISE, LINEAR)), (MIDDLE, (ALONE, POINTWISE))):
            found += [Case(of[size], dtype, name, graphs) for name in between for graphs in (False, True)]
        found += [Case(of[LARGE], dtype, name, False) for name in (ALONE, POINTWISE)]
    return found


def label_of(row: Mapping[str, Any]) -> str:
    """The label of the case that a row is of."""
    return Case(row["shape"][0], getattr(torch, row["dtype"]), row["between"], row["graphs"]).label


ROWS: resuming.Rows = {"rows": label_of}


def resumable(implementations: Collection[str]) -> resuming.Suite[Case]:
    """The suite with these implementations."""
    return resuming.Suite(name=lambda case: case.label, implementations=lambda case: implementations, rows=ROWS)


@contextlib.contextmanager
def chosen(implementation: str) -> Iterator[None]:
    """What torch.compile shall see, and who serves it."""
    form: Form = "opaque" if implementation in OPAQUE else "decompose"
    with dreluop.use_backend(OPAQUE.get(implementation)), dreluop.compile_mode(form):
        yield


def activation(implementation: str, x: Tensor, cap: Tensor) -> Function:
    """What an implementation computes the activation of this x by."""
    if implementation != TRACED:
        return _ours
    from benchmarks.compiled import traced  # noqa: PLC0415 (imports triton)

    launch = traced.planned(x, cap)
    return lambda x, cap: traced.forward(x, cap, *launch)


def _ours(x: Tensor, cap: Tensor) -> Tensor:
    return dreluop.capped_relu(x, cap)


def network(between: str, function: Function, weights: tuple[Tensor, Tensor]) -> Function:
    """The activation with its neighbors; the weights are of linear layers."""
    if between == ALONE:
        return function
    if between == POINTWISE:
        return lambda x, cap: function(x * 2, cap) + 1
    first, second = weights
    return lambda x, cap: linear(function(linear(x, first), cap), second)


def run_case(
    case: Case, names: tuple[str, ...], platform: Platform, until: float | None = None
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Time a call of every implementation; one that fails, is wrong or has no time left is left out, with a reason."""
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
    options: dict[str, Any] = {"mode": "reduce-overhead"} if case.graphs else {}

    def begin(name: str) -> Callable[[int], None]:
        function = network(case.between, activation(name, x, cap), weights)
        compiled = torch.compile(function, dynamic=False, fullgraph=True, backend=COMPILER, **options)
        skipped = graphs_skipped()

        def calls(number: int) -> None:
            with chosen(name):
                for _ in range(number):
                    compiled(x, cap)

        calls(WARM_UP)
        if case.graphs and graphs_skipped() > skipped:
            raise RuntimeError("torch.compile left CUDA graphs out")
        with chosen(name):
            torch.testing.assert_close(compiled(x, cap), expected)
        return calls

    begun, failures = attempt(names, case.label, begin, platform.release, until)

    def samples(number: int, sampler: Sampler | None) -> dict[str, Samples]:
        def step(calls: Callable[[int], None]) -> Callable[[object], None]:
            return lambda _: calls(number)

        timed = [Timed(name, (step(calls),)) for name, calls in begun.items()]
        return interleave(timed, BUDGET, sampler=sampler)

    sampler = platform.sampler
    if sampler is timing.sample:
        sampler = functools.partial(timing.sample, head_start=HEAD_START)
    in_a_row, ahead = samples(case.calls, timing.sample_in_a_row), samples(AHEAD, sampler)
    rows: list[dict[str, Any]] = [
        {
            "shape": [case.rows, FEATURES],
            "dtype": case.dtype_name,
            "x_bytes": case.x_bytes,
            "between": case.between,
            "graphs": case.graphs,
            "implementation": name,
            **found.seconds().in_ms(case.calls),
            "calls_per_sample": case.calls,
            "head_start_cycles": HEAD_START,
            "device": ahead[name].seconds().in_ms(AHEAD),
        }
        for name, found in in_a_row.items()
    ]
    return rows, failures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compiled.triton_op",
        description="Time compiled forward passes on a CUDA device: our kernels as opaque operators, and traced.",
    )
    parser.add_argument("--limit", type=float, help="seconds for the whole run; what does not fit is left out, by name")
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS, metavar="NAME",
        help=f"some of {'; '.join(IMPLEMENTATIONS)}; default: all",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help=f"folder for {FILE_NAME}; default: benchmarks/results/<device>")
    resuming.add_argument(parser)
    options = parser.parse_args(arguments)
    if options.limit is not None and not options.limit > 0:
        parser.error(f"--limit: got {options.limit}; expected more than 0 seconds")
    served_by_cuda(parser)
    document = new_document()
    output = (options.out or gpu.folder_of(document["device"])) / FILE_NAME
    names = tuple(options.implementations)
    selected = resuming.cases_left(parser, options.resume, document, cases(), resumable(names))
    code = measure(document, selected, names, cuda_platform(), output, options.limit)
    print(f"\n{headline(document)}.\n\n{markdown(table(document))}")
    if document["rows"]:
        print(f"written: {output}")
    return code or int(not document["rows"])


def new_document() -> dict[str, Any]:
    return {
        "schema": results.SCHEMA,
        "complete": False,
        "date": results.now(),
        "device": gpu.describe_gpu(),
        "versions": gpu.versions(),
        "commit": results.commit(),
        "earlier": [],
        "missing": [],
        "failures": [],
        "rows": [],
    }


def measure(
    document: dict[str, Any],
    selected: Sequence[Case],
    names: tuple[str, ...],
    platform: Platform,
    output: Path,
    limit: float | None = None,
) -> int:
    """Fill the document; the exit code of ``run_cases``."""
    until = None if limit is None else time.monotonic() + limit

    def run_one(case: Case) -> tuple[list[dict[str, Any]], list[Failure]]:
        return run_case(case, names, platform, until)

    name, seconds = resumable(names).name, (lambda case: SECONDS)
    return run_cases(document, selected, run_one, output, name=name, limit=limit, seconds=seconds)


def headline(document: Mapping[str, Any]) -> str:
    facts = (hardware(document), software(document), resuming.dates(document, ROWS))
    return "; ".join([*facts, *left_out(document)])


def _host_was_ahead(row: Mapping[str, Any]) -> bool:
    """Whether the host had launched all calls in half the head start; else its own time may lie between the events."""
    # The first files do not have it.
    cycles = row.get("head_start_cycles", timing.HEAD_START)
    return bool(AHEAD * row["ms"] < cycles / CYCLES_PER_MS / 2)


def table(document: Mapping[str, Any]) -> Table:
    """A line per case: microseconds of a call, by the host's clock and by events."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in document["rows"]:
        size = size_name(row["x_bytes"])
        key = (size, DTYPES[row["dtype"]], row["between"], "CUDA graphs" if row["graphs"] else MISSING)
        on_the_gpu = f"{row['device']['ms'] * 1e3:.1f}" if _host_was_ahead(row) else MISSING
        cell = f"{row['ms'] * 1e3:.1f} / {on_the_gpu}"
        found.setdefault(key, {})[row["implementation"]] = cell
    lines = [(*key, *(cells.get(name, MISSING) for name in IMPLEMENTATIONS)) for key, cells in found.items()]
    title = "A compiled call, us: by the host's clock, calls in a row / between events"
    return Table(title, ("x", "dtype", "neighbors", "mode", *IMPLEMENTATIONS), lines)


if __name__ == "__main__":
    exit_with(main)
