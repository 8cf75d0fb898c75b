"""The table of the study: accuracy by variant and rate, mean and 5th percentile over networks and trials."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.harness import records
from benchmarks.harness.records import Record
from benchmarks.harness.table import MISSING, Table, software, titled

FILE_NAME = "bit-flips.jsonl"


def tables(record: Record) -> list[Table]:
    """One for each network and kind of faults: means over the seeds, of the trials' mean and 5th percentile."""
    kinds = dict.fromkeys((row["key"]["case"], row["key"]["kind"]) for row in record.rows)
    return [_table(record, network, kind) for network, kind in kinds]


def _table(record: Record, network: str, kind: str) -> Table:
    rows = [row for row in record.rows if (row["key"]["case"], row["key"]["kind"]) == (network, kind)]
    rates = sorted({row["key"]["rate"] for row in rows})
    found = []
    for variant in dict.fromkeys(row["key"]["variant"] for row in rows):
        own = [row for row in rows if row["key"]["variant"] == variant]
        cells = [variant, f"{100 * statistics.fmean(row['clean'] for row in own):.1f}"]
        for rate in rates:
            at = [row for row in own if row["key"]["rate"] == rate]
            both = (100 * statistics.fmean(row[key] for row in at) if at else None for key in ("mean", "p5"))
            cells.append(" / ".join(MISSING if one is None else f"{one:.1f}" for one in both))
        found.append(tuple(cells))
    return Table(f"{network}, {kind}", ("activations", "clean", *(f"{rate:g}" for rate in rates)), found)


def headline(record: Record) -> str:
    settings = record.run["settings"]
    counts = f"{settings['seeds']} networks, {settings['trials']} trials each, {settings['inputs']} digits"
    return f"{counts}; {record.run['device']['name']}; {software(record)}; {record.when()}"


def page(folder: Path) -> str:
    """All tables, for the document that marks them."""
    found = [records.load(path) for path in sorted(folder.glob(f"*/{FILE_NAME}"))]
    return "\n\n".join(f"{headline(one)}.\n\n" + "\n\n".join(titled(t, "") for t in tables(one)) for one in found)
