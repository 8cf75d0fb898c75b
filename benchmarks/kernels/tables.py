"""A result file as tables of text, for the terminal and for documents alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import implementations as c
from benchmarks.harness.machine import Document, commit_name
from benchmarks.harness.table import DTYPES, MISSING, Table
from benchmarks.kernels.suite import BACKWARD, BOTH, FORWARD, IN_PLACE, LARGE, SMALL, Row
from benchmarks.kernels.targets import TARGETS, THREADS, Target, evaluate, ratio_against
from benchmarks.verdicts import Verdict, table_of_targets

COMPARISONS = (
    (FORWARD, c.CLONE),
    (IN_PLACE, c.COPY),
    (BACKWARD, c.CLONE),
    (BOTH, c.RELU_MINIMUM.name),
    (BOTH, c.CLAMP.name),
    (BOTH, c.COMPILED.name),
)


def headline(document: Document) -> str:
    """One sentence: what measured this, when, and whether all of it."""
    device, backend = document["device"], document["backend"]
    capability = f" ({backend['cpu_capability']})" if backend["cpu_capability"] else ""
    parts = [
        f"{device['name']}, {device['cores']} cores, {document['threads']} threads",
        f"{backend['serves']} kernels{capability}",
        software(document),
        document["date"][:10],
    ]
    if document["quick"]:
        parts.append("quick run: few samples")
    if not document["complete"]:
        parts.append("interrupted: not all cases")
    return "; ".join(parts)


def hardware(document: Mapping[str, Any]) -> str:
    """On what it was measured, of any document with a device, and, if that is a processor, threads."""
    device = document["device"]
    if "capability" in device:
        return f"{device['name']}, driver {device['driver'] or 'unknown'}"
    return f"{device['name']}, {device['cores']} cores, {document['threads']} threads"


def software(document: Mapping[str, Any]) -> str:
    """What was measured, of any document with versions and a commit."""
    versions, commit = document["versions"], document["commit"]
    source = commit_name(commit)
    return f"torch {versions['torch']}, Python {versions['python']}, dreluop {versions['dreluop']} ({source})"


def left_out(document: Mapping[str, Any]) -> list[str]:
    """What is not in the rows, of any document with missing cases and failures."""
    parts = []
    if not document["complete"]:
        parts.append(f"not all cases: {len(document['missing'])} missing")
    if document["failures"]:
        parts.append(f"{len(document['failures'])} implementations not measured")
    return parts


def noise(document: Document) -> str:
    """How far the machine's own speed moved, seen on the floors."""
    return noise_of([row for row in document["rows"] if row["implementation"] == row["floor"]], "a floor")


def noise_of(rows: Sequence[Mapping[str, Any]], whose: str) -> str:
    spreads = sorted((row["q3_ms"] - row["q1_ms"]) / row["ms"] for row in rows)
    if not spreads:
        return "nothing measured"
    return f"noise (distance of {whose}'s quartiles): {spreads[len(spreads) // 2]:.0%}, at most {spreads[-1]:.0%}"


def page_faults(document: Document) -> str:
    """How many page faults a forward pass takes, ours beside the clone's: the cause of most of their difference."""
    found: dict[str, list[float]] = {c.CLONE: [], c.OURS.name: []}
    for row in document["rows"]:
        if row["pass"] == FORWARD and row["x_bytes"] >= LARGE and row["implementation"] in found:
            found[row["implementation"]].append(row["page_faults"])
    if not all(found.values()):
        return "page faults not measured"
    counts = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in found.items())
    return f"page faults of a forward pass on >= {LARGE // 2**20} MiB: {counts}"


def target_table(document: Document) -> Table:
    """Each target beside what was measured, at worst and at best."""
    rows = [row for row in document["rows"] if row["threads"] == document["threads"]]
    return table_of_targets(
        ("time of", "x", "target"),
        TARGETS,
        lambda target: evaluate(target, rows),
        lambda target: (f"{target.pass_} against {target.against}", _where(target), _limit(target)),
        _measured,
        "" if document["threads"] == THREADS else f" (meant for {THREADS} threads)",
    )


def _limit(target: Target) -> str:
    return f"<= {target.limit:g} x" if target.is_floor else f">= {target.limit:g} x faster"


def _where(target: Target) -> str:
    size = " x ".join(map(str, SMALL)) if target.small else f">= {LARGE // 2**20} MiB"
    return ", ".join([size, *(DTYPES[dtype] for dtype in target.dtypes or ())])


def _measured(verdict: Verdict) -> str:
    return f"{verdict.measured:.2f} ({verdict.row['case']}, {DTYPES[verdict.row['dtype']]})"


def case_table(document: Document) -> Table:
    """Our times per input, and their ratios: to the floors (smaller is better), and of the others' times to ours."""
    ours = [row for row in document["rows"] if row["implementation"] == c.OURS.name]
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in ours:
        found.setdefault((row["case"], row["dtype"]), {})[row["pass"]] = row
    rows = []
    for (case, dtype), passes in found.items():
        shape = "x".join(map(str, next(iter(passes.values()))["shape"]))
        times = [_milliseconds(passes.get(pass_)) for pass_ in (FORWARD, IN_PLACE, BACKWARD, BOTH)]
        ratios = [_ratio(passes.get(pass_), against, document["rows"]) for pass_, against in COMPARISONS]
        rows.append((case, shape, DTYPES[dtype], *times, *ratios))
    header = (
        *("x", "shape", "dtype"),
        *(f"{pass_}, ms" for pass_ in (FORWARD, IN_PLACE, BACKWARD, BOTH)),
        *(_comparison_header(pass_, against) for pass_, against in COMPARISONS),
    )
    return Table("dreluop", header, rows)


def _comparison_header(pass_: str, against: str) -> str:
    return f"{pass_} / {against}" if against in (c.CLONE, c.COPY) else f"{against} / ours"


def _milliseconds(row: Row | None) -> str:
    return MISSING if row is None else f"{row['ms']:.3g}"


def _ratio(row: Row | None, against: str, rows: Sequence[Row]) -> str:
    ratio = None if row is None else ratio_against(row, against, rows)
    return MISSING if ratio is None else f"{ratio:.2f}"


def row_tables(document: Document) -> list[Table]:
    """Every row of the file, in one table per input."""
    header = ("pass", "who", "ms", "quartiles", "/ floor", "GB/s", "page faults", "samples")
    found: dict[str, Table] = {}
    for row in document["rows"]:
        title = f"{row['case']}: {'x'.join(map(str, row['shape']))}, {DTYPES[row['dtype']]}"
        found.setdefault(title, Table(title, header, [])).rows.append(
            (
                row["pass"],
                row["implementation"],
                f"{row['ms']:.4g}",
                f"{row['q1_ms']:.4g} to {row['q3_ms']:.4g}",
                f"{row['ratio_to_floor']:.2f}",
                f"{row['gb_per_s']:.1f}",
                f"{row['page_faults']:.0f}",
                f"{row['samples']} x {row['calls_per_sample']}",
            )
        )
    return list(found.values())
