"""The road of a call, old against new: `python -m benchmarks road --against CHECKOUT`.

Each round runs the other checkout (built in place) and this one, each in its own process on one thread of the CPU. A
process times its cases interleaved (``road_cases``); a row has the median and the quartiles of the processes' medians.
Times are the thread's processor time, so that other work on the machine counts for less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import machine, records
from benchmarks.harness.entry import exit_with
from benchmarks.harness.interleave import summarize
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, software
from benchmarks.road_cases import COMPOSITE, LAPS, SHAPES

ROOT = Path(__file__).parent.parent
FILE_NAME = "road.jsonl"
# Of each call in the table: its case, as it is written.
CALLS = {
    "relu": "`torch.relu`",
    "prelu": "`nn.PReLU`",
    "DReLU": "`DReLU`",
    "fast path": "`capped_relu(x, cap)`",
    "bias": "with a bias",
    "residual": "with a residual",
    "bias and residual": "with both",
    "balancer": "with `balancer`",
    "mask": '`save="mask"`',
    "in place": "in place, after `x * 1`",
    "view in place": "a view in place, after `x * 1`",
    "straight through": "in `surrogate_backward()`",
    "soft": 'in `surrogate_backward("soft")`',
    "PlainActivation": "by `PlainActivation`",
    "KernelActivation": "by `KernelActivation`",
}


def call_table(record: Record) -> Table:
    """Every form of a call on the smaller x: microseconds of this checkout, and of the other."""
    rows = {row["key"]["case"]: row for row in record.rows}
    found = []
    for name, shown in CALLS.items():
        cells = [shown]
        for lap in LAPS:
            row = rows.get(f"{name} {SHAPES[0][0]} x {SHAPES[0][1]} {lap}", {})
            cells += [f"{row[which][1]:.0f}" if which in row else MISSING for which in ("new_us", "old_us")]
        found.append(tuple(cells))
    return Table("One call, us", ("call", "forward", "before", "forward and backward", "before"), found)


def derivative_table(record: Record) -> Table:
    """What the tangent operator and the fold of vmap gain over differentiable torch."""
    us = {row["key"]["case"]: row["new_us"][1] for row in record.rows}
    kinds = [name for name in us if f"{name}{COMPOSITE}" in us]
    rows = [
        (
            name,
            f"{us[name] / 1e3:.1f}",
            f"{us[f'{name}{COMPOSITE}'] / 1e3:.1f}",
            f"{us[f'{name}{COMPOSITE}'] / us[name]:.1f}",
        )
        for name in kinds
    ]
    return Table("Derivatives, ms", ("derivative", "dreluop", "differentiable torch", "ratio"), rows)


def headline(record: Record) -> str:
    against = record.run["settings"]["against"][:10]
    return f"{record.run['device']['name']}, one thread; {software(record)}; before: {against}; {record.when()}"


def compare(against: Path, rounds: int) -> list[dict[str, Any]]:
    """The rows: microseconds of both, and new over old."""
    runs: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for _ in range(rounds):
        for which, checkout in (("old", against), ("new", ROOT)):
            command = [sys.executable, "-m", "benchmarks.road_cases", str(checkout.resolve())]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            runs[which].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for case in runs["new"][0]:
        row: dict[str, Any] = {"case": case}
        for which, found in runs.items():
            if case in found[0]:
                times = summarize([run[case] for run in found])
                row[f"{which}_us"] = [round(one, 2) for one in (times.q1, times.median, times.q3)]
        if "old_us" in row:
            row["ratio"] = round(row["new_us"][1] / row["old_us"][1], 3)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks road", description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="the other checkout, with its compiled libraries")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for the record; default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    if options.against is None:
        parser.error("--against: got nothing; expected a checkout to compare with")
    rows = compare(options.against, options.rounds)
    for row in rows:
        print(f"{row['case']:45} {row.get('old_us', '-')!s:30} {row['new_us']!s:30} {row.get('ratio', '')}")
    save(rows, options)
    return 0


def save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    old = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=options.against, text=True).strip()
    device = machine.describe_device(torch.device("cpu"))
    record = records.new_record("road", device, machine.versions(), threads=1, against=old, rounds=options.rounds)
    for row in rows:
        record.add(row.pop("case"), [row], ())
    path = (options.out or machine.folder_of(device)) / FILE_NAME
    record.save(path)
    print(f"written: {path}")


if __name__ == "__main__":
    exit_with(main)
