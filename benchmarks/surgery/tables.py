"""The committed sweeps of surgery, by library."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness.table import MISSING, Table

FILE_NAMES = ("surgery-sweep.json", "surgery-zoo*.json")
LEGEND = (
    "Calls: ReLU calls that run in the original, in the mode with more. Remain: calls that run outside of a D-ReLU "
    "after surgery. In silence: those of them that the report does not name. Equal: outputs bit for bit, and "
    "gradients but for rounding, of the networks that have a ReLU and were run. Seconds: median and largest of the "
    "surgery, in the zoo with its run on an example."
)
_HEADER = (
    "library", "networks", "with ReLU", "calls", "sites", "replaced", "fused", "remain", "in silence", "equal outputs",
    "equal gradients", "errors", "seconds",
)  # fmt: skip


def table(documents: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each library of the zoo, and one for torchvision's classifiers."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for document in documents:
        for row in document["rows"]:
            library, slash, _ = row["name"].partition("/")
            groups[library if slash else "torchvision, classifiers"].append(row)
    return Table("Surgery", _HEADER, [_cells(library, rows) for library, rows in groups.items()])


def headline(documents: Sequence[Mapping[str, Any]]) -> str:
    """The versions of the libraries, the date and the commit of each sweep."""
    facts = []
    for document in documents:
        versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
        facts.append(f"{document['date'][:10]}, {document['commit']['hash'][:7]}: {versions}")
    return "; ".join(facts)


def _cells(library: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    used = [row for row in rows if _calls(row)]
    silent = [max(0, (row.get("remaining_independent") or 0) - (row.get("remaining") or 0)) for row in rows]
    seconds = sorted(row["seconds"] for row in rows if row["seconds"] is not None)
    remain = [row.get("remaining_independent", row.get("remaining")) or 0 for row in rows]
    return (
        library, str(len(rows)), str(len(used)), str(sum(map(_calls, rows))),
        *(str(sum(row.get(name, row.get("found")) or 0 for row in rows)) for name in ("sites", "replaced", "fused")),
        str(sum(remain)), str(sum(silent)), _share(used, "equal"), _share(used, "gradients"),
        str(sum(bool(row.get("error")) for row in rows)),
        f"{seconds[len(seconds) // 2]:.2f} / {seconds[-1]:.2f}" if seconds else MISSING,
    )  # fmt: skip


def _calls(row: Mapping[str, Any]) -> int:
    return max(row.get("calls") or 0, row.get("calls_train") or 0, row.get("calls_eval") or 0)


def _share(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    known = [row[name] for row in rows if row.get(name) is not None]
    return f"{sum(known)} of {len(known)}" if known else MISSING
