"""Hardware counters of the backward kernels at 64 MB, by Nsight Compute: `python -m benchmarks.gpu.profile`.

Under ncu a kernel runs alone, on a cold cache and several times over, so its time is no benchmark. What its counters
tell is where the time goes: a multiprocessor that has no work costs what one that waits for memory costs.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.backend import served_by_cuda
from benchmarks.gpu.document import describe_gpu, folder_of, versions
from benchmarks.harness import machine as results
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import DTYPES, Table, markdown
from benchmarks.kernels.tables import hardware, software

FILE_NAME = "profile.json"
PROGRAM = "benchmarks.gpu.profile"
SHAPE = (64, 64, 92, 92)
# With the kernel that serves each.
CASES = (
    ("channel caps, NCHW", torch.float16, torch.contiguous_format, "backward_rows_kernel"),
    ("channel caps, NCHW", torch.bfloat16, torch.contiguous_format, "backward_rows_kernel"),
    ("channel caps, channels-last", torch.bfloat16, torch.channels_last, "backward_columns_kernel"),
    ("channel caps, channels-last", torch.float16, torch.channels_last, "backward_columns_kernel"),
)
SECTIONS = ("SpeedOfLight", "WarpStateStats", "InstructionStats")
# As ncu names them, with the unit that it must give, and as the file does.
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


def rows_of(output: str) -> list[dict[str, Any]]:
    """A row for each kernel that ncu's output tells of, in the order of ``CASES``.

    Raises:
        ValueError: it tells of other kernels, or of one without a metric of ``METRICS`` in its unit.
    """
    found = list(KERNEL.finditer(output))
    names, expected = [match[1] for match in found], [kernel for *_, kernel in CASES]
    if names != expected:
        raise ValueError(f"ncu: got {', '.join(names) or 'no kernel'}; expected {', '.join(expected)}")
    ends = [*(match.start() for match in found[1:]), len(output)]
    rows = []
    for (case, dtype, *_), match, end in zip(CASES, found, ends, strict=True):
        values = {}
        for name, unit, value in METRIC.findall(output, match.end(), end):
            if (name, unit) in METRICS:
                values[METRICS[name, unit]] = float(value.replace(",", ""))
        if missing := set(METRICS.values()) - set(values):
            raise ValueError(f"ncu: no {', '.join(sorted(missing))} of {match[1]}")
        rows.append({"case": case, "dtype": str(dtype).removeprefix("torch."), "kernel": match[1], **values})
    return rows


def launch_all() -> None:
    """One backward pass of each case."""
    import dreluop  # noqa: PLC0415 (only in the process that ncu looks at)

    for _, dtype, memory_format, _ in CASES:
        x = torch.randn(SHAPE, device="cuda").mul_(2).to(dtype).to(memory_format=memory_format).requires_grad_()
        cap = torch.rand(SHAPE[1], device="cuda").add_(0.5).requires_grad_()
        y = dreluop.capped_relu(x, cap)
        y.backward(torch.randn_like(y))
        torch.cuda.synchronize()


def headline(document: Mapping[str, Any]) -> str:
    return f"{hardware(document)}; {software(document)}; {document['date'][:10]}"


def table(document: Mapping[str, Any]) -> Table:
    header = ("x", "dtype", "us", "DRAM", "multiprocessors with work", "instructions", "cycles of a warp for each")
    lines = [
        (
            row["case"],
            DTYPES[row["dtype"]],
            f"{row['us']:.3g}",
            f"{row['dram_percent']:.1f}%",
            f"{row['active_cycles'] / row['cycles']:.1%} of {row['cycles']:,.0f} cycles",
            f"{row['instructions'] / 1e6:.1f} million",
            f"{row['cycles_per_instruction']:.1f}",
        )
        for row in document["rows"]
    ]
    return Table("Backward kernels under ncu", header, lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help=f"folder for {FILE_NAME}; default: benchmarks/results/<gpu>")
    parser.add_argument("--launch", action="store_true", help="only launch the kernels: what ncu is called with")
    options = parser.parse_args(arguments)
    served_by_cuda(parser)
    if options.launch:
        launch_all()
        return 0
    ncu = shutil.which("ncu")
    if ncu is None:
        parser.error("ncu is not installed")
    gpu = describe_gpu()
    sections = [flag for name in SECTIONS for flag in ("--section", name)]
    # Its own clock control would need rights to the GPU, and change it for others.
    command = [ncu, "--clock-control", "none", "-k", "regex:backward_", *sections, sys.executable, "-m", PROGRAM]
    done = subprocess.run([*command, "--launch"], capture_output=True, text=True, check=False)
    try:
        rows = rows_of(done.stdout)
    except ValueError as error:
        print(f"{done.stdout}{done.stderr}\n{error}", file=sys.stderr)
        return 1
    document = {
        "schema": results.SCHEMA,
        "date": results.now(),
        "device": gpu,
        "versions": versions(),
        "commit": results.commit(),
        "rows": rows,
    }
    path = (options.out or folder_of(gpu)) / FILE_NAME
    results.save(document, path)
    print(f"{markdown(table(document))}\n\n{headline(document)}.\nwritten: {path}")
    return 0


if __name__ == "__main__":
    exit_with(main)
