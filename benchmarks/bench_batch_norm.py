"""Batch norm with a capped activation by one operator, against the two apart: `python -m benchmarks batch-norm`.

Forward and backward in training, fp32, on images of 64 MB and more. Three kinds of memory: "as it is", where a large
tensor is fresh and torch's own have small pages; "large pages", where all tensors have large ones; "kept", where memory
is not given back, so that no page is ever fresh (on one thread by its processor time too, which other work on the
machine changes least).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import dreluop
from benchmarks.harness import machine, records
from benchmarks.harness.activations import BOTH, PASSES
from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import KEPT, Budget, Timed, fresh_memory, interleave, sample, threads
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, software

FILE_NAME = "batch-norm.jsonl"
SHAPES = ((32, 64, 112, 112), (64, 256, 36, 36))
FORMATS = {"NCHW": torch.contiguous_format, "channels last": torch.channels_last}
KEPT_LARGE = {**KEPT, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
# Environment of the process, and threads; 0 is one thread by processor time.
MEMORY: dict[str, tuple[dict[str, str], int]] = {
    "as it is": ({}, 2),
    "large pages": ({"THP_MEM_ALLOC_ENABLE": "1"}, 2),
    "kept": (KEPT_LARGE, 2),
    "kept, processor time": (KEPT_LARGE, 0),
}


def implementations(shape: tuple[int, ...], memory_format: torch.memory_format, fresh: bool) -> list[Timed]:
    torch.manual_seed(0)
    channels = shape[1]
    x, grad = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2))
    weight, bias, cap = torch.rand(channels) + 0.5, torch.randn(channels), torch.rand(channels) + 0.5
    leaves = [t.requires_grad_() for t in (x, weight, bias, cap)]
    # Room for what three steps of the slowest implementation hold.
    prepare = fresh_memory(4 * x.nbytes + 2**26) if fresh else None

    def norm() -> Tensor:
        return F.batch_norm(x, None, None, weight, bias, True)

    def timed(name: str, function: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Timed:
        return Timed(name, (lambda _: function(), lambda y: torch.autograd.grad(y, inputs, grad)), prepare)

    return [
        timed(WITH_RELU, lambda: norm().relu_(), leaves[:3]),
        timed(APART, lambda: dreluop.capped_relu(norm(), cap), leaves),
        timed(
            OURS,
            lambda: dreluop.capped_batch_norm(x, None, None, weight, bias, cap, training=True),
            leaves,
        ),
        Timed("clone", (lambda _: x.detach().clone(), lambda _: grad.clone()), prepare),
    ]


def measure(memory: str, budget: Budget) -> Iterator[dict[str, Any]]:
    """Rows in the environment of this process."""
    count = MEMORY[memory][1]
    sampler = functools.partial(sample, clock=time.thread_time_ns) if count == 0 else None
    with threads(max(1, count)):
        for shape in SHAPES:
            for name, memory_format in FORMATS.items():
                timed = implementations(shape, memory_format, fresh=not memory.startswith("kept"))
                for implementation in 3 * timed:
                    # Until the memory that is kept has grown to what they need.
                    sample(implementation, 1)
                found = interleave(timed, budget, sampler=sampler)
                for implementation, samples in found.items():
                    for step, which in PASSES.items():
                        row = {"implementation": implementation, "pass": step, "memory": memory, "format": name}
                        ratios = {
                            f"of {other}": samples.steps(which).seconds().median
                            / found[other].steps(which).seconds().median
                            for other in (WITH_RELU, APART)
                        }
                        faults = samples.steps(which).page_faults()
                        yield {
                            "case": f"{shape}, {name}, {memory}",
                            **row,
                            **samples.steps(which).seconds().in_ms(),
                            **ratios,
                            "page_faults": faults,
                        }


OURS, APART, WITH_RELU = "capped_batch_norm", "batch_norm + capped_relu", "batch_norm + relu_"
SHOWN = {
    "as it is": "as it is: fresh, torch's own tensors in small pages",
    "large pages": "fresh, all in large pages (`THP_MEM_ALLOC_ENABLE=1`)",
    "kept": "kept, no page ever fresh",
    "kept, processor time": "kept, one thread by its processor time",
}


def table(record: Record) -> Table:
    """Forward and backward of the operator over those of the two apart, and over batch norm and relu_."""
    rows = [row for row in record.rows if row["key"]["implementation"] == OURS and row["key"]["pass"] == BOTH]

    def cell(memory: str, name: str) -> str:
        own = [row for row in rows if (row["key"]["memory"], row["key"]["format"]) == (memory, name)]
        ratios = ([row[f"of {other}"] for row in own] for other in (APART, WITH_RELU))
        return " / ".join(f"{min(found):.2f} to {max(found):.2f}" for found in ratios) if own else MISSING

    cells = [(shown, *(cell(memory, name) for name in FORMATS)) for memory, shown in SHOWN.items()]
    return Table("Forward and backward, over the two apart / over batch norm and relu_", ("memory", *FORMATS), cells)


def headline(record: Record) -> str:
    return f"{record.run['device']['name']}, 2 cores; {software(record)}; {record.when()}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks batch-norm", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each implementation, format and shape")
    parser.add_argument("--out", type=Path, help="folder for the record; default: benchmarks/results/<device>")
    parser.add_argument("--memory", choices=MEMORY, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        for row in measure(options.memory, Budget(seconds=options.seconds, max_samples=40)):
            print(json.dumps(row), flush=True)
        return 0
    device = machine.describe_device(torch.device("cpu"))
    record = records.new_record("batch-norm", device, machine.versions(), seconds=options.seconds)
    for memory, (environment, _) in MEMORY.items():
        command = [sys.executable, "-m", "benchmarks.bench_batch_norm", "--memory", memory]
        command += ["--seconds", str(options.seconds)]
        done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
        for line in done.stdout.splitlines():
            row = json.loads(line)
            if row["pass"] == BOTH:
                ratios = ", ".join(f"{value:.2f} {name}" for name, value in row.items() if name.startswith("of "))
                print(f"{row['case']:45} {row['implementation']:25} {row['ms']:8.1f} ms  {ratios}", flush=True)
            record.add(row.pop("case"), [row], ("implementation", "pass", "memory", "format"))
    path = (options.out or machine.folder_of(device)) / FILE_NAME
    record.save(path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    exit_with(main)
