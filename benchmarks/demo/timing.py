"""What the demo times: capped_relu against the clamp references, by the kernel benchmark's harness."""

from __future__ import annotations

from typing import TypedDict

import torch

from benchmarks import kernel_cases
from benchmarks.harness.interleave import Budget
from benchmarks.harness.workloads import Case

TimingRow = TypedDict(
    "TimingRow",
    {"implementation": str, "dtype": str, "pass": str, "ms": float, "floor_ms": float, "ratio_to_floor": float},
)
"""One implementation, dtype and pass: median milliseconds, those of the floor (a clone of x), and their ratio."""


def milliseconds(value: float) -> str:
    """Three digits, never in scientific notation from 100 on."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def rows(threads: int, quick: bool = False) -> list[TimingRow]:
    """Time forward and backward on tensors of 64 MiB; quick: on a tiny one, which shows nothing but that it runs.

    Args:
        threads: number of CPU threads.
        quick: see above.
    """
    if not quick:
        return [_row(row) for row in kernel_cases.demo_rows(threads)]
    case = Case("tiny", "channel", (2, 8, 16, 16), torch.float32, kernel_cases.EAGER)
    budget = Budget(seconds=0.02, min_samples=3, max_samples=3, warmup=1)
    return [_row(row) for row in kernel_cases.demo_rows(threads, [case], budget)]


def _row(row: dict[str, object]) -> TimingRow:
    return {key: row[key] for key in TimingRow.__annotations__}  # type: ignore[return-value, literal-required]
