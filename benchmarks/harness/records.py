"""A record: one JSONL file of rows that one or several runs of a benchmark measured on one device.

The first lines describe the runs, the others are rows, or failures, each of one run:

    {"run": {"id": ..., "suite": ..., "date": ..., "device": ..., "versions": ..., "commit": ..., "settings": ...}}
    {"run": id, "key": {"case": ..., "implementation": ..., ...}, "ms": ..., ...}
    {"run": id, "key": {"case": ..., "implementation": ...}, "failure": reason}

The key of a row is unique. Its case names what is measured together: a case is always of one run, and a run that
resumes measures again every case that an earlier run did not measure whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from benchmarks.harness import machine
from benchmarks.harness.files import DamagedFileError, replacing

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".jsonl"
NO_TIME = "no time was left"  # the reason of what a case had to leave out
SAME = ("suite", "device", "versions", "settings")  # from run to run


class Case(Protocol):
    """What is measured together."""

    @property
    def label(self) -> str:
        """Unique within a benchmark."""

    @property
    def implementations(self) -> tuple[str, ...]:
        """Those that it compares: it was measured whole if there are rows of all of them."""


SomeCase = TypeVar("SomeCase", bound=Case)


@dataclass(frozen=True)
class Named:
    """A case that is no more than its name."""

    label: str
    implementations: tuple[str, ...] = ()


@dataclass
class Record:
    """Runs, the last one being the newest; rows; and failures, which are rows with a reason and no values."""

    runs: list[dict[str, Any]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def run(self) -> dict[str, Any]:
        """The newest run; of all, device, versions and settings are the same."""
        return self.runs[-1]

    def add(self, case: str, found: Iterable[Mapping[str, Any]], key: Collection[str]) -> None:
        """Add rows and failures of the newest run; the fields that ``key`` names become a part of the key."""
        for row in found:
            whose = {"case": case, **{name: value for name, value in row.items() if name in key}}
            values = {name: value for name, value in row.items() if name not in key}
            (self.failures if "failure" in row else self.rows).append({"run": self.run["id"], "key": whose, **values})

    def cases(self) -> dict[str, set[str]]:
        """The implementations that were measured, by case."""
        found: dict[str, set[str]] = {}
        for row in self.rows:
            found.setdefault(row["key"]["case"], set()).add(row["key"].get("implementation", ""))
        return found

    def missing(self, cases: Sequence[SomeCase]) -> list[SomeCase]:
        """The cases without any row or failure of their own."""
        known = self.cases().keys() | {failure["key"]["case"] for failure in self.failures}
        return [case for case in cases if case.label not in known]

    def unfinished(self, cases: Sequence[SomeCase]) -> list[SomeCase]:
        """The cases that were not measured whole: something is missing, failed, or ended for want of time."""
        again = {failure["key"]["case"] for failure in self.failures}
        again |= {row["key"]["case"] for row in self.rows if not row.get("ended", True)}
        measured = self.cases()
        return [
            case
            for case in cases
            if case.label in again or not measured.get(case.label, set()) >= set(case.implementations or ("",))
        ]

    def resume(self, former: Record, cases: Sequence[SomeCase]) -> list[SomeCase]:
        """Take over all that an earlier record holds, but for the cases that are to be measured again.

        Returns:
            The cases that are left.

        Raises:
            ValueError: the earlier run was of another suite, on another device, with other versions or settings.
        """
        for name in SAME:
            if former.run[name] != self.run[name]:
                got, expected = former.run[name], self.run[name]
                raise ValueError(f"resume: got {name} {got}; expected what is measured now, {expected}")
        left = former.unfinished(cases)
        again = {case.label for case in left}
        self.rows, self.failures = (
            [row for row in rows if row["key"]["case"] not in again] for rows in (former.rows, former.failures)
        )
        used = {row["run"] for row in (*self.rows, *self.failures)}
        earlier = [run for run in former.runs if run["id"] in used]
        self.runs = [*earlier, self.run] if left or not earlier else earlier
        return left

    def when(self) -> str:
        """For a headline: the day; of several runs, with their commits."""
        by_run: dict[str, set[str]] = {}
        for row in self.rows:
            by_run.setdefault(row["run"], set()).add(row["key"]["case"])
        if len(self.runs) == 1:
            return str(self.run["date"][:10])
        return "in several runs: " + ", ".join(
            f"{len(by_run[run['id']])} cases on {run['date'][:10]} ({machine.commit_name(run['commit'])})"
            for run in self.runs
            if run["id"] in by_run
        )

    def frame(self) -> pd.DataFrame:
        """The rows, keys and values beside each other."""
        import pandas as pd  # noqa: PLC0415 (a machine with a GPU may lack it)

        return pd.DataFrame([{**row["key"], **{k: v for k, v in row.items() if k != "key"}} for row in self.rows])

    def save(self, path: Path) -> None:
        """Write the record so that a reader, or a crash, finds either the old file or the new one."""
        lines = [*({"run": run} for run in self.runs), *self.rows, *self.failures]
        with replacing(path) as unfinished:
            unfinished.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def new_record(suite: str, device: Mapping[str, Any], versions: Mapping[str, str], **settings: Any) -> Record:
    """A record without rows that describes this moment (UTC)."""
    date = machine.now()
    run = {
        "id": date[:19].replace("-", "").replace(":", ""),
        "suite": suite,
        "date": date,
        "device": dict(device),
        "versions": dict(versions),
        "commit": machine.commit(),
        "settings": settings,
    }
    return Record([run])


def load(path: Path) -> Record:
    """Read a record.

    Raises:
        DamagedFileError: the file is no record.
    """
    record = Record([])
    try:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "key" not in entry:
                record.runs.append(entry["run"])
            elif "failure" in entry:
                record.failures.append(entry)
            else:
                record.rows.append(entry)
    except (ValueError, TypeError, KeyError, IsADirectoryError) as error:
        raise DamagedFileError(path, f"no valid record: {error}") from error
    if not record.runs:
        raise DamagedFileError(path, "no valid record: it describes no run")
    return record
