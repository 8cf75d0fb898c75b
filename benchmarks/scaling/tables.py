"""A scaling file as a table: what a call costs at least, from where on the size counts, and what the floor allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness import implementations as c
from benchmarks.harness.machine import commit_name
from benchmarks.harness.table import DTYPES, MISSING, Table, size_name
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD
from benchmarks.resuming import dates
from benchmarks.scaling.cases import CAPS, SIZE
from benchmarks.scaling.document import ROWS
from benchmarks.scaling.series import Style, line, overhead_ends, styles

LEGEND = (
    "The smallest x is 1 KB; its time is the fixed overhead of a call, which ends at the first size (powers of 4) that "
    "takes twice as long. Of copy_: the bandwidth of the fewest bytes against that of `copy_` on the same buffers in "
    "the same run. The least of all sizes: the smallest of these ratios, and where. Over caps: the slowest number of "
    "caps, from 1 to 4096 on x of 64 MB, over the fastest."
)


def headline(document: Mapping[str, Any]) -> str:
    device, versions, commit = document["device"], document["versions"], document["commit"]
    source = commit_name(commit)
    parts = [
        device["name"],
        f"last-level cache {size_name(document['cache_bytes'])}",
        f"torch {versions['torch']}, dreluop {versions['dreluop']} ({source})",
        dates(document, ROWS),
    ]
    if document["quick"]:
        parts.append("quick run: few points and samples")
    if not document["complete"]:
        parts.append("not all points")
    if document["failures"]:
        parts.append(f"{len(document['failures'])} implementations not measured")
    return "; ".join(parts)


def table(document: Mapping[str, Any]) -> Table:
    """One row per way of running, dtype and pass of ours."""
    rows = []
    for style in styles(document):
        for dtype in dict.fromkeys(row["dtype"] for row in document["rows"]):
            for pass_ in (FORWARD, BACKWARD, BOTH):
                found = line(document, SIZE, style, c.OURS.name, pass_, dtype)
                if found:
                    rows.append((style.name, DTYPES[dtype], pass_, *_cells(document, style, pass_, dtype, found)))
    header = (
        *("how", "dtype", "pass", "fixed overhead, us", "ends at", "largest x, ms", "of copy_"),
        *(f"{c.RELU_MINIMUM.name} / ours", "the least of all sizes", "over caps"),
    )
    return Table("Scaling", header, rows)


def _cells(
    document: Mapping[str, Any], style: Style, pass_: str, dtype: str, found: Mapping[int, Mapping[str, Any]]
) -> tuple[str, ...]:
    smallest, largest = min(found), max(found)
    end = overhead_ends(found)
    eager = line(document, SIZE, style, c.RELU_MINIMUM.name, pass_, dtype)
    ratios = {size: eager[size]["ms"] / found[size]["ms"] for size in eager.keys() & found.keys()}
    last = max(ratios, default=None)
    least = min(ratios, key=lambda size: ratios[size], default=None)
    by_caps = [row["ms"] for row in line(document, CAPS, style, c.OURS.name, pass_, dtype).values()]
    return (
        f"{found[smallest]['ms'] * 1e3:.3g}",
        MISSING if end is None else size_name(end),
        f"{found[largest]['ms']:.3g} ({size_name(largest)})",
        f"{found[largest]['fraction_of_copy']:.0%}",
        MISSING if last is None else f"{ratios[last]:.2f} ({size_name(last)})",
        MISSING if least is None else f"{ratios[least]:.2f} ({size_name(least)})",
        f"{max(by_caps) / min(by_caps):.2f}" if by_caps else MISSING,
    )
