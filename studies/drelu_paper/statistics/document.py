"""The result file of the statistics: comparisons, and what the paper prints beside what its tables give."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from benchmarks.harness.files import SCHEMA
from studies.drelu_paper.paper import printed
from studies.drelu_paper.paper import tables as paper
from studies.drelu_paper.statistics.comparison import Comparison, compare, compare_ranks
from studies.drelu_paper.statistics.frames import Missing, complete

FILE_NAME = "statistics.json"
PACKAGES = ("scipy", "scikit-posthocs", "pandas")

# What a comparison's ranks are of.
ACCURACIES = "accuracies"
PRINTED_RANKS = "printed ranks"
REPAIRED_RANKS = "printed ranks, ranked again in each block"
MODELS = "means over the attacks, a block per model"

# ``comparisons`` as ``Comparison`` has them, each with ``subject`` and ``basis``; an infinite statistic is null. The
# other lists are of the paper's tables alone: ``wrong_ranks``, ``no_rankings``, and ``claims`` with ``holds``.
Document = dict[str, Any]


def of_results(
    accuracies: pd.DataFrame, subject: str, alpha: float, missing: Missing, basis: str = ACCURACIES
) -> Document:
    """One comparison, of a frame of blocks x methods; errors are those of ``compare``."""
    return _document(alpha, [_entry(subject, basis, compare(accuracies, alpha, missing))])


def of_paper(numbers: Sequence[int], alpha: float, missing: Missing) -> Document:
    """The comparisons of the paper's tables; errors are those of ``compare``, and that the paper has no such table."""
    document = _document(alpha, [])
    for number in numbers:
        for dataset in paper.datasets(number):
            _add(document, paper.load(number, dataset), alpha, missing)
    return document


def _add(document: Document, table: paper.PaperTable, alpha: float, missing: Missing) -> None:
    kept, _ = complete(table.accuracies, missing)
    wrong, no_rankings = printed.wrong_ranks(table), printed.no_rankings(table)
    found = {ACCURACIES: compare(table.accuracies, alpha, missing)}
    ranks = table.ranks.loc[kept.index]
    if wrong:
        found[PRINTED_RANKS] = compare_ranks(ranks, alpha)
    if no_rankings:
        found[REPAIRED_RANKS] = compare_ranks(ranks.rank(axis=1), alpha)
    # Rounded far below the paper's two digits, so that equal means tie.
    found[MODELS] = compare(kept.groupby(level="model", sort=False).mean().round(9), alpha)
    document["comparisons"] += [_entry(table.subject, basis, comparison) for basis, comparison in found.items()]
    document["wrong_ranks"] += [{"subject": table.subject, **asdict(one)} for one in wrong]
    document["no_rankings"] += [{"subject": table.subject, "block": block} for block in no_rankings]
    if table.number == printed.TABLE_OF_CLAIMS:
        claims = printed.claims(found[ACCURACIES], found[PRINTED_RANKS])
        document["claims"] += [{"subject": table.subject, **asdict(one), "holds": one.holds} for one in claims]


def _document(alpha: float, comparisons: list[dict[str, Any]]) -> Document:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "schema": SCHEMA, "complete": True, "versions": versions, "alpha": alpha, "comparisons": comparisons,
        "wrong_ranks": [], "no_rankings": [], "claims": [],
    }  # fmt: skip


def _entry(subject: str, basis: str, comparison: Comparison) -> dict[str, Any]:
    entry = {"subject": subject, "basis": basis, **asdict(comparison)}
    for test in entry["tests"]:
        if math.isinf(test["statistic"]):
            test["statistic"] = None  # JSON has no infinity.
    return entry
