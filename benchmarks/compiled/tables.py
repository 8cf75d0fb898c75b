"""Tables of the result file of compiled training steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.compiled import suite
from benchmarks.kernels.tables import noise_of, software
from benchmarks.tables import MISSING, Table

FILE_NAME = "compiled.json"


def headline(document: Mapping[str, Any]) -> str:
    device = document["device"]
    parts = [
        f"{device['name']}, {device['cores']} cores, {document['threads']} threads",
        software(document),
        document["date"][:10],
    ]
    if document["rows"]:
        parts.append(noise_of(document["rows"], "a contender"))
    if document["quick"]:
        parts.append("quick run: three steps")
    if not document["complete"]:
        parts.append(f"not all cases: {len(document['missing'])} missing")
    if document["failures"]:
        parts.append(f"{len(document['failures'])} contenders not measured")
    return "; ".join(parts)


def table(document: Mapping[str, Any]) -> Table:
    """A line per network: milliseconds of a step, over the clamp model in brackets."""
    by_network: dict[tuple[str, int], dict[str, Mapping[str, Any]]] = {}
    for row in document["rows"]:
        by_network.setdefault((row["network"], row["batch"]), {})[row["contender"]] = row

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return MISSING
        ratio = row["ratio_to_clamp"]
        over = "" if ratio is None or row["contender"] == suite.CLAMP else f" ({ratio:.2f})"
        return f"{row['ms']:.3g} [{row['q1_ms']:.3g} .. {row['q3_ms']:.3g}]{over}"

    lines = [
        (network, str(batch), *(cell(rows.get(name)) for name in suite.CONTENDERS))
        for (network, batch), rows in by_network.items()
    ]
    title = "Compiled training steps, ms: median, quartiles, over the clamp model"
    return Table(title, ("network", "batch", *suite.CONTENDERS), lines)
