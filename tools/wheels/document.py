"""The result file: which wheels were tried, where, and with what outcome; and its tables."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import files, machine
from benchmarks.harness.table import MISSING, Table

FILE_NAME = "wheels.json"
LIBRARY = "dreluop/_ops.abi3.so"
LEGEND = (
    "What failed or is missing is named in the file. Import: `import dreluop` after `import torch`, the "
    "median of new processes: CPU time, and what the clock showed on the machine as it was (load: processes that "
    "wanted its cores)."
)


@dataclass
class Row:
    """One environment.

    Attributes:
        failure: what went wrong, None if nothing did.
        compilers: those that the environment can find.
        missing_symbols: those that the operator library needs and neither torch nor the system has.
        skipped: counts by reason.
        import_ms, import_cpu_ms: medians over ``import_processes`` processes; load: the machine's load meanwhile.
    """

    python: str = ""
    torch: str = ""
    wheel: str | None = None
    date: str = field(default_factory=machine.now)
    failure: str | None = None
    compilers: list[str] = field(default_factory=list)
    missing_symbols: list[str] = field(default_factory=list)
    self_check: str | None = None
    tests: list[str] = field(default_factory=list)
    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    test_seconds: float | None = None
    import_ms: float | None = None
    import_cpu_ms: float | None = None
    import_processes: int = 0
    load: float | None = None


def new_document(wheels: list[Path]) -> dict[str, Any]:
    """A document without rows, of this machine and moment; ``commit`` is of the files that run the tests."""
    return {
        "schema": files.SCHEMA,
        "date": machine.now(),
        "device": machine.describe_device(torch.device("cpu")),
        "commit": machine.commit(),
        "wheels": [describe(path) for path in wheels],
        "rows": [],
    }


def describe(path: Path) -> dict[str, Any]:
    """Sizes of a wheel in bytes: the file, its content, and its operator library, if it has one."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        library = archive.read(LIBRARY) if LIBRARY in archive.namelist() else None
    return {
        "name": path.name,
        "bytes": path.stat().st_size,
        "unpacked": sum(entry.file_size for entry in entries),
        "library_bytes": None if library is None else len(library),
        "library_sha256": None if library is None else hashlib.sha256(library).hexdigest(),
    }


def rows_of_the_same_wheels(path: Path, document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file has of wheels with the same content as the document's.

    Raises:
        ValueError: the file is no JSON, or not of this schema.
    """
    before: Any = files.load_document(path)
    same = {wheel["name"] for wheel in document["wheels"] if wheel in before["wheels"]}
    return [row for row in before["rows"] if row["wheel"] in same]


def put(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    """Add a row in its order, in place of one of the same versions."""
    rows[:] = sorted([*(other for other in rows if _versions(other) != _versions(row)), row], key=_versions)


def _versions(row: dict[str, Any]) -> tuple[list[int], list[int], str]:
    """For sorting: 2.9 comes before 2.10."""
    python, torch = ([int(part) for part in re.findall(r"\d+", row[key].split("+")[0])] for key in ("python", "torch"))
    return python, torch, row["torch"]


def headline(document: dict[str, Any]) -> str:
    device, commit = document["device"], document["commit"]
    of = "" if commit is None else f"; commit {commit['hash'][:10]}{', changed' if commit['dirty'] else ''}"
    return f"{device['name']}, {device['cores']} cores; {document['date'][:10]}{of}"


def wheel_table(document: dict[str, Any]) -> Table:
    sizes = ("bytes", "unpacked", "library_bytes")
    rows = [(wheel["name"], *(_megabytes(wheel[size]) for size in sizes)) for wheel in document["wheels"]]
    return Table("Wheels", ("wheel", "MB", "unpacked, MB", "of it `_ops.abi3.so`, MB"), rows)


def environment_table(document: dict[str, Any]) -> Table:
    header = (
        *("Python", "torch", "wheel for", "outcome", "passed", "failed", "skipped"),
        *("symbols missing", "import, CPU ms", "import, ms (load)"),
    )
    return Table("Environments", header, [_environment(row) for row in document["rows"]])


def _environment(row: dict[str, Any]) -> tuple[str, ...]:
    wheel = MISSING if row["wheel"] is None else row["wheel"].split("-")[2]
    outcome = "passed" if row["failure"] is None else f"**failed**: {row['failure'].splitlines()[0]}"
    counts = (row["passed"], len(row["failed"]), sum(row["skipped"].values()), len(row["missing_symbols"]))
    times = (MISSING, MISSING)
    if row["import_ms"] is not None:
        times = (f"{row['import_cpu_ms']:.0f}", f"{row['import_ms']:.0f} ({row['load']:.1f})")
    return (row["python"], row["torch"], wheel, outcome, *map(str, counts), *times)


def _megabytes(size: int | None) -> str:
    return MISSING if size is None else f"{size / 1e6:.2f}"
