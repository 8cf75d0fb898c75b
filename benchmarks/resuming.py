"""Runs that add up: a suite goes on from an earlier run's file, and its own file says which run measured what.

A case is always of one run: of which something failed, or had no time, it is measured again as a whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from benchmarks.harness.machine import Commit, commit_name, load

Item = TypeVar("Item")
# Where a document's rows are, by the name of the field, and how the case is called of which one is.
Rows = Mapping[str, Callable[[Any], str]]
CHANGES = ("complete", "date", "commit", "earlier", "missing", "failures")  # and the rows, from run to run


class Run(TypedDict):
    """What an earlier run of the same suite on the same device measured, by the names of its cases."""

    date: str
    commit: Commit | None
    cases: list[str]


def failed_cases(document: Mapping[str, Any]) -> Iterable[str]:
    """For suites whose failures call a case as ``run_cases`` does."""
    return [failure["case"] for failure in document["failures"]]


@dataclass(frozen=True)
class Suite(Generic[Item]):
    """How a suite tells its cases apart.

    Attributes:
        name: what ``run_cases`` calls a case.
        implementations: those of a case: it was measured whole if there are rows of all of them.
        rows: see ``Rows``.
        failed: the names of the cases of which a document says that something was not measured.
    """

    name: Callable[[Item], str]
    implementations: Callable[[Item], Collection[str]]
    rows: Rows
    failed: Callable[[Mapping[str, Any]], Iterable[str]] = failed_cases


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="an earlier run's file, on this device and with these versions, to go on from",
    )


def cases_left(
    parser: argparse.ArgumentParser, path: Path | None, document: Any, cases: Sequence[Item], suite: Suite[Item]
) -> list[Item]:
    """``go_on`` from the file that ``--resume`` named; all cases if it named none; ends the program if it cannot."""
    if path is None:
        return list(cases)
    try:
        left = go_on(document, load(path), cases, suite)
    except (OSError, ValueError) as error:
        parser.error(f"--resume: {error}")
    print(f"taken over from {path}: {len(cases) - len(left)} cases; left: {len(left)}", flush=True)
    return left


def go_on(document: Any, former: Mapping[str, Any], cases: Sequence[Item], suite: Suite[Item]) -> list[Item]:
    """Take over the cases that an earlier run measured whole.

    Args:
        document: a new one, of this run.
        former: the earlier run's.
        cases: all that are to be in the document in the end.

    Returns:
        The cases that are left. If none is, the document is of the earlier run's date and commit.

    Raises:
        ValueError: the earlier run was on another device, with other versions or settings, or has rows of other cases.
    """
    for name, value in document.items():
        if name not in CHANGES and name not in suite.rows and former.get(name) != value:
            raise ValueError(f"resume: got {name} {former.get(name)}; expected what is measured now, {value}")
    try:
        measured = _implementations(former, suite.rows)
        failed = set(suite.failed(former))
    except KeyError as error:
        raise ValueError(f"resume: got a file without {error}; expected one of this suite") from error
    known = {suite.name(case): case for case in cases}
    unknown = [name for name in measured if name not in known]
    if unknown:
        raise ValueError(f"resume: got rows of {unknown[0]!r}; expected those of the cases of this run alone")
    done = {
        name: None
        for name, who in measured.items()
        if name not in failed and who >= set(suite.implementations(known[name]))
    }
    left = [case for name, case in known.items() if name not in done]
    earlier: list[Run] = former.get("earlier", [])
    of_earlier = {name for run in earlier for name in run["cases"]}
    if left:
        last: Run = {
            "date": former["date"],
            "commit": former["commit"],
            "cases": [name for name in done if name not in of_earlier],
        }
        runs: list[Run] = [{**run, "cases": [name for name in run["cases"] if name in done]} for run in earlier]
        document["earlier"] = [run for run in (*runs, last) if run["cases"]]
    else:
        document.update(date=former["date"], commit=former["commit"], earlier=earlier)
    for field, name_of in suite.rows.items():
        document[field] = [row for row in former[field] if name_of(row) in done]
    return left


def _implementations(document: Mapping[str, Any], rows: Rows) -> dict[str, set[str]]:
    """Who was measured, by the name of the case."""
    found: dict[str, set[str]] = {}
    for field, name_of in rows.items():
        for row in document[field]:
            found.setdefault(name_of(row), set()).add(row["implementation"])
    return found


def dates(document: Mapping[str, Any], rows: Rows) -> str:
    """For a headline: the day; of several runs, with their commits."""
    # Older files do not have it.
    earlier: list[Run] = document.get("earlier", [])
    if not earlier:
        return str(document["date"][:10])
    taken = {name for run in earlier for name in run["cases"]}
    last: Run = {
        "date": document["date"],
        "commit": document["commit"],
        "cases": [name for name in _implementations(document, rows) if name not in taken],
    }
    return "in several runs: " + ", ".join(
        f"{len(cases)} cases on {date[:10]} ({commit_name(commit)})"
        for date, commit, cases in ((run["date"], run["commit"], run["cases"]) for run in (*earlier, last))
        if cases
    )
