"""What large pages are worth to a training loop on a CPU: `python -m benchmarks pages`.

Forward and backward of `capped_relu` on a large fp32 x, with every choice of `DRELUOP_HUGE_PAGES`, each in a process of
its own. "As it comes" is a loop as users have it: outputs are fresh memory, whose large pages the host of a virtual
machine may have taken back, and to get them again takes many times longer than a step. "Claimed" is after
`fresh_memory`, which gets them before the clock starts, as the other benchmarks do: it hides that tail. "Kept" is in a
process whose memory glibc does not give back (`KEPT`), which a user can do too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import dreluop
from benchmarks.harness import machine, records
from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import KEPT, Budget, Timed, fresh_memory, interleave, threads
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, software
from dreluop.backends.native import HUGE_PAGES, HUGE_PAGES_VARIABLE

FILE_NAME = "pages.jsonl"
SHAPE = (1070, 64, 28, 28)
KINDS = ("as it comes", "claimed", "kept")
THREADS = 2


def measure(kind: str, budget: Budget, shape: tuple[int, ...] = SHAPE) -> list[float]:
    """Milliseconds of each forward and backward, in the environment of this process."""
    torch.manual_seed(0)
    x, grad = torch.randn(shape).requires_grad_(), torch.randn(shape)
    cap = torch.full((shape[1],), 0.5, requires_grad=True)

    def step(_: Any) -> None:
        # What it makes is freed within it, as in a training loop.
        torch.autograd.grad(dreluop.capped_relu(x, cap), (x, cap), grad)

    prepare = fresh_memory(3 * x.nbytes) if kind == "claimed" else None
    with threads(THREADS):
        samples = interleave([Timed(kind, (step,), prepare)], budget)[kind]
    return [1e3 * sum(laps) for laps in samples.laps]


def row_of(ms: list[float]) -> dict[str, Any]:
    return {
        "ms": statistics.median(ms),
        "mean_ms": statistics.fmean(ms),
        "p95_ms": statistics.quantiles(ms, n=20, method="inclusive")[-1],
        "samples": len(ms),
    }


def table(record: Record) -> Table:
    rows = {(row["key"]["choice"], row["key"]["kind"]): row for row in record.rows}
    found = []
    for choice in HUGE_PAGES:
        cells = [f"`{choice}`"]
        for kind in KINDS:
            row = rows.get((choice, kind), {})
            cells.append(" / ".join(f"{row[key]:.0f}" if row else MISSING for key in ("ms", "mean_ms", "p95_ms")))
        found.append(tuple(cells))
    return Table("Forward and backward, ms: median / mean / 95th percentile", (HUGE_PAGES_VARIABLE, *KINDS), found)


def headline(record: Record) -> str:
    settings = record.run["settings"]
    size = f"{settings['bytes'] / 1e6:.0f} MB"
    return f"{record.run['device']['name']}, {THREADS} threads, fp32, {size}; {software(record)}; {record.when()}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks pages", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each choice and kind")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each choice, one after another")
    parser.add_argument("--out", type=Path, help="folder for the record; default: benchmarks/results/<device>")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.kind:
        budget = Budget(seconds=options.seconds, min_samples=5, max_samples=1000, sample_seconds=0)
        print(json.dumps(measure(options.kind, budget)))
        return 0
    device = machine.describe_device(torch.device("cpu"))
    size = 4 * torch.Size(SHAPE).numel()
    record = records.new_record("pages", device, machine.versions(), bytes=size, seconds=options.seconds)
    command = [sys.executable, "-m", "benchmarks.bench_pages", "--seconds", str(options.seconds / options.rounds)]
    found: dict[tuple[str, str], list[float]] = {(choice, kind): [] for choice in HUGE_PAGES for kind in KINDS}
    for _ in range(options.rounds):
        for choice, kind in found:
            environment = {**os.environ, **(KEPT if kind == "kept" else {}), HUGE_PAGES_VARIABLE: choice}
            done = subprocess.run(
                [*command, "--kind", kind], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            found[choice, kind] += json.loads(done.stdout)
    for (choice, kind), ms in found.items():
        row = {"choice": choice, "kind": kind, **row_of(ms)}
        print(f"{choice:8} {kind:12}", *(f"{key} {value:7.1f}" for key, value in row_of(ms).items()))
        record.add(f"{choice}, {kind}", [row], ("choice", "kind"))
    path = (options.out or machine.folder_of(device)) / FILE_NAME
    record.save(path)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    exit_with(main)
