"""What changed between two records of one suite and one device: `python -m tools.compare old.jsonl new.jsonl`.

A change counts when the quartiles of the two runs do not overlap and the medians differ by more than the tolerance.
Regressions come first, then improvements, each with the largest first. Rows without a change are only counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness import records
from benchmarks.harness.entry import exit_with
from benchmarks.harness.table import MISSING
from dreluop._internal.text_table import text_table

# What distinguishes rows, in the files of all suites.
CASE = ["axis", "model", "case", "granularity", "memory_format", "bias_and_residual", "shape", "dtype", "threads"]
PASS = [*CASE, "mode", "pass"]
IDENTITY = [*PASS, "implementation"]
SHOWN = ["case", "dtype", "threads", "mode", "pass", "implementation"]
TIMES = ["ms", "q1_ms", "q3_ms"]
FLOORS = ("copy_", "clone")
FORMATS = {"ms_old": "{:.4g}", "ms_new": "{:.4g}", "ratio": "{:.2f}", "noise": "{:.0%}", "floor": "{:.2f}"}
HEADER = ("", *SHOWN, "old, ms", "new, ms", "new / old", "noise", "floor")
RUNS = ("old", "new")
TOLERANCE = 0.02
REGRESSION, IMPROVEMENT, SAME = "slower", "faster", "same"
USAGE = 2


def load(path: Path) -> Any:
    """The suite, the device and the rows of a record.

    Raises:
        ValueError: it is not a record, or has no times.
        OSError: it cannot be read.
    """
    record = records.load(path)
    for row in record.rows:
        if missing := set(TIMES) - row.keys():
            raise ValueError(f"{path}: rows without {', '.join(sorted(missing))} have no times to compare")
    rows = [{**row["key"], **row} for row in record.rows]
    return {"suite": record.run["suite"], "device": record.run["device"], "rows": rows}


def compare(old: Any, new: Any, *, tolerance: float = TOLERANCE, force: bool = False) -> pd.DataFrame:
    """A row per row of either document, with its ``kind``, which is missing where only one document has it.

    Raises:
        ValueError: their suites differ, they share no row, or, unless forced, their devices differ.
    """
    if old["suite"] != new["suite"]:
        raise ValueError(f"suite: got {old['suite']} and {new['suite']}; expected the same")
    if not force and device(old) != device(new):
        raise ValueError(f"device: got {device(old)} and {device(new)}; expected the same (--force compares anyway)")
    rows = _frame(old).merge(_frame(new), on=IDENTITY, how="outer", suffixes=("_old", "_new"), indicator="found_in")
    in_both = rows["found_in"] == "both"
    if not in_both.any():
        raise ValueError("rows: the files share none; expected two files of one suite")
    rows["ratio"] = rows["ms_new"] / rows["ms_old"]
    rows["noise"] = np.maximum(*((rows[f"q3_ms_{run}"] - rows[f"q1_ms_{run}"]) / rows[f"ms_{run}"] for run in RUNS))
    slower = (rows["q1_ms_new"] > rows["q3_ms_old"]) & (rows["ratio"] > 1 + tolerance)
    faster = (rows["q3_ms_new"] < rows["q1_ms_old"]) & (rows["ratio"] < 1 / (1 + tolerance))
    rows["kind"] = pd.Series(np.select([slower, faster], [REGRESSION, IMPROVEMENT], SAME)).where(in_both)
    # A change of the machine shows in the copy too.
    floors = rows[in_both & rows["implementation"].isin(FLOORS)].drop_duplicates(PASS, keep="last")
    return rows.merge(floors[[*PASS, "ratio"]].rename(columns={"ratio": "floor"}), on=PASS, how="left")


def device(document: Any) -> str:
    """The name, and the number of cores of a processor."""
    found = document["device"]
    return f"{found['name']}, {found['cores']} cores" if "cores" in found else str(found["name"])


def _frame(document: Any) -> pd.DataFrame:
    """The last row of each identity. Identities are text: a shape is a list, and what a suite lacks is empty."""
    rows = pd.DataFrame(document["rows"]).reindex(columns=[*IDENTITY, *TIMES])
    rows[IDENTITY] = [[_text(row.get(key)) for key in IDENTITY] for row in document["rows"]]
    return rows.drop_duplicates(IDENTITY, keep="last")


def _text(value: Any) -> str:
    return MISSING if value is None else value if isinstance(value, str) else json.dumps(value)


def report(rows: pd.DataFrame, tolerance: float) -> str:
    """For a person: a table of the changes, and counts."""
    slower = rows[rows["kind"] == REGRESSION].sort_values("ratio", ascending=False)
    faster = rows[rows["kind"] == IMPROVEMENT].sort_values("ratio")
    changed = pd.concat([slower, faster])
    for name, text in FORMATS.items():
        changed[name] = [MISSING if pd.isna(value) else text.format(value) for value in changed[name]]
    same = (rows["kind"] == SAME).sum()
    lines = [text_table(HEADER, changed[["kind", *SHOWN, *FORMATS]].values.tolist())] if len(changed) else []
    lines.append(f"{len(slower)} slower, {len(faster)} faster, {same} the same within noise and {tolerance:.0%}")
    only_old, only_new = ((rows["found_in"] == side).sum() for side in ("left_only", "right_only"))
    if only_old or only_new:
        lines.append(f"only in the old file: {only_old} rows; only in the new: {only_new}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.compare", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--fail", action="store_true", help="exit with 1 if anything became slower")
    parser.add_argument("--force", action="store_true", help="compare files of different devices")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"a smaller change counts as none (default: {TOLERANCE})"
    )
    options = parser.parse_args(arguments)
    if not options.tolerance >= 0:
        parser.error(f"--tolerance: got {options.tolerance}; expected a number >= 0")
    try:
        rows = compare(load(options.old), load(options.new), tolerance=options.tolerance, force=options.force)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return USAGE
    print(report(rows, options.tolerance))
    return int(options.fail and (rows["kind"] == REGRESSION).any())


if __name__ == "__main__":
    exit_with(main)
