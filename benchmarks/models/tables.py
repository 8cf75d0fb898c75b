"""A result file of whole models as tables of text, for the terminal and for documents alike."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness.table import MISSING, Table
from benchmarks.kernels.tables import hardware, left_out, noise_of, software
from benchmarks.models.document import Document
from benchmarks.models.implementations import IMPLEMENTATIONS, RELU
from benchmarks.models.steps import TRAIN
from benchmarks.models.suite import KEYS, ROWS, Row
from benchmarks.models.targets import TARGETS, NoisyVerdict, evaluate
from benchmarks.resuming import dates
from benchmarks.verdicts import Verdict, table_of_targets

LEGEND = (
    "Medians of whole steps; the implementations take turns in one process, from the same weights, on the same random "
    "images. In brackets: over plain ReLU, smaller is better. All but ReLU also pay for the penalty on their caps. "
    "Where the host takes as long to launch a step as the step lasts, the device waits for Python, not for kernels. "
    "Peak: network, optimizer, data and all else that a step allocates at its worst moment. Saved: what a forward pass "
    "keeps for backward beyond network and data."
)


def all_tables(document: Document) -> list[Table]:
    """Those that have rows, and the targets."""
    tables = (target_table, time_table, host_table, memory_table, largest_table)
    return [table for table in (make(document) for make in tables) if table.rows]


def headline(document: Document) -> str:
    """One sentence: what measured this, when, and whether all of it."""
    parts = [
        hardware(document),
        software(document),
        f"torchvision {document['versions']['torchvision']}",
        dates(document, ROWS),
        noise_of(document["rows"], "an implementation"),
    ]
    if document["quick"]:
        parts.append("quick run: one case of reduced size")
    return "; ".join([*parts, *left_out(document)])


def target_table(document: Document) -> Table:
    """Each target beside what was measured, at worst and at best."""
    return table_of_targets(
        ("compiled", "ours over", "target"),
        TARGETS,
        lambda target: evaluate(target, document["rows"]),
        lambda target: (target.pass_, target.against, f"<= {target.limit:.2f} within noise"),
        _measured,
    )


def _measured(verdict: Verdict) -> str:
    noise = f"noise {verdict.noise:.1%}; " if isinstance(verdict, NoisyVerdict) else ""
    return f"{verdict.measured:.3f} ({noise}{verdict.row['network']}, {verdict.row['implementation']})"


def time_table(document: Document) -> Table:
    """A line per case: milliseconds of every implementation, over plain ReLU in brackets."""

    def cell(row: Row) -> str:
        ratio = row["ratio_to_relu"]
        return f"{row['ms']:.3g}" + ("" if ratio is None or row["implementation"] == RELU else f" ({ratio:.2f})")

    return _by_case(document, "Times, ms", cell)


def host_table(document: Document) -> Table:
    """A line per case on a GPU: how long the host takes to launch a step."""

    def cell(row: Row) -> str:
        # Older files do not have it.
        host = row.get("host_ms")
        return MISSING if host is None else f"{host:.3g}"

    return _known(_by_case(document, "Time of the host to launch it, ms", cell))


def memory_table(document: Document) -> Table:
    """A line per case: peak memory where it was counted; of training steps without it, what is kept for backward."""

    def cell(row: Row) -> str:
        if row["peak_bytes"] is not None:
            return f"{row['peak_bytes'] / 1e6:.0f}"
        return MISSING if row["saved_bytes"] is None else f"saved {row['saved_bytes'] / 1e6:.1f}"

    return _known(_by_case(document, "Memory, MB", cell))


def _known(table: Table) -> Table:
    """The lines in which anything is known."""
    rows = [row for row in table.rows if any(text != MISSING for text in row[-len(IMPLEMENTATIONS) :])]
    return Table(table.title, table.header, rows)


def _by_case(document: Document, title: str, cell: Callable[[Row], str]) -> Table:
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in document["rows"]:
        key = tuple(str(row[key]) for key in KEYS)  # type: ignore[literal-required]
        found.setdefault(key, {})[row["implementation"]] = row
    lines = []
    for key, by_name in found.items():
        one = next(iter(by_name.values()))
        cells = (cell(by_name[name]) if name in by_name else MISSING for name in IMPLEMENTATIONS)
        lines.append((", ".join(key[:-1]), f"{one['batch']} x {one['image']} px", *cells))
    return Table(title, ("case", "batch", *IMPLEMENTATIONS), lines)


def largest_table(document: Document) -> Table:
    """The largest batches of a training step: the one that ran, and the smallest that ran out of memory."""
    lines = []
    for found in document["largest"]:
        above = MISSING if found["too_large"] is None else str(found["too_large"])
        per_image = f"{found['bytes_per_image'] / 1e6:.1f}"
        case = f"{found['network']}, {found['precision']}, {TRAIN}, {found['image']} px"
        lines.append((case, found["implementation"], str(found["batch"]), above, per_image))
    header = ("case", "implementation", "largest batch that ran", "out of memory at", "MB per image")
    return Table("Largest batch", header, lines)
