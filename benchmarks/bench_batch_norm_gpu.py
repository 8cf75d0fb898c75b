"""Batch norm with a capped activation by one operator on a GPU: `python -m benchmarks batch-norm-gpu --help`.

Training, parameters in fp32, each pass a CUDA graph. The fewest bytes per element of s bytes: forward reads x twice and
writes y, 3s, backward reads x and the gradient twice and writes one, 5s. A residual adds s to each, and a mask of two
bits, which forward writes once and backward reads twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import dreluop
from benchmarks.harness import implementations as c
from benchmarks.harness import machine
from benchmarks.harness.activations import BACKWARD, BOTH, FORWARD, PASSES
from benchmarks.harness.attempts import attempt
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.interleave import Budget, Timed, interleave
from benchmarks.harness.machine import DTYPES, Platform
from benchmarks.harness.records import Record
from benchmarks.harness.table import (
    Column,
    Table,
    Target,
    against,
    hardware,
    left_out,
    pivot,
    shape_name,
    software,
    target_table,
)
from benchmarks.harness.workloads import Case, Data, KernelCopies, Work, make_data

if TYPE_CHECKING:
    import pandas as pd

OURS, APART, WITH_RELU = "dreluop", "dreluop, batch_norm apart", "batch_norm + relu_"
IMPLEMENTATIONS = (OURS, APART, WITH_RELU)
# 64 MB and more in bf16; long runs, short ones that are whole vectors, and shorter ones.
SHAPES = ((256, 64, 56, 56), (256, 256, 28, 28), (256, 2048, 9, 9))
BUDGET = Budget(seconds=0.1, min_samples=7, max_samples=30, warmup=1, sample_seconds=0)
QUICK = Budget(seconds=0.02, min_samples=3, max_samples=5, warmup=1, sample_seconds=0)
RESIDUAL = "residual"


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Case]:
    return [
        Case(
            f"{shape_name(shape)}, {'channels last' if last else 'NCHW'}{', residual' if more else ''}",
            "channel", shape, dtype, IMPLEMENTATIONS, last, bias_and_residual=more,
        )
        for dtype in (torch.bfloat16, torch.float32)
        for shape in (SHAPES[:1] if settings.get("quick") else SHAPES)
        for last in (False, True)
        for more in ((), (RESIDUAL,))
    ]  # fmt: skip


class Norm(Work):
    """One call of an implementation, and its backward."""

    def __init__(self, name: str, case: Case, data: Data) -> None:
        super().__init__([data], 1)
        device, channels = data.x.device, case.shape[1]
        generator = torch.Generator(device).manual_seed(1)
        weight = torch.rand(channels, generator=generator, device=device) + 0.5
        bias, cap = torch.randn(channels, generator=generator, device=device), data.cap.float()
        residual = [make_data(case, 1000, device).x] if RESIDUAL in case.bias_and_residual else []
        self._inputs = [t.detach().requires_grad_() for t in (data.x, weight, bias, *residual)]
        self._cap = cap.requires_grad_()
        self._name = name
        if name != WITH_RELU:
            self._inputs.append(self._cap)
        self._residual = self._inputs[3] if residual else None

    def one_forward(self, index: int = 0) -> Tensor:
        x, weight, bias, residual = *self._inputs[:3], self._residual
        if self._name == OURS:
            return dreluop.capped_batch_norm(x, None, None, weight, bias, self._cap, training=True, residual=residual)
        t = F.batch_norm(x, None, None, weight, bias, training=True)
        if self._name == APART:
            return dreluop.capped_relu(t, self._cap, residual=residual)
        return (t if residual is None else t + residual).relu_()

    def one_backward(self, y: Tensor, index: int = 0) -> Sequence[Tensor]:
        return torch.autograd.grad(y, self._inputs, self._data[index].grad)


def min_bytes(case: Case, pass_: str) -> int:
    """The fewest that the operator moves."""
    mask = torch.Size(case.shape).numel() // 4
    forward, backward = 3 * case.x_bytes, 5 * case.x_bytes
    if RESIDUAL in case.bias_and_residual:
        forward, backward = forward + case.x_bytes + mask, backward + case.x_bytes + 2 * mask
    return {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[pass_]


def _captured(name: str, work: Work, platform: Platform) -> Timed:
    forward, backward = platform.capture((work.forward, work.backward), work.clear)
    return Timed(name, (lambda _: forward(), lambda _: backward()))


def run(case: Case, with_: Run) -> list[dict[str, Any]]:
    platform = with_.platform
    data = make_data(case, 0, platform.device)

    def ready(name: str) -> Timed:
        work = KernelCopies([data], 1) if name == c.COPY_BY_KERNEL else Norm(name, case, data)
        return _captured(name, work, platform)

    timed, failures = attempt((c.COPY_BY_KERNEL, *case.implementations), ready, platform.release, with_.until)
    samples = interleave(list(timed.values()), QUICK if with_.quick else BUDGET, sampler=platform.sample)
    rows = [
        {
            "pass": pass_, "implementation": name, "input": case.name, "shape": list(case.shape),
            "dtype": case.dtype_name, "memory_format": "channels-last" if case.channels_last else "contiguous",
            "residual": RESIDUAL in case.bias_and_residual, "x_bytes": case.x_bytes,
            **found.steps(which).seconds().in_ms(),
            "min_bytes": 2 * case.x_bytes * (which.stop - which.start)
            if name == c.COPY_BY_KERNEL else min_bytes(case, pass_),
        }
        for pass_, which in PASSES.items()
        for name, found in samples.items()
    ]  # fmt: skip
    for row in rows:
        row["gb_per_s"] = row["min_bytes"] / row["ms"] * 1e-6
    platform.release()
    return rows + failures


def frame_of(record: Record) -> pd.DataFrame:
    frame = record.frame()
    peak = machine.peak_bandwidth(record.run["device"]) or float("nan")
    ratios = {f"of {name}": 1 / against(frame, name, ["case", "pass"]) for name in (APART, WITH_RELU)}
    return frame.assign(fraction_of_peak=frame["gb_per_s"] / peak, **ratios)


OURS_IN = {pass_: {"implementation": OURS, "pass": pass_} for pass_ in PASSES}
COLUMNS = (
    Column("x", "input"),
    Column("dtype", lambda row: DTYPES[row["dtype"]]),
    *(Column(f"{pass_}, ms", "ms", "{:.3g}", OURS_IN[pass_]) for pass_ in (FORWARD, BACKWARD)),
    *(Column(f"{pass_}, of peak", "fraction_of_peak", "{:.0%}", OURS_IN[pass_]) for pass_ in (FORWARD, BACKWARD)),
    Column("copy, of peak", "fraction_of_peak", "{:.0%}", {"implementation": c.COPY_BY_KERNEL, "pass": FORWARD}),
    *(Column(f"both, over {name}", f"of {name}", "{:.2f}", OURS_IN[BOTH]) for name in (APART, WITH_RELU)),
)
TARGETS = (
    Target(
        ("forward and backward", f"over {WITH_RELU}, without a residual", "<= 0.75 x"),
        OURS_IN[BOTH] | {"residual": False},
        f"of {WITH_RELU}",
        0.75,
        at_most=True,
    ),
)


def tables(record: Record) -> list[Table]:
    frame = frame_of(record)
    return [
        pivot("capped_batch_norm", frame, ["case"], COLUMNS),
        target_table(("measure", "against", "target"), TARGETS, frame),
    ]


def headline(record: Record) -> str:
    facts = [hardware(record), software(record), record.when()]
    return "; ".join([*facts, *left_out(record, BENCH.missing(record))])


BENCH = Bench(
    "batch-norm-gpu", "Time capped_batch_norm against torch's batch norm and an activation, on a GPU.", cases, run,
    ("pass", "implementation"), headline, tables, devices=("cuda",),
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}
