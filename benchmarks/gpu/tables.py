"""A result file of the GPU benchmark as tables of text, for the terminal and for documents alike."""

from __future__ import annotations

import statistics

from benchmarks.gpu.document import ROWS, Document
from benchmarks.gpu.suite import Row
from benchmarks.gpu.targets import LAUNCHES, TARGETS, Target, evaluate, row_of
from benchmarks.harness import implementations as c
from benchmarks.harness.table import DTYPES, MISSING, Table
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD, LARGE
from benchmarks.kernels.tables import noise_of, software
from benchmarks.resuming import dates
from benchmarks.verdicts import Verdict, table_of_targets

OTHERS = (c.RELU_MINIMUM.name, c.CLAMP.name, c.COMPILED.name, c.OURS_TRITON.name)
# Beside the kernels of the default rule: what it adds to the name of a column.
VARIANTS = {c.OURS.name: "", c.OURS_MASK.name: ", mask", c.OURS_TRITON.name: ", Triton"}

LEGEND = (
    "Times are medians of CUDA-graph replays between events, implementations interleaved, random data, buffers rotated "
    "so that L2 is cold; no Python and no launches are in them. Per cent: the fewest bytes that the pass must move "
    "over its time, against a copy of x to another tensor in the same run. Ratios: the other's forward + backward over "
    "ours, larger is better."
)


def headline(document: Document) -> str:
    """One sentence: what measured this, when, and whether all of it."""
    gpu = document["device"]
    parts = [
        f"{gpu['name']}, {gpu['multiprocessors']} multiprocessors, driver {gpu['driver'] or 'unknown'}",
        software(document),
        dates(document, ROWS),
        copy_bandwidth(document),
        noise_of([row for row in document["rows"] if row["implementation"] == c.COPY], "the copy"),
    ]
    if document["quick"]:
        parts.append("quick run: few cases and samples")
    if not document["complete"]:
        parts.append("interrupted: not all cases")
    if document["failures"]:
        parts.append(f"{len(document['failures'])} implementations not measured")
    return "; ".join(parts)


def copy_bandwidth(document: Document) -> str:
    large = [
        row["copy_gb_per_s"] for row in document["rows"] if row["implementation"] == c.COPY and row["x_bytes"] >= LARGE
    ]
    if not large:
        return "copy bandwidth not measured"
    return f"copy {statistics.median(large):.0f} GB/s ({min(large):.0f} to {max(large):.0f})"


def target_table(document: Document) -> Table:
    """Each target beside what was measured, at worst and at best."""
    return table_of_targets(
        ("measure", "x", "target"),
        TARGETS,
        lambda target: evaluate(target, document["rows"]),
        lambda target: (_subject(target), _where(target), _limit(target)),
        _measured,
    )


def _subject(target: Target) -> str:
    mask = ", packed mask" if target.implementation == c.OURS_MASK.name else ""
    against = {c.COPY: "bandwidth of a copy", LAUNCHES: "kernels launched"}.get(target.against, target.against)
    return f"{target.pass_}{mask}: {against}"


def _where(target: Target) -> str:
    size = "<= 1 MB" if target.small else ">= 64 MB without bias and residual"
    return ", ".join([size, *(DTYPES[dtype] for dtype in target.dtypes or ())])


def _limit(target: Target) -> str:
    if target.against == LAUNCHES:
        return f"<= {target.limit:g}"
    return f">= {target.limit:.0%}" if target.against == c.COPY else f">= {target.limit:g} x faster"


def _measured(verdict: Verdict) -> str:
    if verdict.target.against == LAUNCHES:
        value = f"{verdict.measured:.0f}"
    else:
        value = f"{verdict.measured:.1%}" if verdict.target.against == c.COPY else f"{verdict.measured:.2f}"
    return f"{value} ({verdict.row['case']}, {DTYPES[verdict.row['dtype']]})"


def case_table(document: Document) -> Table:
    """Per input: our times and shares of the copy's bandwidth, with the packed mask and by Triton too, and ratios."""
    rows = document["rows"]
    ours = [row for row in rows if row["implementation"] == c.OURS.name and row["pass"] == FORWARD]
    lines = []
    for forward in ours:
        alike = [row for row in rows if _same_input(row, forward)]
        by_variant = {name: {row["pass"]: row for row in alike if row["implementation"] == name} for name in VARIANTS}
        passes = by_variant[c.OURS.name]
        both = passes.get(BOTH)
        lines.append(
            (
                forward["case"],
                "x".join(map(str, forward["shape"])),
                DTYPES[forward["dtype"]],
                *(_milliseconds(passes.get(pass_)) for pass_ in (FORWARD, BACKWARD)),
                *(_fraction(of.get(pass_)) for of in by_variant.values() for pass_ in (FORWARD, BACKWARD)),
                *(_ratio(document, both, other) for other in OTHERS),
            )
        )
    header = (
        *("x", "shape", "dtype", "forward, ms", "backward, ms"),
        *(f"{pass_}{variant}" for variant in VARIANTS.values() for pass_ in (FORWARD, BACKWARD)),
        *(f"{other} / ours" for other in OTHERS),
    )
    return Table("dreluop", header, lines)


def _same_input(row: Row, like: Row) -> bool:
    return (row["case"], row["dtype"]) == (like["case"], like["dtype"])


def _milliseconds(row: Row | None) -> str:
    return MISSING if row is None else f"{row['ms']:.3g}"


def _fraction(row: Row | None) -> str:
    return MISSING if row is None else f"{row['fraction_of_copy']:.0%}"


def _ratio(document: Document, row: Row | None, against: str) -> str:
    other = None if row is None else row_of(document["rows"], row, against)
    return MISSING if row is None or other is None else f"{other['ms'] / row['ms']:.2f}"
