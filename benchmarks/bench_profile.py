"""Hardware counters of the backward kernels at 64 MB, by Nsight Compute: `python -m benchmarks profile --help`.

Under ncu a kernel runs alone, on a cold cache and several times over, so its time is no benchmark. What its counters
show is where the time goes: a multiprocessor that has no work costs what one that waits for memory costs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.harness.attempts import failure
from benchmarks.harness.cli import Bench, Run
from benchmarks.harness.machine import DTYPES
from benchmarks.harness.records import Named, Record
from benchmarks.harness.table import Column, Table, facts, pivot

PROGRAM = "benchmarks.bench_profile"
SHAPE = (64, 64, 92, 92)
# With the kernel that runs each.
INPUTS = (
    ("channel caps, NCHW", torch.float16, torch.contiguous_format, "backward_rows_kernel"),
    ("channel caps, NCHW", torch.bfloat16, torch.contiguous_format, "backward_rows_kernel"),
    ("channel caps, channels-last", torch.bfloat16, torch.channels_last, "backward_columns_kernel"),
    ("channel caps, channels-last", torch.float16, torch.channels_last, "backward_columns_kernel"),
)
SECTIONS = ("SpeedOfLight", "WarpStateStats", "InstructionStats")
# As ncu names them, with the unit that it must give, and as the record does.
METRICS = {
    ("Duration", "us"): "us",
    ("Elapsed Cycles", "cycle"): "cycles",
    ("SM Active Cycles", "cycle"): "active_cycles",
    ("DRAM Throughput", "%"): "dram_percent",
    ("Issued Instructions", "inst"): "instructions",
    ("Warp Cycles Per Issued Instruction", "cycle"): "cycles_per_instruction",
}
KERNEL = re.compile(r"^\s*(?:void )?(?:[\w:]+::)?(backward_\w+_kernel)<.*$", re.MULTILINE)
METRIC = re.compile(rf"^\s*({'|'.join(name for name, _ in METRICS)})\s+(\S+)\s+([\d,.]+)\s*$", re.MULTILINE)


def cases(kind: str, settings: Mapping[str, Any]) -> Sequence[Named]:
    """All inputs are one: ncu looks at one process."""
    return (Named("backward kernels"),)


def run(kernels: Named, with_: Run) -> list[dict[str, Any]]:
    ncu = shutil.which("ncu")
    if ncu is None:
        return [failure(FileNotFoundError("ncu is not installed"))]
    sections = [flag for name in SECTIONS for flag in ("--section", name)]
    # Its own clock control would need rights to the GPU, and change it for others.
    command = [ncu, "--clock-control", "none", "-k", "regex:backward_", *sections, sys.executable, "-m", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return rows_of(done.stdout)
    except ValueError as error:
        print(f"{done.stdout}{done.stderr}", file=sys.stderr)
        return [failure(error)]


def rows_of(output: str) -> list[dict[str, Any]]:
    """A row for each kernel in ncu's output, in the order of ``INPUTS``.

    Raises:
        ValueError: it shows other kernels, or one without a metric of ``METRICS`` in its unit.
    """
    found = list(KERNEL.finditer(output))
    names, expected = [match[1] for match in found], [kernel for *_, kernel in INPUTS]
    if names != expected:
        raise ValueError(f"ncu: got {', '.join(names) or 'no kernel'}; expected {', '.join(expected)}")
    ends = [*(match.start() for match in found[1:]), len(output)]
    rows = []
    for (name, dtype, *_), match, end in zip(INPUTS, found, ends, strict=True):
        values = {}
        for metric, unit, value in METRIC.findall(output, match.end(), end):
            if (metric, unit) in METRICS:
                values[METRICS[metric, unit]] = float(value.replace(",", ""))
        if missing := set(METRICS.values()) - set(values):
            raise ValueError(f"ncu: no {', '.join(sorted(missing))} of {match[1]}")
        rows.append({"input": name, "dtype": str(dtype).removeprefix("torch."), "kernel": match[1], **values})
    return rows


def launch_all() -> None:
    """One backward pass of each input."""
    import dreluop  # noqa: PLC0415 (only in the process that ncu looks at)

    for _, dtype, memory_format, _ in INPUTS:
        x = torch.randn(SHAPE, device="cuda").mul_(2).to(dtype).to(memory_format=memory_format).requires_grad_()
        cap = torch.rand(SHAPE[1], device="cuda").add_(0.5).requires_grad_()
        y = dreluop.capped_relu(x, cap)
        y.backward(torch.randn_like(y))
        torch.cuda.synchronize()


COLUMNS = (
    Column("x", "input"),
    Column("dtype", lambda row: DTYPES[row["dtype"]]),
    Column("us", "us", "{:.3g}"),
    Column("DRAM", "dram_percent", "{:.1f}%"),
    Column(
        "multiprocessors with work",
        lambda row: f"{row['active_cycles'] / row['cycles']:.1%} of {row['cycles']:,.0f} cycles",
    ),
    Column("instructions", lambda row: row["instructions"] / 1e6, "{:.1f} million"),
    Column("cycles of a warp for each", "cycles_per_instruction", "{:.1f}"),
)


def tables(record: Record) -> list[Table]:
    return [pivot("Backward kernels under ncu", record.frame(), ["input", "dtype"], COLUMNS)]


def headline(record: Record) -> str:
    return facts(record)


BENCH = Bench(
    "profile", "Hardware counters of the backward kernels, by Nsight Compute.", cases, run, ("input", "dtype"),
    headline, tables, devices=("cuda",),
)  # fmt: skip
BENCHES = {BENCH.name: BENCH}

if __name__ == "__main__":
    launch_all()
