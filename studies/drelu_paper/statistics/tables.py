"""Tables of a document of the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.files import load_document
from benchmarks.harness.table import MISSING, Table, markdown
from studies.drelu_paper.statistics.comparison import WILCOXON
from studies.drelu_paper.statistics.document import ACCURACIES, FILE_NAME, MODELS

NOTHING = "Nothing has been compared yet."
Entries = Sequence[Mapping[str, Any]]


def overview(comparisons: Entries) -> Table:
    """One row per comparison: every statistic with its p-value, the critical difference, and what it parts."""
    names = dict.fromkeys(test["name"] for one in comparisons for test in one["tests"])
    ends = ("critical difference", "best mean rank", "differ from it")
    header = ("subject", "basis", "methods", "blocks", *names, *ends)
    rows = []
    for one in comparisons:
        tests = {test["name"]: test for test in one["tests"]}
        cells = (MISSING if name not in tests else _statistic(tests[name]) for name in names)
        left_out = f", {len(one['left_out'])} left out" if one["left_out"] else ""
        best = one["methods"][0]
        rows.append(
            (
                one["subject"], one["basis"], str(len(one["methods"])), f"{one['blocks']}{left_out}", *cells,
                MISSING if one["nemenyi"] is None else _critical_difference(one),
                f"{best['name']} {best['mean_rank']:.2f}", ", ".join(_parted_from_best(one)) or "none",
            )
        )  # fmt: skip
    return Table("Do the methods differ at all? (statistic, and p)", header, rows)


def _critical_difference(comparison: Mapping[str, Any]) -> str:
    return f"{comparison['nemenyi']['critical_difference']:.3f}"


def _statistic(test: Mapping[str, Any]) -> str:
    value = "infinite" if test["statistic"] is None else f"{test['statistic']:.2f}"
    return f"{value} (p {test['p_value']:.2g})"


def _parted_from_best(comparison: Mapping[str, Any]) -> list[str]:
    """The methods whose difference from the best is significant, by Nemenyi, or by Wilcoxon if there are two."""
    best, *others = (method["name"] for method in comparison["methods"])
    if comparison["nemenyi"]:
        return [pair["worse"] for pair in comparison["nemenyi"]["pairs"] if pair["better"] == best and pair["differ"]]
    (test,) = (test for test in comparison["tests"] if test["name"] == WILCOXON)
    return others if test["p_value"] < comparison["alpha"] else []


def methods(comparisons: Entries) -> Table:
    """One row per method: its mean accuracy and its mean rank."""
    rows = []
    for one in comparisons:
        for method in one["methods"]:
            mean = MISSING if method["mean_accuracy"] is None else f"{method['mean_accuracy']:.2f}"
            rows.append((one["subject"], one["basis"], method["name"], mean, f"{method['mean_rank']:.3f}"))
    return Table("Methods, best first", ("subject", "basis", "method", "mean accuracy", "mean rank"), rows)


def pairs(comparisons: Entries, *, of_best: bool = False) -> Table:
    """One row per pair of methods, or per pair with the best one: whether they differ by Nemenyi's test."""
    rows = []
    for one in comparisons:
        for pair in one["nemenyi"]["pairs"] if one["nemenyi"] else ():
            if not of_best or pair["better"] == one["methods"][0]["name"]:
                difference, critical = f"{pair['rank_difference']:.3f}", _critical_difference(one)
                names, differ = f"{pair['better']} over {pair['worse']}", "yes" if pair["differ"] else "no"
                cells = (names, difference, critical, f"{pair['p_value']:.2g}", differ)
                rows.append((one["subject"], one["basis"], *cells))
    header = ("subject", "basis", "pair", "difference of mean ranks", "critical difference", "p", "differ")
    return Table("Which pairs differ? (Nemenyi)", header, rows)


def claims(found: Entries) -> Table:
    """What the paper prints about Table 2, beside what the table gives."""
    header = ("figure", "printed", "from the accuracies", "from the printed ranks", "follows", "comment")
    rows = []
    for one in found:
        digits = max(2, len(one["printed"].partition(".")[2]))
        ranks = one["from_printed_ranks"]
        given = (f"{one['from_accuracies']:.{digits}f}", MISSING if ranks is None else f"{ranks:.{digits}f}")
        rows.append((one["figure"], one["printed"], *given, "yes" if one["holds"] else "**no**", one["comment"]))
    return Table("What the paper prints about Table 2", header, rows)


def wrong_ranks(found: Entries, no_rankings: Entries) -> Table:
    """One row per block with a printed rank that disagrees with its accuracies: its wrong cells, and their ranks."""
    blocks: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in found:
        blocks.setdefault((one["subject"], one["block"]), []).append(one)
    none = {(one["subject"], one["block"]) for one in no_rankings}
    rows = []
    for key, cells in blocks.items():
        printed = ", ".join(f"{one['method']} {one['accuracy']:.2f} ({one['printed_rank']:g})" for one in cells)
        ranks = ", ".join(f"{one['rank']:g}" for one in cells)
        rows.append((*key, printed, ranks, "two methods share a printed rank" if key in none else ""))
    header = ("subject", "block", "as printed", "ranks of the accuracies", "comment")
    return Table("Printed ranks that disagree with their accuracies", header, rows)


def all_tables(document: Mapping[str, Any]) -> list[Table]:
    """All that have a row."""
    found = document["comparisons"]
    wrong = wrong_ranks(document["wrong_ranks"], document["no_rankings"])
    made = [overview(found), methods(found), pairs(found), claims(document["claims"]), wrong]
    return [table for table in made if table.rows]


def of_claims(document: Mapping[str, Any]) -> Entries:
    """The comparisons of the table that the paper's claims are of.

    Raises:
        ValueError: the document has no claims.
    """
    subjects = {one["subject"] for one in document["claims"]}
    if not subjects:
        raise ValueError("document: got no claims; expected those of a paper's table")
    return [one for one in document["comparisons"] if one["subject"] in subjects]


def report(document: Mapping[str, Any]) -> str:
    """For docs/: the paper's claims and their table, then the same tests over all of its tables."""
    claimed = of_claims(document)
    shown = [one for one in document["comparisons"] if one in claimed or one["basis"] in (ACCURACIES, MODELS)]
    wrong = wrong_ranks(document["wrong_ranks"], document["no_rankings"])
    parts = (claims(document["claims"]), pairs(claimed, of_best=True), overview(shown), wrong)
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    found = [f"**{table.title}**\n\n{markdown(table)}" for table in parts]
    return "\n\n".join([*found, f"alpha {document['alpha']:g} where nothing else is said; {versions}."])


def _statistics(folder: Path) -> str:
    path = folder / "paper" / FILE_NAME
    return report(load_document(path)) if path.exists() else NOTHING


REPORTS: dict[str, Callable[[Path], str]] = {"statistics": _statistics}
