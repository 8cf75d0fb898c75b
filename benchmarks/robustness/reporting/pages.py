"""What stands of the committed studies in documents and in ``docs/pictures``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.table import Table, markdown
from benchmarks.robustness.reporting import tables
from benchmarks.robustness.study import configuration, records
from benchmarks.robustness.study.configuration import Study
from benchmarks.robustness.study.records import Record

FOLDER_NAME = "robustness"
STUDIES = ("digits", "digits-initial-cap", "digits-bounds", "digits-paper-mode")
NOTHING = "No run has been made yet."


@dataclass(frozen=True)
class StudyPicture:
    """One that there is to be, of a study with records."""

    study: Study
    kind: str
    results: Path

    @property
    def name(self) -> str:
        return f"robustness-{self.study.name}-{self.kind.replace('_', '-')}.png"

    @property
    def title(self) -> str:
        return self.study.title

    @property
    def source(self) -> str:
        return f"{self.results.name}, study {self.study.name}"

    def draw(self, path: Path) -> None:
        from benchmarks.robustness.reporting.pictures import draw  # noqa: PLC0415 (matplotlib)

        draw(self.study, self.kind, records.found(self.study.runs, self.results), path, self.source)


def pictures(results: Path) -> list[StudyPicture]:
    """Those of all committed studies of which there are records below ``results``."""
    folder = results / FOLDER_NAME
    if not folder.is_dir():
        return []
    studies = [study for study, found in _studies(folder) if found]
    return [StudyPicture(study, kind, folder) for study in studies for kind in study.pictures]


def _studies(folder: Path) -> list[tuple[Study, list[Record]]]:
    studies = [configuration.read(name) for name in STUDIES]
    return [(study, records.found(study.runs, folder)) for study in studies]


def _report(make: Callable[[Study, Sequence[Record]], Table], names: Sequence[str]) -> Callable[[Path], str]:
    def report(results: Path) -> str:
        blocks = []
        for study, found in _studies(results / FOLDER_NAME):
            if study.name in names and found:
                table = make(study, found)
                blocks.append(f"**{table.title}** ({_described(study, found)})\n\n{markdown(table)}")
        return "\n\n".join(blocks) or NOTHING

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


REPORTS: dict[str, Callable[[Path], str]] = {
    "robustness": _report(lambda study, found: tables.table(study.title, found, study.columns), ("digits",)),
    "robustness-adaptive": _report(lambda study, found: tables.adaptive_table(study.title, found), ("digits",)),
    "robustness-others": _report(lambda study, found: tables.table(study.title, found, study.columns), STUDIES[1:]),
    "robustness-cost": _report(lambda study, found: tables.cost_table(study.title, found), STUDIES),
    "robustness-pictures": lambda results: (
        "\n\n".join(
            f"![{one.title}](pictures/{one.name})\n\n{one.title}: `benchmarks/results/{one.source}`."
            for one in pictures(results)
        )
        or NOTHING
    ),
}
