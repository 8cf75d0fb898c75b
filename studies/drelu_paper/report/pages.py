"""What documents and ``docs/pictures`` show of the committed studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.harness.table import Table, markdown
from studies.drelu_paper import configuration, records
from studies.drelu_paper.configuration import Study
from studies.drelu_paper.records import Record
from studies.drelu_paper.report import tables

FOLDER_NAME = "robustness"
STUDIES = ("digits", "digits-initial-cap", "digits-bounds", "digits-paper-mode")
NOTHING = "No run has been made yet."


def pictures(results: Path) -> dict[str, Callable[[Path], None]]:
    """The pictures of all committed studies with records below ``results``: their file names, and what draws each."""
    found: dict[str, Callable[[Path], None]] = {}
    for study, runs in _studies(results):
        for kind in study.pictures if runs else ():
            found[_picture_name(study, kind)] = partial(_draw, study, kind, runs)
    return found


def _draw(study: Study, kind: str, runs: Sequence[Record], path: Path) -> None:
    from studies.drelu_paper.report.pictures import draw  # noqa: PLC0415 (matplotlib is slow to import)

    draw(study, kind, runs, path)


def _picture_name(study: Study, kind: str) -> str:
    return f"robustness-{study.name}-{kind.replace('_', '-')}.png"


def _studies(results: Path) -> list[tuple[Study, list[Record]]]:
    studies = [configuration.read(name) for name in STUDIES]
    return [(study, records.found(study.runs, results / FOLDER_NAME)) for study in studies]


def _report(make: Callable[[Study, Sequence[Record]], Table], names: Sequence[str]) -> Callable[[Path], str]:
    def report(results: Path) -> str:
        parts = []
        for study, found in _studies(results):
            if study.name in names and found:
                table = make(study, found)
                parts.append(f"**{table.title}** ({_described(study, found)})\n\n{markdown(table)}")
        return "\n\n".join(parts) or NOTHING

    return report


def _described(study: Study, found: Sequence[Record]) -> str:
    """On what, and how much of the study there is."""
    devices = sorted({f"{one['device']['name']}, {one['device'].get('cores', '?')} cores" for one in found})
    dates = sorted({one["date"][:10] for one in found})
    torches = sorted({one["versions"]["torch"] for one in found})
    span = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    samples = "/".join(sorted({str(one["evaluation"]["samples"]) for one in found}, key=int))
    eps = "/".join(sorted({f"{one['evaluation']['eps']:g}" for one in found}, key=float))
    return (
        f"{len(found)} of {len(study.runs)} runs; {samples} test inputs, eps {eps}; "
        f"{'; '.join(devices)}; torch {', '.join(torches)}; {span}"
    )


def _pictures(results: Path) -> str:
    blocks = [
        f"![{study.title}](pictures/{_picture_name(study, kind)})\n\n"
        f"{study.title}: `benchmarks/results/{FOLDER_NAME}, study {study.name}`."
        for study, found in _studies(results)
        for kind in (study.pictures if found else ())
    ]
    return "\n\n".join(blocks) or NOTHING


REPORTS: dict[str, Callable[[Path], str]] = {
    "robustness": _report(lambda study, found: tables.table(study.title, found, study.columns), ("digits",)),
    "robustness-adaptive": _report(lambda study, found: tables.adaptive_table(study.title, found), ("digits",)),
    "robustness-others": _report(lambda study, found: tables.table(study.title, found, study.columns), STUDIES[1:]),
    "robustness-cost": _report(lambda study, found: tables.cost_table(study.title, found), STUDIES),
    "robustness-pictures": _pictures,
}
