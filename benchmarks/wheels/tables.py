"""The tables of a ``wheels.json``."""

from __future__ import annotations

from benchmarks.harness.table import MISSING, Table
from benchmarks.wheels.document import Document, Row

LEGEND = (
    "What failed or is missing is named in the file. Import: `import dreluop` after `import torch`, the "
    "median of new processes: CPU time, and what the clock showed on the machine as it was (load: processes that "
    "wanted its cores)."
)


def headline(document: Document) -> str:
    device, commit = document["device"], document["commit"]
    of = "" if commit is None else f"; commit {commit['hash'][:10]}{', changed' if commit['dirty'] else ''}"
    return f"{device['name']}, {device['cores']} cores; {document['date'][:10]}{of}"


def wheel_table(document: Document) -> Table:
    rows = [
        (wheel["name"], _megabytes(wheel["bytes"]), _megabytes(wheel["unpacked"]), _megabytes(wheel["library_bytes"]))
        for wheel in document["wheels"]
    ]
    return Table("Wheels", ("wheel", "MB", "unpacked, MB", "of it `_ops.abi3.so`, MB"), rows)


def environment_table(document: Document) -> Table:
    header = (
        *("Python", "torch", "wheel for", "outcome", "passed", "failed", "skipped"),
        *("symbols missing", "import, CPU ms", "import, ms (load)"),
    )
    return Table("Environments", header, [_environment(row) for row in document["rows"]])


def _environment(row: Row) -> tuple[str, ...]:
    wheel = MISSING if row["wheel"] is None else row["wheel"].split("-")[2]
    outcome = "passed" if row["failure"] is None else f"**failed**: {row['failure'].splitlines()[0]}"
    counts = (row["passed"], len(row["failed"]), sum(row["skipped"].values()), len(row["missing_symbols"]))
    if row["import_ms"] is None or row["import_cpu_ms"] is None:
        times = (MISSING, MISSING)
    else:
        times = (f"{row['import_cpu_ms']:.0f}", f"{row['import_ms']:.0f} ({row['load']:.1f})")
    return (row["python"], row["torch"], wheel, outcome, *map(str, counts), *times)


def _megabytes(size: int | None) -> str:
    return MISSING if size is None else f"{size / 1e6:.2f}"
