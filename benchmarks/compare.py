"""What changed between two records of one suite and one device: `python -m benchmarks.compare old.jsonl new.jsonl`.

A change counts when the quartiles of the two runs do not overlap and the medians differ by more than the tolerance.
Regressions come first, then improvements, each with the largest first; what did not change is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import records
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import MISSING
from dreluop._internal.text_table import text_table

# What tells rows apart, in the files of all suites.
IDENTITY = (
    *(
        "axis",
        "model",
        "case",
        "granularity",
        "memory_format",
        "bias_and_residual",
        "shape",
        "dtype",
        "threads",
        "mode",
    ),
    *("pass", "implementation"),
)
SHOWN = ("case", "dtype", "threads", "mode", "pass", "implementation")
TOLERANCE = 0.02
REGRESSION, IMPROVEMENT, SAME = "slower", "faster", "same"
USAGE = 2


@dataclass(frozen=True)
class Change:
    """One row in both files; times in ms."""

    old: Mapping[str, Any]
    new: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """Of the new time to the old."""
        return float(self.new["ms"] / self.old["ms"])

    @property
    def noise(self) -> float:
        """The larger of the two distances between quartiles, in parts of the median."""
        return max(float((row["q3_ms"] - row["q1_ms"]) / row["ms"]) for row in (self.old, self.new))

    def kind(self, tolerance: float) -> str:
        if self.new["q1_ms"] > self.old["q3_ms"] and self.ratio > 1 + tolerance:
            return REGRESSION
        if self.new["q3_ms"] < self.old["q1_ms"] and self.ratio < 1 / (1 + tolerance):
            return IMPROVEMENT
        return SAME


@dataclass(frozen=True)
class Comparison:
    """``only_old`` and ``only_new`` count rows that the other file lacks."""

    changes: list[Change]
    only_old: int
    only_new: int

    def of_kind(self, kind: str, tolerance: float) -> list[Change]:
        """The largest changes first."""
        found = [change for change in self.changes if change.kind(tolerance) == kind]
        return sorted(found, key=lambda change: change.ratio, reverse=kind == REGRESSION)


def load(path: Path) -> dict[str, Any]:
    """A result file of any suite.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    record = records.load(path)
    for row in record.rows:
        missing = {"ms", "q1_ms", "q3_ms"} - row.keys()
        if missing:
            raise ValueError(f"{path}: rows without {', '.join(sorted(missing))} have no times to compare")
    rows = [{**row["key"], **row} for row in record.rows]
    return {"suite": record.run["suite"], "device": record.run["device"], "rows": rows}


def compare(old: Mapping[str, Any], new: Mapping[str, Any], *, force: bool = False) -> Comparison:
    """Match the rows of two documents.

    Raises:
        ValueError: their suites differ, they share no row, or, unless forced, their devices differ.
    """
    if old["suite"] != new["suite"]:
        raise ValueError(f"suite: got {old['suite']} and {new['suite']}; expected the same")
    if not force and device(old) != device(new):
        raise ValueError(f"device: got {device(old)} and {device(new)}; expected the same (--force compares anyway)")
    before, after = _by_identity(old["rows"]), _by_identity(new["rows"])
    shared = [key for key in before if key in after]
    if not shared:
        raise ValueError("rows: the files share none; expected two files of one suite")
    changes = [Change(before[key], after[key]) for key in shared]
    return Comparison(changes, len(before) - len(shared), len(after) - len(shared))


def device(document: Mapping[str, Any]) -> str:
    """The name, and the number of cores of a processor."""
    found = document["device"]
    return f"{found['name']}, {found['cores']} cores" if "cores" in found else str(found["name"])


def _by_identity(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {json.dumps([row.get(key) for key in IDENTITY]): row for row in rows}


def report(comparison: Comparison, tolerance: float) -> str:
    """For a person: a table of the changes, and counts."""
    slower, faster = (comparison.of_kind(kind, tolerance) for kind in (REGRESSION, IMPROVEMENT))
    parts = []
    if slower or faster:
        header = ("", *SHOWN, "old, ms", "new, ms", "new / old", "noise", "floor")
        floors = _floors(comparison.changes)
        parts.append(text_table(header, [_cells(change, tolerance, floors) for change in (*slower, *faster)]))
    same = len(comparison.changes) - len(slower) - len(faster)
    parts.append(f"{len(slower)} slower, {len(faster)} faster, {same} the same within noise and {tolerance:.0%}")
    if comparison.only_old or comparison.only_new:
        parts.append(f"only in the old file: {comparison.only_old} rows; only in the new: {comparison.only_new}")
    return "\n".join(parts)


def _cells(change: Change, tolerance: float, floors: Mapping[str, float]) -> tuple[str, ...]:
    shown = (change.new.get(key) for key in SHOWN)
    floor = floors.get(_place(change.new))
    return (
        change.kind(tolerance),
        *(MISSING if value is None else str(value) for value in shown),
        f"{change.old['ms']:.4g}",
        f"{change.new['ms']:.4g}",
        f"{change.ratio:.2f}",
        f"{change.noise:.0%}",
        MISSING if floor is None else f"{floor:.2f}",
    )


def _floors(changes: Sequence[Change]) -> dict[str, float]:
    """How the copy changed, by everything but the implementation: a change of the machine shows there too."""
    return {
        _place(change.new): change.ratio for change in changes if change.new["implementation"] in ("copy_", "clone")
    }


def _place(row: Mapping[str, Any]) -> str:
    return json.dumps([row.get(key) for key in IDENTITY if key != "implementation"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--fail", action="store_true", help="exit with 1 if anything became slower")
    parser.add_argument("--force", action="store_true", help="compare files of different devices")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="a smaller change counts as none (default: 0.02)"
    )
    options = parser.parse_args(arguments)
    if not options.tolerance >= 0:
        parser.error(f"--tolerance: got {options.tolerance}; expected a number >= 0")
    try:
        comparison = compare(load(options.old), load(options.new), force=options.force)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return USAGE
    print(report(comparison, options.tolerance))
    return int(options.fail and bool(comparison.of_kind(REGRESSION, options.tolerance)))


if __name__ == "__main__":
    exit_with(main)
