"""Tables of the result file of compiled training steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.compiled import suite
from benchmarks.harness.table import MISSING, Table
from benchmarks.kernels.tables import hardware, left_out, noise_of, software
from benchmarks.resuming import dates

FILE_NAME = "compiled.json"


def headline(document: Mapping[str, Any]) -> str:
    parts = [
        hardware(document),
        software(document),
        dates(document, suite.ROWS),
    ]
    if document["rows"]:
        parts.append(noise_of(document["rows"], "an implementation"))
    if document["quick"]:
        parts.append("quick run: three samples")
    return "; ".join([*parts, *left_out(document)])


def all_tables(document: Mapping[str, Any]) -> list[Table]:
    """The times, and, of a GPU, how long the host takes for its part."""
    tables = [table(document)]
    # The oldest files do not have it.
    if any(row.get("host_ms") is not None for row in document["rows"]):
        tables.append(host_table(document))
    return tables


def table(document: Mapping[str, Any]) -> Table:
    """A line per network: milliseconds of a step, over the clamp model in brackets."""

    def cell(row: Mapping[str, Any]) -> str:
        ratio = row["ratio_to_clamp"]
        over = "" if ratio is None or row["implementation"] == suite.CLAMP else f" ({ratio:.2f})"
        return f"{row['ms']:.3g} [{row['q1_ms']:.3g} .. {row['q3_ms']:.3g}]{over}"

    return _by_network(document, "Compiled training steps, ms: median, quartiles, over the clamp model", cell)


def host_table(document: Mapping[str, Any]) -> Table:
    """A line per network: where it is the time of the step, the GPU waits for Python."""
    return _by_network(document, "Time of the host to launch such a step, ms", lambda row: f"{row['host_ms']:.3g}")


def _by_network(document: Mapping[str, Any], title: str, cell: Callable[[Mapping[str, Any]], str]) -> Table:
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in document["rows"]:
        how = row.get("how")
        network = f"{row['network']}, {how}" if how else row["network"]
        found.setdefault((network, row["batch"]), {})[row["implementation"]] = cell(row)
    lines = [
        (network, str(batch), *(cells.get(name, MISSING) for name in suite.IMPLEMENTATIONS))
        for (network, batch), cells in found.items()
    ]
    return Table(title, ("network", "batch", *suite.IMPLEMENTATIONS), lines)
