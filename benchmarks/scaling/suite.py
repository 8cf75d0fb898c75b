"""How a point is measured: ``cases`` says what, this says how. The same code on a CPU and on a GPU.

The bytes of a pass are the fewest that it can move (``kernels.suite``); ``fraction_of_copy`` is the bandwidth of these
bytes over that of ``copy_`` in the same mode and the same run. Forward keeps its results until backward has used them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TypedDict

from benchmarks.harness import implementations as c
from benchmarks.harness.cuda_graphs import Machine
from benchmarks.harness.interleave import Budget, Sampler, Samples, Timed, interleave, threads
from benchmarks.harness.workloads import Clones, Copies, Repeated, Work
from benchmarks.kernels import suite
from benchmarks.kernels.suite import BOTH, BYTES_PER_ELEMENT, HOT_MODE, LARGE, PASSES, make_data
from benchmarks.scaling.cases import EAGER_MODE, Point, buffers_when_cold, calls_when_hot

FULL = {
    "cuda": Budget(seconds=0.04, min_samples=5, max_samples=12, warmup=1, sample_seconds=0),
    "cpu": Budget(seconds=0.15, min_samples=3, max_samples=15, warmup=1, sample_seconds=0),
}
QUICK = Budget(seconds=0.02, min_samples=3, max_samples=5, warmup=1, sample_seconds=0)
LEAST_CALLS = 3
MEMORY_OF_X = 24  # times x: what all implementations need at once in one mode

Row = TypedDict(
    "Row",
    {
        "axis": str,
        "case": str,
        "shape": list[int],
        "dtype": str,
        "x_bytes": int,
        "caps": int,
        "threads": int | None,
        "mode": str,
        "buffers": int,
        "pass": str,
        "implementation": str,
        "ms": float,
        "q1_ms": float,
        "q3_ms": float,
        "min_ms": float,
        "samples": int,
        "calls_per_sample": int,
        "min_bytes": int,
        "gb_per_s": float,
        "copy_gb_per_s": float,
        "fraction_of_copy": float,
    },
)


class Failure(suite.Failure):
    """The same, of an axis and of a mode (None: all)."""

    axis: str
    threads: int | None
    mode: str | None


@dataclass(frozen=True)
class Platform:
    """Where a point is measured.

    Attributes:
        machine: the device, and how captured work is timed.
        with_host: times work that the host launches while the clock runs.
        graphs: whether hot and cold work is captured; else the host has a part in it.
    """

    machine: Machine
    with_host: Sampler
    graphs: bool

    @property
    def kind(self) -> str:
        return self.machine.device.type


def run_point(point: Point, budget: Budget, platform: Platform) -> tuple[list[Row], list[Failure]]:
    """Time every implementation in all modes and passes of a point; what fails is left out, with its reason."""
    needed, free = MEMORY_OF_X * point.x_bytes, platform.machine.free_bytes()
    if point.x_bytes >= LARGE and needed > free:
        short = MemoryError(f"needs {needed / 2**30:.0f} GB of free memory, and there are {free / 2**30:.0f}")
        return [], [_failure(point, None, None, short)]
    rows: list[Row] = []
    failures: list[Failure] = []
    c.forget_compiled(point.implementations)
    with contextlib.nullcontext() if point.threads is None else threads(point.threads):
        for mode in point.modes:
            found, failed = _run_mode(point, mode, budget, platform)
            rows += found
            failures += failed
    return rows, failures


def _failure(point: Point, mode: str | None, implementation: str | None, error: Exception) -> Failure:
    found = suite.failure_of(point, implementation, error)
    return {**found, "axis": point.axis, "threads": point.threads, "mode": mode}


def _run_mode(point: Point, mode: str, budget: Budget, platform: Platform) -> tuple[list[Row], list[Failure]]:
    machine = platform.machine
    buffers, calls = _buffers_and_calls(point, mode, machine.cache_bytes)
    data = [make_data(point, seed, machine.device) for seed in range(buffers)]
    floors: dict[str, Work] = {c.COPY: Copies(data, calls)}
    if platform.kind == "cpu":
        # There a fresh tensor costs page faults, a clone's too.
        floors[c.CLONE] = Clones(data, calls)
    captured = platform.graphs and mode != EAGER_MODE
    timed = [_timed(name, floor, captured, point, machine) for name, floor in floors.items()]
    failures: list[Failure] = []
    for name in point.implementations:
        try:
            work = Repeated(c.IMPLEMENTATIONS[name], data, calls)
            work.check()
            timed.append(_timed(name, work, captured, point, machine))
        except Exception as error:
            failures.append(_failure(point, mode, name, error))
    samples = interleave(timed, budget, sampler=machine.sampler if captured else platform.with_host)
    return _rows(point, mode, buffers, calls, samples), failures


def _buffers_and_calls(point: Point, mode: str, cache_bytes: int) -> tuple[int, int]:
    if mode == HOT_MODE or (mode == EAGER_MODE and HOT_MODE in point.modes):
        return 1, calls_when_hot(point.x_bytes, cache_bytes)
    buffers = buffers_when_cold(point.x_bytes, cache_bytes)
    # One call alone would show the first launch rather than a loop.
    return buffers, max(buffers, LEAST_CALLS) if mode == EAGER_MODE else buffers


def _timed(name: str, work: Work, captured: bool, point: Point, machine: Machine) -> Timed:
    if captured:
        forward, backward = machine.capture((work.forward, work.backward), work.clear)
        return Timed(name, (lambda _: forward(), lambda _: backward()))
    prepare = suite.preparation(point.x_bytes) if machine.device.type == "cpu" else None
    return Timed(name, (work.forwards, work.backwards), prepare)


def _rows(point: Point, mode: str, buffers: int, calls: int, samples: dict[str, Samples]) -> list[Row]:
    rows: list[Row] = []
    for pass_, which in PASSES.items():
        copied_bytes = 2 * point.x_bytes * (2 if pass_ == BOTH else 1)
        copy_gb_per_s = copied_bytes * calls / samples[c.COPY].steps(which).seconds().median * 1e-9
        for name, found in samples.items():
            seconds = found.steps(which).seconds()
            min_bytes = copied_bytes if name in (c.COPY, c.CLONE) else BYTES_PER_ELEMENT[pass_] * point.x_bytes
            gb_per_s = min_bytes * calls / seconds.median * 1e-9
            rows.append(
                {
                    "axis": point.axis,
                    "case": point.name,
                    "shape": list(point.shape),
                    "dtype": point.dtype_name,
                    "x_bytes": point.x_bytes,
                    "caps": point.caps,
                    "threads": point.threads,
                    "mode": mode,
                    "buffers": buffers,
                    "pass": pass_,
                    "implementation": name,
                    **seconds.in_ms(calls),
                    "calls_per_sample": calls,
                    "min_bytes": min_bytes,
                    "gb_per_s": gb_per_s,
                    "copy_gb_per_s": copy_gb_per_s,
                    "fraction_of_copy": gb_per_s / copy_gb_per_s,
                }
            )
    return rows
